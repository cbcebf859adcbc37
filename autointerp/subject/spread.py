"""A subject that is spread over several devices, processor and disk among them (`subject.device_map`), by accelerate.

1. Hugging Face places each module where the map says, and accelerate moves what goes from one to the next.
2. TransformerLens takes a skeleton of the model apart, whose weights are zeros that take no memory, and says which
   module's input or output a hook point is.
3. Hooks on these modules read and change what goes through. So hook points inside a module, such as attention patterns,
   are not to be had here.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autointerp.config import SubjectConfig
from autointerp.errors import ConfigError
from autointerp.subject.forward import Change, Forward, Place, PlainModel

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from autointerp.subject.hooks import ResolvedHook


def spread(config: SubjectConfig, folder: Path, tokenizer: PreTrainedTokenizerBase, device: str) -> Spread:
    """The model in `folder`, placed as `config.device_map` says; what is read of it comes out on `device`.

    Raises ConfigError where accelerate or a GPU of the map is missing, or for weights that are to be drawn anew and are
    offloaded.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ConfigError("subject.device_map needs the package accelerate: pip install accelerate")
    places = config.device_map.values() if isinstance(config.device_map, dict) else ()
    missing = [place for place in places if str(place).isdigit() and int(place) >= torch.cuda.device_count()]
    if missing:
        raise ConfigError(f"subject.device_map names GPU {missing[0]}: {torch.cuda.device_count()} can be seen here")
    from accelerate import init_empty_weights
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoConfig, AutoModelForCausalLM

    from autointerp.subject.redraw import redraw

    dtype, offloaded = getattr(torch, config.dtype), tempfile.TemporaryDirectory(prefix="autointerp-offloaded-")
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map=config.device_map, offload_folder=offloaded.name
    )
    if config.weights != "trained":
        if any(tensor.is_meta for tensor in model.parameters()):
            raise ConfigError("subject.weights cannot be drawn anew where device_map offloads them: name GPUs alone")
        redraw(model, config.weights)
    with init_empty_weights(include_buffers=False):
        skeleton: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    for module in skeleton.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.zeros((), dtype=dtype).expand(tensor.shape), requires_grad=False))
    plain = PlainModel(model.eval(), named=skeleton)
    bridge = TransformerBridge.boot_transformers(
        str(folder), hf_model=skeleton, tokenizer=tokenizer, device="cpu", dtype=dtype
    )
    return Spread(bridge, plain, torch.device(device), offloaded)


class Spread(Forward):
    """Reads and changes hook points at modules' boundaries of a model that lies on several devices."""

    def __init__(
        self,
        bridge: TransformerBridge,
        plain: PlainModel,
        device: torch.device,
        offloaded: tempfile.TemporaryDirectory[str],
    ) -> None:
        super().__init__(bridge, plain)
        self._device, self._offloaded = device, offloaded  # the folder goes when nothing reads it any more

    @property
    def device(self) -> torch.device:
        return self._device

    def place(self, hook: ResolvedHook) -> Place:
        return self._place(hook.name)

    def _place(self, name: str) -> Place:
        # what is made of the embeddings before the first block differs from model to model
        outside = not name.startswith(("blocks.", "ln_final.", "unembed."))
        place = None if outside else self.plain.place(self.bridge, self.bridge.hook_dict[name])
        if place is None:
            raise ConfigError(
                f"subject.device_map: {name} is no input or output of a module in a block; choose a hook point that is,"
                " such as hook_resid_post, or a subject on one device"
            )
        return place

    def read(self, tokens: Tensor, hooks: Sequence[ResolvedHook]) -> list[Tensor]:
        return [value.to(self._device) for value in super().read(tokens, hooks)]

    def run(self, tokens: Tensor, changes: Sequence[tuple[str, Change]]) -> Tensor:
        with torch.no_grad(), self.hooked(changes) as model:
            return model(tokens, use_cache=False).logits.to(self._device)

    @contextmanager
    def hooked(self, changes: Sequence[tuple[str, Change]]) -> Iterator[Any]:
        handles = [self.plain.change(self._place(name), change) for name, change in changes]
        try:
            yield self.plain.model
        finally:
            for handle in handles:
                handle.remove()

    def filled(self, component: Any) -> Any:
        """The skeleton's modules in it get the weights of the model's own."""
        from accelerate.utils import align_module_device

        for module, own in self.plain.counterparts(component):
            with align_module_device(own, execution_device=self._device):
                for name, tensor in list(module.named_parameters(recurse=False)):
                    if not any(tensor.stride()):  # one zero in every place
                        real = getattr(own, name).detach().to(self._device, copy=True)
                        setattr(module, name, nn.Parameter(real, requires_grad=False))
        return component
