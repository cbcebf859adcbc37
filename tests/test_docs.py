"""The docs: generated pages are what the code gives; links, configs, code and command lines in them hold."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from autointerp import plugins
from autointerp.cli import app
from autointerp.commands import reference
from autointerp.commands.reference_tables import MEASURES
from autointerp.config import CompositesConfig, Config, FeaturesConfig, parse_config
from autointerp.records import Context, Kind, RandomWindows
from autointerp.report.sweep import Plan
from autointerp.sae.train_config import TrainConfig
from autointerp.scorers.judging import Item, counted, summarise

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "results/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCED = r'^```(\w*)(?: title="[^"]+")?\n(.*?)^```'
LEAST = {"name": "x", "subject": {"model": "m"}, "corpus": {"source": "s"}, "sae": {"load": "x"}}  # a whole config has


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(*languages: str) -> Iterator[Any]:
    for page in PAGES:
        for number, (language, text) in enumerate(re.findall(FENCED, page.read_text(), re.M | re.S)):
            if language in languages:
                yield pytest.param(text, id=f"{relative(page)}-{number}")


# --- generated pages --------------------------------------------------------------------------


def test_generated_pages_are_what_the_code_gives() -> None:
    command = [sys.executable, "-m", "autointerp.commands.reference", "--check"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_need_is_told_and_every_key_has_a_meaning() -> None:
    assert set(reference.NEEDS) == set(plugins.NEEDS)
    page = (ROOT / "docs/reference/config.md").read_text()
    assert not re.findall(r"^\| `\w+` .*\|  \|$", page, re.M)


def test_every_measure_of_a_judge_has_a_meaning() -> None:
    kinds: tuple[Kind, ...] = ("activating", "random", "near")
    windows = [
        Context(0, i, "test", kinds[i % 3], None if i % 3 else i % 2, i, 0, ("a",), (float(i % 3 == 0),))
        for i in range(24)
    ]
    verdicts = [None, *((float(i % 2), i % 2 / 2) for i in range(1, 24))]
    pairs = [(truth, float(truth)) for truth in (True, False) * 8]
    score = summarise([Item.window(each) for each in windows], verdicts, calibration=pairs, natural_rate=0.1)
    score = counted(score, RandomWindows([("a",), ("b",)], [True, False]), lambda tokens: float("a" in tokens))
    told = {name for names in MEASURES for name in names}
    assert {re.sub(r"_q\d$", "_q1", name) for name in score.metrics} <= told


def test_defaults_of_options_read_as_a_config_writes_them() -> None:
    page = (ROOT / "docs/reference/plugins.md").read_text()
    assert "| `path` | path | – |" in page
    assert "| `threshold` | number | `0.0` |" in page


def test_every_file_says_in_its_first_line_what_is_in_it() -> None:
    firsts = {file: reference.first_line(file) for file in (ROOT / "autointerp").rglob("*.py")}
    assert not [relative(file) for file, line in firsts.items() if not line.endswith((".", "?", "…"))]
    assert len(set(firsts.values())) == len(firsts)


# --- what is written by hand ------------------------------------------------------------------


def test_the_readme_is_read_in_one_sitting() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 120
    assert len(re.findall(r"^!\[", readme, re.M)) == 1
    assert len(re.findall(r"^\|(---\|)+$", readme, re.M)) == 1
    assert (ROOT / "docs/report.png").stat().st_size < 300_000


def test_the_figures_of_the_readme_are_those_of_its_file() -> None:
    readme = (ROOT / "README.md").read_text().replace("−", "-")
    told = json.loads((ROOT / "results/reference/campaign.json").read_text())

    def cell(figure: dict[str, float]) -> str:
        return f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"

    judge = told["means"][0]["scorer"]
    means = {row["explainer"] if row["scorer"] == judge else row["scorer"]: row for row in told["means"]}
    for explainer in ("default", "token_stats"):
        assert (
            f"| {cell(means[explainer]['corrected'])} | {cell(means[explainer]['control other_feature'])} |" in readme
        )
    assert f"| {cell(means['lexical_shown']['corrected'])} |" in readme
    pair = (judge, "default", "token_stats", "corrected")
    gap = next(row for row in told["differences"] if (row["scorer"], row["a"], row["b"], row["measure"]) == pair)
    assert f"`default` less `token_stats` is {cell(gap | {'mean': gap['difference']})}" in readme
    (added,) = (
        row
        for row in told["beyond counts"]
        if (row["scorer"], row["a"], row["b"]) == (judge, "default", "lexical_shown")
    )
    assert f"answers add {cell(added | {'mean': added['difference']})}" in readme
    assert f"{told['asked']} of its features" in readme
    assert f"on {means['token_stats']['corrected']['n']} of them" in readme
    told = json.loads((ROOT / "results/reference/controls-judged.json").read_text())
    for row in told["controls"]:
        assert f"{cell(row['corrected'] | {'mean': row['corrected']['difference']})} above a" in readme


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def anchors(file: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:autointerp|benchmarks|pipelines|prompts|tests|docs|examples)/[\w./-]+)`", page.read_text()
    )
    assert not [name for name in named if "NAME" not in name and not (ROOT / name).exists()]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_configs_are_read(text: str) -> None:
    raw = yaml.safe_load(text)
    if "variants" in raw:
        Plan.model_validate({key: raw.pop(key) for key in Plan.model_fields if key in raw})
    for section, known in {"features": FeaturesConfig, "composites": CompositesConfig}.items():
        known.model_validate(raw.get(section, {}))
    config = parse_config({**LEAST, **raw})
    assert isinstance(config, Config)
    if config.sae.train:
        TrainConfig.model_validate(config.sae.train)


def test_trainings_named_in_passing_are_read() -> None:
    for text in re.findall(r"train: (\{.*?\})\s*$", (ROOT / "README.md").read_text(), re.M):
        TrainConfig.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", blocks("python"))
def test_code_compiles(text: str) -> None:
    compile(text, "block", "exec")


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=relative)
def test_examples_can_be_imported(example: Path) -> None:
    """What they run themselves stands under ``__main__``; what they register is checked at registration."""
    code = f"import runpy; runpy.run_path({str(example)!r}, run_name='example')"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def command_lines() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text()
        fenced = [block for language, block in re.findall(FENCED, text, re.M | re.S) if language in ("", "sh")]
        lines = [line for block in fenced for line in block.splitlines() if line.startswith("autointerp ")]
        inline = re.findall(r"`(autointerp [a-z][^`]*)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        for line in dict.fromkeys([*lines, *(" ".join(each.split()) for each in inline)]):
            yield pytest.param(line.partition(" #")[0].strip(), id=f"{relative(page)}: {line[:40]}")


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_are_understood(line: str) -> None:
    """By the parser alone; a command named without its arguments has to be one."""
    group: Any = typer.main.get_command(app)
    name, *given = shlex.split(line)[1:]
    if name.startswith("-"):
        return
    command = group.commands[name]
    context = click.Context(command, info_name=name, resilient_parsing=not given)
    command.parse_args(context, given)
