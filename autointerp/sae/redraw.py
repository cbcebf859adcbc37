"""Draw an SAE's directions anew: latents that read and write at random, and fire as often as the SAE's own.

1. Each latent gets another direction, uniform on the sphere. The norms of its decoder and encoder rows stay, and so
   does the cosine between the two.
2. Each latent's bias is set so that it fires on the share of some tokens on which the SAE's own latent fires. Where the
   architecture takes the strongest (topk, groupmax), that share is widened until the L0 is the SAE's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autointerp.errors import AutointerpError
from autointerp.sae.model import SAE, SAEConfig

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = ("relu", "topk", "groupmax", "jumprelu", "gated")
WIDER = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # times the share of tokens, for architectures that then take the strongest
ENOUGH = 0.98  # of the SAE's own L0
_BATCH = 512  # tokens
_CHUNK = 1024  # latents
_WEIGHTS, _CONFIG = "redrawn.safetensors", "redrawn.json"


@torch.no_grad()
def redraw(sae: SAE, activations: Tensor, seed: int) -> tuple[SAE, float, float]:
    """The SAE with its directions drawn anew, its L0 and that of `sae`, both on `activations` [n, d_in].

    Raises AutointerpError for an SAE whose latents do not each read one direction of one token.
    """
    if sae.cfg.architecture not in ARCHITECTURES or sae.is_contextual:
        raise AutointerpError(
            f"control random_sae: a {sae.cfg.architecture} SAE's latents do not each read one direction of a token, so"
            " they cannot be drawn anew: leave the control out"
        )
    tensors = {name: tensor.float().clone() for name, tensor in sae.named_buffers()}
    tensors |= _directions(tensors["W_enc"], tensors["W_dec"], torch.Generator().manual_seed(seed))
    device = sae.W_enc.device
    fired = _firings(sae, activations)
    own_l0 = float(fired.sum()) / len(activations)
    redrawn = SAE(sae.cfg, tensors).to(device)
    takes_strongest = sae.cfg.architecture in ("topk", "groupmax")
    l0 = 0.0
    biases = _thresholds(redrawn, activations, fired, WIDER if takes_strongest else WIDER[:1])
    for bias in biases:
        redrawn = SAE(sae.cfg, tensors | _with_bias(redrawn, bias)).to(device)
        l0 = float(_firings(redrawn, activations).sum()) / len(activations)
        if l0 >= ENOUGH * own_l0:
            break
    return redrawn, l0, own_l0


def save_redrawn(sae: SAE, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.cpu().contiguous() for name, tensor in sae.named_buffers()}, folder / _WEIGHTS)
    (folder / _CONFIG).write_text(json.dumps(asdict(sae.cfg)))


def read_redrawn(folder: Path, device: str) -> SAE:
    from safetensors.torch import load_file

    return SAE(SAEConfig(**json.loads((folder / _CONFIG).read_text())), load_file(folder / _WEIGHTS)).to(device)


def _directions(encoder: Tensor, decoder: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
    """encoder [d_in, d_sae] and decoder [d_sae, d_out], each latent's drawn anew with its norms, and its cosine where
    it reads and writes in one space."""
    reads, writes = encoder.T, decoder
    drawn = _unit(torch.randn(writes.shape, generator=generator).to(writes))
    other = torch.randn(reads.shape, generator=generator).to(reads)
    if reads.shape == writes.shape:
        cosine = torch.nn.functional.cosine_similarity(reads, writes, dim=-1)[:, None]
        across = _unit(other - (other * drawn).sum(-1, keepdim=True) * drawn)
        new_reads = cosine * drawn + (1 - cosine.square()).clamp_min(0).sqrt() * across
    else:
        new_reads = _unit(other)
    return {
        "W_enc": (new_reads * reads.norm(dim=-1, keepdim=True)).T.contiguous(),
        "W_dec": drawn * writes.norm(dim=-1, keepdim=True),
    }


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def _firings(sae: SAE, activations: Tensor) -> Tensor:
    """On how many tokens each latent fires, [d_sae]."""
    counts = torch.zeros(sae.cfg.d_sae, dtype=torch.long, device=sae.W_enc.device)
    for x in activations.split(_BATCH):
        firing = sae.encode_sparse(x.to(counts.device))
        counts += torch.bincount(firing.latent_index, minlength=sae.cfg.d_sae)
    return counts


def _thresholds(sae: SAE, activations: Tensor, fired: Tensor, wider: Sequence[float]) -> list[Tensor]:
    """For each of `wider` what each latent's pre-activation, without bias, exceeds on `fired` times so many tokens;
    the largest seen where that is none. [d_sae] each."""
    parts = []
    for counts, linear in zip(fired.split(_CHUNK), _linear_parts(sae)):
        seen = torch.cat([linear.pre_activations(x.to(fired.device)) for x in activations.split(_BATCH)])
        ranked = seen.sort(dim=0, descending=True).values
        places = [(counts * factor).round().long().clamp(0, len(activations) - 1) for factor in wider]
        parts.append(torch.stack([ranked.gather(0, place[None])[0] for place in places]))
    return list(torch.cat(parts, dim=1))


def _linear_parts(sae: SAE) -> Iterator[SAE]:
    """The SAE's latents, `_CHUNK` at a time, without bias."""
    decoders, encoders = sae.W_dec.split(_CHUNK), sae.W_enc.split(_CHUNK, dim=1)
    for decoder, encoder in zip(decoders, encoders):
        cfg = replace(sae.cfg, architecture="relu", d_sae=len(decoder))
        bias = torch.zeros_like(decoder[:, 0])
        yield SAE(cfg, {"W_enc": encoder, "W_dec": decoder, "b_enc": bias, "b_dec": sae.b_dec})


def _with_bias(sae: SAE, edge: Tensor) -> dict[str, Tensor]:
    """The vectors with which a latent fires where its pre-activation without bias is above `edge` [d_sae]."""
    if sae.cfg.architecture == "jumprelu":
        return {"b_enc": sae.threshold.clamp_min(0) - edge}
    if sae.cfg.architecture == "gated":
        zero = torch.zeros_like(edge)
        return {"b_enc": zero, "b_gate": -edge, "b_mag": -edge * sae.r_mag.exp()}
    return {"b_enc": -edge}
