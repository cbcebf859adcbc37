"""Hooks of mkdocs: pages and files outside docs/ become a part of the site, and links lead to where they stand there.

README.md is the front page. A link is written as it works in the repository; on the site its target has another place,
or none. One that leads to a file outside docs/ and the site is an error of the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FRONT = "README.md"
MORE = ("CONTRIBUTING.md", "CHANGELOG.md", "results/README.md", "results/reference/**/*", "examples/*")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the front page and `MORE`."""
    for source, place in _more().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links of the repository into links of the site, fenced code left alone."""
    place = page.file.src_uri
    here = posixpath.dirname(_sources().get(place, f"docs/{place}"))

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link[1]))
        if target not in _more() and not target.startswith("docs/"):
            raise PluginError(f"{place} links to {target}, which is no part of the site: see MORE in site_hooks.py")
        return posixpath.relpath(_more().get(target, target.removeprefix("docs/")), posixpath.dirname(place) or ".")

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def _more() -> dict[str, str]:
    """File of the repository -> its place on the site."""
    sources = [path.relative_to(ROOT).as_posix() for each in MORE for path in sorted(ROOT.glob(each)) if path.is_file()]
    return {FRONT: "index.md", **{source: source for source in sources}}


def _sources() -> dict[str, str]:
    return {place: source for source, place in _more().items()}
