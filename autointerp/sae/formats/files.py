"""Read the files that SAE formats are made of (JSON, safetensors, pickles); a broken one is one clear line."""

from __future__ import annotations

import json
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
    import struct

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
    import zipfile
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
    found: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        key = theirs.removesuffix("ᵀ")
        if not hasattr(stored.get(key), "shape"):
            raise AutointerpError(f"{path} lacks the tensor {key!r}; is it whole, and of this format?")
        tensor = stored[key].float()
        if theirs.endswith("ᵀ"):
            if tensor.ndim != 2:
                raise AutointerpError(f"{path}: {key} has the shape {tuple(tensor.shape)}, expected a matrix")
            tensor = tensor.T
        found[ours] = tensor
    return found


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
