"""Stage select: which features are explained, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autointerp.artifacts import Firings
from autointerp.config import Config, LentFeatures
from autointerp.engine.estimate import Amount, Sizes
from autointerp.engine.stage import RUN, Job, Stage, Use
from autointerp.errors import AutointerpError
from autointerp.tables import compute, write_rows


def uses(config: Config) -> Iterator[Use]:
    if isinstance(config.features, LentFeatures):
        yield Use("select", ("harvest", f"{RUN}select", f"{RUN}reencode"), {"min_firings": config.features.min_firings})
        return
    # Only a selection that asks for composites waits for the check, and changes with it.
    checked = ("reencode",) if config.features.select == "composites" or config.features.constituents else ()
    yield Use("select", ("harvest", *checked), config.features.model_dump() | {"seed": config.seed})


def work(job: Job) -> None:
    rows, latents = choose(job.config, job.inputs)
    write_rows(job.folder / "selection.parquet", "selection", rows)
    job.facts |= {"selected": len(rows), "latents": latents}
    lent = isinstance(job.config.features, LentFeatures)  # there may be no composite, or none of the union
    if not lent and not any(row["status"] == "ok" for row in rows):
        raise AutointerpError(
            f"none of the {len(rows)} selected features fires on {job.config.features.min_firings} tokens: raise"
            " corpus.tokens or lower features.min_firings"
        )


def choose(config: Config, inputs: dict[str, Path] | Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows of selection.parquet from the folders of harvest and, where it is asked for, of reencode; and how many
    latents have each status."""
    from autointerp.activations.evidence import firing_table

    firings, features = Firings(inputs["harvest"]), config.features
    table = firing_table(firings, features.min_firings)
    how = _chosen(config, table, inputs)
    why = {
        "ok": None,
        "dead": f"never fires on {firings.info.n_tokens:,} tokens",
        "too_rare": f"fires on fewer than {features.min_firings} of {firings.info.n_tokens:,} tokens",
    }
    rows = [
        row | {"selected": how[row["feature"]], "failure": why[row["status"]]}
        for row in table.iloc[sorted(how)].to_dict("records")
    ]
    return rows, table["status"].value_counts().to_dict()


def _chosen(config: Config, table: Any, inputs: dict[str, Path] | Any) -> dict[int, str]:
    """Which features of `table` (of `firing_table`) are selected, and how each came among them."""
    import pandas as pd

    from autointerp.activations.evidence import select_features
    from autointerp.composites.choice import choose_features, constituents_among

    features, composites = config.features, None
    if "reencode" in inputs:
        composites = pd.read_parquet(inputs["reencode"] / "composites.parquet")
    if isinstance(features, LentFeatures):  # `table` is of the union dictionary, `composites` of the run's SAE
        of_run = ready(inputs["select"])
        return dict.fromkeys(constituents_among(of_run, composites, "union_constituents"), "constituent")
    if composites is not None and features.select == "composites" and features.ids is None:
        chosen = choose_features(table, composites, features, config.seed)
    else:
        chosen = select_features(table, features, config.seed)
    how = dict.fromkeys(chosen, "ids" if features.ids is not None else features.select)
    if composites is not None and features.constituents:
        how = dict.fromkeys(constituents_among(chosen, composites, "constituents"), "constituent") | how
    return how


def selected(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "selection.parquet").to_pylist()


def ready(folder: Path) -> list[int]:
    """The selected features that fire often enough."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "selection.parquet", columns=["feature", "status"])
    return table.filter(compute().equal(table["status"], "ok"))["feature"].to_pylist()


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    return Amount(sizes.latents or 0, "latents", guess=1e-5)


STAGE = Stage("select", "which features are explained, and why the others are not", uses, work, amount=amount)
