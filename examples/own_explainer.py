"""Plug in another explainer and compare it with the default one, on the demo's features.

    python examples/own_explainer.py

A module that is imported registers its plug-ins by decorator; a config can also name one by its dotted path.
"""

from __future__ import annotations

import autointerp as ai


@ai.explainer("contrast")
async def explain(feature: ai.FeatureEvidence, llm: ai.LLM, *, examples: int = 6) -> ai.Explanation:
    """Ask for what separates firing texts from near misses."""
    with_it = "\n".join(f"- {context.text}" for context in feature.activating[:examples])
    without = "\n".join(f"- {context.text}" for context in feature.near[:examples])
    question = (
        f"Texts A:\n{with_it}\n\nTexts B:\n{without}\n\nWhat do texts A have that texts B lack? Five words at most."
    )
    answer = await llm.complete([ai.Message("user", question)], max_tokens=30)
    return ai.Explanation(answer.text, failure=answer.failure, raw=answer.text)


if __name__ == "__main__":
    run = ai.run(
        "demo",
        set={"name": "contrast", "explainers": ["default", "contrast"], "scorers": ["detection"], "features.count": 4},
    )
    print(run.scores.pivot_table(index="feature", columns=["explainer"], values="value"))
