"""The SAE itself: encode and decode, one module for every architecture and every file format.

A loader brings each format to the same form: f = activation((g(x) − [b_dec]) W_enc + b_enc), x̂ = g⁻¹(f W_dec + b_dec),
with g the input normalisation of `SAEConfig.normalize_activations`. Scales that can be folded into weights are folded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from autointerp.errors import AutointerpError
from autointerp.registry import did_you_mean
from autointerp.sae import blocks
from autointerp.sae.contextual import Attention, Predictor, Pursuit, pursue
from autointerp.sae.few_bits import FewBits, fast_on

Normalisation = Literal["none", "constant_norm_rescale", "layer_norm"]


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is and what it was trained on. None means that the checkpoint does not say: see `unknown`."""

    architecture: str  # a key of ARCHITECTURES
    d_in: int
    d_sae: int
    source_format: str  # the format it was read from, or "autointerp"
    dtype: str  # of the stored weights
    apply_b_dec_to_input: bool  # encode x − b_dec rather than x
    normalize_activations: Normalisation = "none"  # what encode does to x first, and decode undoes
    normalisation_eps: float = 1e-5  # of layer_norm, added to the standard deviation
    k: int | None = None  # latents a token: of topk and groupmax exactly, of others on average where it is known
    d_out: int | None = None  # of a transcoder, which writes elsewhere than it reads; None for an autoencoder
    hook_name: str | None = None  # where the input is read, as the checkpoint spells it
    hook_name_out: str | None = None  # where a transcoder's output belongs
    model_name: str | None = None
    context_size: int | None = None  # tokens in a training row
    prepend_bos: bool | None = None
    dataset: str | None = None
    pursuit: Pursuit | None = None  # of matching_pursuit
    attention: Attention | None = None  # of a temporal SAE: codes depend on the tokens before
    # SAELens' expected_average_only_in: its list has the factor of some checkpoints, which then lies in no file
    expects_average_norm: bool = False

    @property
    def unknown(self) -> tuple[str, ...]:
        """Facts about the training that the checkpoint does not carry."""
        facts = ("hook_name", "model_name", "context_size", "prepend_bos")
        return tuple(name for name in facts if getattr(self, name) is None)

    def require(self, name: str) -> object:
        """The named fact; an AutointerpError that says what to do where the checkpoint does not carry it."""
        value = getattr(self, name)
        if value is None:
            raise AutointerpError(
                f"the SAE's {self.source_format} checkpoint does not say its {name}: name it yourself"
            )
        return value


class Sparse(NamedTuple):
    """Firings of [n, d_sae] codes, by token: parallel vectors of length m."""

    token_index: Tensor
    latent_index: Tensor
    value: Tensor


class Architecture(NamedTuple):
    activate: Callable[[Tensor, SAE], Tensor]  # pre-activations [..., d_sae] -> codes [..., d_sae]
    tensors: tuple[str, ...] = ()  # [d_sae] vectors beside W_enc, W_dec, b_enc, b_dec
    encode: Callable[[Tensor, SAE], Tensor] | None = None  # centred x [n, d_in] -> codes, where activate is not enough


def _top(pre: Tensor, sae: SAE) -> tuple[Tensor, Tensor]:
    values, indices = pre.topk(sae.top_k, dim=-1, sorted=False)
    return values.relu(), indices


def _topk(pre: Tensor, sae: SAE) -> Tensor:
    values, indices = _top(pre, sae)
    return torch.zeros_like(pre).scatter_(-1, indices, values)


def _groupmax(pre: Tensor, sae: SAE) -> Tensor:
    """The strongest of each of k groups of neighbouring latents."""
    values, indices = pre.relu().unflatten(-1, (sae.top_k, -1)).max(-1, keepdim=True)
    groups = pre.new_zeros(*pre.shape[:-1], sae.top_k, pre.shape[-1] // sae.top_k)
    return groups.scatter_(-1, indices, values).flatten(-2)


def _jumprelu(pre: Tensor, sae: SAE) -> Tensor:
    """2407.14435: pre where it exceeds both 0 and the latent's threshold."""
    return torch.where(pre > sae.threshold, pre.relu(), 0.0)


def _gated(pre: Tensor, sae: SAE) -> Tensor:
    """2404.16014: the magnitude path shares the gate's directions up to exp(r_mag)."""
    magnitude = (pre * sae.r_mag.exp() + sae.b_mag).relu()
    return torch.where(pre + sae.b_gate > 0, magnitude, 0.0)


def _pursue(x: Tensor, sae: SAE) -> Tensor:
    assert sae.cfg.pursuit is not None
    return pursue(x, sae.W_dec, sae.cfg.pursuit)


def _neurons(x: Tensor, sae: SAE) -> Tensor:
    """W_enc is the identity, with its negative beside it where the signs are apart: the product need not be made."""
    codes = x if sae.cfg.d_sae == sae.cfg.d_in else torch.cat([x, -x], -1)
    return codes.relu() if sae.cfg.k is None else _topk(codes, sae)


ARCHITECTURES: dict[str, Architecture] = {
    "relu": Architecture(lambda pre, sae: pre.relu()),
    "topk": Architecture(_topk),
    "groupmax": Architecture(_groupmax),
    "jumprelu": Architecture(_jumprelu, ("threshold",)),
    "gated": Architecture(_gated, ("r_mag", "b_mag", "b_gate")),
    "neurons": Architecture(lambda pre, sae: pre.relu(), encode=_neurons),
    "matching_pursuit": Architecture(lambda pre, sae: pre.relu(), encode=_pursue),
}


class SAE(nn.Module):
    """W_enc [d_in, d_sae], W_dec [d_sae, d_out], b_enc [d_sae], b_dec [d_out], and the architecture's own vectors.

    Args:
        cfg: its facts.
        tensors: the weights by name; `W_skip` [d_in, d_out] for a skip transcoder.

    Raises:
        AutointerpError: a tensor is missing, unknown, of the wrong shape or not finite.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor
    r_mag: Tensor
    b_mag: Tensor
    b_gate: Tensor
    W_skip: Tensor

    def __init__(self, cfg: SAEConfig, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.cfg = cfg
        self._activate, _, self._encode = architecture(cfg.architecture)
        sparse = cfg.architecture in ("topk", "groupmax") or (cfg.architecture == "neurons" and cfg.k is not None)
        if sparse and not 1 <= (cfg.k or 0) <= cfg.d_sae:
            raise AutointerpError(
                f"a {cfg.architecture} SAE of width {cfg.d_sae} needs k between 1 and its width, not {cfg.k}"
            )
        self._few: FewBits | None = None
        self._predictor: Predictor | None = None
        if cfg.attention is not None:
            self._predictor = Predictor(cfg.attention, cfg.d_sae, tensors)
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("attn_layers.")}
        for name, tensor in _checked(cfg, tensors).items():
            self.register_buffer(name, tensor)

    @property
    def top_k(self) -> int:
        assert self.cfg.k is not None
        return self.cfg.k

    def pre_activations(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_sae], before the activation function."""
        return self._new(self._centred(x)) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """[..., d_in] -> codes [..., d_sae], zero or positive.

        Where `is_contextual`, x is [..., tokens, d_in]: whole rows of text in their order.
        """
        if self._encode is not None:
            x = self._centred(x)
            return self._encode(x.reshape(-1, x.shape[-1]), self).reshape(*x.shape[:-1], -1)
        return self._activate(self.pre_activations(x), self)

    def encode_sparse(self, x: Tensor) -> Sparse:
        """[n, d_in] -> the firings, sorted by token, some tokens at a time (`sae.blocks`): no dense code of all.

        Of rows of text [rows, tokens, d_in] the tokens are counted through.
        """
        if self.is_contextual:
            codes = self.encode(x).flatten(0, -2)
            token, latent = codes.nonzero(as_tuple=True)
            return Sparse(token, latent, codes[token, latent])
        x = x.flatten(0, -2)
        size = blocks.rows_of(self.cfg.d_sae, x.device)
        if self.cfg.architecture in ("topk", "relu", "jumprelu"):
            parts = self._firings(self._centred(x), size)
        else:
            parts = [self._above(self.encode(block), 0.0) for block in x.split(size)]
        return Sparse(
            torch.cat([part.token_index + number * size for number, part in enumerate(parts)]),
            torch.cat([part.latent_index for part in parts]),
            torch.cat([part.value for part in parts]),
        )

    def _firings(self, x: Tensor, size: int) -> list[Sparse]:
        """Of centred x [n, d_in], `size` tokens at a time."""
        if (few := self._in_few_bits(x)) is not None:
            room = few.room(min(size, len(x)))
            return [_positive(*few.largest(block, self.top_k, room)) for block in x.split(size)]
        x, weights, bias = blocks.encoder(x, self.W_enc, self.b_enc)
        room = weights.new_empty(min(size, len(x)), self.cfg.d_sae)
        return [self._firing(blocks.product(block, weights, bias, room)) for block in x.split(size)]

    def _in_few_bits(self, x: Tensor) -> FewBits | None:
        """The encoder as a CPU with units for few bits selects fastest by it; None where it is not worth its memory."""
        if self.cfg.architecture != "topk" or not blocks.many(x, self.W_enc) or not fast_on(x.device, x.dtype):
            return None
        if self._few is None or self._few.weights is not self.W_enc:
            self._few = FewBits(self.W_enc, self.b_enc)
        return self._few

    def _firing(self, pre: Tensor) -> Sparse:
        """Of pre-activations [m, d_sae], which may be written over once it returns."""
        if self.cfg.architecture == "topk":
            return _positive(*blocks.largest(pre, self.top_k))
        return self._above(pre, self.threshold.relu() if self.cfg.architecture == "jumprelu" else 0.0)

    def _above(self, codes: Tensor, threshold: Tensor | float) -> Sparse:
        flat = blocks.above(codes, threshold)
        token = flat.div(self.cfg.d_sae, rounding_mode="floor")
        return Sparse(token, flat - token * self.cfg.d_sae, codes.view(-1)[flat])

    def decode(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """[..., d_sae] -> [..., d_out]. `x`, the input, is needed by an SAE that normalises each input by itself
        and by a skip transcoder. To a temporal SAE's codes, which hold what is new in a token, x adds the rest."""
        out = codes @ self.W_dec + self.b_dec
        if self._predictor is not None and x is not None:
            out = out + self._predict(self._centred(x))[0]
        if not self.needs_input_to_decode:
            return out
        if x is None:
            raise AutointerpError("this SAE's decode needs its input: call sae.decode(codes, x) or sae(x)")
        x = x.to(out.dtype)
        if "W_skip" in self._buffers:
            out = out + x @ self.W_skip
        if self.cfg.d_out is not None:  # a transcoder's output has a scale of its own
            return out
        _, restore = self._normalise(x)
        return restore(out)

    def unexplained(self, x: Tensor, codes: Sparse) -> Tensor:
        """What `codes`, sorted by token, leave of x [n, d_in], in their scale: normalised x less what they decode to.

        AutointerpError for a transcoder, which writes elsewhere than it reads, and where `is_contextual`.
        """
        if self.is_contextual:
            raise AutointerpError("a temporal SAE's codes depend on the tokens before: tokens by themselves have none")
        if self.is_transcoder:
            raise AutointerpError("a transcoder writes elsewhere than it reads: nothing of its input is left over")
        starts = torch.searchsorted(codes.token_index, torch.arange(len(x), device=x.device))
        decoded = nn.functional.embedding_bag(
            codes.latent_index, self.W_dec, starts, per_sample_weights=codes.value, mode="sum"
        )
        x, _ = self._normalise(x.to(self.W_enc.dtype))
        return x - self.b_dec - decoded

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction, [..., d_in] -> [..., d_out]."""
        return self.decode(self.encode(x), x)

    @property
    def is_transcoder(self) -> bool:
        return self.cfg.d_out is not None or "W_skip" in self._buffers

    @property
    def leaves_a_rest(self) -> bool:
        """Its output is its input less something, token by token: what `unexplained` gives."""
        return not (self.is_transcoder or self.is_contextual)

    @property
    def is_contextual(self) -> bool:
        """A token's codes depend on the tokens before it: encode takes rows of text, not tokens in any order."""
        return self._predictor is not None

    @property
    def needs_input_to_decode(self) -> bool:
        return self.cfg.normalize_activations != "none" or "W_skip" in self._buffers

    def _centred(self, x: Tensor) -> Tensor:
        x, _ = self._normalise(x.to(self.W_enc.dtype))
        return x - self.b_dec if self.cfg.apply_b_dec_to_input else x

    def _new(self, x: Tensor) -> Tensor:
        """What the tokens before do not predict of centred x."""
        return x if self._predictor is None else self._predict(x)[1]

    def _predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self._predictor is not None
        rows = x.reshape(-1, *x.shape[-2:])
        predicted, left = self._predictor(rows, self.W_enc, self.W_dec)
        return predicted.reshape(x.shape), left.reshape(x.shape)

    def _normalise(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if self.cfg.normalize_activations == "constant_norm_rescale":
            scale = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
            return x * scale, lambda out: out / scale
        if self.cfg.normalize_activations == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            std = x.std(-1, keepdim=True)
            return (x - mean) / (std + self.cfg.normalisation_eps), lambda out: out * std + mean
        return x, lambda out: out


def _positive(values: Tensor, latents: Tensor) -> Sparse:
    """Of the largest of each token, [n, k] each."""
    token, slot = (values > 0).nonzero(as_tuple=True)
    return Sparse(token, latents[token, slot], values[token, slot])


def architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise AutointerpError(f"no SAE architecture named {name!r}{did_you_mean(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]


def _checked(cfg: SAEConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    d_out = cfg.d_out or cfg.d_in
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (cfg.d_in, cfg.d_sae),
        "W_dec": (cfg.d_sae, d_out),
        "b_enc": (cfg.d_sae,),
        "b_dec": (d_out,),
        **dict.fromkeys(architecture(cfg.architecture).tensors, (cfg.d_sae,)),
    }
    if "W_skip" in tensors:
        shapes["W_skip"] = (cfg.d_in, d_out)
    what = f"{cfg.architecture} SAE ({cfg.source_format})"
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise AutointerpError(f"{what}: the weights lack {', '.join(missing)}; is the file whole?")
    if extra := sorted(tensors.keys() - shapes.keys()):
        raise AutointerpError(f"{what}: the weights hold {', '.join(extra)}, which this architecture has no use for")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise AutointerpError(f"{what}: {name} has the shape {tuple(tensors[name].shape)}, expected {shape}")
        if not torch.isfinite(tensors[name]).all():
            raise AutointerpError(f"{what}: {name} holds NaN or infinite numbers; the file is damaged")
    return {name: tensors[name].contiguous() for name in shapes}
