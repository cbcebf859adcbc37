"""The explainer self_explain: the subject itself says what a feature's direction means to it.

After SelfIE (2403.10949) and Patchscopes (2401.06102); the SAE's directions in the place of hidden states.

1. The subject reads a prompt of words with related words behind them, which ends with a placeholder for one more.
2. At the placeholder the residual stream, early in the model, is replaced by the feature's decoder direction. Its
   length is a multiple of the prompt's median, one for each of `scales`; the subject continues greedily.
3. Each continuation has a value: the mean log-probability of its tokens under this direction, less their mean under
   `others` directions of other latents at the same scale. A scale that is too small, or so large that attention sees
   nothing else, yields the same text for every direction, and its value is near 0.
4. The continuation of the highest value is the explanation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autointerp.errors import ConfigError
from autointerp.plugins import explainer
from autointerp.records import Explanation, FeatureEvidence
from autointerp.subject.model import Subject

if TYPE_CHECKING:
    import torch

PLACEHOLDER = "X"
PROMPT = (
    "doctor: nurse, surgeon, physician; Tuesday: Monday, Friday, Sunday; loud: noisy, deafening, shouting;"
    f" {PLACEHOLDER}:"
)
ENDS = ("\n", ";", "\ufffd")
_ROWS = 16  # in one forward pass


@explainer("self_explain", needs={"subject", "sae"})
async def explain(
    feature: FeatureEvidence,
    llm: None,
    *,
    subject: Subject,
    sae: Any,  # an SAE: its module would load torch wherever plug-ins are listed
    prompt: str = PROMPT,
    layer: int | None = 1,
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0),
    others: int = 4,
    tokens: int = 16,
    seed: int,
) -> Explanation:
    """No other model than the subject: one generation of `tokens` for all scales, one pass to value them.

    The last "X" of `prompt` is the placeholder; an instruct model can be asked for a definition. `layer` is the block
    behind which the residual stream is replaced, None the SAE's own: later ones leave the subject less to read it
    with. All continuations stand in `raw` with their values. Small subjects mostly repeat the prompt's own words: of
    four features of SmolLM2-135M one was named (original, 1.2 nats), and values near 0 say that none is.
    """
    if sae.W_dec.shape[1] != subject.d_model:
        return Explanation(None, failure="the SAE's decoder does not write into the residual stream")
    rng = random.Random(f"{seed}:{feature.feature}:others")
    latents = rng.sample([i for i in range(len(sae.W_dec)) if i != feature.feature], min(others, len(sae.W_dec) - 1))
    patched = _Patched(subject, prompt, layer)
    own, *foreign = patched.directions(sae.W_dec[[feature.feature, *latents]])
    spoken = [(scale, ids) for scale, ids in zip(scales, patched.continued(own, scales, tokens)) if ids]
    if not spoken:
        return Explanation(None, failure="no scale makes the subject say anything of it")
    values = patched.log_probabilities([(scale * vector, ids) for scale, ids in spoken for vector in (own, *foreign)])
    width = 1 + len(foreign)
    rows = []
    for i, (scale, ids) in enumerate(spoken):
        mine, *theirs = values[i * width : (i + 1) * width]
        rows.append((mine - (sum(theirs) / len(theirs) if theirs else 0.0), scale, patched.text(ids)))
    text = max(rows, key=lambda row: row[0])[2]
    listed = [f"{value:+.2f}  at {scale:g}: {text}" for value, scale, text in rows]
    distinct = ", ".join(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    return Explanation(distinct, raw="\n".join(["nats a token above other directions:", *listed]))


class _Patched:
    """The subject's reading of one prompt with a vector in the placeholder's place."""

    def __init__(self, subject: Subject, prompt: str, layer: int | None) -> None:
        """Raises ConfigError for a prompt without placeholder, or a layer that the subject lacks."""
        import torch

        depth = subject.hook.layer if layer is None else layer
        self._subject = subject.at(f"blocks.{depth}.hook_resid_post")
        self._tokenizer = subject.tokenizer
        character = prompt.rfind(PLACEHOLDER)
        if character < 0:
            raise ConfigError(f"explainer 'self_explain', option 'prompt': no {PLACEHOLDER} stands in it")
        encoded = self._tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
        spans: list[tuple[int, int]] = encoded["offset_mapping"]
        bos = [] if subject.bos_id is None else [subject.bos_id]
        self._ids = bos + list(encoded["input_ids"])
        self._place = len(bos) + next(i for i, (low, high) in enumerate(spans) if low <= character < high)
        clean = self._subject.activations(torch.tensor([self._ids]))[0]
        # The first token of a row is an attention sink of many times the usual length.
        self._length = clean[1:].norm(dim=-1).median()

    def directions(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, d_model] rows at the length that the residual stream has in the prompt."""
        rows = rows.detach().float().to(self._length.device)
        return rows / rows.norm(dim=-1, keepdim=True) * self._length

    def continued(self, vector: torch.Tensor, scales: Sequence[float], tokens: int) -> list[list[int]]:
        """For each scale the ids of the greedy continuation up to one of `ENDS`; empty where it says nothing."""
        import torch

        vectors = torch.stack([scale * vector for scale in scales])
        ids = torch.tensor([self._ids] * len(scales), device=self._subject.device)

        def put(value: torch.Tensor, hook: Any) -> torch.Tensor:
            if value.shape[1] == len(self._ids):  # what follows is read from the cache of keys and values
                value = value.clone()
                value[:, self._place] = vectors.to(value)
            return value

        with torch.no_grad(), self._subject.forward.hooked([(self._subject.hook.name, put)]) as model:
            rows = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=self._tokenizer.eos_token_id or 0,
            )
        return [self._cut(row[len(self._ids) :].tolist()) for row in rows]

    def _cut(self, ids: list[int]) -> list[int]:
        special = set(self._tokenizer.all_special_ids)
        for n, token in enumerate(ids):
            text = self._tokenizer.decode([token])
            if token in special or any(end in text for end in ENDS):
                ids = ids[:n]
                break
        return ids if any(letter.isalnum() for letter in self.text(ids)) else []

    def text(self, ids: list[int]) -> str:
        return " ".join(str(self._tokenizer.decode(ids)).split())

    def log_probabilities(self, rows: Sequence[tuple[torch.Tensor, list[int]]]) -> list[float]:
        """Mean log-probability a token of each continuation (ids) behind the prompt with a vector [d_model] in it."""
        import torch

        start, means = len(self._ids), []
        for first in range(0, len(rows), _ROWS):
            batch = rows[first : first + _ROWS]
            tokens = torch.zeros(len(batch), start + max(len(ids) for _, ids in batch), dtype=torch.long)
            for i, (_, ids) in enumerate(batch):
                tokens[i, : start + len(ids)] = torch.tensor(self._ids + ids)
            # At this hook a change at one place reaches no other: that happens in the layers behind it.
            stream = self._subject.activations(tokens)
            stream[:, self._place] = torch.stack([vector for vector, _ in batch])
            before = torch.arange(start - 1, tokens.shape[1] - 1).expand(len(batch), -1)  # the place before each token
            logits, _ = self._subject.logits(tokens, patch={self._subject.hook.name: stream}, at=before)
            likely = logits.float().log_softmax(-1).cpu()
            for i, (_, ids) in enumerate(batch):
                means.append(float(likely[i, range(len(ids)), ids].mean()))
        return means
