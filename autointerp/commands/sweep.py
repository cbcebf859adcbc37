"""``autointerp sweep``: train and evaluate variants of one config on the same text, their figures side by side.

Where a metric is that of a scorer, each variant is run whole: its features explained and the explanations scored."""

from __future__ import annotations

import copy
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from autointerp.artifacts import write_atomically
from autointerp.config import Config, problem, read_config, resolve_config
from autointerp.errors import ConfigError
from autointerp.registry import did_you_mean
from autointerp.report.at_url import kept_at_url
from autointerp.report.sweep import Figure, Plan, Sweep, draw

if TYPE_CHECKING:
    from autointerp.commands.folder import Run

log = logging.getLogger("autointerp")

CONTROL, GAIN = "_control", "_gain"  # of a scorer's name
DISTINCT = ("distinct_from_first", "distinct_null")
OF_COMPOSITES = ("cofire", "cofire_swapped", "share_cofiring", "no_sums_pass", "no_sums_cofire")
LABELS = (
    "confirmed",
    "composite",
    "possible",
    "absorption",
    "duplicate",
    "subspace",
    "split_child",
    "parent_of_children",
)


@kept_at_url
def sweep(config: str | Path, *, set: Mapping[str, Any] | None = None, out: str | Path | None = None) -> Sweep:
    """Run every variant of the file `config` and write ``sweep.json`` and ``sweep.png`` in the sweep's folder.

    The file is a run's config with the keys of `Plan` beside it. Each variant's SAE is left in ``VARIANT SEED/sae``,
    and where explanations are scored its tables and report in ``VARIANT SEED``.
    What was done is kept in the store, so a sweep that was stopped goes on.

    Raises:
        ConfigError: a key is unknown; or, after the first variant, a metric is none that is measured.
    """
    from autointerp.commands.folder import environment, run_folder
    from autointerp.commands.run import run, run_targets
    from autointerp.commands.train import train

    plan, variants = read_sweep(config, set)
    _check_composites(plan, variants)
    folder = run_folder(next(iter(variants.values())), out)
    figures: list[Figure] = []
    trained: dict[tuple[str, int], Path] = {}
    for number, ((name, seed), resolved) in enumerate(variants.items(), start=1):
        log.info("variant %d of %d: %s, seed %d", number, len(variants), name, seed)
        own = folder / f"{name} {seed}"
        trained[name, seed], _ = train(resolved, out=own)
        resolved = _with_sae_of(resolved, seed, trained)
        checked = ["reencode"] if resolved.composites.enabled else []
        done = run_targets(resolved, ["evaluate", *checked], out=own)
        rows = _rows(done["evaluate"] / "evaluation.parquet")
        if checked:
            rows += _composites(done["reencode"])
        if scores := _scores_of(resolved).intersection(plan.metrics):
            rows += _scores(run(resolved, out=own), scores)
        mine = [Figure(name, seed, row["metric"], row["value"], row.get("low"), row.get("high")) for row in rows]
        _check("metrics", plan.metrics, {figure.metric for figure in mine} | {*DISTINCT})
        places = _rows(done["evaluate"] / "evaluation_positions.parquet")
        _check("positions", plan.positions, places[0])
        for metric in plan.positions:
            mine += [Figure(name, seed, metric, place[metric], position=place["position"]) for place in places]
        figures += mine
    figures += _distinct(plan, trained)
    made = Sweep(folder, plan, tuple(figures))
    write_atomically(folder / "sweep.json", lambda path: path.write_text(_summary(made, str(config), environment())))
    draw(made, folder / "sweep.png")
    return made


def read_sweep(config: str | Path, overrides: Mapping[str, Any] | None) -> tuple[Plan, dict[tuple[str, int], Config]]:
    """The plan of a sweep's file, and the config of each variant and seed."""
    raw, file = read_config(config)
    own = {key: raw.pop(key) for key in Plan.model_fields if key in raw}
    try:
        plan = Plan.model_validate(own)
    except ValidationError as error:
        raise ConfigError(f"{file}: " + "; ".join(problem(e, Plan) for e in error.errors())) from None
    configs: dict[tuple[str, int], Config] = {}
    for seed in plan.seeds:
        for name, changes in plan.variants.items():
            settings = {
                **changes,
                **(overrides or {}),
                "sae.train.seed": seed,
            }  # last: a variant may set all of sae.train
            configs[name, seed] = resolve_config(copy.deepcopy(raw), settings, f"{file}, {name}")
    return plan, configs


def _with_sae_of(config: Config, seed: int, trained: Mapping[tuple[str, int], Path]) -> Config:
    """`config` with "@NAME" of `composites.union` replaced by what that variant trained with this seed."""
    union = config.composites.union
    if union is None or not union.startswith("@"):
        return config
    folder = trained.get((union[1:], seed))
    if folder is None:
        known = [name for name, trained_at in trained if trained_at == seed]
        raise ConfigError(f"composites.union: no earlier variant {union[1:]!r}{did_you_mean(union[1:], known)}")
    return config.model_copy(update={"composites": config.composites.model_copy(update={"union": str(folder)})})


def _rows(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(file).to_pylist()


def _composites(folder: Path) -> list[dict[str, Any]]:
    """Share of the living latents with each label; all are counted: no interval but what the seeds show. `confirmed`
    ones are composites too. Of composites on whose strong tokens all constituents fire, too: `cofire` is the mean share
    of such tokens, `share_cofiring` the share of latents with .6 or more. `no_sums_pass`: the share of atomic latents
    that would pass the re-encode test; `no_sums_cofire`: with .6 or more by their two nearest rows of the union SAE."""
    from autointerp.composites.evidence import CONFIRM_SHARE, CONFIRM_TOKENS

    table = _rows(folder / "composites.parquet")
    labels = Counter(row["label"] for row in table if row["label"] != "dead")
    living = max(labels.total(), 1)
    labels["composite"] += labels["confirmed"]
    rows: list[dict[str, Any]] = [{"metric": f"share_{label}", "value": labels[label] / living} for label in LABELS]
    tested = [
        row for row in table if row["label"] in ("confirmed", "composite") and (row["tokens"] or 0) >= CONFIRM_TOKENS
    ]
    for column in ("cofire", "cofire_swapped"):
        shares = [row[column] for row in tested if row[column] is not None]
        rows.append({"metric": column, "value": fmean(shares) if shares else None})
        if column == "cofire":
            rows.append({"metric": "share_cofiring", "value": sum(x >= CONFIRM_SHARE for x in shares) / living})
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    for metric, section in (("no_sums_pass", "reencode"), ("no_sums_cofire", "union")):
        plain = facts.get(section, {}).get("no_sums") or {"n": 0}
        rows.append({"metric": metric, "value": plain["pass"] / plain["n"] if plain["n"] else None})
    return rows


def _scores_of(config: Config) -> set[str]:
    """Metrics that need explanations: a scorer's name, its control, and how far the first is ahead of the second."""
    return {f"{scorer.key}{end}" for scorer in config.scorers for end in ("", CONTROL, GAIN)}


def _scores(made: Run, metrics: Iterable[str]) -> list[dict[str, Any]]:
    """Means over the features, of the first explainer, with bootstrap intervals over features: paired where they are
    differences. Two SAEs have other features, so between variants nothing is paired."""
    from autointerp.stats import paired_difference

    features, rows = made.features, []
    for metric in metrics:
        scorer = metric.removesuffix(GAIN)
        value = features[scorer].tolist()
        gain = paired_difference(value, features[scorer + CONTROL].tolist() if metric != scorer else [0.0] * len(value))
        rows.append({"metric": metric, "value": gain.mean, "low": gain.low, "high": gain.high})
    return rows


def _distinct(plan: Plan, trained: Mapping[tuple[str, int], Path]) -> list[Figure]:
    """Share of a variant's latents that the first variant lacks: of another seed where there is one, so that the first
    variant's own figure is what another seed alone does. `distinct_null`: Gaussian directions of its covariance."""
    from autointerp.composites.geometry import beside
    from autointerp.composites.maps import whitener
    from autointerp.composites.neighbours import unit
    from autointerp.composites.nulls import random_directions
    from autointerp.sae import load_sae

    first, distinct = next(iter(plan.variants)), []
    for (name, seed), folder in trained.items():
        other = plan.seeds[(plan.seeds.index(seed) + 1) % len(plan.seeds)]
        W, reference = load_sae(str(folder)).W_dec, load_sae(str(trained[first, other])).W_dec
        null = random_directions(*W.shape, seed=seed, L=whitener(unit(W)))
        for metric, rows in zip(DISTINCT, (W, null)):
            distinct.append(Figure(name, seed, metric, beside(rows, reference).distinct))
    return distinct


def _check(key: str, wanted: Iterable[str], known: Collection[str]) -> None:
    for metric in wanted:
        if metric not in known:
            raise ConfigError(f"{key}: the evaluation has no {metric!r}{did_you_mean(metric, sorted(known))}")


def _check_composites(plan: Plan, variants: Mapping[tuple[str, int], Config]) -> None:
    """Metrics of the composite check need the check, in every variant."""
    asked = [m for m in plan.metrics if m in OF_COMPOSITES or m.removeprefix("share_") in LABELS]
    without = [name for (name, _), config in variants.items() if not config.composites.enabled]
    if asked and without:
        raise ConfigError(f"metrics: {asked[0]!r} needs the check, and {without[0]} has composites.enabled: false")


def _bands(made: Sweep, variant: str) -> dict[str, dict[str, float]]:
    """For each metric its mean over the positions 0, 1, 2–3, 4–7 … (by their last one) and over seeds."""
    by_band: dict[str, dict[str, list[float]]] = {metric: {} for metric in made.plan.positions}
    for figure in made.figures:
        if figure.variant == variant and figure.position is not None and figure.value is not None:
            last = 2 ** figure.position.bit_length() - 1
            by_band[figure.metric].setdefault(str(last), []).append(figure.value)
    return {metric: {band: fmean(values) for band, values in bands.items()} for metric, bands in by_band.items()}


def _summary(made: Sweep, config: str, environment: Mapping[str, Any]) -> str:
    """JSON: for each variant and metric the mean over seeds, and every seed's value and interval; and by position, in
    bands that double in width."""
    table: dict[str, dict[str, Any]] = {}
    for variant in made.plan.variants:
        table[variant] = {}
        for metric in made.plan.metrics:
            figures = made.of(variant, metric)
            values = [figure.value for figure in figures if figure.value is not None]
            seeds = [{key: getattr(figure, key) for key in ("seed", "value", "low", "high")} for figure in figures]
            table[variant][metric] = {"mean": fmean(values) if values else None, "seeds": seeds}
    about = {"command": f"autointerp sweep {config}", "variants": made.plan.variants, "figures": table}
    if made.plan.positions:
        about["positions"] = {variant: _bands(made, variant) for variant in made.plan.variants}
    about |= environment
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"
