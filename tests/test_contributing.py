"""CONTRIBUTING.md's checklists, each followed to the letter in a copy of the package."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (An? [^\n]*)\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S))

CONFIG = """
from autointerp.config import parse_config
config = parse_config({
    "name": "tried", "subject": {"model": "m"}, "corpus": {"source": "s"}, "sae": {"load": "x"},
    "explainers": ["token_stats"], "scorers": [], "composites": {"enabled": False}, **MORE,
})
"""
CHECKS = {
    "A stage": """
MORE = {}
%s
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
import pyarrow.parquet as pq
from autointerp import stages
from autointerp.engine.session import Session
from autointerp.engine.stage import Job
from autointerp.tables import write_rows

uses = stages.uses(config)
assert "lengths" in uses["tables"].needs
assert "lengths" in stages.TABLES
with Session(config, Path("usage.jsonl")) as session:
    (node,) = [node for node in stages.nodes(config, session) if node.name == "lengths"]
    assert node.needs == ("explain/token_stats",)
    assert any(module.endswith("stages.lengths") for module in node.codes)

explained, out = Path(mkdtemp()), Path(mkdtemp())
rows = [{"feature": 3, "explainer": "token_stats", "explanation": "two words"}, {"feature": 4}]
write_rows(explained / "explanations.parquet", "explanations", rows)
job = Job(SimpleNamespace(config=config), uses["lengths"], out, {"explain/token_stats": explained})
stages.stage_of("lengths").work(job)
assert pq.read_table(out / "lengths.parquet")["words"].to_pylist() == [2, None]
assert job.facts == {"explanations": 2}
""",
    "A scorer or an explainer": """
MORE = {"scorers": [{"name": "mentions", "letters": 4}]}
%s
import asyncio
from autointerp import stages
from autointerp.plugins import scorers
from autointerp.records import Context

assert "score/mentions/token_stats/other_feature" in stages.uses(config)
def context(number, text, fires):
    kind = "activating" if fires else "random"
    return Context(0, number, "test", kind, 0 if fires else None, number, 0, (text,), (1.0 if fires else 0.0,))

examples = [context(0, "the green bird", True), context(1, "a dog", False)]
score = scorers.get("mentions")
assert asyncio.run(score("birds, green", examples, None)).value == 1
assert asyncio.run(score("a stone", examples, None)).value < 1
""",
    "An LLM backend": """
MORE = {"explainers": ["default"], "llm": {"model": "echo:any"}}
%s
import asyncio
import sys
from pathlib import Path
from tempfile import mkdtemp
sys.path.insert(0, TESTS + "/llm")
from autointerp import stages
from conformance import conforms

asyncio.run(conforms(config.llm, Path(mkdtemp())))
assert stages.uses(config)["explain/default"].section["llm"]["backend"] == "echo"
""",
    "An SAE format": """
MORE = {}
%s
from pathlib import Path
from tempfile import mkdtemp
import numpy as np
import torch
from autointerp.sae import load_sae
from autointerp.sae.formats import find_format

file = Path(mkdtemp()) / "mine.bare.npz"
W = np.eye(3, 5, dtype=np.float32)
np.savez(file, W_enc=W, b_enc=np.zeros(5), W_dec=W.T, b_dec=np.ones(3))
assert find_format(file, None)[0] == "bare_npz"
x = torch.tensor([[1.0, 2.0, 3.0]])
assert torch.equal(load_sae(file).decode(load_sae(file).encode(x)), x + 1)
""",
}


@pytest.mark.parametrize("section", CHECKS)
def test_a_checklist_works(section: str, tmp_path: Path) -> None:
    for folder in ("autointerp", "prompts", "pipelines"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    changed = follow(SECTIONS[section], tmp_path)
    assert len(changed) <= 1
    code = f"TESTS = {str(ROOT / 'tests')!r}\n" + CHECKS[section] % CONFIG
    env = os.environ | {"PYTHONPATH": str(tmp_path), "AUTOINTERP_CACHE": str(tmp_path / "cache")}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def follow(section: str, tree: Path) -> list[str]:
    """Write the section's file and add its line; returns the lines of existing files that were changed."""
    (example,) = re.findall(r"^```python\n# (\S+)\n(.*?)^```", section, re.M | re.S)
    file, text = tree / example[0], example[1]
    assert not file.exists()
    file.write_text(text)
    ((path, where, line),) = re.findall(r"^```diff\n (\S+)\n ([^\n]*)\n\+([^\n]*)\n```", section, re.M)
    before = (tree / path).read_text()
    assert before.count(f"{where}\n") == 1
    after = before.replace(f"{where}\n", f"{where}\n{line}\n")
    (tree / path).write_text(after)
    return [change for change in difflib.ndiff(before.splitlines(), after.splitlines()) if change[0] in "+-"]


@pytest.mark.parametrize("section", CHECKS)
def test_a_checklist_is_short_and_its_example_is_clean(section: str, tmp_path: Path) -> None:
    checklist = re.findall(r"^(?:\d\. |   ).*$", SECTIONS[section].partition("```")[0], re.M)
    assert 0 < len(checklist) <= 15
    ((path, text),) = re.findall(r"^```python\n# (\S+)\n(.*?)^```", SECTIONS[section], re.M | re.S)
    file = tmp_path / Path(path).name
    file.write_text(text)
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--config", str(ROOT / "pyproject.toml"), str(file)]
        assert subprocess.run(command, capture_output=True).returncode == 0
