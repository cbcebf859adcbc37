"""Stage select: which features are explained, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.artifacts import Firings
from autointerp.config import Config, LentFeatures
from autointerp.engine.estimate import Amount, Sizes
from autointerp.engine.stage import RUN, Job, Stage, Use
from autointerp.errors import AutointerpError
from autointerp.tables import compute, schema


def uses(config: Config) -> Iterator[Use]:
    if isinstance(config.features, LentFeatures):
        yield Use("select", ("harvest", f"{RUN}select", f"{RUN}reencode"), {"min_firings": config.features.min_firings})
        return
    # Only a selection that asks for composites waits for the check, and changes with it.
    checked = ("reencode",) if config.features.select == "composites" or config.features.constituents else ()
    yield Use("select", ("harvest", *checked), config.features.model_dump() | {"seed": config.seed})


def work(job: Job) -> None:
    table, latents = choose(job.config, job.inputs)
    pq.write_table(table, job.folder / "selection.parquet")
    job.facts |= {"selected": len(table), "latents": latents}
    lent = isinstance(job.config.features, LentFeatures)  # there may be no composite, or none of the union
    if not lent and not len(_fit(table)):
        raise AutointerpError(
            f"none of the {len(table)} selected features fires on {job.config.features.min_firings} tokens: raise"
            " corpus.tokens or lower features.min_firings"
        )


def choose(config: Config, inputs: Mapping[str, Path]) -> tuple[pa.Table, dict[str, int]]:
    """selection.parquet from the folders of harvest and, where it is asked for, of reencode; and how many latents have
    each status."""
    from autointerp.activations.evidence import firing_table

    firings, features = Firings(inputs["harvest"]), config.features
    table = firing_table(firings, features.min_firings)
    how = _chosen(config, table, inputs)
    why = {
        "dead": f"never fires on {firings.info.n_tokens:,} tokens",
        "too_rare": f"fires on fewer than {features.min_firings} of {firings.info.n_tokens:,} tokens",
    }
    numbers = sorted(how)
    chosen = table.iloc[numbers]
    columns = {name: pa.array(chosen[name]) for name in ("feature", "firings", "frequency", "max_activation", "status")}
    columns["selected"] = pa.array([how[feature] for feature in numbers], pa.string())
    columns["failure"] = pa.array([why.get(status) for status in chosen["status"]], pa.string())
    form = schema("selection")
    return pa.table({name: columns[name] for name in form.names}).cast(form), table["status"].value_counts().to_dict()


def _chosen(config: Config, table: Any, inputs: Mapping[str, Path]) -> dict[int, str]:
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


def selected(folder: Path) -> pa.Table:
    return pq.read_table(folder / "selection.parquet")


def ready(folder: Path) -> list[int]:
    """The selected features that fire often enough."""
    return _fit(pq.read_table(folder / "selection.parquet", columns=["feature", "status"]))["feature"].to_pylist()


def _fit(selection: pa.Table) -> pa.Table:
    return selection.filter(compute().equal(selection["status"], "ok"))


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    return Amount(sizes.latents or 0, "latents", guess=1e-5)


STAGE = Stage("select", "which features are explained, and why the others are not", uses, work, amount=amount)
