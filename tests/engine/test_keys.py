"""What a stage's key holds of the code: a change that could change its output makes it stale, another does not.

Each case changes one place of a copy of the package and looks at the key of every stage of two configs: one that
loads an SAE and asks for all that there is, and one that trains its SAE.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autointerp import stages
from autointerp.config import parse_config
from autointerp.engine import keys
from autointerp.hashing import digest

REPOSITORY = Path(__file__).parents[2]
SAE = REPOSITORY / "pipelines" / "saes" / "stories15m-l1"


class Change(NamedTuple):
    file: str
    before: str
    after: str
    stale: str  # a stage that must be stale, as "load:harvest"


DETECTION, SIMULATION = "load:score/detection/default", "load:score/simulation/default"
CHANGES = [
    # records and artifacts
    Change("records.py", 'return self.kind == "activating"', 'return self.kind != "activating"', DETECTION),
    Change("records.py", "return max(self.activations, default=0.0)", "return min(self.activations)", SIMULATION),
    Change("records.py", 'return "ok" if self.text else "failed"', 'return "ok"', "load:explain/default"),
    Change("artifacts.py", "int(shard.indptr[latent + 1])", "int(shard.indptr[latent])", "load:contexts"),
    Change("artifacts.py", 'side="right") - 1', 'side="left")', "load:reencode"),
    Change("tables.py", '"n_unscored": "whole"', '"n_unscored": "real"', DETECTION),
    # engine
    Change("engine/models.py", "return load_sae(session, folder)", "return load_sae(session, '')", "load:harvest"),
    Change("engine/models.py", "wanted = session.config.subject.hook or hook", "wanted = hook", "load:harvest"),
    Change("engine/executor.py", "for line in each.tables.get(table, ())", "for line in ()", DETECTION),
    # subject, SAE, activations
    Change("subject/corpus.py", "BATCH = 512", "BATCH = 511", "load:corpus"),
    Change("subject/tokens.py", 'r"<0x([0-9A-F]{2})>"', 'r"<0x([0-9a-f]{2})>"', "load:contexts"),
    Change("subject/hooks.py", '"wte"', '"wpe"', "train:activations"),
    Change("sae/model.py", "self.pre_activations(x), self)", "self.pre_activations(-x), self)", "load:harvest"),
    Change("sae/formats/saelens.py", '"sae_weights.safetensors"', '"weights.safetensors"', "load:harvest"),
    Change("sae/formats/openai.py", "FORMAT = _OpenAI()", "FORMAT = None", "load:sae"),
    Change("sae/check.py", "batch: int = 1024", "batch: int = 1023", "load:sae"),
    Change("sae/recipes.py", "self.d_in**0.5", "self.d_in**0.4", "train:sae"),
    Change("sae/penalties.py", "_PART = 32", "_PART = 16", "train:sae"),
    Change("activations/dense.py", "SAVE_EVERY = 500_000", "SAVE_EVERY = 1", "train:activations"),
    Change("activations/harvest.py", "clamp_(min=6e-8)", "clamp_(min=6e-7)", "load:harvest"),
    Change("activations/contexts.py", "_TRIES = 32", "_TRIES = 2", "load:contexts"),
    Change("activations/evidence.py", "_TOKEN_STATS = 30", "_TOKEN_STATS = 3", "load:explain/default"),
    Change("activations/evidence.py", '-ok["firings"]', 'ok["firings"]', "load:select"),
    # composites and evaluation
    Change("composites/decompose.py", "TRIPLE_GAIN = 0.05", "TRIPLE_GAIN = 0.5", "load:composites"),
    Change("composites/evidence.py", "REACH = 0.4", "REACH = 0.2", "load:reencode"),
    Change("composites/activation_evidence.py", "SHOWN = 3", "SHOWN = 4", "load:reencode"),
    Change("composites/union.py", "[:2]", "[:3]", "load:reencode"),
    Change("composites/causal.py", "BEFORE, AFTER = 128, 3", "BEFORE, AFTER = 64, 3", "load:causal"),
    Change("composites/entailment.py", "p >= 0.5", "p > 0.5", "load:semantic"),
    Change("composites/semantics.py", "REASK = 1", "REASK = 2", "load:semantic"),
    Change("composites/choice.py", "chosen[: config.count]", "chosen[1 : config.count]", "load:select"),
    Change("evaluation/sums.py", "DENSE = 1 << 24", "DENSE = 1 << 20", "load:evaluate"),
    Change("evaluation/figures.py", "LEAST = 0.01", "LEAST = 0.1", "load:evaluate"),
    # stages
    Change("stages/directions.py", "LOGITS = 10", "LOGITS = 12", "load:directions"),
    Change("stages/tables.py", 'real = rows[rows["control"].isna()]', "real = rows", "load:tables"),
    Change("stages/select.py", "sorted(how)", "sorted(how, reverse=True)", "load:select"),
    # plug-ins and what they share, prompts, readers
    Change(
        "explainers/default.py", "key=lambda context: -context.peak", "key=lambda c: c.peak", "load:explain/default"
    ),
    Change("explainers/words.py", "stat.fired / total", "stat.fired", "load:explain/token_stats"),
    Change("explainers/constituents.py", '"both", "all of"', '"two", "all of"', "load:explain/conjunction"),
    Change("scorers/detection.py", "batch: int = 25", "batch: int = 24", DETECTION),
    Change("scorers/simulation.py", 'FILLER = "0"', 'FILLER = "1"', SIMULATION),
    Change("controls/other_feature.py", "text.casefold()", "text", f"{DETECTION}/other_feature"),
    Change("prompting.py", 'right: str = "»"', 'right: str = "›"', "load:explain/default"),
    Change("../prompts/judge_list.jinja", "Property:", "Rule:", DETECTION),
    Change("answers.py", "LEAST_MASS = 0.05", "LEAST_MASS = 0.5", DETECTION),
    Change("stats/student.py", "LEVEL = 0.95", "LEVEL = 0.9", DETECTION),
    Change("llm/backends/openai_read.py", "spelt = text.strip().casefold()", "spelt = text.strip()", DETECTION),
    Change("../mine.py", "return helper.say()", "return helper.say() + '.'", "load:explain/mine.explain"),
    Change("../helper.py", "'the word a'", "'the word b'", "load:explain/mine.explain"),
    Change("../parts/words.py", "' or'", "' and'", "load:explain/mine.explain"),
    Change("../guarded.py", "' c'", "' d'", "load:explain/mine.explain"),
    Change("../shared.py", "' in'", "' of'", "load:explain/mine.explain"),
]
DEFAULTS = [  # of the config: they count through the section
    Change("config.py", "window: int = Field(default=32", "window: int = Field(default=31", "load:contexts"),
    Change("config.py", "min_firings: int = Field(default=60", "min_firings: int = Field(default=61", "load:select"),
]

PAID = ("harvest", "sae", "activations", "score/")  # what must not be made again for nothing
IDLE = [
    Change("records.py", '"""A window of a document\'s tokens', '"""One window of a document\'s tokens', ""),
    Change("activations/harvest.py", '"""Harvest: run a corpus', '"""Harvest: send a corpus', ""),
    Change("activations/harvest.py", "# what fires stays above 0", "# what fires is above 0", ""),
    Change("scorers/detection.py", '"""The detection scorer: shown', '"""The detection scorer: given', ""),
    Change("sae/model.py", '"""[..., d_in] -> codes [..., d_sae], zero or positive.', '"""Codes.', ""),
    Change("cli.py", "Run the pipeline:", "Runs the pipeline:", ""),
    Change("cli.py", "limit=50", "limit=60", ""),
    Change("report/charts.py", "_BINS = 20", "_BINS = 30", ""),
    Change("report/show.py", "", "\n\ndef unused():\n    return 1\n", ""),
    Change("commands/run.py", "nothing to do", "all is done", ""),
    Change("commands/folder.py", '"torch", ', "", ""),
    Change("progress.py", "every: float = 15.0", "every: float = 5.0", ""),
    Change("errors.py", "exit_code = 1", "exit_code = 3", ""),
    Change("engine/dag.py", "REPAIRS = 3", "REPAIRS = 4", ""),
    Change("engine/store.py", 'LOG = "log"', 'LOG = "logs"', ""),
    Change("config.py", '"""Text, tokenised once."""', '"""Text."""', ""),
    Change("config.py", "give exactly one of sae.load, sae.train and sae.neurons", "give sae.load or another", ""),
    Change("plugins.py", "cannot be called", "is not callable", ""),
    Change("catalog/fetch.py", "", "\n\ndef unused():\n    return 1\n", ""),
    Change("llm/limiter.py", "maximum / 8", "maximum / 4", ""),
    Change("llm/backends/local.py", "", "\n\ndef unused():\n    return 1\n", ""),
    Change("llm/backends/vllm.py", "SILENCE = 1800.0", "SILENCE = 900.0", ""),
    Change("toys/worlds.py", "", "\n\ndef unused():\n    return 1\n", ""),
    Change("stages/evaluate.py", "", "\n\ndef unused():\n    return 1\n", ""),
    Change("scorers/fuzzing.py", "", "async def score(): ...\n", ""),
]


def config(folder: Path, **more: Any) -> dict[str, Any]:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "text.txt").write_text("Once upon a time.")
    llm = {"model": "test-model", "base_url": "http://127.0.0.1:9/v1", "api_key_env": None, "logprobs": True}
    return {
        "name": "keys",
        "subject": {"model": str(folder / "model"), "hook": "blocks.1.hook_resid_post"},
        "corpus": {"source": str(folder / "text.txt")},
        "llm": llm,
        **more,
    }


SCRIPT = """
import json, sys
from pathlib import Path
from autointerp.config import parse_config
from autointerp import stages
from autointerp.config import parse_config
from autointerp.engine import keys
from autointerp.hashing import digest
from autointerp import stages

root, work = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
TARGETS = ["tables", "evaluate"]

def all_keys():
    found = {}
    for name, raw in work["configs"].items():
        for node in stages.nodes(parse_config(raw), None, TARGETS):
            found[f"{name}:{node.name}"] = digest([node.code, node.section])
    return found

before, results = all_keys(), []
for file, old, new in work["changes"]:
    path = root / file
    text = path.read_text() if path.exists() else None
    assert text is None or old in text, (file, old)
    path.write_text(text.replace(old, new, 1) if old else (text or "") + new)
    after = all_keys()
    results.append(sorted(name for name in before if before[name] != after.get(name)))
    path.unlink() if text is None else path.write_text(text)
print(json.dumps({"keys": before, "stale": results}))
"""


class Copy:
    """A copy of the package with a user's plug-in beside it, whose files may be changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / "autointerp", root / "autointerp", ignore=ignore)
        shutil.copytree(REPOSITORY / "prompts", root / "prompts")
        (root / "mine.py").write_text(
            textwrap.dedent(
                """
                import autointerp as ai
                import helper
                import parts.words
                from shared import *

                try:
                    from guarded import ending
                except ImportError:
                    ending = str

                async def explain(feature, llm):
                    return helper.say() + parts.words.joint() + ending() + last()
                """
            )
        )
        (root / "parts").mkdir()
        (root / "parts" / "words.py").write_text("def joint():\n    return ' or'\n")
        (root / "guarded.py").write_text("def ending():\n    return ' c'\n")
        (root / "shared.py").write_text("def last():\n    return ' in'\n")
        (root / "helper.py").write_text("def say():\n    return 'the word a'\n")
        every = {
            "sae": {"load": str(SAE)},
            "features": {"select": "composites", "constituents": True},
            "composites": {"union": str(SAE), "semantic": True, "causal": True},
            "explainers": ["default", "token_stats", "conjunction", "mine.explain"],
        }
        train = {"sae": {"train": {"architecture": "topk", "d_sae": 64, "k": 4, "tokens": 100_000}}}
        self.configs = {"load": config(root, **every), "train": config(root, **train)}

    def run(self, changes: list[Change]) -> dict[str, Any]:
        work = {"configs": self.configs, "changes": [change[:3] for change in changes]}
        (self.root / "work.json").write_text(json.dumps(work))
        environment = {**os.environ, "PYTHONPATH": str(self.root), "AUTOINTERP_CACHE": str(self.root / "cache")}
        command = [sys.executable, "-c", SCRIPT, str(self.root / "autointerp"), str(self.root / "work.json")]
        done = subprocess.run(command, env=environment, cwd=self.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="module")
def stale(copy: Copy) -> dict[Change, list[str]]:
    changes = [*CHANGES, *IDLE]
    return dict(zip(changes, copy.run(changes)["stale"]))


def test_forty_changes_are_looked_at_and_twenty_that_change_nothing() -> None:
    assert len({*CHANGES, *DEFAULTS}) >= 40
    assert len(set(IDLE)) >= 20


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.file} {change.before[:24]}")
def test_a_change_that_can_change_a_stages_output_makes_it_stale(stale, change: Change) -> None:
    assert change.stale in stale[change]


@pytest.mark.parametrize("change", IDLE, ids=lambda change: f"{change.file} {change.before[:24]}")
def test_a_change_that_cannot_change_it_makes_nothing_again_that_is_dear(stale, change: Change) -> None:
    assert not [name for name in stale[change] if name.split(":")[1].startswith(PAID)]


def test_a_change_of_one_scorer_leaves_the_other_and_every_harvest(stale) -> None:
    (change,) = (c for c in CHANGES if c.file == "scorers/simulation.py")
    assert {name.split(":")[1].split("/")[1] for name in stale[change]} == {"simulation"}


def test_a_changed_default_of_the_config_makes_its_stages_stale_and_no_other(copy: Copy) -> None:
    before = copy.run([])["keys"]
    for change in DEFAULTS:
        path = copy.root / "autointerp" / change.file
        text = path.read_text()
        assert change.before in text
        path.write_text(text.replace(change.before, change.after))
        try:
            after = copy.run([])["keys"]
        finally:
            path.write_text(text)
        changed = {name for name in before if before[name] != after[name]}
        assert change.stale in changed
        assert not [name for name in changed if name.split(":")[1].startswith(("harvest", "sae", "activations"))]


CELLS = {
    "prompt": "PROMPT, MOST = 'Say it', 3",
    "helper": "def ask(text, words=('a', 'b')):\n    return [PROMPT, text, words]",
    "reader": "class Reader:\n    size = 2\n\n    def read(self):\n        return self.size",
    "plug-in": "async def explain(feature, llm):\n    return [ask(each) for each in range(MOST)], Reader().read()",
}


def in_a_notebook(**changed: tuple[str, str]) -> str:
    """What a key holds of a plug-in whose cells were run, some of them changed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell, text in CELLS.items():
        before, after = changed.get(cell.replace("-", ""), ("", ""))
        assert before in text
        exec(compile(text.replace(before, after) if before else text, f"<{cell}>", "exec"), names)
    return digest(dict(keys.reached(names["explain"])))


def test_a_notebook_s_plug_in_is_the_same_until_a_cell_that_it_reads_changes() -> None:
    assert in_a_notebook() == in_a_notebook()
    others = [
        in_a_notebook(prompt=("Say it", "Say it in a word")),
        in_a_notebook(prompt=("3", "4")),
        in_a_notebook(helper=("text, words]", "words]")),
        in_a_notebook(helper=("'b'", "'c'")),
        in_a_notebook(reader=("= 2", "= 5")),
        in_a_notebook(reader=("return self", "return 1 + self")),
        in_a_notebook(plugin=("range(MOST)", "range(1)")),
        in_a_notebook(plugin=("llm)", "*, llm)")),
        in_a_notebook(plugin=("llm)", "neighbours)")),
    ]
    assert len({in_a_notebook(), *others}) == 1 + len(others)


def test_a_function_that_is_defined_again_where_another_lay_in_memory_is_not_taken_for_it() -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    known = set()
    for number in range(8):
        exec(compile(f"def explain():\n    return {number}", "<cell>", "exec"), names)
        known.add(digest(dict(keys.reached(names["explain"]))))
    assert len(known) == 8


def sections(folder: Path, **subject: Any) -> dict[str, Any]:
    """Of every use of a config that reads a transcoder, with scorers that try its features out."""
    asked = {"scorers": ["steering", "ablation", "embedding"], "controls": [], "composites": {"causal": True}}
    raw = config(folder, sae={"load": str(SAE)}, **asked)
    raw["subject"] |= subject
    return {name: use.section for name, use in stages.uses(parse_config(raw)).items()}


def test_a_changed_tokenizer_makes_the_windows_anew_though_the_tokens_be_the_same(tmp_path: Path) -> None:
    before = sections(tmp_path)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    assert sections(tmp_path)["contexts"] != before["contexts"]


def test_where_a_transcoder_writes_is_in_the_keys_of_all_that_tries_it_out(tmp_path: Path) -> None:
    before, after = sections(tmp_path), sections(tmp_path, hook_out="blocks.2.hook_mlp_out")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"sae", "causal", "score/steering/default", "score/ablation/default"}


def test_an_embedder_is_in_the_keys_of_those_who_are_given_it(tmp_path: Path) -> None:
    holding = {name for name, section in sections(tmp_path).items() if "embedder" in section}
    assert holding == {"score/embedding/default"}
