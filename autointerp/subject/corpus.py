"""Tokenise a corpus: documents from any source, BOS, cut so that no row holds two documents."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import Corpus, CorpusInfo
from autointerp.catalog import entries, fetch, resolve, sampled_text
from autointerp.config import CorpusConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.progress import progress
from autointerp.registry import did_you_mean
from autointerp.subject.tokens import bos_of, load_tokenizer

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("autointerp")
SUFFIXES = (".txt", ".jsonl", ".parquet")
BATCH = 512  # documents tokenised at a time
_HALVES = re.compile("[\ud800-\udfff]")


def build_corpus(config: CorpusConfig, subject_folder: Path, folder: Path, *, seed: int = 0) -> Corpus:
    """Write the corpus of `config`, tokenised for the model in `subject_folder`, into `folder` and open it.

    It ends with the row that reaches `config.tokens`, or with the text, which is warned of. `seed`
    is that of sampled text where the config names none. Raises ConfigError for a source, column or
    context that cannot be, AutointerpError for text that cannot be read.
    """
    import numpy as np

    tokenizer = load_tokenizer(subject_folder)
    limit = model_context(subject_folder)
    if limit is not None and config.context > limit:
        raise ConfigError(f"corpus.context is {config.context} and the model reads {limit} tokens at most")
    bos = bos_of(tokenizer, config.bos)
    tokens: list[np.ndarray] = []
    documents: list[int] = []
    starts: list[int] = []
    n_tokens = n_documents = 0
    text_hash = hashlib.sha256()
    nonempty = (text for text in read_documents(config, seed) if text.strip())
    with progress("tokenise", config.tokens, "tokens") as bar:
        for texts in _batched(nonempty, BATCH):
            before = n_tokens
            encoded: Any = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            for text, ids in zip(texts, encoded["input_ids"]):
                if n_tokens >= config.tokens:
                    break
                text_hash.update(text.encode() + b"\0")
                for start, row in cut_rows(ids, config.context, bos):
                    tokens.append(np.asarray(row, dtype=np.int32))
                    documents.append(n_documents)
                    starts.append(start)
                    n_tokens += len(row)
                    if n_tokens >= config.tokens:
                        break
                n_documents += 1
            bar.advance(n_tokens - before)
            if n_tokens >= config.tokens:
                break
    if not tokens:
        raise AutointerpError(f"corpus.source {config.source!r} holds no text")
    if n_tokens < config.tokens:
        log.warning("corpus: %s holds %s tokens, fewer than the %s asked for", config.source, n_tokens, config.tokens)
    info = CorpusInfo(
        source=config.source,
        tokenizer=subject_folder.name,
        bos_id=bos,
        context=config.context,
        n_tokens=n_tokens,
        n_rows=len(tokens),
        n_documents=n_documents,
        text_sha256=text_hash.hexdigest(),
    )
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in tokens])])
    folder.mkdir(parents=True, exist_ok=True)
    Corpus.save(folder, info, np.concatenate(tokens), offsets, np.asarray(documents), np.asarray(starts))
    return Corpus(folder)


def cut_rows(ids: Sequence[int], context: int, bos: int | None) -> Iterator[tuple[int, list[int]]]:
    """(position in the document of the row's first own token, row), rows of at most `context` tokens, BOS included."""
    head = [] if bos is None else [bos]
    room = context - len(head)
    for start in range(0, len(ids), room):
        yield start, head + list(ids[start : start + room])


def model_context(folder: Path) -> int | None:
    """The most tokens the model in `folder` reads, where its config says so."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


# --- sources ----------------------------------------------------------------------------------


def read_documents(config: CorpusConfig, seed: int = 0) -> Iterator[str]:
    """The documents of a source, in its order, empty ones among them."""
    source = config.source
    texts = entries("text")
    if source in texts:
        if texts[source].sampled_from:
            yield from _sampled(source, config.tokens, config.seed if config.seed is not None else seed)
        else:
            yield from _column(_jsonl(resolve(source, "text")), "text", source)
        return
    path = Path(source).expanduser()
    if path.exists():
        for file in _files(path):
            yield from _read(file, config.text_column)
    elif "/" in source and not source.startswith((".", "/", "~")) and not source.endswith(SUFFIXES):
        yield from _column(_hub(config), config.text_column, source)
    elif "/" in source or source.endswith(SUFFIXES):
        raise ConfigError(f"corpus.source: there is no {source!r}")
    else:
        raise ConfigError(f"corpus.source: no text named {source!r}{did_you_mean(source, texts)}")


def _sampled(name: str, tokens: int, seed: int) -> Iterator[str]:
    """Without end: how many tokens a text makes depends on who reads it, so more is sampled when it falls short."""
    given, wanted = 0, tokens
    while True:
        file = sampled_text(name, tokens=wanted, seed=seed)
        for text in islice(_column(_jsonl(file), "text", name), given, None):
            given += 1
            yield text
        wanted += max(tokens // 10, 1000)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ConfigError(f"corpus.source {str(path)!r}: give a {', '.join(SUFFIXES)} file or a folder of them")
        return [path]
    # hidden ones, such as macOS' ._NAME, are no text, and no part of the folder's fingerprint
    named = (file for file in path.rglob("*") if file.suffix in SUFFIXES and not file.name.startswith("."))
    files = sorted(file for file in named if file.is_file())
    if not files:
        raise ConfigError(f"corpus.source {str(path)!r} holds no {', '.join(SUFFIXES)} file")
    return files


def _read(file: Path, column: str) -> Iterator[str]:
    if file.suffix == ".txt":
        yield from _paragraphs(file)
    elif file.suffix == ".jsonl":
        yield from _column(_jsonl(file), column, file.name)
    else:
        yield from _parquet(file, column)


def _paragraphs(file: Path) -> Iterator[str]:
    """Documents of a text file: what blank lines separate."""
    lines: list[str] = []
    try:
        with open(file, encoding="utf-8") as opened:
            for line in opened:
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield "".join(lines).rstrip("\n")
                    lines = []
    except UnicodeDecodeError as error:
        raise AutointerpError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if lines:
        yield "".join(lines).rstrip("\n")


def _jsonl(file: Path) -> Iterator[dict[str, Any]]:
    with open(file, "rb") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise AutointerpError(f"{file}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise AutointerpError(f"{file}, line {number}: an object is needed, this is {type(row).__name__}")
            yield row


def _parquet(file: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        opened = parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise AutointerpError(f"{file} is no Parquet file: {error}") from error
    with opened:
        names = opened.schema_arrow.names
        if column not in names:
            raise _no_column(column, names, file.name)
        for batch in opened.iter_batches(columns=[column]):
            yield from _column(batch.to_pylist(), column, file.name)


def _hub(config: CorpusConfig) -> Iterable[dict[str, Any]]:
    """A hub dataset's rows, streamed; from the hub's own cache when offline."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants

    online = fetch.hub_reachable()
    if not online and not constants.HF_HUB_OFFLINE:
        raise AutointerpError(f"corpus.source {config.source!r}: the hub cannot be reached; give a local file instead")
    try:
        rows: Any = load_dataset(config.source, config.name, split=config.split, streaming=online)
        return rows
    except DatasetNotFoundError as error:
        raise ConfigError(
            f"corpus.source: no dataset {config.source!r} on the hub (private or gated: set HF_TOKEN)"
        ) from error
    except (ValueError, OSError) as error:  # a wrong configuration or split; the network
        raise AutointerpError(f"corpus.source {config.source!r}: {' '.join(str(error).split())[:300]}") from error


def _column(rows: Iterable[dict[str, Any]], column: str, where: str) -> Iterator[str]:
    for row in rows:
        if column not in row:
            raise _no_column(column, list(row), where)
        text = row[column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise ConfigError(f"corpus.text_column {column!r} of {where} holds {type(text).__name__}, not text")
        # half of a pair of UTF-16, which JSON may hold and UTF-8 may not: what was cut there is unknown
        yield text if text.isascii() else _HALVES.sub("\ufffd", text)


def _no_column(column: str, names: Sequence[str], where: str) -> ConfigError:
    return ConfigError(f"corpus.text_column: {where} has no column {column!r}; it has {', '.join(names)}")


def _batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
