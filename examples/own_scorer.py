"""Plug in a scorer that needs neighbours: does an explanation fit a feature better than the features near it?

    python examples/own_scorer.py

Neighbours are the features whose decoder directions lie nearest. A good explanation tells the feature from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import autointerp as ai
from autointerp.records import Neighbour


@ai.scorer("against_neighbours", needs={"llm", "neighbours"})
async def score(
    explanation: str,
    examples: Sequence[ai.Context],
    llm: ai.LLM,
    *,
    neighbours: Sequence[Neighbour],
    most: int = 5,
) -> ai.Score:
    """Share of pairs in which the judge picks the feature's text before the neighbour's. Chance gives .5."""
    own = [example for example in examples if example.fires][:most]
    others = [neighbour.contexts[0] for neighbour in neighbours if neighbour.contexts][:most]
    right, judgements = 0, []
    for turn, (mine, other) in enumerate(zip(own, others)):
        first, second = (mine, other) if turn % 2 == 0 else (other, mine)  # the place must tell nothing
        question = (
            f"Property: {explanation}\n\nA: {first.text}\n\nB: {second.text}\n\nWhich text has it? Answer A or B."
        )
        answer = await llm.complete([ai.Message("user", question)], max_tokens=5)
        picked = (answer.text or "").strip()[:1].upper()
        failure = answer.failure or (None if picked in ("A", "B") else "the answer is neither A nor B")
        hit = None if failure else float((picked == "A") == (first is mine))
        right += hit == 1
        status = "failed" if failure else "ok"
        judgements.append(
            ai.Judgement(mine.example, mine.kind, mine.quantile, 1.0, hit, status=status, failure=failure)
        )
    judged = sum(judgement.status == "ok" for judgement in judgements)
    failure = None if judged else "no pair could be judged"
    value = right / judged if judged else None
    return ai.Score(value, None, None, judged, len(judgements) - judged, 0.5, {}, tuple(judgements), failure)


if __name__ == "__main__":
    run = ai.run("demo", set={"name": "neighbours", "scorers": ["against_neighbours"], "features.count": 4})
    print(run.scores.pivot_table(index="feature", columns=["explainer", "control"], values="value", dropna=False))
