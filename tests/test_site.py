"""The site: it is built without a warning, every page of docs/ is on it, and it asks no other host for anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")
ROOT = Path(__file__).parents[1]


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", out)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return out


class Loaded(HTMLParser):
    """Addresses from which a page loads something by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(given.get("href") or "")


def test_every_page_is_there_and_loads_nothing_from_another_host(site: Path) -> None:
    sources = [page.relative_to(ROOT / "docs").with_suffix("") for page in (ROOT / "docs").rglob("*.md")]
    for page in sources:
        assert (site / page / "index.html").exists() or (site / page.parent / "index.html").exists(), page
    for page in site.rglob("*.html"):
        parser = Loaded()
        parser.feed(page.read_text())
        assert not [address for address in parser.addresses if re.match(r"(https?:)?//", address)], page


def test_links_out_of_the_docs_lead_to_files_of_the_site(site: Path) -> None:
    links = re.findall(r'href="([^"#]*\.json)"', (site / "scores/index.html").read_text())
    assert links
    assert all((site / "scores" / link).resolve().is_file() for link in links)
    front = (site / "index.html").read_text()
    assert 'src="report.png"' in front
    assert 'href="install/"' in front


def test_a_list_begins_after_an_empty_line(site: Path) -> None:
    """Else it is a list on GitHub and prose on the site."""
    for page in site.rglob("*.html"):
        paragraphs = re.findall(r"<p>(.*?)</p>", page.read_text(), re.S)
        assert not [text for text in paragraphs if re.search(r"^(- |\d\. |\|)", text, re.M)], page


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("gone.md", "'gone.md', but the target is not found"),
        ("../pyproject.toml", "links to pyproject.toml, which is no part of the site"),
        ("reference/config.md#no-such-section", "does not contain an anchor '#no-such-section'"),
    ],
)
def test_a_link_that_leads_nowhere_fails_the_build(link: str, told: str, tmp_path: Path) -> None:
    for name in ("docs", "results", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    with (tmp_path / "docs/viewer.md").open("a") as page:
        page.write(f"\n[here]({link})\n")
    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0
    assert told in built.stderr
