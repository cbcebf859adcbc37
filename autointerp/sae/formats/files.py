"""Read the files that SAE formats are made of (JSON, YAML, safetensors, pickles); a broken one is one clear line."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    from torch import Tensor


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise AutointerpError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AutointerpError(f"{path} is not JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise AutointerpError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise AutointerpError(f"{path} is missing") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = (str(error).strip() or "?").splitlines()[0]
        raise AutointerpError(f"{path} is not YAML ({first}): download it again") from error
    if not isinstance(value, dict):
        raise AutointerpError(f"{path} holds a {type(value).__name__}, expected keys and values")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise AutointerpError(f"{path} is missing") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise AutointerpError(f"{path} cannot be read as safetensors ({error}): download it again") from error


def read_pickle(path: Path) -> dict[str, Any]:
    """`read_torch` of a file that holds tensors by name."""
    value = read_torch(path)
    if not isinstance(value, dict):
        raise AutointerpError(f"{path} holds a {type(value).__name__}, expected tensors by name")
    return value


def read_torch(path: Path) -> Any:
    """A torch file of plain tensors, numbers and names. A pickle that would run code is refused, not run."""
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise AutointerpError(f"{path} is missing") from None
    except pickle.UnpicklingError as error:
        raise AutointerpError(
            f"{path} is no plain file of tensors: it is damaged, or a pickle that would run code, which is never loaded"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, struct.error) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AutointerpError(f"{path} cannot be read as a torch file ({first}): download it again") from error


def read_npz(path: Path) -> dict[str, Tensor]:
    import zlib

    import numpy as np
    import torch

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except FileNotFoundError:
        raise AutointerpError(f"{path} is missing") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise AutointerpError(f"{path} cannot be read as arrays ({error}): download it again") from error


def floats(stored: dict[str, Any], names: dict[str, str], path: Path) -> dict[str, Tensor]:
    """The tensors `names` {stored name: ours} as float32; a name that ends in ᵀ is transposed."""
    tensors: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        key = theirs.removesuffix("ᵀ")
        if not hasattr(stored.get(key), "shape"):
            raise AutointerpError(f"{path} lacks the tensor {key!r}; is it whole, and of this format?")
        tensor = stored[key].float()
        if theirs.endswith("ᵀ"):
            if tensor.ndim != 2:
                raise AutointerpError(f"{path}: {key} has the shape {tuple(tensor.shape)}, expected a matrix")
            tensor = tensor.T
        tensors[ours] = tensor
    return tensors


def exactly(stored: dict[str, Any], names: dict[str, str], path: Path) -> dict[str, Tensor]:
    """`floats`, where the file holds no other tensor: one that is not known could change what the SAE computes."""
    known = {name.removesuffix("ᵀ") for name in names}
    if extra := sorted(stored.keys() - known):
        raise AutointerpError(f"{path} holds {', '.join(extra[:6])}, which this format has no use for")
    return floats(stored, names, path)


def safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a file by its header alone; {} where there is none that can be read: for `detect`."""
    try:
        with open(path, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(length, 1 << 24)))
        return {name: about["shape"] for name, about in header.items() if isinstance(about, dict) and "shape" in about}
    except (OSError, ValueError, struct.error, AttributeError):
        return {}


def torch_names(path: Path) -> frozenset[str]:
    """The strings in a torch file's pickle, tensor names among them, with nothing unpickled: for `detect`."""
    try:
        if not zipfile.is_zipfile(path):  # as torch wrote before 1.6: pickles end to end
            with open(path, "rb") as opened:
                return frozenset(text for _ in range(4) for text in _pickled_texts(opened))
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            return frozenset(_pickled_texts(io.BytesIO(archive.read(name))))
    except (OSError, ValueError, zipfile.BadZipFile):
        return frozenset()


def _pickled_texts(opened: Any) -> Iterator[str]:
    return (argument for _, argument, _ in pickletools.genops(opened) if isinstance(argument, str))


def read_json_if(path: Path) -> dict[str, Any]:
    """{} where there is no such file or it is no JSON object: for `detect`."""
    try:
        value = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def field(config: dict[str, Any], name: str, path: Path) -> Any:
    if config.get(name) is None:
        raise AutointerpError(f"{path} does not say {name!r}")
    return config[name]


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
