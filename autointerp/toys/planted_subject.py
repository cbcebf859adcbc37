"""A planted subject: a small Llama whose features are written by hand, so that what each reads and does is known.

1. Each feature has a direction of its own. The embeddings of its trigger words hold it, at length 1.
2. Block 0 does nothing. The SAE's hook is behind it: latent i reads and writes feature i's direction.
3. Of a ``direct`` feature the unembeddings of its effect words hold the direction: it raises them at once.
4. Of a ``later`` feature they hold another direction, which the MLP of block 1 writes where it reads the feature's.
   What the feature does shows when the subject is run, and not in the decoder row's product with the unembedding.

Everything is a Hugging Face folder and an SAE in SAELens' format, so that all of the pipeline takes it as any other.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

HOOK = "blocks.0.hook_resid_post"
NEUTRAL = 100  # words that no feature reads or raises
LOGIT = 6.5  # about what an effect word has behind a trigger word, where all other words have 0
WRITTEN = 4.0  # how strongly block 1 writes a later feature's effect for a trigger word
COMMON = 0.2  # part of every word's embedding, so that no activation is zero


@dataclass(frozen=True)
class PlantedFeature:
    """What latent `feature` of the SAE reads and does."""

    feature: int
    triggers: tuple[str, ...]  # words on which it fires
    effects: tuple[str, ...]  # words that it makes likely to come next
    path: Literal["direct", "later"]

    @property
    def explanation(self) -> str:
        """All of it in words, for judges that can do no more than look for words."""
        return f"the words {', '.join(self.triggers)}; raises {', '.join(self.effects)}"


@dataclass(frozen=True)
class PlantedSubject:
    model: Path  # Hugging Face folder
    sae: Path  # SAELens folder
    text: Path  # JSON lines: sentences of neutral and trigger words in no order
    features: tuple[PlantedFeature, ...]
    neutral: tuple[str, ...]


def plant_subject(
    folder: Path, features: int = 64, *, words: int = 4, later: float = 0.5, documents: int = 400, seed: int = 0
) -> PlantedSubject:
    """Write a subject of `features` features into `folder`, each with `words` trigger and effect words of no meaning.

    `later`: share of the features whose effect goes through block 1. `documents`: sentences of the text.
    """
    rng = random.Random(seed)
    vocabulary = _words(features * 2 * words + NEUTRAL, rng)
    neutral, rest = vocabulary[:NEUTRAL], iter(vocabulary[NEUTRAL:])
    planted = tuple(
        PlantedFeature(
            *(i, tuple(itertools.islice(rest, words)), tuple(itertools.islice(rest, words))),
            path="later" if i < round(later * features) else "direct",
        )
        for i in range(features)
    )
    rng.shuffle(vocabulary)
    subject = PlantedSubject(folder / "model", folder / "sae", folder / "text.jsonl", planted, tuple(neutral))
    _write_model(subject, ["<s>", *(f"▁{word}" for word in vocabulary)], seed)
    _write_text(subject, documents, rng)
    return subject


def _words(count: int, rng: random.Random) -> list[str]:
    """Distinct words of three syllables, none of which begins another."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    every = ["".join(parts) for parts in itertools.product(syllables, repeat=3)]
    return rng.sample(every, count)


def _write_model(subject: PlantedSubject, pieces: Sequence[str], seed: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width = 2 * len(subject.features) + 2
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q.T.contiguous()  # rows are orthonormal
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": width, "num_attention_heads": 1}
    config = LlamaConfig(
        **sizes,
        vocab_size=len(pieces),
        num_hidden_layers=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
    )
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        _plant(model, subject.features, {piece: i for i, piece in enumerate(pieces)}, basis)
    model.save_pretrained(subject.model)
    _tokenizer(pieces).save_pretrained(subject.model)
    _write_sae(subject, basis[: len(subject.features)])


def _plant(model: Any, features: Sequence[PlantedFeature], token: dict[str, int], basis: torch.Tensor) -> None:
    """Write the features into a model of zeros. `basis` [width, width]: rows 0 … n − 1 are the features' directions,
    the n that follow what later ones are turned into, the last one is common to all words."""
    n, root = len(features), len(basis) ** 0.5
    model.model.embed_tokens.weight[:] = COMMON * basis[-1]
    mlp = model.model.layers[1].mlp
    for each in features:
        reads, i = basis[each.feature], each.feature
        written = basis[n + i] if each.path == "later" else reads
        for word in each.triggers:
            model.model.embed_tokens.weight[token[f"▁{word}"]] += reads
        for word in each.effects:
            model.lm_head.weight[token[f"▁{word}"]] = LOGIT / root * written  # the final norm makes it √width long
        if each.path == "later":
            # silu(x) · x of the normed input, whose part along `reads` is about √width for a trigger word
            mlp.gate_proj.weight[i] = mlp.up_proj.weight[i] = reads
            mlp.down_proj.weight[:, i] = WRITTEN / root**2 * written


def _tokenizer(pieces: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=pieces[0]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    backend.decoder = decoders.Metaspace()  # type: ignore[assignment]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<s>")


def _write_sae(subject: PlantedSubject, directions: torch.Tensor) -> None:
    """A JumpReLU SAE: a latent's activation is the length of its direction in the activation, above one half."""
    import torch

    from autointerp.sae.formats.saelens import save_sae
    from autointerp.sae.model import SAE, SAEConfig

    n, width = directions.shape
    cfg = SAEConfig("jumprelu", width, n, "autointerp", "float32", False, hook_name=HOOK, model_name="planted")
    tensors = {"W_enc": directions.T.contiguous(), "W_dec": directions.contiguous(), "threshold": torch.full((n,), 0.5)}
    save_sae(SAE(cfg, tensors | {"b_enc": torch.zeros(n), "b_dec": torch.zeros(width)}), subject.sae)


def _write_text(subject: PlantedSubject, documents: int, rng: random.Random) -> None:
    """Sentences of 40 words, a tenth of them triggers."""
    triggers = [word for each in subject.features for word in each.triggers]
    with open(subject.text, "w", encoding="utf-8") as file:
        for _ in range(documents):
            words = [rng.choice(triggers if rng.random() < 0.1 else subject.neutral) for _ in range(40)]
            file.write(json.dumps({"text": " ".join(words)}) + "\n")


def oracle(prompt: str, neutral: Sequence[str], seed: int = 0) -> str:
    """What a judge answers who goes by the words of `PlantedFeature.explanation` and by nothing else.

    Asked to write texts, it writes sentences that hold a trigger word each, or `neutral` words alone. Asked for the
    number of an option, it names the one with most of the explanation's effect words, at random where none has any.
    """
    rng = random.Random(f"{seed}:{prompt}")
    if wanted := re.search(r"Write (\d+) texts", prompt):
        match = re.search(r"the words ([\w, ]+); raises", prompt)
        triggers = match[1].split(", ") if match else neutral
        lines = (" ".join([*rng.choices(neutral, k=6), rng.choice(triggers)]) for _ in range(int(wanted[1])))
        return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))
    match = re.search(r"; raises ([\w, ]+)", prompt)
    effects = set(match[1].split(", ")) if match else set()
    options = re.findall(r"^(\d+)\. (.*)$", prompt, re.MULTILINE)
    fits = {number: sum(word in effects for word in re.findall(r"\w+", text)) for number, text in options}
    best = max(fits.values(), default=0)
    return rng.choice([number for number, fit in fits.items() if fit == best] or ["?"])
