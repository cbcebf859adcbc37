"""Draw a subject's weights anew: the same architecture that has learned nothing, as a control of everything above it.

Scores of explanations hardly tell trained transformers from random ones (2501.17727). Of that paper's random models
this makes two: each tensor is drawn from a normal distribution with the mean and the spread of the trained one,
embeddings included (``redrawn``) or kept (``redrawn_blocks``). So every layer has the scale of the trained one, which
an initialisation by the architecture's own rule would not give.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def redraw(model: torch.nn.Module, weights: str) -> None:
    """Draw the parameters of a Hugging Face model anew, in place; `weights` is ``redrawn:SEED`` or
    ``redrawn_blocks:SEED``.

    A tensor's numbers depend on the seed, its name and its shape alone. Tied tensors stay tied. A tensor whose numbers
    are all the same, such as the scale of a norm that was never trained, stays as it is. Buffers are not touched.
    """
    import torch

    which, seed = weights.split(":")
    kept = {id(each) for each in _embeddings(model)} if which == "redrawn_blocks" else set()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in kept:
                continue
            trained = parameter.float()
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.copy_(trained.mean() + trained.std(correction=0) * drawn)


def _embeddings(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Of tokens, of positions, and the unembedding."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            yield module.weight
    unembedding = getattr(model, "get_output_embeddings", lambda: None)()
    if unembedding is not None:
        yield unembedding.weight
