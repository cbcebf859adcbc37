"""``autointerp show``: one feature, printed with highlighted tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from autointerp.errors import AutointerpError
from autointerp.records import pieces
from autointerp.report.feature import FeatureView, Window, fired, gather, level, notes_of
from autointerp.report.folder import RunFolder, so_far
from autointerp.report.plane import drawn, members_of, title_of
from autointerp.report.text import colours, interval, metric, note, number, verdict, visible, width_of
from autointerp.report.tree import Latent

if TYPE_CHECKING:
    from rich.text import Text

_LEVELS = ("on #fff1d6", "on #ffdda0", "on #ffc266", "on #ffa033", "on #ff7b00")  # weakest to strongest
_PER_QUANTILE = 3
ELSEWHERE = "(not among the features of this run)"


def show(run: str | Path, feature: int, out: TextIO | None = None) -> None:
    """Print what a run knows of `feature`: activations as colours on a terminal, as «marks» elsewhere."""
    from rich.console import Console
    from rich.text import Text

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise  # the error at hand: rich would exit with 1 where a reader has had enough

    stream = out or sys.stdout
    folder = RunFolder(run)
    view = view_of(folder, feature, _PER_QUANTILE)
    width = width_of(stream)
    console = Terminal(file=stream, highlight=False, markup=False, emoji=False, width=width, soft_wrap=width is None)
    for line in _lines(view, notes_of(folder, view.mentioned()), colours(stream)):
        console.print(line)
    if unfinished := so_far(folder.path):
        console.print(Text(f"\n{unfinished}"))


def view_of(folder: RunFolder, feature: int, per_quantile: int) -> FeatureView:
    """Raises AutointerpError, which names the nearest, for a feature that is not in the run."""
    ids: list[int] = folder.features["feature"].to_pylist()
    if feature not in ids:
        near = sorted(sorted(ids, key=lambda known: abs(known - feature))[:5])
        raise AutointerpError(f"feature {feature} is not in {folder.path}; nearest: {', '.join(map(str, near))}")
    return gather(folder, [feature], per_quantile)[feature]


def _lines(view: FeatureView, notes: Mapping[Latent, str], coloured: bool) -> Iterator[Text]:
    yield from _head(view)
    yield from _scores(view)
    yield from _contexts(view, coloured)
    yield from _mistakes(view, coloured)
    yield from _composite(view, notes, coloured)
    yield from _around(view, notes)


def _title(title: str) -> Text:
    from rich.text import Text

    return Text(f"\n{title}", "bold")


def _head(view: FeatureView) -> Iterator[Text]:
    from rich.text import Text

    row = view.row
    label = verdict(row) or "composite check: none"
    yield Text(f"feature {row['feature']} · {row['status'].replace('_', ' ')} · {label}", "bold")
    yield Text(note(row))
    firings = "–" if row.get("firings") is None else f"{row['firings']:,}"
    frequency = "–" if row.get("frequency") is None else f"{row['frequency']:.3%}"
    peak = "–" if row.get("max_activation") is None else f"{row['max_activation']:.3g}"
    yield Text(f"{firings} firings ({frequency} of tokens), highest activation {peak}")


def _scores(view: FeatureView) -> Iterator[Text]:
    from rich.text import Text

    if view.scores:
        yield _title("scores")
    for s in view.scores:
        value = interval(*(s.row[key] for key in ("value", "low", "high")))
        counts = f"{s.row['n_scored']} scored, {s.row['n_unscored']} unscored, base rate {number(s.row['base_rate'])}"
        controls = [f"; control: {name.replace('_', ' ')} {number(v)}" for name, v in s.controls.items()]
        more = [f"{name.replace('_', ' ')} {metric(v)}" for name, v in s.metrics.items()]
        yield Text(f"  {s.explainer}, {s.scorer}: {value}" + "".join(controls))
        yield Text(f"      {counts}" + (f"; {', '.join(more)}" if more else ""), "dim")
        if s.row.get("failure"):
            yield Text(f"      {visible(s.row['failure'])}", "red")
    if view.explanations:
        yield _title("explanations")
    for e in view.explanations:
        yield Text(f"  {e['explainer']} ({e['model'] or 'no model'}): {note(e)}")


def _contexts(view: FeatureView, coloured: bool) -> Iterator[Text]:
    from rich.text import Text

    for title, windows, count in view.groups():
        yield _title(f"{title} ({len(windows)} of {count})")
        for window in windows:
            line = Text("  ")
            line.append(f"{window.split:<5} {max(window.activations, default=0):6.2f}  ", "dim")
            yield line.append_text(_tokens(window, view.row.get("max_activation"), coloured))


def _mistakes(view: FeatureView, coloured: bool) -> Iterator[Text]:
    from rich.text import Text

    if view.mistakes:
        yield _title(f"wrong judgements ({len(view.mistakes)} of {view.n_mistakes}, the surest first)")
    for m in view.mistakes:
        sure = "" if m.probability is None else f" ({number(m.probability)})"
        what = f"a {'window' if m.window else 'text'} that is {m.kind}"
        text = Text(f"  {m.scorer} said {'yes' if m.yes else 'no'}{sure} to {what}: ")
        if m.window:
            text.append_text(_tokens(m.window, view.row.get("max_activation"), coloured))
        yield text.append(visible(m.text or ""))


def _composite(view: FeatureView, notes: Mapping[Latent, str], coloured: bool) -> Iterator[Text]:
    from rich.text import Text

    if view.composite:
        yield _title(f"composite check: {view.composite['label'].replace('_', ' ')}")
        for depth, part in ((depth, part) for root in view.parts for depth, part in root.walk()):
            name = part.latent if isinstance(part.latent, str) else f"feature {part.latent}"
            yield Text(f"  {'    ' * depth}{number(part.weight)} × {name}: {notes.get(part.latent, ELSEWHERE)}")
        for line in view.evidence():
            yield Text(f"  {visible(line)}", "dim")
    if members := members_of(view.composite or {}):
        yield _title(title_of(view.composite or {}))
        yield from (Text(f"  {line}") for line in drawn(members))
        yield from (
            Text(f"  {each.mark} feature {each.feature}: {notes.get(each.feature, ELSEWHERE)}") for each in members
        )
    if view.cofiring:
        yield _title(f"co-firing contexts ({len(view.cofiring)})")
    for windows in view.cofiring:
        own, *parts = windows.items()
        yield Text("  ").append_text(_tokens(own[1], view.row.get("max_activation"), coloured))
        yield Text("      " + "; ".join(f"{latent}: {fired(window)}" for latent, window in parts), "dim")


def _around(view: FeatureView, notes: Mapping[Latent, str]) -> Iterator[Text]:
    from rich.text import Text

    if view.neighbours:
        yield _title("neighbours by decoder cosine")
    for n in view.neighbours:
        yield Text(f"  {n['neighbour']:>7} {number(n['cosine']):>5}  {notes.get(n['neighbour'], ELSEWHERE)}")
    for direction, tokens in view.logits.items():
        yield _title(f"logits {direction}")
        yield Text("  " + ", ".join(f"{visible(token)!r} {weight:+.2f}" for token, weight in tokens))


def _tokens(window: Window, highest: float | None, coloured: bool) -> Text:
    from rich.text import Text

    text = Text()
    for token, activation in pieces(window.tokens, window.activations):
        shown = visible(token)
        if activation <= 0:
            text.append(shown)
        elif coloured:
            text.append(shown, f"black {_LEVELS[level(activation, highest, len(_LEVELS)) - 1]}")
        else:
            text.append(f"«{shown}»")
    return text
