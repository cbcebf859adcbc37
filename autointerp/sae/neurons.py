"""A model's own neurons as features, without an SAE: each activation at a hook point is a latent.

Kept in the run's folder as ``neurons.safetensors`` (what each latent writes) and ``neurons.json``; the SAE format
``neurons`` reads them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autointerp.artifacts import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from autointerp.subject.model import Subject


def save_neurons(
    subject: Subject, folder: Path, *, signed: bool, k: int | None, model_name: str, context_size: int, bos: bool
) -> None:
    """Write the neurons at the subject's hook into `folder`.

    A neuron of an MLP (``mlp.hook_post``) writes its row of the MLP's output matrix, so that the neurons are a
    transcoder to ``hook_mlp_out``. At any other hook a latent is a direction of that hook itself. What is negative is
    silent; with `signed`, latent d + i fires where neuron i is negative, and writes the opposite. With `k` only the k
    strongest latents of a token fire.
    """
    from safetensors.torch import save_file

    rows, bias, hook_out = _written(subject)
    about = {
        "d_in": subject.d_hook,
        "signed": signed,
        "k": k,
        "hook_name": subject.hook.name,
        "hook_name_out": hook_out,
        "model_name": model_name,
        "context_size": context_size,
        "prepend_bos": bos,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"rows": rows.contiguous(), "bias": bias.contiguous()}
    write_atomically(folder / "neurons.safetensors", lambda path: save_file(tensors, path))
    write_atomically(folder / "neurons.json", lambda path: path.write_text(json.dumps(about, indent=2)))


def _written(subject: Subject) -> tuple[Tensor, Tensor, str | None]:
    """What each neuron writes [d_hook, d_out], what is written without any [d_out], and where; None: to the hook."""
    if not subject.hook.name.endswith("mlp.hook_post"):
        return torch.eye(subject.d_hook), torch.zeros(subject.d_hook), None
    rows, bias = subject.mlp_out()
    return rows, bias, subject.hook.name.replace("mlp.hook_post", "hook_mlp_out")
