"""Branches: the uses of stages that a control, or the union dictionary, makes once more, under a changed config.

1. A control that runs the pipeline again gives a changed config (`plugins.control`).
2. The stages say their uses in that config. Those that explanations and scores need are taken.
3. A use that the change does not reach, such as the corpus, is the run's own: its section, its code and its inputs are
   the same. Every other one is another use, whose name begins with the control's: ``redrawn_subject:harvest``.
4. The SAE of `composites.union` is a branch too, `union`. It is harvested on the same text; the latents of it that are
   constituents of the run's composites are explained by the explainers whose explanations of constituents are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from autointerp.config import Config, LentFeatures, SaeConfig
from autointerp.engine.stage import RUN, Stage, Use
from autointerp.errors import ConfigError
from autointerp.plugins import bind_options, controls, explainers, needs, runs_again
from autointerp.stages.constituents import explained_by, reads

NOT_IN_KEYS = "the uses that it makes hold in their sections what they depend on"

TARGETS = ("explain", "score")  # the stages whose uses a branch is made for
UNION = "union:"  # before the names of the uses of the union dictionary's branch


def branches(config: Config) -> Iterator[tuple[str, Config]]:
    """The label of each control that runs the pipeline again, and the config that it does so with."""
    for plugin in config.controls:
        change = controls.get(plugin.name)
        if not runs_again(change):
            continue
        if ":" in plugin.key or f"{plugin.key}:" in (RUN, UNION):
            raise ConfigError(
                f"controls: {plugin.key!r} becomes a part of stages' names: give it a label without ':' that is neither"
                f" {RUN[:-1]!r} nor {UNION[:-1]!r}"
            )
        options = bind_options("control", plugin.name, change, plugin.options, config.seed)
        changed: Config = change(config, **options)
        alone = config.composites.model_copy(update={"union": None, "causal": None})
        yield (
            plugin.key,
            changed.model_copy(update={"controls": [], "features": _drawn(config), "composites": alone}),
        )


def uses_of(stages: Sequence[Stage], config: Config) -> dict[str, Use]:
    """The uses of all branches by name, in the order of the stages. Raises ConfigError."""
    made: dict[str, Use] = {}
    own = _named(stages, config)
    for label, changed in branches(config):
        made |= _Branch(label, changed, own, _named(stages, changed)).uses(TARGETS)
    return made


def uses_of_union(stages: Sequence[Stage], config: Config, target: str) -> dict[str, Use]:
    """The uses that the stage `target` of the union dictionary's branch needs, and its own, by name. Raises
    ConfigError."""
    changed = under_union(config)
    if changed is None:
        return {}
    upto = stages[: [stage.kind for stage in stages].index(target) + 1]
    theirs = _named(upto, changed)
    own = {"corpus": _named(upto, config)["corpus"]}  # no more, though the union be the run's own SAE
    return _Branch(UNION.rstrip(":"), changed, own, theirs).uses((target,))


def under_union(config: Config) -> Config | None:
    """The config under which the union dictionary is harvested and its constituents are explained; None without one."""
    checked = config.composites
    if not checked.enabled or checked.union is None:
        return None
    features = LentFeatures(min_firings=config.features.min_firings)
    read = _read(config)
    unasked = {"enabled": False, "union": None, "semantic": None, "causal": None}
    return config.model_copy(
        update={
            "sae": SaeConfig(load=checked.union, outlier_norm=config.sae.outlier_norm),
            "features": features,
            "composites": checked.model_copy(update=unasked),
            "explainers": [plugin for plugin in config.explainers if plugin.key in read],
            "controls": [],
        }
    )


def of_union(config: Config, *uses: str) -> tuple[str, ...]:
    """The names of these uses in the union dictionary's branch; none where constituents of it are not explained."""
    asked = config.composites.enabled and config.composites.union is not None and config.features.constituents
    return tuple(UNION + use for use in uses) if asked else ()


def _read(config: Config) -> set[str]:
    """The keys of the explainers that explain constituents of the union dictionary: those that are read, or one."""
    if not config.features.constituents:
        return set()
    composites = [plugin for plugin in config.explainers if "constituents" in needs(explainers.get(plugin.name))]
    read = {key for plugin in composites if (key := reads(config, plugin)) is not None}
    if config.composites.semantic is not None:
        read.add(explained_by(config, config.composites.semantic.explainer, "composites.semantic"))
    return read or {explained_by(config, None, "features.constituents")}


def _drawn(config: Config) -> object:
    """Features by the run's rule; as many at random where the run names them one by one."""
    wanted = config.features
    if wanted.ids is None:
        return wanted
    return wanted.model_copy(update={"ids": None, "select": "random", "count": len(set(wanted.ids))})


def _named(stages: Iterable[Stage], config: Config) -> dict[str, Use]:
    return {name: use for stage in stages for name, use in stage.named(config).items()}


class _Branch:
    def __init__(self, label: str, config: Config, own: Mapping[str, Use], changed: Mapping[str, Use]) -> None:
        """`own` and `changed`: the uses in the run's config and in the branch's."""
        self.label, self.config, self.own, self.changed = label, config, own, changed
        self._names: dict[str, str] = {}

    def uses(self, targets: Sequence[str]) -> dict[str, Use]:
        for name in self.changed:
            if name.split("/")[0] in targets:
                self._place(name)
        return {
            placed: replace(use, name=placed, needs=self._needs(use), under=self.config)
            for name, use in self.changed.items()
            if (placed := self._names.get(name, name)) != name
        }

    def _place(self, name: str) -> str:
        """The name in the DAG of a use that the branch calls `name`."""
        if name.startswith(RUN):
            return name.removeprefix(RUN)
        if name not in self._names:
            use = self.changed[name]
            self._names[name] = name if self._is_own(use) else f"{self.label}:{name}"
        return self._names[name]

    def _needs(self, use: Use) -> tuple[str, ...]:
        return tuple(map(self._place, use.needs))

    def _is_own(self, use: Use) -> bool:
        needs = self._needs(use)  # placed in any case
        own = self.own.get(use.name)
        return own is not None and (own.needs, own.section, own.plugins) == (needs, use.section, use.plugins)
