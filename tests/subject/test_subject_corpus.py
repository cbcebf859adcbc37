"""From any source of text to rows: nothing lost, nothing twice, no row of two documents."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.artifacts import Corpus
from autointerp.config import CorpusConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.hashing import fingerprint
from autointerp.subject import build_corpus
from autointerp.subject.corpus import cut_rows, read_documents

DOCUMENTS = [
    "The cat sat on the mat.",
    "  ",
    "A dog ran far away over the hills and never came back.",
    "é",
    "",
    "End.",
]
FULL = [text for text in DOCUMENTS if text.strip()]


@given(ids=st.lists(st.integers(5, 99), max_size=50), context=st.integers(2, 9), bos=st.sampled_from([None, 1]))
def test_cut_rows_hold_every_token_once_in_order(ids: list[int], context: int, bos: int | None) -> None:
    own = 0 if bos is None else 1
    rows = list(cut_rows(ids, context, bos))
    assert [token for _, row in rows for token in row[own:]] == ids
    assert all(own < len(row) <= context and row[:own] == [bos][:own] for _, row in rows)
    assert all(ids[start : start + len(row) - own] == row[own:] for start, row in rows)


def write(folder: Path, kind: str) -> Path:
    file = folder / f"text.{kind}"
    if kind == "txt":
        file.write_text("\n\n".join(FULL) + "\n\n\n")
    elif kind == "jsonl":
        file.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in DOCUMENTS))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS, "n": [1] * len(DOCUMENTS)}), file)
    return file


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_the_rows_of_every_format_are_its_documents(
    kind: str, stories15m: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoTokenizer

    config = CorpusConfig(source=str(write(tmp_path, kind)), tokens=10_000, context=8)
    with caplog.at_level(logging.WARNING):
        build_corpus(config, stories15m, tmp_path / "corpus")
    corpus = Corpus(tmp_path / "corpus")
    assert f"{corpus.info.n_tokens} tokens, fewer than the 10000" in caplog.text
    tokenizer = AutoTokenizer.from_pretrained(stories15m)
    back: dict[int, list[int]] = {}
    for row in range(corpus.info.n_rows):
        ids = corpus.row(row).tolist()
        own = back.setdefault(int(corpus.documents[row]), [])
        assert ids[0] == 1
        assert len(ids) <= 8
        assert corpus.starts[row] == len(own)
        own += ids[1:]
    assert [tokenizer.decode(ids) for ids in back.values()] == FULL
    assert (corpus.info.bos_id, corpus.info.n_documents, corpus.info.context) == (1, len(FULL), 8)
    assert corpus.info.n_tokens == len(corpus.tokens)


def test_it_ends_with_the_row_that_reaches_the_tokens(stories15m: Path, tmp_path: Path) -> None:
    source = str(write(tmp_path, "jsonl"))
    few = build_corpus(CorpusConfig(source=source, tokens=12, context=8), stories15m, tmp_path / "few")
    more = build_corpus(CorpusConfig(source=source, tokens=20, context=8), stories15m, tmp_path / "more")
    assert 12 <= few.info.n_tokens < 20 <= more.info.n_tokens < 28
    assert more.tokens[: few.info.n_tokens].tolist() == few.tokens.tolist()
    assert few.info.text_sha256 != "" != more.info.text_sha256


def test_bos_can_be_left_out(stories15m: Path, tmp_path: Path) -> None:
    config = CorpusConfig(source=str(write(tmp_path, "txt")), tokens=20, context=8, bos=False)
    corpus = build_corpus(config, stories15m, tmp_path / "corpus")
    assert corpus.info.bos_id is None
    assert 1 not in corpus.tokens


def test_hidden_files_of_a_folder_are_no_text(tmp_path: Path) -> None:
    """They are not in the fingerprint either, and a changed one would leave the old corpus done."""
    (tmp_path / "a.txt").write_text("one")
    before = fingerprint(tmp_path)
    (tmp_path / "._a.txt").write_bytes(b"\x00\x05\x16\x07")
    assert list(read_documents(CorpusConfig(source=str(tmp_path)))) == ["one"]
    assert fingerprint(tmp_path) == before


def test_half_a_pair_of_utf16_becomes_the_sign_for_what_is_unknown(stories15m: Path, tmp_path: Path) -> None:
    source = tmp_path / "text.jsonl"
    source.write_text('{"text": "A smile \\ud83d and \\ud83d\\ude00."}\n')
    assert list(read_documents(CorpusConfig(source=str(source)))) == ["A smile \ufffd and \U0001f600."]
    assert build_corpus(CorpusConfig(source=str(source)), stories15m, tmp_path / "corpus").info.n_documents == 1


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_text('{"text": "first"}\n')
    config = CorpusConfig(source=str(tmp_path))
    assert list(read_documents(config)) == ["first", "second"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_missing_column_lists_those_there_are(kind: str, tmp_path: Path) -> None:
    config = CorpusConfig(source=str(write(tmp_path, kind)), text_column="story")
    with pytest.raises(ConfigError, match="no column 'story'; it has text, n"):
        list(read_documents(config))
    with pytest.raises(ConfigError, match="holds int, not text"):
        list(read_documents(config.model_copy(update={"text_column": "n"})))


def test_what_cannot_be_read_is_said(stories15m: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(AutointerpError, match="line 2: not JSON"):
        list(read_documents(CorpusConfig(source=str(broken))))
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    with pytest.raises(AutointerpError, match="not UTF-8"):
        list(read_documents(CorpusConfig(source=str(latin))))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    with pytest.raises(AutointerpError, match="holds no text"):
        build_corpus(CorpusConfig(source=str(empty)), stories15m, tmp_path / "corpus")
    fake = tmp_path / "fake.parquet"
    fake.write_text("no")
    with pytest.raises(AutointerpError, match="no Parquet file"):
        list(read_documents(CorpusConfig(source=str(fake))))
    with pytest.raises(ConfigError, match="did you mean 'imdb'"):
        list(read_documents(CorpusConfig(source="imbd")))
    with pytest.raises(ConfigError, match="there is no"):
        list(read_documents(CorpusConfig(source="texts/mine.jsonl")))


def test_a_context_the_model_cannot_read_is_said(stories15m: Path, tmp_path: Path) -> None:
    config = CorpusConfig(source=str(write(tmp_path, "txt")), context=257)
    with pytest.raises(ConfigError, match="reads 256 tokens at most"):
        build_corpus(config, stories15m, tmp_path / "corpus")
