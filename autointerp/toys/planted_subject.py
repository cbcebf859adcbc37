"""A planted subject: a small Llama whose features are written by hand, so that what each reads and does is known.

1. Each feature has a direction of its own. The embeddings of its trigger words hold it, at length 1.
2. Block 0 does nothing. The SAE's hook is behind it: latent i reads and writes feature i's direction.
3. Of a ``direct`` feature the unembeddings of its effect words hold the direction: it raises them at once.
4. Of a ``later`` feature they hold another direction, which the MLP of block 1 writes where it reads the feature's.
   What the feature does shows when the subject is run, and not in the decoder row's product with the unembedding.
5. The direction of a ``sum`` is that of two features and some noise. Nothing else reads it: it does what they do,
   weaker. Those of the two that act later are read beyond a low threshold.
6. An ``own`` feature lies like a sum and is used as none. Block 1 reads it and its two parts each beyond a threshold
   that none of the others reaches, so that it raises words of its own, and the parts raise nothing where it is on.

Everything is a Hugging Face folder and an SAE in SAELens' format, so that all of the pipeline takes it as any other.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

HOOK = "blocks.0.hook_resid_post"
NEUTRAL = 100  # words that no feature reads or raises
LOGIT = 6.5  # about what an effect word has behind a trigger word, where all other words have 0
WRITTEN = 4.0  # how strongly block 1 writes a later feature's effect for a trigger word
COMMON = 0.2  # part of every word's embedding, so that no activation is zero
BESIDE_SUMS = 1.0  # the same where there are sums: thresholds are measured by it
RATIO = 0.7, 1.0  # of a sum's parts; at less the larger would be as good as the sum
REST = 0.3  # norm of what a sum's direction has beside its parts
THRESHOLD = 0.88  # of the SAE and of block 1: beyond what a sum has of a part, or a part of a sum
LOW = 0.4  # of block 1 for the parts of sums that are used so: a sum has more of them, and half of one has less
How = Literal["direct", "later", "sum", "own"]


@dataclass(frozen=True)
class PlantedFeature:
    """What latent `feature` of the SAE reads and does."""

    feature: int
    triggers: tuple[str, ...]  # words on which it fires
    effects: tuple[str, ...]  # words that it makes likely to come next
    path: How
    parts: tuple[int, ...] = ()  # of what lies like a sum
    beyond: float = 0.0  # block 1 reads what is above this of it

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
    folder: Path,
    features: int = 64,
    *,
    words: int = 4,
    later: float = 0.5,
    documents: int = 400,
    sums: int = 0,
    seed: int = 0,
) -> PlantedSubject:
    """Write a subject of `features` features into `folder`, each with `words` trigger and effect words of no meaning.

    `later`: share of the features whose effect goes through block 1. `documents`: sentences of the text. `sums`:
    further features that lie like the sum of two, each of which has no part in another: half of them are sums, half
    are used as none.
    """
    rng = random.Random(seed)
    vocabulary = _words((features + sums) * 2 * words + NEUTRAL, rng)
    neutral, rest = vocabulary[:NEUTRAL], iter(vocabulary[NEUTRAL:])
    planted = [
        PlantedFeature(
            *(i, tuple(itertools.islice(rest, words)), tuple(itertools.islice(rest, words))),
            path="later" if i < round(later * features) else "direct",
        )
        for i in range(features)
    ]
    _add_sums(planted, sums, words, rest, rng)
    rng.shuffle(vocabulary)
    subject = PlantedSubject(folder / "model", folder / "sae", folder / "text.jsonl", tuple(planted), tuple(neutral))
    _write_model(subject, ["<s>", *(f"▁{word}" for word in vocabulary)], seed)
    _write_text(subject, documents, rng)
    return subject


def _add_sums(planted: list[PlantedFeature], sums: int, words: int, rest: Iterator[str], rng: random.Random) -> None:
    """`sums` further features, of parts that are no one else's: sums, and as many that are used as none."""
    free = rng.sample(range(len(planted)), 2 * sums)
    for i in range(sums):
        parts, own = (free[2 * i], free[2 * i + 1]), bool(i % 2)
        triggers, effects = (tuple(itertools.islice(rest, words)) for _ in range(2))
        if own:
            for part in parts:
                planted[part] = replace(planted[part], path="later", beyond=THRESHOLD)
        else:
            for part in parts:
                planted[part] = replace(planted[part], beyond=LOW)
            effects = tuple(itertools.chain(*(planted[part].effects for part in parts)))
        planted.append(
            PlantedFeature(len(planted), triggers, effects, "own" if own else "sum", parts, THRESHOLD if own else 0.0)
        )


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
        directions = _directions(subject.features, basis, generator)
        _plant(model, subject.features, {piece: i for i, piece in enumerate(pieces)}, directions, basis)
    model.save_pretrained(subject.model)
    _tokenizer(pieces).save_pretrained(subject.model)
    _write_sae(subject, directions)


def _directions(features: Sequence[PlantedFeature], basis: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[features, width] unit rows: those of `basis`, and sums of two of them with some noise."""
    import torch

    rows = basis[: len(features)].clone()
    for each in features:
        if each.parts:
            low, high = RATIO
            ratio = low + (high - low) * float(torch.rand((), generator=generator))
            row = rows[each.parts[0]] + ratio * rows[each.parts[1]]
            noise = torch.randn(len(row), generator=generator)
            row = row / row.norm() + REST * noise / noise.norm()
            rows[each.feature] = row / row.norm()
    return rows


def _plant(
    model: Any,
    features: Sequence[PlantedFeature],
    token: dict[str, int],
    directions: torch.Tensor,
    basis: torch.Tensor,
) -> None:
    """Write the features into a model of zeros. `directions` [n, width] are theirs. Of `basis` [width, width] rows
    n to 2n − 1 are what later ones are turned into, and the last one is common to all words."""
    n, root = len(features), len(basis) ** 0.5
    common = BESIDE_SUMS if any(each.parts for each in features) else COMMON
    model.model.embed_tokens.weight[:] = common * basis[-1]
    mlp = model.model.layers[1].mlp
    for each in features:
        reads, i = directions[each.feature], each.feature
        written = reads if each.path == "direct" else basis[n + i]
        for word in each.triggers:
            model.model.embed_tokens.weight[token[f"▁{word}"]] += reads
        if each.path == "sum":
            continue
        for word in each.effects:
            model.lm_head.weight[token[f"▁{word}"]] = LOGIT / root * written  # the final norm makes it √width long
        if each.path != "direct":
            # silu(x) · x of the normed input, whose part along `reads` is about √width for a trigger word
            mlp.gate_proj.weight[i] = (reads - each.beyond / common * basis[-1]) / (1 - each.beyond)
            mlp.up_proj.weight[i] = reads
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
    """A JumpReLU SAE: a latent's activation is the length of its direction in the activation, above one half; above
    `THRESHOLD` where there are sums, so that a sum's parts are silent where it fires."""
    import torch

    from autointerp.sae.formats.saelens import save_sae
    from autointerp.sae.model import SAE, SAEConfig

    n, width = directions.shape
    cfg = SAEConfig("jumprelu", width, n, "autointerp", "float32", False, hook_name=HOOK, model_name="planted")
    least = THRESHOLD if any(each.parts for each in subject.features) else 0.5
    tensors = {"W_enc": directions.T.contiguous(), "W_dec": directions.contiguous()}
    tensors["threshold"] = torch.full((n,), least)
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
