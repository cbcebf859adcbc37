"""What the stage `explain` writes down of what an explainer returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autointerp.config import PluginConfig
from autointerp.engine.stage import Job, Use
from autointerp.records import Explanation, FeatureEvidence
from autointerp.stages.explain import Explaining, _explaining

EVIDENCE = FeatureEvidence(3, 1, 0.1, 1.0, (), (), ())


@pytest.mark.parametrize(
    ("said", "text", "failure"),
    [
        (Explanation(""), None, "the explainer returned no text and no reason"),
        (Explanation(" \n"), None, "the explainer returned no text and no reason"),
        (Explanation(None, "it was cut"), None, "it was cut"),
        (Explanation("dogs"), "dogs", None),
    ],
)
async def test_a_feature_has_a_text_or_a_reason(tmp_path: Path, said: Explanation, text: Any, failure: Any) -> None:
    async def mine(feature: FeatureEvidence, llm: None) -> Explanation:
        return said

    mine.needs = frozenset()  # type: ignore[attr-defined]
    job = Job(None, Use("explain/mine"), tmp_path, {})  # type: ignore[arg-type]
    _, explained = _explaining(job, Explaining(PluginConfig(name="mine"), mine, {}, {}), lambda batch: {})
    rows = await explained(3, (EVIDENCE, {}))
    (row,) = rows.tables["explanations"]
    assert (row["explanation"], row["status"], row["failure"]) == (text, "ok" if text else "failed", failure)
    assert rows.failed == (text is None)
