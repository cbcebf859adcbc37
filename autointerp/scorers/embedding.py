"""Embedding: are the windows in which the feature fires nearer to the explanation, as an embedding model sees them?

No judge is asked, so it costs a thousandth of detection, and it reads topics better than single words.
After 2410.13928.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autointerp.plugins import scorer
from autointerp.records import Context, Score
from autointerp.scorers.judging import Item, failed, held_out, summarise

Embedder = Callable[[list[str]], Any]


@scorer("embedding", needs={"embedder"})
async def score(explanation: str, examples: Sequence[Context], llm: None, *, embedder: Embedder | None = None) -> Score:
    """Rank windows by their cosine with the explanation; `embedder` maps n texts to unit rows [n, d]."""
    held_out("embedding", examples)
    items = [Item.window(example) for example in examples]
    if embedder is None:
        return failed(items, "no embedding model")
    rows = embedder([explanation, *(item.text for item in items)])
    return summarise(items, [(float(row @ rows[0]), None) for row in rows[1:]], answers=False)
