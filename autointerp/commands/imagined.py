"""Imagined features for a plan before the harvest: windows of the configured size, from the corpus' own text.

Used where the harvest has not run. One imagined feature fires on one token in the middle of each firing window.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from autointerp.config import Config, ContextsConfig
from autointerp.engine.estimate import Population, Sample
from autointerp.errors import AutointerpError
from autointerp.records import Constituent, Context, FeatureEvidence, Kind, Neighbour, Split, TokenStat

WORD = " example"  # stands for a token where no text is at hand
DOCUMENTS = 200  # of the text that are read
SPECIFIC = 5  # tokens that an imagined feature fires on most
FIRINGS = 100
CONSTITUENTS = 2  # of a composite
_PIECE = re.compile(r"\s?[^\W\d_]{1,6}|\d|\s?[^\w\s]|\s|_")  # as long as a token of a small vocabulary


def imagine(config: Config, about: Population, stand_in: str) -> Sample:
    """One feature; where composites are asked for, with two constituents. `stand_in`: the text of explanations."""
    pieces = cycle(text_pieces(config))
    train, test = _contexts(config.contexts, "train", pieces), _contexts(config.contexts, "test", pieces)
    by_kind = {kind: tuple(c for c in train if c.kind == kind) for kind in ("activating", "random", "near")}
    stats = tuple(TokenStat(next(pieces), FIRINGS // 8, FIRINGS, 1.0) for _ in range(SPECIFIC))
    evidence = FeatureEvidence(
        0, FIRINGS, 0.001, 1.0, by_kind["activating"], by_kind["random"], by_kind["near"], stats, train_firings=FIRINGS
    )
    firing = tuple(c for c in test if c.fires)
    near = tuple(Neighbour(i + 1, 0.5, stand_in, firing) for i in range(config.contexts.neighbours))
    sample = Sample(evidence, test, neighbours=near)
    if about == "composites":
        part = Constituent(1, 1 / CONSTITUENTS, stand_in, contexts=by_kind["activating"])
        sample = replace(sample, parts=lambda of, pair: (part,) * CONSTITUENTS)
    return sample


def _contexts(sizes: ContextsConfig, split: Split, pieces: Iterator[str]) -> list[Context]:
    counts: dict[Kind, int] = {
        "activating": sizes.test_activating,
        "random": sizes.test_random,
        "near": sizes.test_near,
    }
    if split == "train":
        counts = {"activating": sizes.train, "random": (sizes.train + 1) // 2, "near": sizes.train // 2}
    silent = (0.0,) * sizes.window
    middle = sizes.window // 2
    fires = (*silent[:middle], 1.0, *silent[middle + 1 :])
    contexts: list[Context] = []
    for kind, count in counts.items():
        for i in range(count):
            tokens = tuple(islice(pieces, sizes.window))
            quantile = i % sizes.quantiles if kind == "activating" else None
            activations = fires if kind == "activating" else silent
            contexts.append(Context(0, len(contexts), split, kind, quantile, i, 0, tokens, activations))
    return contexts


def text_pieces(config: Config) -> list[str]:
    """Pieces as long as tokens, of the corpus' first documents where they are on this disk; else one common word."""
    from autointerp.subject.corpus import read_documents

    if not Path(config.corpus.source).expanduser().exists():
        return [WORD]
    try:
        documents = list(islice(read_documents(config.corpus), DOCUMENTS))
    except (AutointerpError, OSError):  # told by the checks before a run
        return [WORD]
    return _PIECE.findall(" ".join(documents)) or [WORD]
