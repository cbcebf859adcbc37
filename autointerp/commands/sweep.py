"""``autointerp sweep``: variants of one config on the same text, their figures side by side.

A variant's SAE is trained, or loaded; it is evaluated, and checked for composites. Where a metric is that of a scorer,
the variant is run whole: its features explained and the explanations scored (`commands.variant`).
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from autointerp.artifacts import write_atomically
from autointerp.commands.folder import environment, run_folder
from autointerp.commands.side_by_side import Outcome, one_cluster, side_by_side
from autointerp.commands.together import share_passes
from autointerp.commands.variant import LABELS, Key, Measured, Variant, measure, targets
from autointerp.config import Config, anchor, problem, read_config, resolve_config
from autointerp.errors import AutointerpError, ConfigError, Problems
from autointerp.overrides import set_key
from autointerp.redact import redact
from autointerp.registry import did_you_mean
from autointerp.report.at_url import kept_at_url
from autointerp.report.sweep import Figure, Plan, Sweep, draw

log = logging.getLogger("autointerp")

DISTINCT = ("distinct_from_first", "distinct_null")
OF_COMPOSITES = ("cofire", "cofire_swapped", "share_cofiring", "no_sums_pass", "no_sums_cofire")


@kept_at_url
def sweep(
    config: str | Path, *, set: Mapping[str, Any] | None = None, out: str | Path | None = None, jobs: int = 1
) -> Sweep:
    """Run every variant of the file `config` and write ``sweep.json`` and ``sweep.png`` in the sweep's folder.

    The file is a run's config with the keys of `Plan` beside it. The SAE of a variant that trains one is left in
    ``VARIANT SEED/sae``, and where explanations are scored its tables and report in ``VARIANT SEED``. SAEs that are
    loaded are harvested together where they can be. At most `jobs` variants run at once, each in a process of its own
    from 2 on. What was done is kept in the store, so a sweep that was stopped goes on. A variant that fails is in
    `Sweep.failures`, and the others are there.

    Raises:
        ConfigError: a key is unknown or `jobs` below 1; or, after the first variant, a metric is none that is measured.
        AutointerpError: no variant could be measured.
    """
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}: give a number of variants that run at once, from 1 on")
    plan, configs = read_sweep(config, set)
    folder = run_folder(next(iter(configs.values())), out)
    variants = variants_in(folder, configs)
    after = {key: waits_for(key, variants) for key in variants}
    measured: dict[Key, Measured] = {}
    failures: dict[Key, AutointerpError] = {}
    with one_cluster([*configs.values()], min(jobs, len(variants))) as (at_once, on_cluster):
        share_passes((on_cluster(each), targets(each, plan.metrics)) for each in _loaded(variants, after))

        def ready(key: Key) -> Variant:
            """Raises AutointerpError where what it waits for is not there."""
            variant = variants[key]
            for other in after[key]:
                if other not in measured:
                    raise AutointerpError(f"composites.union asks for {variants[other]}, which failed")
                variant = variant.with_union(measured[other].sae)
            log.info("variant %d of %d: %s", [*variants].index(key) + 1, len(variants), variant)
            return replace(variant, config=on_cluster(variant.config))

        run = _in_turn if at_once == 1 else side_by_side
        with closing(run(after, ready, plan.metrics, at_once)) as outcomes:
            for key, outcome in outcomes:
                if isinstance(outcome, AutointerpError):
                    log.error("%s: %s", variants[key], outcome)
                    failures[key] = outcome
                else:
                    log.info("%s: measured", variants[key])
                    measured[key] = _checked(outcome, plan)
    if not measured:
        raise _all_of(failures, variants)
    figures = [figure for key in variants if key in measured for figure in _figures(key, measured[key], plan)]
    if {*DISTINCT}.intersection(plan.metrics):
        figures += _distinct(plan, variants, measured)
    told = {str(variants[key]): redact(str(error)) for key, error in failures.items()}
    made = Sweep(folder, plan, tuple(figures), told)
    write_atomically(folder / "sweep.json", lambda path: path.write_text(_summary(made, str(config), environment())))
    draw(made, folder / "sweep.png")
    return made


def _in_turn(
    after: Mapping[Key, Collection[Key]], ready: Callable[[Key], Variant], metrics: tuple[str, ...], _jobs: int
) -> Generator[tuple[Key, Outcome], None, None]:
    """In this process, in the file's order."""
    for key in after:
        outcome: Outcome
        try:
            outcome = measure(ready(key), metrics)
        except AutointerpError as error:
            outcome = error
        yield key, outcome


def _figures(key: Key, measured: Measured, plan: Plan) -> Iterator[Figure]:
    for row in measured.rows:
        yield Figure(*key, row["metric"], row["value"], row["low"], row["high"])
    for metric in plan.positions:
        for place in measured.places:
            yield Figure(*key, metric, place[metric], position=place["position"])


def _loaded(variants: Mapping[Key, Variant], after: Mapping[Key, Collection[Key]]) -> Iterator[Config]:
    """The configs that load their SAE; with "@NAME" of `composites.union` replaced where that is loaded, too."""
    for key, variant in variants.items():
        others = [variants[other].config.sae.load for other in after[key]]
        if variant.config.sae.load is not None and None not in others:
            yield (variant.with_union(str(others[0])) if others else variant).config


def _all_of(failures: Mapping[Key, AutointerpError], variants: Mapping[Key, Variant]) -> AutointerpError:
    if len(failures) == 1:
        return next(iter(failures.values()))
    lines = [f"{variants[key]}: {error}" for key, error in failures.items()]
    return Problems(lines, max(error.exit_code for error in failures.values()))


def read_sweep(config: str | Path, overrides: Mapping[str, Any] | None) -> tuple[Plan, dict[Key, Config]]:
    """The plan of a sweep's file, and the config of each variant and seed; of one that trains nothing, of one seed."""
    raw, file = read_config(config)
    own = {key: raw.pop(key) for key in Plan.model_fields if key in raw}
    try:
        plan = Plan.model_validate(own)
    except ValidationError as error:
        raise ConfigError(f"{file}: " + "; ".join(problem(e, Plan) for e in error.errors())) from None
    configs: dict[Key, Config] = {}
    for seed in plan.seeds:
        for name, changes in plan.variants.items():
            own = copy.deepcopy(raw)
            for key, value in changes.items():
                set_key(own, key, value)
            anchor(own, file.parent)
            where = f"{file}, {name}"
            wanted = resolve_config(copy.deepcopy(own), overrides or {}, where)
            if wanted.sae.train is not None:
                seeded = {**(overrides or {}), "sae.train.seed": seed}  # last: a variant may set all of sae.train
                wanted = resolve_config(own, seeded, where)
            if wanted.sae.train is not None or seed == plan.seeds[0]:  # else a seed changes nothing
                configs[name, seed] = wanted
    _check_composites(plan, configs)
    return plan, configs


def variants_in(folder: Path, configs: Mapping[Key, Config]) -> dict[Key, Variant]:
    return {key: Variant(*key, wanted, folder / f"{key[0]} {key[1]}") for key, wanted in configs.items()}


def waits_for(key: Key, variants: Mapping[Key, Variant]) -> set[Key]:
    """The earlier variant whose SAE is the union dictionary of this one, as "@NAME" of `composites.union` says: the one
    of its seed, or the only one."""
    union = variants[key].config.composites.union
    if union is None or not union.startswith("@"):
        return {*()}
    earlier = [*variants][: [*variants].index(key)]
    known = {name: (name, seed) for name, seed in earlier if seed == key[1] or not variants[name, seed].is_trained}
    if union[1:] not in known:
        raise ConfigError(f"composites.union: no earlier variant {union[1:]!r}{did_you_mean(union[1:], known)}")
    return {known[union[1:]]}


def _distinct(plan: Plan, variants: Mapping[Key, Variant], measured: Mapping[Key, Measured]) -> list[Figure]:
    """Share of a variant's latents that the first variant lacks: of another seed where there is one, so that the first
    variant's own figure is what another seed alone does. `distinct_null`: Gaussian directions of its covariance. None
    where the first variant failed or reads vectors of another width."""
    from autointerp.composites.geometry import beside
    from autointerp.composites.maps import whitener
    from autointerp.composites.neighbours import unit
    from autointerp.composites.nulls import random_directions
    from autointerp.sae import load_sae

    def decoder(key: Key) -> Any:
        return load_sae(measured[key].sae, format=variants[key].config.sae.format).W_dec

    first, distinct = next(iter(plan.variants)), []
    for key in (key for key in variants if key in measured):  # they may have ended in another order
        other = plan.seeds[(plan.seeds.index(key[1]) + 1) % len(plan.seeds)]
        at = (first, other) if (first, other) in variants else (first, plan.seeds[0])
        W, reference = decoder(key), decoder(at) if at in measured else None
        values: list[float | None] = [None, None]
        if reference is not None and W.shape[1] == reference.shape[1]:
            null = random_directions(*W.shape, seed=key[1], L=whitener(unit(W)))
            values = [beside(rows, reference).distinct for rows in (W, null)]
        distinct += [Figure(*key, metric, value) for metric, value in zip(DISTINCT, values)]
    return distinct


def _checked(measured: Measured, plan: Plan) -> Measured:
    _check("metrics", plan.metrics, {row["metric"] for row in measured.rows} | {*DISTINCT})
    _check("positions", plan.positions, measured.places[0])
    return measured


def _check(key: str, wanted: Iterable[str], known: Collection[str]) -> None:
    for metric in wanted:
        if metric not in known:
            raise ConfigError(f"{key}: the evaluation has no {metric!r}{did_you_mean(metric, sorted(known))}")


def _check_composites(plan: Plan, variants: Mapping[Key, Config]) -> None:
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
    if made.failures:
        about["failures"] = made.failures
    if made.plan.positions:
        about["positions"] = {variant: _bands(made, variant) for variant in made.plan.variants}
    about |= environment
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"
