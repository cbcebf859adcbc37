"""What is shown beside each judgement of a feature."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from autointerp.report.judged import judgements_of


def row(prediction: float, control: str | None = None, **more: Any) -> dict[str, Any]:
    names = {"explainer": "default", "scorer": "detection", "kind": "random", "quantile": None, "text": None}
    judged = {"example": 1, "truth": 0.0, "prediction": prediction, "probability": None, "status": "ok"}
    return names | judged | {"control": control} | more


def test_each_explanation_that_a_control_lent_has_its_answer_beside_the_same_text() -> None:
    told = [
        *(row(0.0), row(1.0, "other_feature"), row(0.0, "other_feature")),
        *(row(1.0, kind="neighbour", text=text) for text in ("the «cat»", "a «fox»")),
        row(1.0, "other_feature", kind="neighbour", text="the «cat»"),
        row(0.0, "other_feature", kind="neighbour", text="a «fox»"),
    ]
    run: Any = SimpleNamespace(rows=lambda name, features: told if name == "judgements" else [])
    (group,) = judgements_of(run, 3)
    assert [(each.text, each.controls["other_feature"]) for each in group.rows] == [
        (None, "yes, no"),
        ("the «cat»", "yes"),
        ("a «fox»", "no"),
    ]
