"""The HTML report of a run: one file that asks nothing of the network; and a feature as a notebook shows it.

1. The head, the scores, the judgements and the usage are of all features; they are read part by part.
2. Up to `PAGES` features have a row and a page of their own, fewer while the run goes on, which needs its memory. Of a
   run with more, these are the best, the worst and some drawn at random; the report says how many are left out.
3. What the page may run is named by hash in its content security policy, so that no token, explanation or failure can
   run as a script even if its escaping were ever missed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import write_atomically
from autointerp.errors import ConfigError
from autointerp.memory import give_back_memory
from autointerp.report import causal, overview
from autointerp.report.compare import reading
from autointerp.report.compared import grouped, span_of
from autointerp.report.controls import compared
from autointerp.report.feature import gather, notes_of
from autointerp.report.figures import ranges_of, scorers_of, summarise
from autointerp.report.folder import RunFolder, so_far
from autointerp.report.graph import graph_of
from autointerp.report.pieces import render, style, text_of
from autointerp.report.show import view_of
from autointerp.report.where import order, select

if TYPE_CHECKING:
    import pyarrow as pa

SHEETS = ("report.css", "tables.css", "feature.css")
PAGES = 500  # features with a page of their own
PAGES_SO_FAR = 100  # while the run goes on
BEST, WORST = 0.4, 0.3  # shares of these, where there are more features; the rest is drawn at random
_MOST_TOKENS = 200_000  # of the windows of the page, some ten bytes each, so that it stays below 5 MB


def write_report(run: str | Path, out: str | Path | None = None, *, done: bool = False) -> Path:
    """Write the report of a run to the file `out`, or to report.html in its folder, and return the path.

    `done`: the run is, though its progress.json is still there. Raises ConfigError where `out` cannot be a file.
    """
    folder = RunFolder(run)
    if done:
        folder.standing = None
    path = Path(out) if out else folder.path / "report.html"
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file, such as {path / 'report.html'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = page_of(folder)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="replace"))
    return path


def page_of(run: RunFolder) -> str:
    """The whole page."""
    script = text_of("report.js")
    goes_on = run.standing is not None and not run.standing.stopped
    give_back_memory()  # of what the tables needed
    features = run.read_features()
    shown, how_chosen = _with_pages(features, PAGES_SO_FAR if goes_on else PAGES)
    summary, ranges = summarise(features), ranges_of(features)
    charts = overview.charts(features, summary, ranges)
    del features  # as large as all windows of the page
    give_back_memory()
    contexts = run.config.get("contexts") or {}
    each = ((contexts.get("quantiles") or 5) + 1) * (contexts.get("window") or 32)  # and near misses
    per_quantile = max(1, min(4, _MOST_TOKENS // (each * max(len(shown), 1))))
    views = gather(run, shown["feature"].to_pylist(), per_quantile)
    scores = overview.scores_of(run)
    judged, unread = overview.judgements(run)
    return render(
        "report.html.j2",
        script=script,
        style=style(":root", *SHEETS),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=overview.title_of(run),
        so_far=None if run.standing is None else so_far(run.path),
        about=overview.about(run),
        summary=summary,
        charts=charts,
        ranges=ranges,
        notes=overview.notes(scores, summary.scorers, {row.scorer for row in judged}),
        explainers=overview.explainers(scores),
        again=compared(run),
        judged=judged,
        unread=unread,
        composites=overview.composites(run),
        causes=causal.lines(run),
        usage=overview.usage(run),
        graph=graph_of(run),
        scorers=scorers_of(shown),
        views=views,
        address=lambda feature: f"#f{feature}" if feature in views else None,
        said=notes_of(run, {other for view in views.values() for other in view.mentioned()}),
        labels=sorted({view.row["composite"] for view in views.values() if view.row.get("composite")}),
        per_quantile=per_quantile,
        how_chosen=how_chosen,
    )


def _with_pages(features: pa.Table, pages: int) -> tuple[pa.Table, str | None]:
    """The features that have a page, by the first scorer, and how they were chosen; None where all have one."""
    import numpy as np

    n = len(features)
    scorer = next(iter(scorers_of(features)), None)
    ranked = order(features, scorer or "feature")
    if n <= pages:
        return features.take(ranked), None
    valued = n if scorer is None else n - features[scorer].null_count  # those without a value come last
    best = min(round(pages * BEST), valued)
    worst = min(round(pages * WORST), valued - best)
    rest = np.concatenate([np.arange(best, valued - worst), np.arange(valued, n)])
    drawn = np.random.default_rng(0).choice(rest, pages - best - worst, replace=False)
    places = np.sort(np.concatenate([np.arange(best), np.arange(valued - worst, valued), drawn]))
    by = f"the highest {scorer}" if scorer else "the lowest numbers"
    against = f"the lowest {scorer}" if scorer else "the highest"
    text = (
        f"{pages:,} of {n:,} features are on this page: {best:,} with {by.replace('_', ' ')}, {worst:,} with"
        f" {against.replace('_', ' ')}, and {len(drawn):,} drawn at random from the others. {n - pages:,} are left out;"
        " features.parquet has them all. The figures above are over all features."
    )
    return features.take(ranked.take(places)), text


# --- a feature by itself ----------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureCard:
    """One feature of a run: a page in a notebook, the printed text elsewhere."""

    text: str
    html: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def feature_card(run: str | Path, feature: int) -> FeatureCard:
    """What a run knows of `feature`. Raises AutointerpError where it is not in the run."""
    import io

    from autointerp.report.show import show

    folder, out = RunFolder(run), io.StringIO()
    view = view_of(folder, feature, 3)
    show(run, feature, out)
    body = render(
        "card.html.j2",
        view=view,
        said=notes_of(folder, view.mentioned()),
        address=lambda feature: None,
        so_far=so_far(folder.path),
        style=style("&", "feature.css"),
    )
    return FeatureCard(out.getvalue().rstrip("\n"), body)


def features_table(run: str | Path, rows: int = 20) -> str:
    """The scored explanation table for a notebook: its first `rows` rows by the first scorer."""
    folder = RunFolder(run)
    ranked = select(folder.features)
    return render(
        "table.html.j2",
        title=overview.title_of(folder),
        summary=summarise(ranked),
        scorers=scorers_of(ranked),
        rows=ranked.slice(0, rows).to_pylist(),
        so_far=so_far(folder.path),
        style=style("&", "tables.css", "feature.css"),
    )


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `report.compare.compare` for a notebook."""
    return render(
        "comparison.html.j2",
        contrasts=grouped(rows),
        span=span_of(rows),
        lines=reading(rows),
        style=style("&", "tables.css", "feature.css"),
    )
