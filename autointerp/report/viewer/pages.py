"""What each page of the viewer shows: the report's own functions and templates, asked for a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import urlencode

from autointerp.errors import AutointerpError, ConfigError
from autointerp.report import causal, overview
from autointerp.report.columns import explainers_of, measures_of
from autointerp.report.compare import By
from autointerp.report.compared import comparison
from autointerp.report.controls import compared
from autointerp.report.feature import notes_of
from autointerp.report.figures import all_scorers_of, ranges_of, scorers_of, summarise
from autointerp.report.folder import RunFolder, so_far
from autointerp.report.graph import graph_of
from autointerp.report.judged import judgements_of
from autointerp.report.labels import LONGEST
from autointerp.report.pieces import render
from autointerp.report.show import view_of
from autointerp.report.text import metric, visible
from autointerp.report.viewer.loaded import Fired, Loaded
from autointerp.report.viewer.rows import Query, Snapshot, Viewed

WINDOWS = 6  # of a quantile on a feature's page, where it is not asked for more
MOST_WINDOWS = 200
SHOWN = 150  # latents of a text that was tried
ROWS = 200  # of the features table that one request may ask for
PARTS = ("beside", "judged", "cost")  # of the overview, which take a while in a large run


@dataclass(frozen=True)
class Place:
    """Where a page stands: the address of the viewer with its token, and who else can be compared."""

    home: str
    viewed: Viewed
    others: Mapping[str, Path]  # runs by name

    def feature(self, number: int, query: Query | None = None) -> str:
        return f"{self.home}/feature/{number}{_question(query)}"


def _question(query: Query | None) -> str:
    words = query.parameters() if query else {}
    return f"?{urlencode(words)}" if words else ""


def page(place: Place, name: str, title: str, **values: Any) -> str:
    """The page `name` inside what all pages have."""
    path = place.viewed.path
    return render(
        f"view_{name}.html.j2",
        home=place.home,
        page=name,
        title=title,
        run=overview.title_of(place.viewed.now().run),
        so_far=so_far(path),
        explainers=place.viewed.now().once("explainers", lambda: explainers_of(place.viewed.now().run)),
        **values,
    )


def ready(viewed: Viewed) -> None:
    """Read what the first pages and the first search want, so that a browser need not wait for it."""
    place = Place("", viewed, {})
    overview_page(place, Query())
    features_page(place, Query())
    rows(place, Query(), 0, 1)
    viewed.now().explained()


def standing(place: Place) -> dict[str, Any]:
    """What an open page asks for now and then."""
    line = so_far(place.viewed.path)
    return {"line": None if line is None else visible(line), "mark": mark_of(place.viewed.now())}


def mark_of(snapshot: Snapshot) -> str:
    """Another one where the tables are others."""
    return f"{hash(snapshot.mark) & (2**64 - 1):x}"


# --- overview ---------------------------------------------------------------------------------


def overview_page(place: Place, query: Query) -> str:
    snapshot = place.viewed.now()
    run = RunFolder(place.viewed.path)  # how far it is changes between two snapshots
    summary, charts = snapshot.once(("overview", query.explainer), lambda: _scores(snapshot, query.explainer))
    return page(
        place,
        "overview",
        "Overview",
        query=query,
        about=overview.about(run),
        summary=summary,
        charts=charts,
        composites=overview.composites(run),
        causes=snapshot.once("causes", lambda: causal.lines(run)),
        graph=graph_of(run),
        parts=PARTS,
        mark=mark_of(snapshot),
    )


def _scores(snapshot: Snapshot, explainer: str) -> tuple[Any, Any]:
    features = snapshot.table(explainer)
    summary = summarise(features)
    return summary, overview.charts(features, summary, ranges_of(features))


def part(place: Place, name: str) -> str:
    """A part of the overview by itself. Raises ConfigError for one that there is not."""
    snapshot = place.viewed.now()
    if name not in PARTS:
        raise ConfigError(f"no part {name!r}")
    return snapshot.once(("part", name), lambda: render("view_part.html.j2", name=name, **_PARTS[name](snapshot)))


def _beside(snapshot: Snapshot) -> dict[str, Any]:
    scores, summary = overview.scores_of(snapshot.run), summarise(snapshot.table())
    judged, _ = _judgements(snapshot)
    return {
        "explainers": overview.explainers(scores),
        "again": compared(snapshot.run),
        "notes": overview.notes(scores, summary.scorers, {row.scorer for row in judged}),
    }


def _judgements(snapshot: Snapshot) -> tuple[Any, Any]:
    return snapshot.once("judgements", lambda: overview.judgements(snapshot.run))


def _judged(snapshot: Snapshot) -> dict[str, Any]:
    judged, unread = _judgements(snapshot)
    return {"judged": judged, "unread": unread}


def _cost(snapshot: Snapshot) -> dict[str, Any]:
    return {"usage": overview.usage(snapshot.run)}


_PARTS: Mapping[str, Callable[[Snapshot], dict[str, Any]]] = {"beside": _beside, "judged": _judged, "cost": _cost}


# --- features ---------------------------------------------------------------------------------


def features_page(place: Place, query: Query) -> str:
    snapshot = place.viewed.now()
    table = snapshot.table()
    labels = table["composite"].unique().to_pylist() if "composite" in table.column_names else []
    return page(
        place,
        "features",
        "Features",
        query=query,
        scorers=scorers_of(table),
        columns=snapshot.once("columns", lambda: _columns(snapshot)),
        statuses=sorted(filter(None, table["status"].unique().to_pylist())),
        labels=sorted(filter(None, labels)),
    )


def _columns(snapshot: Snapshot) -> list[str]:
    """What can be filtered and sorted by: the table's columns, then each scorer's further measures."""
    table = snapshot.table()
    measures = [measure for measure in measures_of(snapshot.run) if measure not in ("feature", "value")]
    more = [f"{scorer}_{measure}" for scorer in all_scorers_of(table) for measure in measures]
    return list(dict.fromkeys([*table.column_names, *more]))


def rows(place: Place, query: Query, start: int, count: int) -> dict[str, Any]:
    """`count` rows from `start` as markup, and how many there are."""
    snapshot = place.viewed.now()
    chosen, shown = snapshot.page(query, max(start, 0), min(max(count, 1), ROWS))
    table = snapshot.table(query.explainer)
    column = query.sort.removeprefix("-")
    html = render(
        "view_rows.html.j2",
        rows=shown,
        scorers=scorers_of(table),
        ranges=snapshot.once(("ranges", query.explainer), lambda: ranges_of(table)),
        address=lambda feature: place.feature(feature, query),
        extra=column if column and column not in _IN_SIGHT and column not in scorers_of(table) else None,
        cell=_cell,
    )
    return {
        "total": len(chosen.places),
        "of": len(table),
        "start": start,
        "rows": html,
        "scanned": chosen.scanned,
        "mark": mark_of(snapshot),
    }


_IN_SIGHT = ("feature", "explanation", "firings", "composite", "status", "unscored", "label")


def _cell(value: Any) -> str:
    """The value of the column that is sorted by, where it is not in sight already."""
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 0.01 else metric(value)
    return "–" if value is None else visible(str(value))


# --- one feature ------------------------------------------------------------------------------


def feature_page(place: Place, feature: int, query: Query, windows: int) -> str:
    """Raises AutointerpError, which names the nearest, for a feature that is not in the run."""
    snapshot = place.viewed.now()
    view = view_of(snapshot.run, feature, min(max(windows, 1), MOST_WINDOWS))
    before, after = _neighbouring(snapshot, query, feature)
    notes = notes_of(snapshot.run, view.mentioned())
    return page(
        place,
        "feature",
        f"Feature {feature}",
        view=view,
        said=notes,
        address=lambda other: place.feature(other, query) if other in notes else None,
        before=None if before is None else place.feature(before, query),
        after=None if after is None else place.feature(after, query),
        back=f"{place.home}/features{_question(query)}",
        more=_more(view, windows),
        query=query,
        longest=LONGEST,
    )


def _neighbouring(snapshot: Snapshot, query: Query, feature: int) -> tuple[int | None, int | None]:
    try:
        return snapshot.around(query, feature)
    except ConfigError:  # a condition in the address that is none
        return None, None


def _more(view: Any, windows: int) -> int | None:
    """How many windows of a quantile to ask for to see all; None where all are there."""
    most = max([count for (kind, _), count in view.n_windows.items() if kind != "random"], default=0)
    return most if most > windows else None


def judged_part(place: Place, feature: int) -> str:
    run = place.viewed.now().run
    highest = next((row["max_activation"] for row in run.rows("features", [feature])), None)
    return render("view_judged.html.j2", groups=judgements_of(run, feature), highest=highest)


# --- two runs, and a text ---------------------------------------------------------------------


def compare_page(place: Place, other: str, by: str, scorer: str) -> str:
    """Raises ConfigError for a run that is not offered, or where there is nothing to compare."""
    snapshot, problem, made = place.viewed.now(), None, None
    if other and other not in place.others:
        raise ConfigError(f"no run {other!r} beside this one")
    if by and by not in get_args(By):
        raise ConfigError(f"by {by!r}: {', '.join(get_args(By))}")
    folders = [place.viewed.path, *([place.others[other]] if other else [])]
    try:
        made = comparison(folders, by=cast(By, by) if by else None, scorer=scorer or None)
    except AutointerpError as error:  # one run alone may have nothing to compare
        problem = str(error)
    return page(
        place,
        "compare",
        "Compare",
        others=sorted(place.others),
        other=other,
        by=by,
        scorer=scorer,
        scorers=all_scorers_of(snapshot.table()),
        made=made,
        problem=problem,
        address=place.feature,
    )


def try_page(place: Place, loaded: Loaded, text: str, feature: str) -> str:
    return page(place, "try", "Try a text", text=text, feature=feature, loaded=loaded.has_subject)


def tried(place: Place, loaded: Loaded, text: str, feature: int | None) -> str:
    """The latents that fire in `text`, those of the run first. Raises AutointerpError, as `Loaded.read` does."""
    tokens, fired = loaded.read(text, feature)
    run = place.viewed.now().run
    notes = notes_of(run, [each.latent for each in fired])
    peaks = _peaks(run, [each.latent for each in fired if each.latent in notes])
    own = [each for each in fired if each.latent in notes]
    return render(
        "view_tried.html.j2",
        tokens=tokens,
        own=_first(own, feature),
        rest=[each for each in fired if each.latent not in notes][:SHOWN],
        n_own=len(own),
        n_rest=len(fired) - len(own),
        notes=notes,
        peaks=peaks,
        address=place.feature,
    )


def _first(own: Sequence[Fired], feature: int | None) -> list[Fired]:
    """At most `SHOWN`, the one that was asked for before the others."""
    return sorted(own, key=lambda each: each.latent != feature)[:SHOWN]


def _peaks(run: RunFolder, features: Sequence[int]) -> dict[int, float | None]:
    rows = run.rows("features", features, ["feature", "max_activation"])
    return {row["feature"]: row["max_activation"] for row in rows}
