"""Load and run the subject: any causal Hugging Face model through TransformerLens' bridge; activations, logits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.config import SubjectConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.subject.hooks import ResolvedHook, resolve_hook
from autointerp.subject.redraw import redraw
from autointerp.subject.tokens import TokenText, bos_of, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from autointerp.subject.forward import Forward

log = logging.getLogger("autointerp")
UNEMBEDS = "unembed.hook_in"  # what the bridge calls the input of the unembedding


def load_subject(config: SubjectConfig, folder: Path, hook: str | None) -> Subject:
    """The model in `folder` (a Hugging Face folder), its activations read at `hook`.

    Raises AutointerpError for a model that cannot be loaded, ConfigError for a hook it does not have.
    """
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    from autointerp.subject.forward import Forward, PlainModel
    from autointerp.subject.spread import spread

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, config.dtype)
    tokenizer = load_tokenizer(folder)
    try:
        if config.device_map is not None:
            subject = Subject(folder.name, spread(config, folder, tokenizer, device), tokenizer, None)
            return subject if hook is None else subject.at(hook)
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        if config.weights != "trained":
            redraw(loaded, config.weights)
        loaded.to(device).eval()
        plain = PlainModel(loaded)
        bridge = TransformerBridge.boot_transformers(
            str(folder), hf_model=loaded, tokenizer=tokenizer, device=device, dtype=dtype
        )
        if config.compile:
            plain.compile(bridge)
    except (OSError, ValueError, KeyError) as error:
        raise AutointerpError(f"cannot load {folder} as subject: {' '.join(str(error).split())[:300]}") from error
    subject = Subject(folder.name, Forward(bridge, plain), tokenizer, None)
    return subject if hook is None else subject.at(hook)


class Subject:
    """A model, its tokenizer and the hook point under study."""

    def __init__(
        self, name: str, forward: Forward, tokenizer: PreTrainedTokenizerBase, hook: ResolvedHook | None
    ) -> None:
        self.name = name
        self.forward = forward
        self.bridge = bridge = forward.bridge
        self.tokenizer = tokenizer
        self._hook = hook
        self._text = TokenText(tokenizer)
        self.n_layers: int = bridge.cfg.n_layers
        self.context: int = bridge.cfg.n_ctx
        self.d_model: int = bridge.cfg.d_model

    @property
    def hook(self) -> ResolvedHook:
        if self._hook is None:
            raise ConfigError("subject.hook is missing: name the hook point, for example blocks.3.hook_resid_post")
        return self._hook

    @property
    def device(self) -> torch.device:
        return self.forward.device

    @cached_property
    def bos_id(self) -> int | None:
        """The BOS id that the model was trained with at every row's start, or None."""
        return bos_of(self.tokenizer, None)

    @cached_property
    def d_hook(self) -> int:
        """Width of the activations at the hook, heads flattened."""
        import torch

        return self.activations(torch.zeros(1, 1, dtype=torch.long)).shape[-1]

    def activations(self, tokens: torch.Tensor, lengths: Sequence[int] | torch.Tensor | None = None) -> torch.Tensor:
        """Activations at the hook: tokens [b, s] int64, rows padded on the right -> [b, s, d_hook] float32.

        `lengths` [b] are the rows' tokens; what is past them comes out as 0. What comes after the hook point in the
        model is not run. Heads ([b, s, heads, d_head]) come out side by side.
        """
        return self.activations_at(tokens, [self.hook], lengths)[0]

    def activations_at(
        self,
        tokens: torch.Tensor,
        hooks: Sequence[ResolvedHook],
        lengths: Sequence[int] | torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """`activations` at several hook points from one pass, [b, s, d] for each, in their order."""
        import torch

        values = [value.float().flatten(2) for value in self.forward.read(tokens.to(self.device), hooks)]
        if lengths is None:
            return values
        places = torch.arange(tokens.shape[1], device=self.device)
        real = (places < torch.as_tensor(lengths, device=self.device)[:, None])[..., None]
        return [value * real for value in values]

    def mlp_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the hook's layer what each neuron of the MLP writes [d_mlp, d_model], and its bias [d_model], float32.

        Raises ConfigError for a layer whose MLP is none of single neurons, such as a mixture of experts.
        """
        import torch

        mlp = self.forward.filled(self.bridge.blocks[self.hook.layer].mlp)
        rows = getattr(mlp, "W_out", None)
        if rows is None or tuple(rows.shape) != (self.d_hook, self.d_model):
            raise ConfigError(f"the MLP of layer {self.hook.layer} is not one of single neurons: choose another hook")
        bias = getattr(mlp, "b_out", None)
        bias = torch.zeros(self.d_model) if bias is None else bias.detach().float().cpu()
        return rows.detach().float().cpu(), bias

    def at(self, hook: str) -> Subject:
        """The same model read at another hook point. Raises ConfigError for one that it does not have."""
        resolved = resolve_hook(hook, self.n_layers, self.bridge.hook_dict)
        log.info("subject %s, hook %s", self.name, resolved)
        return Subject(self.name, self.forward, self.tokenizer, resolved)

    def logits(
        self,
        tokens: torch.Tensor,
        *,
        read: Sequence[str] = (),
        patch: Mapping[str, torch.Tensor] | None = None,
        add: Mapping[str, torch.Tensor] | None = None,
        at: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """A whole pass: tokens [b, s], rows padded on the right -> logits [b, s, vocabulary] and what was read.

        at: places [b, a] of each row; logits are made there alone, [b, a, vocabulary], which in a small model is most
        of the work.
        read: hook points by their full names -> [b, s, d] float32, heads side by side. patch: hook point ->
        [b, s, d] put in place of what is there; what comes before it is as in a clean pass. add: hook point ->
        [b, s, d] added to what is there. All layers are run: the bridge cannot start in the middle. Hook points must
        be ones that `activations` has met.
        """
        import torch

        values: dict[str, torch.Tensor] = {}

        def keep(name: str, value: torch.Tensor) -> None:
            values[name] = value.to(self.device, torch.float32, copy=True).flatten(2)

        def put(new: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return new.to(value).reshape(value.shape)

        hooks: list[Any] = [(name, lambda value, hook, name=name: keep(name, value)) for name in read]
        hooks += [(name, lambda value, hook, new=new: put(new, value)) for name, new in (patch or {}).items()]
        hooks += [(name, lambda value, hook, new=new: value + put(new, value)) for name, new in (add or {}).items()]
        if at is not None:
            rows = torch.arange(len(tokens))[:, None]
            hooks.append((UNEMBEDS, lambda value, hook: value[rows.to(value.device), at.to(value.device)]))
        return self.forward.run(tokens.to(self.device), hooks), values

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """[n] ids -> n pieces; joined they are the text (with the space SentencePiece puts in front)."""
        return self._text.strings(ids)

    def vocab_strings(self) -> list[str]:
        """Every token by itself, as many as the unembedding has rows; leading spaces kept."""
        known = self._text.vocabulary()
        return (known + [""] * (self.bridge.cfg.d_vocab - len(known)))[: self.bridge.cfg.d_vocab]

    def logit_weights(self, directions: torch.Tensor) -> torch.Tensor | None:
        """What writing each direction into the residual stream does to the logits: [k, d_hook] -> [k, vocabulary].

        direction @ diag(final norm's scale) @ W_U, the direction centred first where the norm is a LayerNorm.
        This is the direct path: later layers and the norm's own denominator (a positive number a token,
        the same for all logits) are left out. Directions at hook_z go through W_O; None for other
        hooks whose width is not the residual stream's.
        """
        import torch

        with torch.no_grad():
            directions = directions.to(self.device, torch.float32)
            if self.hook.name.endswith(("attn.hook_z", "attn.o.hook_in")):
                attention = self.forward.filled(self.bridge.blocks[self.hook.layer].attn)
                out: Any = attention.W_O  # [heads, d_head, d_model]
                directions = directions @ out.flatten(0, 1).float()
            if directions.shape[-1] != self.d_model:
                return None
            norm: Any = self.forward.filled(getattr(self.bridge, "ln_final", None))
            if norm is not None:
                if isinstance(norm.original_component, torch.nn.LayerNorm):
                    directions = directions - directions.mean(-1, keepdim=True)
                # Gemma keeps the scale less one.
                scale = norm.original_component.weight.float()
                directions = directions * (scale + 1.0 if self.bridge.cfg.rmsnorm_uses_offset else scale)
            return directions @ self.forward.filled(self.bridge.unembed).W_U.float()
