"""Do explanations of composites add up? Figures and picture from ``autointerp run composites``; run it first, then
``python benchmarks/arithmetic.py``.

For every composite (g + h = f) among the explained features:

- arithmetic: whether a judge says that f's explanation entails those of g and h ("g and h"), or each of theirs entails
  it ("g or h"), beside the constituents of another composite (swapped) and latents that fire as often (random);
- detection of f by its own explanation (default), by "both g and h" (conjunction), "either g or h" (disjunction) and by
  a text that a model wrote from both (constituents), each beside the same kind of explanation of another composite.
  Differences are paired by composite, with 95 % bootstrap intervals over composites;
- detection of the constituents that are no composites, by their own explanations;
- search: how many of the constituents, found by direction, are among the latents whose explanations say what f's says;
- causal: how far the effects of the constituents on the subject add up to f's.

Judge and search are shown apart for composites of which no two texts are the same, too: a text entails itself. The last
three are there where the run asked for them (`scorers`, `composites.semantic.search`, `composites.causal`).
Constituents of a union dictionary count as own ones do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import autointerp as ai
from autointerp.composites import FLAGGED
from autointerp.stats import paired_difference

PAIRS = {"own": "its constituents", "swapped": "another's", "random": "as frequent"}
WAYS = {
    "entails": "semantic",
    "is entailed by": "semantic_either",
}  # "g and h" entails g and h; g and h entail "g or h"
CONTROL = "other_feature"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="composites")
    parser.add_argument("--made-by", help="the command that made the run, for the file")
    parser.add_argument(
        "--out", type=Path, default=Path("results/reference/arithmetic.json"), help="a picture beside it"
    )
    options = parser.parse_args()
    run = ai.open_run(options.run)
    name = run.info["name"]
    command = f"{options.made_by or f'autointerp run {name}'} && python benchmarks/arithmetic.py {name}"
    found = {"command": command} | measure(run)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    draw(found, options.out.with_suffix(".png"))
    print(json.dumps({key: value for key, value in found.items() if key != "table"}, indent=1, ensure_ascii=False))


def measure(run: ai.Run) -> dict[str, Any]:
    checked: Any = run.composites.set_index("feature")
    explained = texts_of(run)
    flagged = [f for f in checked.index[checked["label"].isin(FLAGGED)] if f in explained.index]
    rows = checked.loc[flagged]
    lent = rows["union_constituents"].map(len) > 0
    found: dict[str, Any] = {
        "revision": run.info["git"],
        "packages": run.info["packages"],
        "labels": {str(k): int(n) for k, n in checked["label"].value_counts().items()},
        "composites": {str(k): int(n) for k, n in rows["label"].value_counts().items()},
        "with_union_constituents": int(lent.sum()),
        "reencode": run.info["stages"]["reencode"]["facts"]["reencode"],
        "arithmetic": arithmetic(rows),
    }
    found["table"] = [row_of(f, checked, explained) for f in flagged]
    found["explained_of_union"] = sum(isinstance(latent, str) for latent in explained.index)
    found["a_constituent_has_its_text"] = sum(texts[0] in texts[1:] for texts in map(texts_in, found["table"]))
    apart = [row["feature"] for row in found["table"] if all(t := texts_in(row)) and len({*t}) == len(t)]
    found["arithmetic_where_texts_differ"] = {"composites": len(apart)} | arithmetic(checked.loc[apart])
    semantic: Any = run.semantic
    if "agree" in semantic.columns:
        found["search"] = by_pair(semantic[semantic["feature"].isin(flagged)], "agree")
        found["search_where_texts_differ"] = by_pair(semantic[semantic["feature"].isin(apart)], "agree")
    if "causal" in checked.columns:
        tried = checked[checked["causal"].notna()]
        found["causal"] = {"labels": {str(k): int(n) for k, n in tried["label"].value_counts().items()}} | causes(tried)
    if "detection" in set(run.scores["scorer"]):
        found |= detection(run, flagged, found["table"])
    return found


def texts_of(run: ai.Run) -> Any:
    """A row for each latent, those of the union dictionary as `union 12`; a column for each explainer's texts."""
    import pandas as pd

    rows = [run.explanations[["feature", "explainer", "explanation"]]]
    if hasattr(run, "union_features"):
        union = run.union_features[["feature", "explainer", "explanation"]].dropna()
        rows.append(union.assign(feature=[f"union {feature}" for feature in union["feature"]]))
    return pd.concat(rows).pivot_table(
        index="feature", columns="explainer", values="explanation", aggfunc="first", sort=False
    )


def texts_in(row: dict[str, Any]) -> list[str | None]:
    """A composite's explanation and those of its constituents, as they are compared."""
    texts = [next(iter(row["explanations"].values()), None), *row["of the constituents"]]
    return [text and text.lower().strip(" .") for text in texts]


def row_of(feature: int, checked: Any, explained: Any) -> dict[str, Any]:
    row = checked.loc[feature]
    parts = [*map(int, row["constituents"]), *(f"union {int(part)}" for part in row["union_constituents"])]
    texts = {name: text for name in explained.columns if isinstance(text := explained.loc[feature, name], str)}
    return {
        "feature": int(feature),
        "label": row["label"],
        "r2": round(float(row["r2"]), 3),
        "constituents": parts,
        "explanations": texts,
        "of the constituents": [text_of(explained, part, explained.columns[0]) for part in parts],
        **{name: number(row[column]) for name, column in columns().items()},
    }


def detection(run: ai.Run, flagged: Sequence[int], table: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the composites by each explainer, and of the other latents; rows of `table` get theirs."""
    scores: Any = run.scores[run.scores["scorer"] == "detection"]
    scores = scores.assign(control=scores["control"].fillna(""))
    wide = scores.pivot_table(index="feature", columns=["explainer", "control"], values="value")
    explainers = list(dict.fromkeys(scores["explainer"]))
    first, *others = explainers
    of, plain = wide.reindex(flagged).dropna(how="all"), wide.drop(index=flagged, errors="ignore")
    differences: dict[str, Any] = {}
    for name in explainers:
        differences[f"{name} − {CONTROL}"] = paired(of[name, ""], of[name, CONTROL])
    for name in others:
        differences[f"{name} − {first}"] = paired(of[name, ""], of[first, ""])
    if {"conjunction", "disjunction"} <= set(explainers):
        differences["disjunction − conjunction"] = paired(of["disjunction", ""], of["conjunction", ""])
    for row in table:
        if row["feature"] in of.index:
            row["detection"] = {name: number(of.loc[row["feature"], (name, "")]) for name in explainers}
            row["detection, control"] = {name: number(of.loc[row["feature"], (name, CONTROL)]) for name in explainers}
    return {
        "detection": {name: mean(of[name, ""]) for name in explainers}
        | {f"{name}, {CONTROL}": mean(of[name, CONTROL]) for name in explainers},
        "differences": differences,
        "constituents": {
            "detection": mean(plain[first, ""]),
            f"− {CONTROL}": paired(plain[first, ""], plain[first, CONTROL]),
        },
        "unscored": int(scores.loc[scores["value"].notna(), "n_unscored"].sum()),  # examples of what has a score
    }


def causes(rows: Any) -> dict[str, Any]:
    """Agreement of the effects of the constituents, each alone and added up, with the composite's own; beside them."""
    found: dict[str, Any] = {"constituents": mean(rows["causal"])}
    for arm in ("together", "swapped", "turned"):
        found[arm] = mean(rows[f"causal_{arm}"])
        found[f"constituents − {arm}"] = paired(rows["causal"], rows[f"causal_{arm}"])
    return found


def by_pair(semantic: Any, column: str) -> dict[str, Any]:
    """Of the search by concept: the share of the constituents that it finds, and of the controls'."""
    wide = semantic.pivot_table(index="feature", columns="pair", values=column)
    found: dict[str, Any] = {pair: mean(wide[pair]) for pair in PAIRS if pair in wide.columns}
    for pair in list(found)[1:]:
        found[f"own − {pair}"] = paired(wide["own"], wide[pair])
    return found


def columns() -> dict[str, str]:
    return {
        f"{way}, {pair}": column if pair == "own" else f"{column}_{pair}"
        for way, column in WAYS.items()
        for pair in PAIRS
    }


def arithmetic(rows: Any) -> dict[str, Any]:
    """Each way and for each kind of pair the mean of the smallest probability, and how often that is ½ or more."""
    found: dict[str, Any] = {}
    for name, column in columns().items():
        known, (way, pair) = rows[column].dropna(), name.split(", ")
        found[name] = {"mean": mean(known), "yes": mean((known >= 0.5).astype(float))}
        if pair != "own":
            found[f"{way}, own − {pair}"] = paired(rows[WAYS[way]], rows[column])
    return found


def mean(values: Any) -> dict[str, Any]:
    """With its bootstrap interval over features."""
    known = values.dropna()
    return without_wins(paired(known, known * 0))


def without_wins(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("mean", "low", "high", "n")}


def paired(one: Any, other: Any) -> dict[str, Any]:
    return {key: number(value) for key, value in asdict(paired_difference(one.tolist(), other.tolist())).items()}


def number(value: Any) -> Any:
    if value is None or isinstance(value, int):
        return value
    return None if value != value else round(float(value), 4)


def text_of(explained: Any, feature: int | str, explainer: str) -> str | None:
    text = explained[explainer].get(feature)
    return text if isinstance(text, str) else None


def draw(found: dict[str, Any], path: Path) -> None:
    """How far explanations entail, each way, and detection where it was asked. A line a composite, a bar the mean with
    its interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    detected = [row for row in found["table"] if "detection" in row]
    widths = [1, 1, 1.4] if detected else [1, 1]
    figure, axes = plt.subplots(
        1, len(widths), figsize=(13 if detected else 9.5, 4.2), layout="constrained", width_ratios=widths
    )
    for axis, way in zip(axes, WAYS):
        strips(
            axis,
            list(PAIRS.values()),
            [[row[f"{way}, {pair}"] for pair in PAIRS] for row in found["table"]],
            [found["arithmetic"][f"{way}, {pair}"]["mean"] for pair in PAIRS],
        )
        axis.set_title(f"the composite's explanation {way} those of …", fontsize=10, loc="left")
    axes[0].set_ylabel("smallest P(yes)")
    if detected:
        draw_detection(axes[-1], found, detected)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_detection(axis: Any, found: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    explainers = [name for name in found["detection"] if CONTROL not in name]
    lines = [[row["detection"][name] for name in explainers] for row in rows]
    strips(
        axis, [name.replace("_", "\n") for name in explainers], lines, [found["detection"][name] for name in explainers]
    )
    for x, name in enumerate(explainers):
        control = found["detection"][f"{name}, {CONTROL}"]["mean"]
        axis.hlines(control, x - 0.25, x + 0.25, color="0.5", ls=":", label="another feature's" if x == 0 else None)
    axis.legend(frameon=False, fontsize=9)
    axis.set_title("detection of the composite by its explanation", fontsize=10, loc="left")
    axis.set_ylabel("area under precision and recall")


def strips(
    axis: Any, names: Sequence[str], lines: Sequence[Sequence[float | None]], means: Sequence[dict[str, Any]]
) -> None:
    for line in lines:
        known = [(x, value) for x, value in enumerate(line) if value is not None]
        axis.plot(*zip(*known), color="0.8", lw=0.8, marker="o", ms=3, zorder=1)
    for x, figure in enumerate(means):
        if figure["mean"] is None:
            continue
        axis.plot(x, figure["mean"], "o", color="#1f6fb4", ms=7, zorder=3)
        if figure["low"] is not None:
            axis.vlines(x, figure["low"], figure["high"], color="#1f6fb4", lw=2.5, zorder=2)
    axis.set_xticks(range(len(names)), names, fontsize=9)
    axis.set_ylim(-0.03, 1.03)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
