"""How quick `autointerp view` is on a large run, and how large and quick the report of 500 features is.

    python benchmarks/viewer.py [--features 131072] [--judgements 10000000] [--out FILE] [--only-report]

1. A run is planted as Parquet: features with two scorers, their controls and the ceiling, explanations of two
   explainers, judgements in the order in which the pipeline writes them, and eight contexts a feature.
2. The command is started as a user starts it; it prints its address when it has read the features table. The first page
   is what a browser asks for then: the overview, and on another new server the features page with its first rows.
3. Filters, sorts and searches are each asked once, so that none is answered from memory. The last one searches all
   contexts, in the parts in which the page asks for them.
4. Memory is the highest resident size that Linux saw of the server, with the slow parts of the overview made too.
5. The self-contained report is written of another planted run of 500 features, with all measures, 50 windows of 32
   tokens a feature, neighbours and logits. Chromium opens it three times; medians are told.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.tables import schema

LIMITS = {"first page, seconds": 1.0, "filter, seconds": 0.2, "memory, GB": 1.0}
REPORT_LIMITS = {"size, MB": 5.0, "to interactive, seconds": 1.0}
REPORT = 500  # features of the report, each with as many windows, of as many tokens, as a run of the defaults shows
SHOWN, LONG = 50, 32
SCORERS = ("detection", "fuzzing")
CONTEXTS, WINDOW = 8, 20  # of a feature, and tokens of each
GROUP = 1 << 15  # rows of a row group
CONTEXT = pa.schema({
    **dict.fromkeys(("feature", "example"), pa.int32()), **dict.fromkeys(("split", "kind"), pa.string()),
    **dict.fromkeys(("quantile", "document", "position"), pa.int32()),
    "tokens": pa.list_(pa.string()), "activations": pa.list_(pa.float32()),
})  # fmt: skip
FILTERS = (
    {"where": "detection > 0.8 and status == 'ok'"},
    {"where": "abs(detection - detection_control) < 0.1", "sort": "-firings"},
    {"where": "'fox' in explanation"},
    {"where": "composite == 'composite' or frequency > 0.01", "sort": "fuzzing"},
    {"search": "red rain"},
    {"search": "77"},
    {"sort": "explanation"},
    {"sort": "-detection", "start": "100000"},
)


# --- the run ----------------------------------------------------------------------------------


def plant(folder: Path, features: int, judgements: int, contexts: int = CONTEXTS, window: int = WINDOW) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    values = {scorer: rng.beta(6, 3, features) for scorer in SCORERS}
    texts = _sentences(rng, features)
    _write_features(folder, rng, values, texts)
    _write_scores(folder, rng, values, texts)
    _write_judgements(folder, rng, features, judgements)
    _write_contexts(folder, rng, features, contexts, window)
    if features <= REPORT:
        _write_effects(folder, rng, features)
    (folder / "config.yaml").write_text(
        "name: planted\nseed: 0\nsubject: {model: m, hook: h}\ncorpus: {source: s, tokens: 1000000}\nsae: {load: x}\n"
        "llm: {model: judge}\nexplainers: [{name: default}, {name: token_stats}]\n"
        "scorers: [{name: detection}, {name: fuzzing}]\ncontrols: [{name: other_feature}]\n"
    )
    (folder / "run.json").write_text(json.dumps({"stages": {"corpus": {"key": "a", "status": "ran", "seconds": 1.0}}}))


def _sentences(rng: np.random.Generator, n: int) -> pa.Array:
    words = np.array(["red", "blue", "fox", "rain", "river", "about", "the name of", "a colour", "after verbs"])
    drawn = words[rng.integers(0, len(words), (n, 9))]
    return pa.array([" ".join(row) for row in drawn.tolist()])


def _write_features(folder: Path, rng: np.random.Generator, values: dict[str, np.ndarray], texts: pa.Array) -> None:
    n = len(texts)
    columns: dict[str, Any] = {
        "feature": np.arange(n),
        "firings": rng.integers(60, 100_000, n),
        "frequency": rng.beta(1, 300, n),
        "max_activation": rng.gamma(4, 2, n),
        "selected": pa.array(["all"] * n),
        "explanation": texts,
        "explainer": pa.array(["default"] * n),
    }
    for scorer, value in values.items():
        columns |= {scorer: value, f"{scorer}_low": value - 0.1, f"{scorer}_high": np.minimum(value + 0.1, 1)}
        columns |= {f"{scorer}_control": rng.beta(5, 5, n), f"{scorer}_chance": np.full(n, 0.5)}
        columns |= {f"{scorer}_corrected": 2 * value - 1, f"{scorer}_yes_rate": rng.beta(5, 5, n)}
        columns |= {f"{scorer}_ece": rng.beta(2, 9, n)} | {f"{scorer}_q{i}": rng.beta(5, 3, n) for i in range(1, 6)}
        columns |= {f"{scorer}_n_scored": np.full(n, 38), f"{scorer}_n_unscored": rng.integers(0, 2, n)}
    lexical = rng.beta(5, 4, n)
    columns |= {"lexical": lexical, "lexical_low": lexical - 0.1, "lexical_high": lexical + 0.1}
    labels = np.array(["atomic", "composite", "split_child"])[rng.choice(3, n, p=[0.9, 0.05, 0.05])]
    columns |= {"composite": pa.array(labels), "status": pa.array(["ok"] * n), "failure": pa.nulls(n, pa.string())}
    pq.write_table(pa.table(columns), folder / "features.parquet", row_group_size=GROUP)


def _write_scores(folder: Path, rng: np.random.Generator, values: dict[str, np.ndarray], texts: pa.Array) -> None:
    n = len(texts)
    with pq.ParquetWriter(folder / "explanations.parquet", schema("explanations")) as writer:
        for explainer in ("default", "token_stats"):
            fixed = {"explainer": explainer, "model": "m", "prompt_hash": "ab", "prompt_tokens": 900,
                     "completion_tokens": 20, "status": "ok"}  # fmt: skip
            writer.write_table(
                _table(schema("explanations"), n, {"feature": np.arange(n), "explanation": texts} | fixed), GROUP
            )
    with pq.ParquetWriter(folder / "scores.parquet", schema("scores")) as writer:
        for explainer in ("default", "token_stats"):
            for scorer, value in values.items():
                for control in (None, "other_feature"):
                    shown = value if control is None else rng.beta(5, 5, n)
                    row = {"feature": np.arange(n), "explainer": explainer, "scorer": scorer, "control": control,
                           "value": shown, "low": shown - 0.1, "high": shown + 0.1, "n_scored": 38, "n_unscored": 0,
                           "base_rate": 0.5, "chance": 0.5, "corrected": 2 * shown - 1}  # fmt: skip
                    if n <= REPORT:  # a real row has all measures
                        measures = [f.name for f in schema("scores") if pa.types.is_floating(f.type)]
                        row = dict.fromkeys(measures, rng.random(n)) | row
                    writer.write_table(_table(schema("scores"), n, row), GROUP)


def _write_judgements(folder: Path, rng: np.random.Generator, features: int, rows: int) -> None:
    """Scorer by scorer, first the real explanations, then the control's; each in the order of the features."""
    with pq.ParquetWriter(folder / "judgements.parquet", schema("judgements")) as writer:
        parts = [(scorer, control) for scorer in SCORERS for control in (None, "other_feature")]
        for scorer, control in parts:
            each = rows // len(parts)
            for start in range(0, each, 1 << 19):
                number = np.arange(start, min(start + (1 << 19), each))
                n, example = len(number), number % max(each // features, 1)
                truth = (example % 2).astype(float)
                row = {
                    "feature": number * features // each, "explainer": "default", "scorer": scorer, "control": control,
                    "example": example, "truth": truth, "prediction": (rng.random(n) < 0.2 + 0.6 * truth).astype(float),
                    "probability": rng.random(n), "status": "ok",
                    "kind": pa.array(np.where(truth > 0, "activating", "random")),
                    "quantile": pa.array(example // 2 % 5, mask=truth == 0),
                }  # fmt: skip
                writer.write_table(_table(schema("judgements"), n, row), GROUP)


def _write_contexts(folder: Path, rng: np.random.Generator, features: int, each: int, window: int) -> None:
    shown = each > CONTEXTS  # in the report: near misses too, and tokens as long as an English text's
    words = pa.array([f" {_word(i)}" if shown else f" word{i}" for i in range(5_000)])
    with pq.ParquetWriter(folder / "contexts.parquet", CONTEXT) as writer:
        for start in range(0, features, 1 << 12):
            n = (min(start + (1 << 12), features) - start) * each
            tokens = words.take(pa.array(rng.integers(0, len(words), n * window)))
            offsets = pa.array(np.arange(0, n * window + 1, window, dtype=np.int32))
            fires = np.where(rng.random(n * window) < 0.1, rng.gamma(2, 2, n * window), 0)
            activations = pa.array(fires.astype(np.float32))
            example = np.arange(n) % each
            row = {
                "feature": start + np.arange(n) // each, "example": example,
                "kind": pa.array(np.where((example % 6 == 5) & shown, "near", "activating")),
                "split": pa.array(np.where(example % 2, "test", "train")),
                "quantile": pa.array(example % 5, mask=(example % 6 == 5) & shown),
                "document": example, "position": 0, "tokens": pa.ListArray.from_arrays(offsets, tokens),
                "activations": pa.ListArray.from_arrays(offsets, activations),
            }  # fmt: skip
            writer.write_table(_table(CONTEXT, n, row), 2_048)


def _word(number: int) -> str:
    """Of three or four letters."""
    return "".join(chr(97 + number // 26**place % 26) for place in range(3)) + "s" * (number % 2)


def _write_effects(folder: Path, rng: np.random.Generator, features: int) -> None:
    """Ten decoder neighbours and twenty tokens of each feature."""
    feature = np.repeat(np.arange(features), 10)
    near = {
        "feature": feature,
        "neighbour": rng.integers(0, features, len(feature)),
        "rank": np.arange(len(feature)) % 10,
    }
    row = near | {"cosine": rng.random(len(feature))}
    pq.write_table(_table(schema("neighbours"), len(feature), row), folder / "neighbours.parquet")
    feature = np.repeat(np.arange(features), 20)
    place = np.arange(len(feature)) % 20
    row = {
        "feature": feature,
        "direction": pa.array(np.where(place < 10, "up", "down")),
        "rank": place % 10,
        "token": pa.array([f" word{i}" for i in rng.integers(0, 5000, len(feature))]),
        "weight": rng.normal(size=len(feature)),
    }
    pq.write_table(_table(schema("logits"), len(feature), row), folder / "logits.parquet")


def _table(full: pa.Schema, n: int, columns: dict[str, Any]) -> pa.Table:
    """A table of a run's own schema; one value for a column stands in all its rows, and what is not given is null."""

    def array(field: pa.Field) -> pa.Array:
        value = columns.get(field.name)
        if value is None:
            return pa.nulls(n, field.type)
        if isinstance(value, np.ndarray):
            return pa.array(value, field.type)
        return value.cast(field.type) if isinstance(value, pa.Array) else pa.repeat(pa.scalar(value, field.type), n)

    return pa.Table.from_arrays([array(field) for field in full], schema=full)


# --- the server -------------------------------------------------------------------------------


@contextmanager
def serving(run: Path) -> Iterator[tuple[str, int, float]]:
    """The address and process id of `autointerp view` on a run, and the seconds until it was there."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "autointerp", "view", str(run), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        yield address, process.pid, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


def timed(address: str, path: str, **parameters: str) -> tuple[float, bytes]:
    url = f"{address}{path}?{urllib.parse.urlencode(parameters)}"
    started = time.perf_counter()
    with urllib.request.urlopen(url) as answer:
        body = answer.read()
    return time.perf_counter() - started, body


def highest_memory(process: int) -> float:
    """GB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def measure(run: Path) -> dict[str, Any]:
    with serving(run) as (address, _, start):
        overview = timed(address, "")[0]
    with serving(run) as (address, process, _):
        features = timed(address, "features")[0] + timed(address, "rows", count="100")[0]
        filters = [(asked, timed(address, "rows", count="100", **asked)[0]) for asked in FILTERS]
        feature, judged = timed(address, "feature/77777")[0], timed(address, "judged/77777")[0]
        parts = {name: round(timed(address, f"part/{name}")[0], 2) for name in ("beside", "judged", "cost")}
        searched = list(_searched(address))
        memory = highest_memory(process)
    slowest = max(seconds for _, seconds in filters)
    figures = {"first page, seconds": max(overview, features), "filter, seconds": slowest, "memory, GB": memory}
    return {
        "bars": {name: {"value": round(figures[name], 3), "limit": limit, "met": figures[name] <= limit}
                 for name, limit in LIMITS.items()},
        "from the command to its address, seconds": round(start, 3),
        "overview, seconds": round(overview, 3),
        "features page and first rows, seconds": round(features, 3),
        "filters, seconds": [{"asked": asked, "seconds": round(seconds, 3)} for asked, seconds in filters],
        "median filter, seconds": round(median(seconds for _, seconds in filters), 3),
        "feature page, seconds": round(feature, 3),
        "its judgements, seconds": round(judged, 3),
        "parts of the overview that come later, seconds": parts,
        "search of all contexts": {"answers": len(searched), "slowest answer, seconds": round(max(searched), 3),
                                   "seconds": round(sum(searched), 2)},
    }  # fmt: skip


def _searched(address: str) -> Iterator[float]:
    """Seconds of each answer, until all contexts were searched."""
    scanned = 0.0
    while scanned < 1:
        seconds, body = timed(address, "rows", count="100", search="word77 word7", texts="1")
        scanned = json.loads(body)["scanned"]
        yield seconds


# --- the report -------------------------------------------------------------------------------


def measure_report(run: Path) -> dict[str, Any]:
    """Size of the page, and in Chromium the seconds until it answers: from asking for the file to a filled count of the
    features, which its script writes when all listens. The details of the features are parsed after that."""
    from autointerp.report import write_report

    started = time.perf_counter()
    file = write_report(run)
    written = time.perf_counter() - started
    opened, parsed, first, again = (median(times) for times in zip(*(_opened(file) for _ in range(3))))
    figures = {"size, MB": file.stat().st_size / 1e6, "to interactive, seconds": opened}
    return {
        "bars": {name: {"value": round(figures[name], 3), "limit": limit, "met": figures[name] <= limit}
                 for name, limit in REPORT_LIMITS.items()},
        "features": REPORT,
        "to write, seconds": round(written, 2),
        "until all is parsed, seconds": round(parsed, 3),
        "first search of contexts, seconds": round(first, 3),
        "a search after it, seconds": round(again, 3),
    }  # fmt: skip


def _opened(file: Path) -> tuple[float, float, float, float]:
    """Seconds until the page answers, until it is parsed, of its first search and of another: in its own browser."""
    from playwright.sync_api import sync_playwright

    asked = """([text]) => { const before = performance.now(), search = document.getElementById('search');
        search.value = text; search.dispatchEvent(new Event('input'));
        return [(performance.now() - before) / 1000, document.getElementById('count').textContent]; }"""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.add_init_script("""new MutationObserver((_, seen) => {
            if (!document.getElementById('count')?.textContent) return;
            window.answered = performance.now(); seen.disconnect();
        }).observe(document, {childList: true, subtree: true})""")
        page.goto(file.as_uri())
        opened = page.evaluate("window.answered") / 1000
        parsed = page.evaluate("performance.getEntriesByType('navigation')[0].domComplete") / 1000
        searches = [page.evaluate(asked, [text]) for text in (f"{_word(77)} ", f"{_word(4321)} ")]
        browser.close()
    for _, count in searches:
        if not 0 < int(count.split()[0]) < REPORT:
            raise SystemExit(f"the search chose {count}: contexts are not searched")
    return opened, parsed, searches[0][0], searches[1][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--features", type=int, default=131_072)
    parser.add_argument("--judgements", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, default=Path("results/reference/viewer.json"))
    parser.add_argument(
        "--only-report", action="store_true", help="and leave the other figures of the file as they are"
    )
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "report"
        plant(small, REPORT, 80 * REPORT, SHOWN, LONG)
        report = measure_report(small)
        if wanted.only_report:
            result = json.loads(wanted.out.read_text()) | {"report": report}
            wanted.out.write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps(report, indent=1))
            return
        run = Path(scratch) / "planted"
        plant(run, wanted.features, wanted.judgements)
        tables = {file.stem: pq.read_metadata(file).num_rows for file in sorted(run.glob("*.parquet"))}
        result = {"command": "python benchmarks/viewer.py", "rows": tables, **measure(run), "report": report}
    wanted.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
