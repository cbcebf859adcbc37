"""Stage tables: the Parquet tables of a run's folder (features.parquet …), from what the other stages wrote.

1. Each table that a stage declares is the files of all its uses after each other.
2. composites.parquet gets the columns of the judge of explanations and of the causal test, where these were asked.
3. union_features.parquet and union_contexts.parquet are of the union dictionary's latents that are constituents.
4. features.parquet is the selection, joined with the first explainer's texts and its scores, one column group a scorer.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.artifacts import write_atomically
from autointerp.composites.causes import COLUMNS as COLUMNS_OF_CAUSAL
from autointerp.composites.causes import columns_of
from autointerp.composites.evidence import PAIRS
from autointerp.config import Config
from autointerp.engine.estimate import Amount, Sizes
from autointerp.engine.executor import part_files
from autointerp.engine.stage import Job, Stage, Use, plain
from autointerp.errors import ConfigError
from autointerp.stages import branches
from autointerp.tables import COLUMNS, FeatureRows, compute, concat

OF_UNION = ("union_features", "union_contexts")
OF_BRANCHES = {"explain": "explanations", "score": "scores"}  # tables that have a sibling, control_…, of branches

_AT_ONCE = 1 << 12  # features in a data frame at a time, which is many times as large as the same in Arrow

# Of scores.parquet what features.parquet has, beside the value by quantile of each scorer: these as SCORER_NAME …
_BESIDE = ("low", "high", "n_scored", "n_unscored", "corrected", "chance", "yes_rate", "ece")
_SHOWN = {"feature", "scorer", "control", "value", "failure", *_BESIDE}
_QUANTILE = re.compile(r"(auroc|pearson)_q\d+$")
_LENT = re.compile(r"lent_by_\d+$")
# … and the columns that are no scorer's.
_OTHERS = {*COLUMNS["selection"], "explanation", "explainer", "composite", "constituents"}
_OF_SCORER = re.compile(rf"_({'|'.join(_BESIDE)}|control|q\d+|lent_by_\d+)$")

Frame: TypeAlias = Any  # a pandas.DataFrame: its own types call every second column an array


def uses_of(stages: Sequence[Stage], config: Config) -> Iterator[Use]:
    """`stages` are those before this one; of them it reads select and what has tables, `evaluate` apart. Raises
    ConfigError where a scorer is called what another column of features.parquet is."""
    shown = {kind: [p.key for p in getattr(config, kind)] for kind in ("explainers", "scorers", "controls")}
    read = [stage for stage in stages if stage.kind == "select" or (stage.tables and stage.kind != "evaluate")]
    names = [use.name for stage in read for use in stage.uses(config)]
    names += [name for name in branches.uses_of(stages, config) if _of_branch(name) is not None]
    lent = branches.uses_of_union(stages, config, "explain")
    names += [name for name in lent if plain(name).split("/")[0] in ("select", "contexts", "explain")]
    for label in shown["scorers"]:
        of = _OF_SCORER.sub("", label)
        if label in _OTHERS or (of != label and of in shown["scorers"]):
            raise ConfigError(f"scorers: features.parquet has another column {label!r}: give this one another label")
    used = {"explain", "score", *(plain(name).split("/")[0] for name in names)}  # these two have tables in every run
    given = {stage.kind: stage.tables for stage in read if stage.kind in used}
    yield Use("tables", tuple(names), shown, given)


def work(job: Job) -> None:
    facts = assemble(job.config, job.inputs, job.use.given, job.folder)
    job.facts |= facts


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    return Amount((sizes.features or 0) * len(use.needs), "features of a table", guess=1e-4)


def assemble(
    config: Config, folders: Mapping[str, Path], tables: Mapping[str, Sequence[str]], out: Path
) -> dict[str, Any]:
    """Write every table into `out`, those apart that lie there already; returns figures for run.json.

    `folders`: use -> the folder of its artifact, or of one under way, whose shards' files are then read. A stage that
    has not begun has no folder here, or none on disk: its tables have no rows of it. `select` must be there.
    `tables`: stage -> the tables it writes.
    """
    for table, files in sources(folders, tables).items():
        path = out / f"{table}.parquet"
        if table == "composites" or path.exists() or not (files or table in COLUMNS):
            continue
        _join(files, table, path)
    write_of_branches(folders, out)
    write_of_union(folders, out)
    statuses = _write_features(config, folders, out)
    return {"features": sum(statuses.values()), "status": dict(statuses)}


def sources(folders: Mapping[str, Path], tables: Mapping[str, Sequence[str]]) -> dict[str, list[Path]]:
    """The files that each table is made of, in the order of the uses."""
    names = dict.fromkeys(name for written in tables.values() for name in written)
    return {
        table: [
            file
            for use, folder in folders.items()
            if table in tables.get(use.split("/")[0], ())
            for file in _files(folder, table)
        ]
        for table in names
    }


def _of_branch(use: str) -> str | None:
    """The table whose sibling a use of a control's branch has rows for; None for another use."""
    if plain(use) == use or use.startswith(branches.UNION):
        return None
    return OF_BRANCHES.get(plain(use).split("/")[0])


def write_of_branches(folders: Mapping[str, Path], out: Path) -> None:
    """What controls that run the pipeline again explained and scored, each row with its control's name; no table where
    there is no such control."""
    rows: dict[str, list[pa.Table]] = {}
    for use, folder in folders.items():
        name = _of_branch(use)
        for file in _files(folder, name) if name else ():
            part = pq.read_table(file)
            label = pa.array([use.partition(":")[0]] * len(part), pa.string())
            part = part.drop_columns(["control"]) if "control" in part.column_names else part
            rows.setdefault(f"control_{name}", []).append(part.add_column(0, "control", label))
    for name, parts in rows.items():
        pq.write_table(pa.concat_tables(parts, promote_options="default"), out / f"{name}.parquet")


def write_of_union(folders: Mapping[str, Path], out: Path) -> None:
    """What is known of the union dictionary's latents that are constituents: a row for each and explainer, in the form
    of selection.parquet and explanations.parquet; and the windows that they were explained by."""
    select = folders.get(f"{branches.UNION}select")
    if select is None or not (select / "selection.parquet").is_file():
        return
    selection = pq.read_table(select / "selection.parquet")
    parts = []
    for use, folder in folders.items():
        if use.startswith(f"{branches.UNION}explain/"):
            parts += [pq.read_table(file) for file in _files(folder, "explanations")]
    explained = pa.concat_tables(parts) if parts else pa.table({"feature": pa.array([], pa.int64())})
    for name in ("status", "failure"):
        if name in explained.column_names:
            explained = explained.append_column(f"_{name}", explained[name]).drop_columns([name])
    rows = selection.join(explained, "feature", join_type="left outer").sort_by("feature")
    if parts:  # why a latent has no text, whichever stage says so
        pc, columns = compute(), rows.column_names
        failed = pc.fill_null(pc.equal(rows["_status"], "failed"), False)
        status = pc.if_else(failed, "failed", rows["status"])
        rows = rows.set_column(columns.index("status"), "status", status)
        rows = rows.set_column(columns.index("failure"), "failure", pc.coalesce(rows["failure"], rows["_failure"]))
        rows = rows.drop_columns(["_status", "_failure"])
    pq.write_table(rows, out / "union_features.parquet")
    windows = folders.get(f"{branches.UNION}contexts")
    if windows is not None and (files := _files(windows, "contexts")):
        _join(files, "contexts", out / "union_contexts.parquet")


def _join(files: Sequence[Path], table: str, path: Path) -> None:
    if len(files) == 1:
        shutil.copyfile(files[0], path)
    else:
        concat(files, table if table in COLUMNS else None, path)


def _files(folder: Path, table: str) -> list[Path]:
    whole = folder / f"{table}.parquet"
    return [whole] if whole.is_file() else part_files(folder, table)


def _write_features(config: Config, folders: Mapping[str, Path], out: Path) -> Counter[str]:
    """Write features.parquet, a part after the other; returns how many features have each status. The first explainer
    of the config is the one a row shows."""

    composites: Frame = None
    if "reencode" in folders and (folders["reencode"] / "composites.parquet").is_file():
        composites = _composites(folders, out)
    scorers = [scorer.key for scorer in config.scorers]
    statuses: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=out, prefix=".features-") as folder:
        files = []
        with pq.ParquetFile(folders["select"] / "selection.parquet") as selection:
            for batch in selection.iter_batches(_AT_ONCE):
                features: Frame = batch.to_pandas()
                if composites is None:
                    features["composite"] = features["constituents"] = None
                else:
                    features = features.merge(composites, on="feature", how="left")
                part = explained_by(features, out, config.explainers[0].key, scorers)
                statuses.update(part["status"])
                files.append(Path(folder) / f"{len(files):05d}.parquet")
                pq.write_table(pa.Table.from_pandas(part, preserve_index=False), files[-1])
        concat(files, None, out / "features.parquet")
    return statuses


def explained_by(features: Frame, tables: Path, explainer: str, scorers: Sequence[str]) -> Frame:
    """`features`, rows of selection.parquet with what the composite check says, with an explainer's texts and scores:
    those of explanations.parquet and scores.parquet in the folder `tables`. The form of features.parquet."""
    features = features.rename(columns={"failure": "_unfit"})
    shown = features["feature"].tolist()
    columns = ["feature", "explanation", "explainer", "status", "failure"]
    mine = _of(explainer, tables / "explanations.parquet", shown, columns)
    features = features.merge(mine.rename(columns={"status": "_explained"}), on="feature", how="left")
    known = pq.read_schema(tables / "scores.parquet").names
    columns = [name for name in known if name in _SHOWN or _QUANTILE.match(name) or _LENT.match(name)]
    scores = _of(explainer, tables / "scores.parquet", shown, columns)
    for scorer in scorers:
        features = features.merge(_wide(scores, scorer), on="feature", how="left")
    features["failure"] = features["_unfit"].fillna(features["failure"])
    features.loc[features["_explained"] == "failed", "status"] = "failed"
    features["failure"] = features["failure"].fillna(_unscored(scores, features))
    features = features.drop(columns=["_unfit", "_explained"])
    last = ["composite", "constituents", "status", "failure"]
    return features[[c for c in features.columns if c not in last] + last]


def _of(explainer: str, file: Path, features: Sequence[int], columns: Sequence[str]) -> Frame:
    rows = FeatureRows(file).read(features, [*dict.fromkeys([*columns, "explainer"])])
    return rows.filter(compute().equal(rows["explainer"], explainer)).select(list(columns)).to_pandas()


def _wide(scores: Frame, scorer: str) -> Frame:
    """One scorer's columns of features.parquet: value, interval, counts, chance, the judge's habits, the value by
    quantile, and the control's value with the features that lent their explanations."""
    import pandas as pd

    rows = scores[scores["scorer"] == scorer]
    real = rows[rows["control"].isna()]
    names = {"value": scorer} | {name: f"{scorer}_{name}" for name in _BESIDE}
    for name in sorted(filter(_QUANTILE.match, rows.columns), key=lambda name: int(name.partition("_q")[2])):
        if real[name].notna().any():
            names[name] = f"{scorer}_{name.partition('_')[2]}"
    names = {name: column for name, column in names.items() if name in rows}  # an earlier version's lack some
    wide = real[["feature", *names]].rename(columns=names)
    # Features without a score leave gaps, which whole numbers of numpy cannot hold.
    wide = wide.astype({f"{scorer}_n_scored": "Int64", f"{scorer}_n_unscored": "Int64"})
    controls = rows[rows["control"].notna()]
    first = controls["control"].iloc[0] if len(controls) else None
    if first is None:
        return wide.assign(**{f"{scorer}_control": pd.Series(dtype="float64")})
    lent = {name: f"{scorer}_{name}" for name in rows.columns if _LENT.match(name)}
    control = controls.loc[controls["control"] == first, ["feature", "value", *lent]]
    control = control.rename(columns={"value": f"{scorer}_control", **lent})
    return wide.merge(control, on="feature", how="left")


def _composites(folders: Mapping[str, Path], out: Path) -> Frame:
    """Write composites.parquet, with what explanations say where that was asked; returns the columns of
    features.parquet: the label, and the constituents of what is flagged as text, "12+407"."""
    import pandas as pd

    from autointerp.composites.io import save_composites
    from autointerp.composites.labels import FLAGGED

    table: Frame = pd.read_parquet(folders["reencode"] / "composites.parquet")
    if "semantic" in folders:
        table = _with_semantic(table, out / "semantic.parquet")
    if "causal" in folders:
        table = _with_causal(table, out / "causal.parquet")
    save_composites(table, out / "composites.parquet")
    flagged = table["label"].isin(FLAGGED)
    named = [
        "+".join([*map(str, own), *(f"union {part}" for part in other)]) if shown else None
        for own, other, shown in zip(table["constituents"], table["union_constituents"], flagged)
    ]
    return pd.DataFrame({"feature": table["feature"], "composite": table["label"], "constituents": named})


def _with_causal(table: Frame, tried_file: Path) -> Frame:
    """`table` with a column for the effects of each latent beside its constituents', and for the controls."""
    columns = columns_of(pq.read_table(tried_file).to_pylist())
    place = table.columns.get_loc("failure")
    for i, name in enumerate(COLUMNS_OF_CAUSAL):
        values = [columns.get(f, {}).get(name) for f in table["feature"]]
        table.insert(place + i, name, [np.nan if value is None else value for value in values])
    why = {f: row["failure"] for f, row in columns.items() if row["failure"]}
    return _with_reasons(table, "causal", why)


def _with_reasons(table: Frame, what: str, why: Mapping[int, str]) -> Frame:
    """`table` with reasons, by feature, behind those that are there."""
    table["failure"] = [
        "; ".join([*([before] if isinstance(before, str) else []), f"{what}: {why[f]}"]) if f in why else before
        for f, before in zip(table["feature"], table["failure"])
    ]
    return table


def _with_semantic(table: Frame, judged_file: Path) -> Frame:
    """`table` with a column for each direction of entailment and each pair, and why there is no value."""
    import pandas as pd

    judged: Frame = pd.read_parquet(judged_file)
    by_pair = {pair: rows.set_index("feature") for pair, rows in judged.groupby("pair")}
    place = table.columns.get_loc("semantic")
    table = table.drop(columns="semantic")
    for i, (column, pair) in enumerate(product(("semantic", "semantic_either"), PAIRS)):
        values = by_pair[pair][column] if pair in by_pair else pd.Series(dtype=float)
        name = column if pair == "own" else f"{column}_{pair}"
        table.insert(place + i, name, table["feature"].map(values).astype(float))
    why = by_pair["own"]["failure"].dropna().to_dict() if "own" in by_pair else {}
    return _with_reasons(table, "semantic", why)


def _unscored(scores: Frame, features: Frame) -> Any:
    """For each row of `features` the reasons of scorers that gave it no value, joined, or null."""
    failed = scores[scores["control"].isna() & scores["value"].isna()]
    reasons = {
        feature: "; ".join(f"{scorer}: {why}" for scorer, why in zip(rows["scorer"], rows["failure"]))
        for feature, rows in failed.groupby("feature")
    }
    return features["feature"].map(reasons)


def copy_tables(source: Path, target: Path, known: Sequence[str]) -> None:
    """Put assembled tables into the run's folder, each whole or as it was; those that are `known` and that this config
    does not make go."""
    for name in known:
        file = source / f"{name}.parquet"
        if file.exists():
            write_atomically(target / file.name, lambda temporary, file=file: shutil.copyfile(file, temporary))
        else:  # of an earlier config
            (target / file.name).unlink(missing_ok=True)
