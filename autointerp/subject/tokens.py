"""Token ids to the pieces of text that a reader sees, and which BOS token a model was trained with.

Decoding ids one by one loses leading spaces (SentencePiece) and breaks characters that span
several tokens (byte-level BPE, byte fallback). `TokenText` reads the pieces themselves: joined,
they are the text that the tokenizer decodes, up to the one space SentencePiece puts in front.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.errors import AutointerpError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise AutointerpError(f"{folder} has no usable tokenizer: {' '.join(str(error).split())[:200]}") from error


def bos_of(tokenizer: PreTrainedTokenizerBase, wanted: bool | None) -> int | None:
    """The id to put in front of every row, or None. `wanted` None: as the tokenizer does by itself,
    which is how its model was trained. Where a tokenizer has no BOS, its EOS serves (GPT-2's are one token).
    """
    if wanted is None:
        ids: Any = tokenizer("a", add_special_tokens=True)["input_ids"]
        return ids[0] if ids and ids[0] == tokenizer.bos_token_id else None
    if not wanted:
        return None
    bos: Any = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ConfigError("corpus.bos is true, but the tokenizer has neither BOS nor EOS: set corpus.bos: false")
    return bos


def token_strings(folder: Path) -> Callable[[Sequence[int]], list[str]]:
    """A function from token ids to as many strings, which joined are the text. `folder`: the model's."""
    return TokenText(load_tokenizer(folder)).strings


class TokenText:
    """The pieces of a fast tokenizer's vocabulary, as text or, where a piece may hold part of a character, bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise AutointerpError(f"{type(tokenizer).__name__} is a slow tokenizer; a tokenizer.json is needed")
        self._size: int = len(tokenizer)
        self._backend = backend
        self._byte_level = '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"])

    @cached_property
    def _pieces(self) -> list[str | bytes]:
        return [self._piece(self._backend.id_to_token(i)) for i in range(self._size)]

    def _piece(self, token: str | None) -> str | bytes:
        if token is None:  # a hole in the vocabulary
            return ""
        if self._byte_level:
            alphabet = _byte_alphabet()
            # A token outside the alphabet was added as it is.
            return bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()
        byte = BYTE_PIECE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ")

    def strings(self, ids: Sequence[int]) -> list[str]:
        """[n] ids -> n strings. A token that ends within a character is empty, and what it holds stands at the token
        that ends the character; ids past the vocabulary (padding of the embedding matrix) are empty."""
        pieces = [self._pieces[i] if 0 <= i < self._size else "" for i in map(int, ids)]
        out: list[str] = []
        at = 0
        while at < len(pieces):
            piece = pieces[at]
            if isinstance(piece, str):
                out.append(piece)
                at += 1
                continue
            end = at
            while end < len(pieces) and isinstance(pieces[end], bytes):
                end += 1
            out += self._text_of([piece for piece in pieces[at:end] if isinstance(piece, bytes)])
            at = end
        return out

    def _text_of(self, run: list[bytes]) -> list[str]:
        """Text of neighbouring byte pieces, as the tokenizer's own decoder treats them."""
        if not self._byte_level:  # byte fallback: a run that is not UTF-8 as a whole is one � a byte
            try:
                b"".join(run).decode()
            except UnicodeDecodeError:
                return ["�"] * len(run)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        out, held = [], ""
        for i, piece in enumerate(run):
            held += decoder.decode(piece, final=i == len(run) - 1)
            within = decoder.getstate()[0] != b""  # bytes that wait for the rest of their character
            out.append("" if within else held)
            held = held if within else ""
        return out

    def vocabulary(self) -> list[str]:
        """Each token by itself, for lists of tokens: leading spaces kept, part of a character as \\xNN."""
        return [piece if isinstance(piece, str) else piece.decode(errors="backslashreplace") for piece in self._pieces]


@cache
def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of byte-level BPE (GPT-2): printable Latin-1 for itself, the other bytes from U+0100."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}
