"""Hook names: TransformerLens hook points, and the Hugging Face module paths that mean one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from autointerp.errors import ConfigError
from autointerp.registry import did_you_mean

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_MODULE = re.compile(r"(?:[\w.]+\.)?(?:layers|layer|h|blocks|block)\.(\d+)(?:\.(\w+))?")
_OUTPUTS = {
    None: "hook_resid_post",  # a whole layer's output
    "mlp": "hook_mlp_out",
    "feed_forward": "hook_mlp_out",
    "attn": "hook_attn_out",
    "self_attn": "hook_attn_out",
    "attention": "hook_attn_out",
}
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in")
USUAL = (
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_in", "hook_mlp_out"),
    *("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "mlp.hook_pre", "mlp.hook_post"),
    *("ln1.hook_normalized", "ln2.hook_normalized"),
)


@dataclass(frozen=True)
class ResolvedHook:
    """A hook point as TransformerLens names it, its layer, and what was asked for."""

    name: str
    layer: int  # 0 for the embedding, the last layer for the final norm
    given: str

    def means(self, name: str) -> bool:
        """Whether `name` is another spelling of this hook point."""
        return _translate(name, self.layer + 1)[0] == self.name

    def __str__(self) -> str:
        return self.name if self.name == self.given else f"{self.given} -> {self.name}"


def resolve_hook(name: str, n_layers: int, known: Iterable[str] | None = None) -> ResolvedHook:
    """Which hook point `name` means: a TransformerLens name, or a module path for that module's output.

    `known` are the model's hook points; without them the usual ones are. Raises ConfigError with the nearest.
    """
    usual = [f"blocks.{layer}.{suffix}" for layer in range(n_layers) for suffix in USUAL]
    points = {*known} if known is not None else {*usual, "hook_embed", "ln_final.hook_normalized"}
    translated, layer = _translate(name, n_layers)
    if layer >= n_layers:
        raise ConfigError(f"subject.hook {name!r}: the model has the layers 0 to {n_layers - 1}")
    if translated not in points:
        block = _BLOCK.fullmatch(translated)
        near = [point for point in points if block is None or point.startswith(f"blocks.{layer}.")]
        raise ConfigError(f"subject.hook: the model has no {name!r}{did_you_mean(translated, near)}")
    return ResolvedHook(translated, layer, name)


def _translate(name: str, n_layers: int) -> tuple[str, int]:
    if block := _BLOCK.fullmatch(name):
        suffix = block[2]
        return f"blocks.{block[1]}.{_OUTPUTS.get(suffix, suffix)}", int(block[1])
    if name.split(".")[-1] in _EMBEDDINGS:
        return "hook_embed", 0
    module = _MODULE.fullmatch(name)
    if module and module[2] in _OUTPUTS:
        return f"blocks.{module[1]}.{_OUTPUTS[module[2]]}", int(module[1])
    return name, n_layers - 1 if name.startswith(("ln_final", "unembed", "hook_unembed")) else 0
