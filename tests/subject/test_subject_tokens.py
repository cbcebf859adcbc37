"""Pieces of tokens joined are the text, whatever the tokenizer and however characters are split."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autointerp.errors import ConfigError
from autointerp.subject import TokenText, bos_of, token_strings

TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    ["  two  spaces ", "naïve 😀👩‍👩‍👧 日本", "line\n\nline", "\u2581 own mark", "", "a\x00b"]
)


@pytest.fixture(scope="module")
def byte_level():
    """Byte-level BPE as GPT-2 has it, small enough that most characters are split over tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["the cat sat on the mat, naïve 😀"] * 3, vocab_size=280, min_frequency=1)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|end of text|>")


@pytest.fixture(scope="module")
def byte_fallback(stories15m: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(stories15m)


@cache
def text_of(tokenizer) -> TokenText:
    return TokenText(tokenizer)


@cache
def size_of(tokenizer) -> int:
    return len(tokenizer)


def decoded(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@given(text=TEXTS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_joined_pieces_are_the_text(byte_level, byte_fallback, text: str) -> None:
    ids = byte_level(text)["input_ids"]
    pieces = text_of(byte_level).strings(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    ids = byte_fallback(text, add_special_tokens=False)["input_ids"]
    assert "".join(text_of(byte_fallback).strings(ids)).removeprefix(" ") == decoded(byte_fallback, ids)


@given(data=st.data())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ids_join_to_what_the_tokenizer_decodes(byte_level, byte_fallback, data: st.DataObject) -> None:
    for tokenizer in (byte_level, byte_fallback):
        # Byte tokens often: they are where decoding goes wrong.
        ids = data.draw(st.lists(st.integers(0, 262) | st.integers(0, size_of(tokenizer) - 1), max_size=24))
        pieces = text_of(tokenizer).strings(ids)
        assert len(pieces) == len(ids)
        joined, expected = "".join(pieces), decoded(tokenizer, ids)
        assert joined == expected or joined.removeprefix(" ") == expected


def test_leading_spaces_are_kept_and_ids_past_the_vocabulary_are_empty(stories15m: Path) -> None:
    strings = token_strings(stories15m)
    assert strings([1, 9038, 2501, 263, 931, 29892]) == ["<s>", " Once", " upon", " a", " time", ","]
    assert strings([40000]) == [""]


def test_the_vocabulary_shows_parts_of_characters(byte_level) -> None:
    shown = TokenText(byte_level).vocabulary()
    assert len(shown) == len(byte_level)
    assert " the" in shown
    assert "\\xf0" in shown


def test_bos_is_as_the_tokenizer_was_trained_unless_told(byte_level, byte_fallback) -> None:
    assert bos_of(byte_fallback, None) == 1
    assert bos_of(byte_fallback, False) is None
    assert bos_of(byte_level, None) is None
    assert bos_of(byte_level, True) == byte_level.eos_token_id
    byte_level_without = type("Bare", (), {"bos_token_id": None, "eos_token_id": None})()
    with pytest.raises(ConfigError, match=r"corpus\.bos"):
        bos_of(byte_level_without, True)
