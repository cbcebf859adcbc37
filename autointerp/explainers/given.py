"""The given explainer: explanations from a file or folder, written elsewhere, to be scored here like any other.

What it reads:

- CSV or TSV, JSON lines (``.gz`` too) and Parquet, with a column `feature` (or `index`, `latent`) and one `explanation`
  (or `description`): lists of one's own, and ``explanations.parquet`` of a run of this package;
- a folder of such files, as of Neuronpedia's bulk exports (``batch-0.jsonl.gz`` …: modelId, layer, index, description,
  typeName, explanationModelName);
- delphi's folder ``explanations/``: one ``HOOKPOINT_latentN.txt`` a latent, a JSON string in each.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from autointerp.answers import clean
from autointerp.errors import ConfigError
from autointerp.plugins import explainer
from autointerp.records import Explanation, FeatureEvidence

FEATURE, TEXT = ("feature", "index", "latent"), ("explanation", "description")
KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
UNPARSED = "Explanation could not be parsed."  # what delphi writes where it could not read an answer

_DELPHI = re.compile(r"(?P<module>.+)_latent(?P<feature>\d+)\.txt")
_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
Row = dict[str, Any]


@explainer("given", needs=())
async def explain(
    feature: FeatureEvidence, llm: None, *, path: Path, only: dict[str, str] | None = None
) -> Explanation:
    """The explanation that `path` has of the feature; no model. The content of `path` is in the stage's key.

    `only` takes those rows alone whose columns have these values, for example ``{explanationModelName: gpt-4o-mini}``,
    or ``{module: layers.5}`` of delphi's file names. A feature that is missing, whose text is empty, or of which
    several different explanations remain is a failure with the reason.
    """
    texts = _read(path, tuple(sorted((only or {}).items())), _changed(path)).get(feature.feature)
    if not texts:
        return Explanation(None, failure=f"{path.name} has no explanation of it")
    given, *others = texts
    if others:
        return Explanation(None, failure=f"{path.name} has {len(texts)} explanations of it: choose by the option only")
    if given.text is None:
        return Explanation(None, failure=f"its explanation in {path.name} {given.why}")
    return Explanation(given.text, raw=given.raw)


@dataclass(frozen=True, slots=True)
class Text:
    """One explanation as a source has it: `text`, or None and `why` there is none."""

    text: str | None
    raw: str = field(compare=False)  # white space and what cannot be shown make no other explanation
    why: str | None = None


@lru_cache(maxsize=4)
def _read(path: Path, only: tuple[tuple[str, str], ...], changed: int) -> dict[int, tuple[Text, ...]]:
    return read_explanations(path, dict(only))


_looked_at: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Path, int]] = WeakKeyDictionary()


def _changed(path: Path) -> int:
    """When `path` was changed last, in ns. A folder, which may have a file for each feature, is looked through once in
    a run: in its event loop."""
    if not path.is_dir():
        return path.stat().st_mtime_ns
    known = _looked_at.setdefault(asyncio.get_running_loop(), {})
    if path not in known:
        known[path] = max(file.stat().st_mtime_ns for file in (path, *_files(path)))
    return known[path]


def read_explanations(path: Path, only: Mapping[str, str] | None = None) -> dict[int, tuple[Text, ...]]:
    """feature -> its different explanations, in the order of the source.

    Raises ConfigError, with file and line, for a source in none of the forms, without the columns, whose feature is
    no number, or in which `only` names a column that no row has.
    """
    texts: dict[int, dict[Text, None]] = {}
    missing, empty = set(only or ()), True
    for where, row in _rows(path):
        missing -= row.keys()
        empty = False
        if any(str(row.get(column)) != value for column, value in (only or {}).items()):
            continue
        number = str(row[_column(row, FEATURE, where)]).strip()
        if not _WHOLE.fullmatch(number):
            raise ConfigError(f"{where}: the feature {number!r:.40} is no whole number")
        texts.setdefault(int(number), {})[_text(row[_column(row, TEXT, where)], row)] = None
    if missing and not empty:
        raise ConfigError(f"{path}: no row has {', '.join(sorted(missing))}, which the option only names")
    return {number: tuple(each) for number, each in texts.items()}


def _text(value: Any, row: Row) -> Text:
    raw = "" if value is None else str(value)
    text = " ".join(clean(raw).split())
    if not any(letter.isalnum() for letter in text):
        return Text(None, raw, row.get("failure") or "is empty")
    if text == UNPARSED:
        return Text(None, raw, "says that its explainer's answer could not be parsed")
    return Text(text, raw)


def _column(row: Row, names: tuple[str, ...], where: str) -> str:
    present = [name for name in names if name in row]
    if not present:
        raise ConfigError(f"{where}: no column {' or '.join(names)} among {', '.join(map(str, row))[:200]}")
    return present[0]


# --- rows of each form, with where they stand ---------------------------------------------------


def _files(path: Path) -> list[Path]:
    """The files that are read, of a folder those of one form: Parquet, tables in text, or delphi's."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    own = [file for file in files if file.name == "explanations.parquet"]
    return own or [file for file in files if _kind(file)] or [file for file in files if _DELPHI.fullmatch(file.name)]


def _kind(file: Path) -> str | None:
    name = file.name.removesuffix(".gz")
    return next((kind for kind in KINDS if name.endswith(kind)), None)


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    files = _files(path)
    for file in files:
        match = _DELPHI.fullmatch(file.name)
        kind = _kind(file)
        if match and not kind:
            yield str(file), match.groupdict() | {"explanation": _json(_bytes(file).decode("utf-8", "replace"), file)}
        elif kind == ".parquet":
            yield from _parquet(file)
        elif kind == ".jsonl":
            yield from _jsonl(file)
        elif kind:
            yield from _csv(file, "\t" if kind == ".tsv" else ",")
        else:
            raise ConfigError(f"{file}: explanations are read from {', '.join(KINDS)} (.gz too) and delphi's folder")
    if not files:
        raise ConfigError(f"{path}: no file of explanations in it ({', '.join(KINDS)}, or delphi's _latentN.txt)")


def _bytes(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None


def _json(text: str, where: object) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None


def _jsonl(file: Path) -> Iterator[tuple[str, Row]]:
    # Lines end at \n alone: JSON allows other line breaks within a string.
    for number, line in enumerate(_bytes(file).decode("utf-8", "replace").split("\n"), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            row = _json(line, where)
            if not isinstance(row, dict):
                raise ConfigError(f"{where}: not an object of columns")
            yield where, row


def _csv(file: Path, delimiter: str) -> Iterator[tuple[str, Row]]:
    reader = csv.DictReader(
        io.StringIO(_bytes(file).decode("utf-8-sig", "replace"), newline=""), delimiter=delimiter, strict=True
    )
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ConfigError(f"{where}: it has not as many columns as the first line")
            yield where, row
    except csv.Error as error:
        raise ConfigError(f"{file}, line {reader.line_num}: {error}") from None


def _parquet(file: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file}: no Parquet: {str(error)[:200]}") from None
    columns = [name for name in table.column_names if not pa.types.is_nested(table.schema.field(name).type)]
    for number, row in enumerate(table.select(columns).to_pylist(), start=1):
        yield f"{file}, row {number}", row
