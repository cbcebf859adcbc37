"""What an SAE's files say of it (width, architecture, hook) without its weights being read: for plan and doctor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp.sae.formats.files import safetensors_shapes

NOT_IN_KEYS = "no stage's work reads it"

_JSON = ("cfg.json", "config.json", "hyperparams.json")
_WIDTH = ("d_in", "activation_dim", "d_model")
_LATENTS = ("d_sae", "num_latents", "dict_size")


@dataclass(frozen=True)
class Description:
    """None where the files do not say it in a form that is known."""

    d_in: int | None = None
    d_sae: int | None = None
    k: int | None = None  # active latents a token
    hook_name: str | None = None


def describe(path: Path) -> Description:
    """Of an SAE's local file or folder; whatever cannot be read is None."""
    raw: dict[str, Any] = {}
    if path.is_dir():
        for name in _JSON:
            raw |= _flat(_json(path / name))
    d_in, d_sae = _whole(raw, _WIDTH), _whole(raw, _LATENTS)
    if d_sae is None and d_in is not None and isinstance(raw.get("expansion_factor"), int | float):
        d_sae = int(d_in * raw["expansion_factor"])
    if d_sae is None or d_in is None:
        rows, columns = _decoder_shape(path)
        d_sae, d_in = d_sae or rows, d_in or columns
    hook = raw.get("hook_name") or raw.get("hook_point")
    return Description(d_in, d_sae, _whole(raw, ("k",)), hook if isinstance(hook, str) else None)


def _json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _flat(raw: Mapping[str, Any]) -> dict[str, Any]:
    """With what stands in the parts that formats have."""
    parts = [raw[name] for name in ("metadata", "trainer") if isinstance(raw.get(name), dict)]
    flat = {name: value for part in (raw, *parts) for name, value in part.items() if value is not None}
    return flat


def _whole(raw: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((int(raw[name]) for name in names if isinstance(raw.get(name), int) and raw[name] > 0), None)


def _decoder_shape(path: Path) -> tuple[int | None, int | None]:
    """[latents, width] of the decoder, from the header of a .safetensors or .npz file."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        shapes: Mapping[str, Any] = {}
        if file.suffix == ".safetensors":
            shapes = safetensors_shapes(file)
        elif file.suffix == ".npz":
            shapes = _npz_shapes(file)
        for name in ("W_dec", "w_dec"):
            if len(shapes.get(name, ())) == 2:
                return shapes[name][0], shapes[name][1]
        if len(shapes.get("decoder.weight", ())) == 2:  # a linear layer's: [out, in]
            return shapes["decoder.weight"][1], shapes["decoder.weight"][0]
    return None, None


def _npz_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    import zipfile

    import numpy as np

    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                    if read is not None:
                        shapes[name.removesuffix(".npy")] = read(member)[0]
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
    return shapes
