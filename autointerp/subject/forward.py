"""The subject's forward pass: on the plain Hugging Face model where a hook point allows it, else through the bridge.

TransformerLens' bridge makes every attention pattern, [batch, heads, s, s] in float32, which only hook points inside
the attention need. Most hook points are the input or the output of a module: there a hook on that module of the plain
model, with its fused attention, reads the same numbers, and no later module is run.

1. The bridge says which module's input or output a hook point is.
2. Both passes are held side by side on a few tokens, once for each hook point. Where they differ, the bridge is used.
3. From then on the plain model is read.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from autointerp.errors import ConfigError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from autointerp.subject.hooks import ResolvedHook

log = logging.getLogger("autointerp")

TOLERANCE = 1e-4  # of the norm of what is read (of the mean norm, if larger), in float32: sums in another order
ROUGH = 0.05  # the same where numbers are kept in 16 bits, which round otherwise
PROBE = (2, 24)  # rows and tokens on which both are held side by side


@dataclass(frozen=True)
class Place:
    """What a hook point reads: the input or the output of a module of the Hugging Face model."""

    module: str
    side: Literal["in", "out"]


Change = Callable[[Tensor, Any], Tensor | None]  # what is at a hook point, and the hook -> what is put there


class Forward:
    """Reads hook points from one pass over tokens [b, s], rows padded on the right.

    Neither way has a mask: causal attention lets no token see the padding behind it.
    """

    def __init__(self, bridge: TransformerBridge, plain: PlainModel) -> None:
        self.bridge, self.plain = bridge, plain
        self._places: dict[str, Place | None] = {}

    @property
    def device(self) -> torch.device:
        """Where tokens go and what is read comes from."""
        return next(self.bridge.parameters()).device

    def read(self, tokens: Tensor, hooks: Sequence[ResolvedHook]) -> list[Tensor]:
        """[b, s, …] for each of the hooks, in the model's dtype. ConfigError for one that is switched off."""
        places = [self.place(hook) for hook in hooks]
        known = [place for place in places if place is not None]
        if len(known) < len(places):
            return self.by_bridge(tokens, hooks)
        values = self.plain.read(tokens, known)
        return [values[place] for place in known]

    def place(self, hook: ResolvedHook) -> Place | None:
        """Where the plain model has it; None where the bridge has to be asked."""
        if hook.name not in self._places:
            place = self.plain.place(self.bridge, self.bridge.hook_dict[hook.name])
            if place is not None and not self._agree(hook, place):
                log.warning("subject: %s differs in the plain model: read through TransformerLens, slower", hook.name)
                place = None
            self._places[hook.name] = place
        return self._places[hook.name]

    def run(self, tokens: Tensor, changes: Sequence[tuple[str, Change]]) -> Tensor:
        """A whole pass over tokens [b, s] that sees, and may change, what is at hook points of full names -> logits."""
        with torch.no_grad():
            logits: Any = self.bridge.run_with_hooks(tokens, fwd_hooks=list(changes))
        return logits

    @contextmanager
    def hooked(self, changes: Sequence[tuple[str, Change]]) -> Iterator[Any]:
        """The Hugging Face model, for its `generate`, with the same inside."""
        bridge: Any = self.bridge
        with bridge.hooks(fwd_hooks=list(changes)):
            yield bridge.original_model

    def filled(self, component: Any) -> Any:
        """A component of the bridge whose weights are wanted, with them."""
        return component

    def way(self, hook: ResolvedHook) -> str:
        """Hook points of one way have in one pass the very numbers that each has in a pass of its own."""
        place = self.place(hook)
        if place is None:
            return "bridge"
        return f"plain, within {place.module}" if self.plain.is_within_compiled(place) else "plain"

    def _agree(self, hook: ResolvedHook, place: Place) -> bool:
        cfg = self.bridge.cfg
        rows, length = PROBE[0], min(PROBE[1], cfg.n_ctx)
        tokens = torch.randint(cfg.d_vocab, (rows, length), generator=torch.Generator().manual_seed(0))
        tokens = tokens.to(self.device)
        expected = self.by_bridge(tokens, [hook])[0].flatten(2)
        value = self.plain.read(tokens, [place]).get(place)
        if value is None or value.flatten(2).shape != expected.shape:
            return False
        tolerance = TOLERANCE if expected.dtype == torch.float32 else ROUGH
        difference = (value.flatten(2).float() - expected.float()).norm(dim=-1)
        size = expected.float().norm(dim=-1)
        return bool((difference <= tolerance * size.clamp_min(float(size.mean()))).all())

    def by_bridge(self, tokens: Tensor, hooks: Sequence[ResolvedHook]) -> list[Tensor]:
        """The same through the bridge, which has every hook point; blocks after the last one are not run."""
        in_blocks = all(hook.name.startswith(("blocks.", "hook_embed")) for hook in hooks)
        stop = max(hook.layer for hook in hooks) + 1 if in_blocks else None
        names = [hook.name for hook in hooks]
        # no_grad, not inference_mode: what is trained on these needs ordinary tensors.
        with torch.no_grad():
            _, cached = self.bridge.run_with_cache(
                tokens, return_cache_object=False, names_filter=names, stop_at_layer=stop
            )
        for name in names:
            if name not in cached:
                raise ConfigError(f"subject.hook {name!r} is switched off in this model: choose another hook point")
        return [cached[name] for name in names]


class _AllRead(Exception):
    """Every place was read: the rest of the pass is of no use."""


class PlainModel:
    """A Hugging Face model that shares its weights with the one that the bridge takes apart."""

    def __init__(self, model: Any, named: Any = None) -> None:
        """model: as loaded, before the bridge puts modules of its own into it. named: another model of the same
        modules, which the bridge takes apart in its place."""
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model: Any = copy.deepcopy(model, shared) if named is None else model
        self._names = {id(module): name for name, module in (named or model).named_modules()}
        self._modules = dict(self.model.named_modules())
        self._trunk = {id(module) for module in self.model.base_model.modules()}  # all but the unembedding
        self._compiled: dict[str, Any] = {}

    def compile(self, bridge: TransformerBridge, backend: str = "inductor") -> None:
        """Run its blocks through torch.compile, with one of its backends, from now on."""
        for block in bridge.blocks:
            name = self._names[id(block.original_component)]
            self._compiled[name] = torch.compile(self._modules[name].forward, dynamic=True, backend=backend)

    def place(self, bridge: nn.Module, point: object) -> Place | None:
        """Which module's input or output the bridge's hook point is; None for one inside of a module."""
        for component in bridge.modules():
            name = self._names.get(id(getattr(component, "original_component", None)))
            if name is not None:
                for side in ("in", "out"):
                    if getattr(component, f"hook_{side}", None) is point:
                        return Place(name, side)
        return None

    def is_within_compiled(self, place: Place) -> bool:
        """A hook inside of a compiled block is not heard: the block runs as it is. One at its boundary is."""
        return any(_is_within(name, place) for name in self._compiled)

    def read(self, tokens: Tensor, places: Sequence[Place]) -> dict[Place, Tensor]:
        """One pass over tokens [b, s] as far as the last place; a place that it does not come to is left out."""
        values: dict[Place, Tensor] = {}

        def keep(place: Place, value: Any) -> None:
            tensor = value[0] if isinstance(value, tuple) else value
            if len(values) + 1 < len(wanted):  # what runs on may add to it in place, as Falcon does
                tensor = tensor.clone()
            values[place] = tensor
            if len(values) == len(wanted):
                raise _AllRead

        for name, forward in self._compiled.items():
            inside = any(_is_within(name, place) for place in places)
            block: Any = self._modules[name]
            block.forward = type(block).forward.__get__(block) if inside else forward
        wanted = set(places)
        whole = any(id(self._modules[place.module]) not in self._trunk for place in wanted)
        handles = [_attach(self._modules[place.module], place, keep) for place in wanted]
        try:
            with torch.no_grad():
                (self.model if whole else self.model.base_model)(tokens, use_cache=False)
        except _AllRead:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return values

    def change(self, place: Place, change: Change) -> Any:
        """Have `change` see each value at a place, and put another one there; the handle's `remove` ends it."""
        module = self._modules[place.module]

        def after(_module: nn.Module, _given: Any, made: Any) -> Any:
            whole = isinstance(made, tuple)
            new = change(made[0] if whole else made, None)
            return None if new is None else (new, *made[1:]) if whole else new

        def before(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            first = None if given else next(iter(named))
            new = change(given[0] if first is None else named[first], None)
            if new is None:
                return None
            return ((new, *given[1:]), named) if first is None else (given, named | {first: new})

        if place.side == "out":
            return module.register_forward_hook(after)
        return module.register_forward_pre_hook(before, with_kwargs=True)

    def counterparts(self, component: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
        """The modules in a component that were taken apart, each with the plain model's own."""
        for module in component.modules():
            if (name := self._names.get(id(module))) is not None:
                yield module, self._modules[name]


def _is_within(block: str, place: Place) -> bool:
    return place.module.startswith(f"{block}.")


def _attach(module: nn.Module, place: Place, keep: Callable[[Place, Any], None]) -> Any:
    if place.side == "out":
        return module.register_forward_hook(lambda _module, _given, made: keep(place, made))

    def before(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        keep(place, given[0] if given else next(iter(named.values())))

    return module.register_forward_pre_hook(before, with_kwargs=True)
