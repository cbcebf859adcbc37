"""Pieces that the report, the viewer and a notebook share: templates, what they can call, the style."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.records import pieces
from autointerp.report.compare import difference, means, over, won
from autointerp.report.feature import Window, fired, level
from autointerp.report.text import interval, metric, named, note, number, verdict, visible

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
_LEVELS = 9  # shades of activation


def render(template: str, /, **values: Any) -> str:
    """A template with its values, everything that is not markup of ours escaped."""
    return _environment().get_template(template).render(values)


def text_of(name: str) -> str:
    """A file of the templates as it stands."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def style(root: str, *sheets: str) -> str:
    """The colours as variables of the element `root`, then style sheets."""
    return text_of("colours.css").replace(":root", root) + "".join(map(text_of, sheets))


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "metric": metric, "visible": visible, "note": note, "named": named}
    environment.filters["words"] = lambda name: visible(name.replace("_", " "))
    environment.globals |= {"interval": interval, "segments": _segments, "verdict": verdict, "fired": fired}
    environment.globals |= {"means": means, "difference": difference, "won": won, "over": over}
    return environment


def _segments(window: Window, highest: float | None) -> Iterator[tuple[int, str, str]]:
    """Runs of tokens as (level, text, activation): level 0 is silent, neighbouring silent tokens are one run."""
    parts = [
        (0 if a <= 0 else level(a, highest, _LEVELS), visible(token), f"{a:.3g}", i)
        for i, (token, a) in enumerate(pieces(window.tokens, window.activations))
    ]
    for (shade, _), run in groupby(parts, key=lambda p: (p[0], p[3] if p[0] else -1)):
        tokens = list(run)
        yield shade, "".join(p[1] for p in tokens), tokens[0][2]
