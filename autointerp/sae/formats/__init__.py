"""The file formats of SAEs by name, and which one a file or folder has; one file each.

A format is a module or object with

    def detect(path: Path) -> bool      # does this file or folder look like mine? reads names and JSON, no weights
    def load(path: Path) -> tuple[SAEConfig, dict[str, Tensor]]     # float32 tensors on the CPU
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autointerp.errors import ConfigError
from autointerp.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from autointerp.sae.model import SAEConfig


class Format(Protocol):
    def detect(self, path: Path) -> bool: ...

    def load(self, path: Path) -> tuple[SAEConfig, dict[str, Tensor]]: ...


def _check(target: object) -> str | None:
    lacking = [name for name in ("detect", "load") if not callable(getattr(target, name, None))]
    return f"lacks the function {lacking[0]}" if lacking else None


FORMATS: Registry[Format] = Registry(
    "SAE format",
    "autointerp.sae_formats",
    {
        "saelens": "autointerp.sae.formats.saelens:FORMAT",
        "sparsify": "autointerp.sae.formats.sparsify:FORMAT",
        "dictionary_learning": "autointerp.sae.formats.dictionary_learning:FORMAT",
        "gemma_scope": "autointerp.sae.formats.gemma_scope:FORMAT",
        "gemma_scope_2": "autointerp.sae.formats.gemma_scope_2:FORMAT",
        "qwen_scope": "autointerp.sae.formats.qwen_scope:FORMAT",
        "llama_scope": "autointerp.sae.formats.llama_scope:FORMAT",
        "circuit_transcoders": "autointerp.sae.formats.circuit_transcoders:FORMAT",
        "linear_layers": "autointerp.sae.formats.linear_layers:FORMAT",
        "attention_z": "autointerp.sae.formats.attention_z:FORMAT",
        "temporal": "autointerp.sae.formats.temporal:FORMAT",
        "neurons": "autointerp.sae.formats.neurons:FORMAT",
        "openai": "autointerp.sae.formats.openai:FORMAT",
    },
    _check,
)


def find_format(path: Path, name: str | None) -> tuple[str, Format]:
    """The named format, or the one that knows these files."""
    if name is not None:
        return name, FORMATS.get(name)
    if not path.exists():
        raise ConfigError(f"no SAE at {path}")
    fitting = formats_of(path)
    if len(fitting) == 1:
        return fitting[0], FORMATS.get(fitting[0])
    held = sorted(p.name + ("/" if p.is_dir() else "") for p in path.iterdir())[:12] if path.is_dir() else [path.name]
    what = f"{path}: "
    if fitting:
        raise ConfigError(f"{what}could be of the formats {', '.join(fitting)}: name one (sae.format)")
    raise ConfigError(
        f"{what}no known SAE format; found {', '.join(held) or 'an empty folder'}; "
        f"known formats: {', '.join(FORMATS.names())} (name one with sae.format)"
    )


def formats_of(path: Path) -> list[str]:
    """The formats that say that these files are theirs."""
    return [name for name in FORMATS.names() if FORMATS.get(name).detect(path)]
