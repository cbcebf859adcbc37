"""What a token reads as: the same everywhere, but for parts of characters, which are read with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from autointerp.activations.words import Words
from autointerp.artifacts import Corpus, CorpusInfo
from autointerp.explainers.words import on_whole_words, word_spans
from autointerp.prompting import activations, marked
from autointerp.records import Context, pieces
from autointerp.subject.tokens import TokenText, _byte_alphabet

QUOTE, ACCENT = "’".encode(), "é".encode()
# <s>, whole tokens, and parts of ’ and é, one with a space before it
PIECES = [b"<s>", b"don", b"t", b" dog", b"\n", b" " + QUOTE[:2], QUOTE[:2], QUOTE[2:], ACCENT[:1], ACCENT[1:], b"\xe2"]


@pytest.fixture(scope="module")
def strings():
    """A byte-level tokenizer of these pieces alone."""
    of_byte = {byte: letter for letter, byte in _byte_alphabet().items()}
    names = {"".join(of_byte[byte] for byte in piece): i for i, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(BPE(vocab=names, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return TokenText(PreTrainedTokenizerFast(tokenizer_object=tokenizer)).strings


def corpus_of(folder: Path, rows: Sequence[Sequence[int]], *, bos: int | None = 0) -> Corpus:
    """Each row is a document."""
    rows = [[bos, *row] if bos is not None else list(row) for row in rows]
    offsets = np.cumsum([0, *map(len, rows)])
    info = CorpusInfo("test", "test", bos, 64, int(offsets[-1]), len(rows), len(rows), "")
    flat = np.array([token for row in rows for token in row], np.int32)
    folder.mkdir(exist_ok=True)
    Corpus.save(folder, info, flat, offsets, np.arange(len(rows)), np.zeros(len(rows), np.int64))
    return Corpus(folder)


def read(corpus: Corpus, words: Words, row: int) -> list[str]:
    return words.strings[words.at(np.arange(corpus.offsets[row] + 1, corpus.offsets[row + 1]))].tolist()


def test_a_character_in_several_tokens_stands_at_the_last_with_the_space_before_it(tmp_path, strings):
    corpus = corpus_of(tmp_path, [[1, 6, 7, 2, 3], [5, 7, 3], [3, 5], [7, 8, 9]])
    words = Words(corpus, strings)
    assert [read(corpus, words, row) for row in range(4)] == [
        ["don", "", "’", "t", " dog"],
        ["", " ’", " dog"],
        [" dog", " \ufffd"],  # what is cut off stays a part
        ["\ufffd", "", "é"],
    ]


def test_a_whole_token_reads_the_same_whatever_other_tokens_the_corpus_has(tmp_path, strings):
    """A decoder joins neighbours: the first bytes of a character, and the next id of the vocabulary, are no text."""
    few = Words(corpus_of(tmp_path / "few", [[3, 4]]), strings)
    many = Words(corpus_of(tmp_path / "many", [range(1, len(PIECES))]), strings)
    assert few.strings[[3, 4]].tolist() == many.strings[[3, 4]].tolist() == [" dog", "\n"]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(1, len(PIECES) - 1), max_size=12), min_size=1, max_size=12),
    bos=st.sampled_from([0, 7, None]),
    data=st.data(),
)
def test_rows_read_as_the_tokenizer_decodes_them_and_every_reading_is_counted(
    tmp_path_factory, strings, rows, bos, data
):
    corpus = corpus_of(tmp_path_factory.mktemp("words"), rows, bos=bos)
    words = Words(corpus, strings)
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    expected = np.zeros(len(words.strings), np.int64)
    for row, ids in enumerate(rows):
        place = np.arange(corpus.offsets[row] + (bos is not None), corpus.offsets[row + 1])
        text = words.strings[words.at(place)].tolist()
        assert "".join(text) == b"".join(PIECES[i] for i in ids).decode(errors="replace")
        whole = [(string, PIECES[i].decode()) for string, i in zip(text, ids) if i <= 4]
        assert all(string == piece for string, piece in whole)
        if wanted[row]:
            np.add.at(expected, words.at(place), 1)
    np.testing.assert_array_equal(words.counts(wanted), expected)


def window(tokens: Sequence[str], values: Sequence[float]) -> Context:
    return Context(0, 0, "train", "activating", 0, 0, 0, tuple(tokens), tuple(values))


def test_what_fires_on_the_beginning_of_a_character_is_shown_at_the_character():
    shown = window(["don", "", "’", "t", "", " “", "", ""], [0, 2, 1, 0, 3, 0, 5, 0])
    assert pieces(shown.tokens, shown.activations) == [("don", 0), ("’", 2), ("t", 0), (" “", 3)]
    assert marked(shown) == "don«’»t «“»"
    assert activations(shown, 3) == "’ 7, “ 10"


def test_a_character_in_several_tokens_does_not_break_its_word():
    tokens = [" a", " caf", "", "é", " ", "", "é", "t"]
    assert word_spans(tokens) == [(0, 1), (1, 4), (4, 5), (5, 8)]
    assert marked(on_whole_words(window(tokens, [0, 0, 1, 0, 0, 0, 0, 0]))) == "a «café» ét"
