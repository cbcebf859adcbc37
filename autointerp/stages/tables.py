"""The last stage: one folder of tables from what the others wrote."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from autointerp.config import Config
from autointerp.pipeline.composites import PAIRS

if TYPE_CHECKING:
    from autointerp.pipeline.dag import Job

Frame: TypeAlias = Any  # a pandas.DataFrame: its own types call every second column an array

TABLES = ("features", "explanations", "scores", "judgements", "contexts", "composites", "neighbours", "logits")
OF_COMPOSITES = ("cofiring", "semantic")  # may have no row


def assemble(config: Config, job: Job) -> None:
    """Join features.parquet and gather the others. The first explainer of the config is the one the row shows."""
    import pandas as pd

    out = job.folder
    for name, stage in (("contexts", "contexts"), ("neighbours", "directions"), ("logits", "directions")):
        shutil.copyfile(job.inputs[stage] / f"{name}.parquet", out / f"{name}.parquet")
    explanations = _concat(job, "explain/", "explanations")
    scores, judgements = _concat(job, "score/", "scores"), _concat(job, "score/", "judgements")
    explanations.to_parquet(out / "explanations.parquet", index=False)
    scores.to_parquet(out / "scores.parquet", index=False)
    judgements.to_parquet(out / "judgements.parquet", index=False)

    shown = config.explainers[0].key
    features: Frame = pd.read_parquet(job.inputs["select"] / "selection.parquet").rename(columns={"failure": "_unfit"})
    mine = explanations[explanations["explainer"] == shown]
    features = features.merge(
        mine[["feature", "explanation", "explainer", "status", "failure"]].rename(columns={"status": "_explained"}),
        on="feature",
        how="left",
    )
    for scorer in config.scorers:
        features = features.merge(_wide(scores, shown, scorer.key), on="feature", how="left")
    if "reencode" in job.inputs:
        composites = _composites(job)
        features = features.merge(composites, on="feature", how="left")
    else:
        features["composite"] = features["constituents"] = None
    features["failure"] = features["_unfit"].fillna(features["failure"])
    features.loc[features["_explained"] == "failed", "status"] = "failed"
    features["failure"] = features["failure"].fillna(_unscored(scores, shown, features))
    features = features.drop(columns=["_unfit", "_explained"])
    last = ["composite", "constituents", "status", "failure"]
    features = features[[c for c in features.columns if c not in last] + last]
    features.to_parquet(out / "features.parquet", index=False)
    job.facts |= {"features": len(features), "status": features["status"].value_counts().to_dict()}


def _concat(job: Job, prefix: str, table: str) -> Frame:
    """One table over all stages whose name starts with `prefix`, columns united."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = [
        pq.read_table(folder / f"{table}.parquet") for name, folder in job.inputs.items() if name.startswith(prefix)
    ]
    return pa.concat_tables(found, promote_options="default").to_pandas() if found else _empty(table)


def _empty(table: str) -> Frame:
    from autointerp.tables import to_table

    return to_table(table, []).to_pandas()


def _wide(scores: Frame, explainer: str, scorer: str) -> Frame:
    """One scorer's columns of features.parquet: value, interval, counts, and the control's value."""
    import pandas as pd

    some = scores[(scores["explainer"] == explainer) & (scores["scorer"] == scorer)]
    real = some[some["control"].isna()]
    names = {
        "value": scorer,
        "low": f"{scorer}_low",
        "high": f"{scorer}_high",
        "n_scored": f"{scorer}_n_scored",
        "n_unscored": f"{scorer}_n_unscored",
    }
    wide = real[["feature", *names]].rename(columns=names)
    # Features without a score leave gaps, which whole numbers of numpy cannot hold.
    wide = wide.astype({f"{scorer}_n_scored": "Int64", f"{scorer}_n_unscored": "Int64"})
    controls = some[some["control"].notna()]
    first = controls["control"].iloc[0] if len(controls) else None
    if first is None:
        return wide.assign(**{f"{scorer}_control": pd.Series(dtype="float64")})
    control = controls.loc[controls["control"] == first, ["feature", "value"]]
    control = control.rename(columns={"value": f"{scorer}_control"})
    return wide.merge(control, on="feature", how="left")


def _composites(job: Job) -> Frame:
    """Write composites.parquet, with what explanations say where that was asked, and the tables beside it; returns
    the columns of features.parquet: the label, and the constituents of what is flagged as text, "12+407"."""
    import pandas as pd

    from autointerp.composites import FLAGGED
    from autointerp.pipeline.composites import save_composites

    source, out = job.inputs["reencode"], job.folder
    shutil.copyfile(source / "cofiring.parquet", out / "cofiring.parquet")
    table: Frame = pd.read_parquet(source / "composites.parquet")
    if "semantic" in job.inputs:
        shutil.copyfile(job.inputs["semantic"] / "semantic.parquet", out / "semantic.parquet")
        judged: Frame = pd.read_parquet(job.inputs["semantic"] / "semantic.parquet")
        by_pair = {pair: rows.set_index("feature") for pair, rows in judged.groupby("pair")}
        place = table.columns.get_loc("semantic")
        table = table.drop(columns="semantic")
        for i, (column, pair) in enumerate(product(("semantic", "semantic_either"), PAIRS)):
            values = by_pair[pair][column] if pair in by_pair else pd.Series(dtype=float)
            name = column if pair == "own" else f"{column}_{pair}"
            table.insert(place + i, name, table["feature"].map(values).astype(float))
        why = by_pair["own"]["failure"].dropna().to_dict() if "own" in by_pair else {}
        table["failure"] = [
            "; ".join([*([before] if isinstance(before, str) else []), f"semantic: {why[f]}"]) if f in why else before
            for f, before in zip(table["feature"], table["failure"])
        ]
    save_composites(table, out / "composites.parquet")
    flagged = table["label"].isin(FLAGGED)
    named = [
        "+".join([*map(str, own), *(f"union {part}" for part in other)]) if shown else None
        for own, other, shown in zip(table["constituents"], table["union_constituents"], flagged)
    ]
    return pd.DataFrame({"feature": table["feature"], "composite": table["label"], "constituents": named})


def _unscored(scores: Frame, explainer: str, features: Frame) -> Any:
    """For each row of `features` the reasons of scorers that gave it no value, joined, or null."""
    failed = scores[(scores["explainer"] == explainer) & scores["control"].isna() & scores["value"].isna()]
    reasons = {
        feature: "; ".join(f"{scorer}: {why}" for scorer, why in zip(rows["scorer"], rows["failure"]))
        for feature, rows in failed.groupby("feature")
    }
    return features["feature"].map(reasons)


def copy_tables(source: Path, target: Path) -> None:
    """Put the assembled tables into the run's folder, each whole or as it was."""
    from autointerp.artifacts import write_atomically

    for name in (*TABLES, *OF_COMPOSITES):
        file = source / f"{name}.parquet"
        if file.exists():
            write_atomically(target / file.name, lambda temporary, file=file: shutil.copyfile(file, temporary))
        else:  # of an earlier config
            (target / file.name).unlink(missing_ok=True)
