"""Load a chat model and its tokenizer with transformers, and run one forward pass over a tree of tokens."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError
from autointerp.llm.backends.packed import Packed, Tokens, pack
from autointerp.records import Message

log = logging.getLogger("autointerp")

PASS_TOKENS = {"cpu": 1024, "cuda": 8192}  # new tokens in one pass: enough to keep the device busy
HIDDEN = "\ufdd0"  # no character, so that it stands in no text (Unicode, 23.7)


class LocalModel:
    """An instruct model in `folder`. Its tokenizer may be asked from several threads, the model from one.

    Raises AutointerpError for a folder without a model or a chat template, and for an architecture whose
    tokens do not give in a tree what they give in a row.
    """

    def __init__(self, folder: Path, config: LLMConfig) -> None:
        self.name = config.model
        self.exact = False  # whether logits are wanted in float32
        self._tokenizer_lock = threading.Lock()  # tokenizers are asked by the event loop and by the worker
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if not (folder / "config.json").is_file():
            raise AutointerpError(f"no language model in {folder}: it has no config.json")
        log.info("loading %s (%s, %s)", self.name, config.dtype, device)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, config.dtype))
            self.network = model.eval().to(device)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, AssertionError) as error:
            raise AutointerpError(f"cannot load the language model in {folder}: {_line(error)}") from error
        if self._tokenizer.chat_template is None:
            raise AutointerpError(f"{self.name} has no chat template: take an instruct model")
        self._controls = _any_of(t.content for t in self._tokenizer.added_tokens_decoder.values() if t.special)
        text = self.network.config.get_text_config(decoder=True)
        self.context = int(getattr(text, "max_position_embeddings", 0) or 1 << 30)
        self._layer_types = set(getattr(text, "layer_types", None) or ())
        self._window = getattr(text, "sliding_window", None)
        ends = self.network.generation_config.eos_token_id
        self.ends = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        if config.dtype != "float32":
            self.network.get_output_embeddings().register_forward_hook(self._float_logits)
        self.pass_tokens = PASS_TOKENS.get(self.network.device.type, PASS_TOKENS["cuda"])
        self._check()

    # --- text and tokens

    def encode(self, text: str, *, controls: bool = False) -> Tokens:
        """The names of control tokens, such as ``<|im_end|>``, are text like any other unless `controls`."""
        with self._tokenizer_lock:
            return tuple(self._tokenizer(text, add_special_tokens=False, split_special_tokens=not controls).input_ids)

    def decode(self, tokens: Sequence[int]) -> str:
        with self._tokenizer_lock:
            return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def chat(self, messages: Sequence[Message]) -> Tokens:
        """The prompt up to where the assistant's turn begins. No text of a message ends its turn."""
        turns = [{"role": m.role, "content": self._controls.sub(_hidden, m.content)} for m in messages]
        try:
            return self._rendered(turns)
        except TemplateError:
            if len(turns) < 2 or turns[0]["role"] != "system":
                raise
        # a template without a system role: its text goes before the user's
        first = {"role": turns[1]["role"], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
        return self._rendered([first, *turns[2:]])

    def _rendered(self, turns: list[dict[str, str]]) -> Tokens:
        """The template's control tokens are that; those that a message names are hidden from it, and are text."""
        text = self._render(turns)
        if HIDDEN not in text:
            return self.encode(text, controls=True)
        parts = self._controls.split(text)  # every other one is a control token
        tokens = [self.encode(part.replace(HIDDEN, ""), controls=i % 2 == 1) for i, part in enumerate(parts) if part]
        return tuple(token for each in tokens for token in each)

    def _render(self, turns: list[dict[str, str]]) -> str:
        # A template that prints today's date would change every prompt every day, and one that opens
        # a thinking block would put the answer out of reach of `choose`; others ignore these names.
        return self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False, date_string="01 Jan 2025"
        )

    # --- the forward pass

    def forward(
        self, packed: Packed, nodes: Sequence[int], known: Sequence[tuple[torch.Tensor, torch.Tensor]] | None
    ) -> tuple[torch.Tensor, Any]:
        """Logits [len(nodes), vocab] and the cache [1, heads, base + Q, d] a layer."""
        base, device = packed.base, self.network.device
        at = torch.from_numpy(packed.positions).to(device)[None]
        before = torch.from_numpy(np.concatenate([np.arange(base), packed.positions])).to(device)[None]
        out = self.network(
            input_ids=torch.from_numpy(packed.tokens).to(device)[None],
            position_ids=at,
            attention_mask=self.masks(torch.from_numpy(packed.mask).to(device)[None], at, before),
            past_key_values=DynamicCache([(k[:, :, :base], v[:, :, :base]) for k, v in known or ()]),
            use_cache=True,
            logits_to_keep=torch.tensor(nodes, device=device),
        )
        return out.logits[0], out.past_key_values

    def masks(self, mask: torch.Tensor, at: torch.Tensor, before: torch.Tensor) -> Any:
        """The model's masks for bool [B, Q, K], query positions [B, Q] and key positions [B, K]."""
        near = mask if self._window is None else mask & (at[:, :, None] - before[:, None, :] < self._window)
        if len(self._layer_types) > 1:
            return {"full_attention": mask[:, None], "sliding_attention": near[:, None]}
        return (mask if self._layer_types == {"full_attention"} else near)[:, None]

    def _float_logits(self, head: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        """Logits in float32: bfloat16 ones near 20 come in steps of 1/8, which are ties among judgements."""
        if not self.exact:
            return None
        hidden = args[0].float()
        logits = torch.cat([hidden @ rows.float().T for rows in head.weight.split(16384)], dim=-1)
        return logits if head.bias is None else logits + head.bias

    def _check(self) -> None:
        """Tokens in a tree give what they give in a row, or this architecture cannot be packed."""
        tokens = self.encode("A tree has leaves. The sky is blue, and water is wet.")[:24]
        half = len(tokens) // 2
        prompts = [tokens, tokens[:half] + tokens[: len(tokens) - half]]
        packed = pack(prompts, 0, [(), ()])
        with torch.inference_mode():
            logits, _ = self.forward(packed, [int(path[-1]) for path in packed.paths], None)
            for got, prompt in zip(logits, prompts):
                ids = torch.tensor([prompt], device=self.network.device)
                plain = self.network(ids, logits_to_keep=1).logits[0, -1]
                apart = (got.float().softmax(-1) - plain.float().softmax(-1)).abs().sum().item()
                if not apart < (1e-3 if logits.dtype == torch.float32 else 0.1):
                    raise AutointerpError(
                        f"{self.name} ({self.network.config.model_type}) cannot be run in-process: serve it with vLLM"
                    )


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Finds each of `names`, the longest first; those of one character cannot be hidden and are left out."""
    longest = sorted((re.escape(name) for name in names if len(name) > 1), key=len, reverse=True)
    return re.compile(f"({'|'.join(longest) or '(?!)'})")


def _hidden(name: re.Match[str]) -> str:
    return f"{name[0][0]}{HIDDEN}{name[0][1:]}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
