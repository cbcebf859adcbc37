"""The language model under study (the subject) and its text."""

from autointerp.subject.corpus import build_corpus
from autointerp.subject.hooks import ResolvedHook, resolve_hook
from autointerp.subject.model import Subject, load_subject
from autointerp.subject.tokens import TokenText, bos_of, token_strings

__all__ = [
    "ResolvedHook",
    "Subject",
    "TokenText",
    "bos_of",
    "build_corpus",
    "load_subject",
    "resolve_hook",
    "token_strings",
]
