"""What a model's config.json says of it (width, layers) without the model being loaded: for plan and doctor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from autointerp.catalog import cached_folder

NOT_IN_KEYS = "no stage's work reads it"

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "inner": ("intermediate_size", "n_inner", "ffn_dim"),
    "context": ("max_position_embeddings", "n_positions", "n_ctx"),
}


@dataclass(frozen=True)
class ModelDescription:
    """None where it is not said, or the files are not on this disk."""

    layers: int | None = None
    width: int | None = None  # of the residual stream
    inner: int | None = None  # of the MLP
    context: int | None = None  # tokens that it reads


def described_subject(name: str) -> ModelDescription:
    """Of a model by path or by its name in the catalogue; nothing is fetched."""
    folder = cached_folder(name)
    return ModelDescription() if folder is None else described_model(folder)


def described_model(folder: Path) -> ModelDescription:
    """Of a Hugging Face folder."""
    try:
        raw = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return ModelDescription()
    if not isinstance(raw, dict):
        return ModelDescription()
    if isinstance(raw.get("text_config"), dict):
        raw = raw | raw["text_config"]
    return ModelDescription(
        **{what: next((raw[n] for n in names if isinstance(raw.get(n), int)), None) for what, names in _NAMES.items()}
    )


def has_chat_template(folder: Path) -> bool:
    """Whether a Hugging Face folder says how a model's chat is written."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        return '"chat_template"' in (folder / "tokenizer_config.json").read_text()
    except (OSError, ValueError):
        return False
