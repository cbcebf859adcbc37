"""Hashes of data, files, folders and code: what a stage's key is made of."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from autointerp.artifacts import write_atomically
from autointerp.resources import cache_dir

PACKAGE = Path(__file__).parent
BIG = 1 << 24  # bytes from which a file's hash is remembered


def digest(value: Any) -> str:
    """A short, stable hash of JSON-able data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """Of a file's whole content. A big file's is remembered until its size or time changes: models are read once."""
    stat = path.stat()
    known = cache_dir() / "hashes" / digest([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    if stat.st_size >= BIG and known.exists():
        return known.read_text()
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if stat.st_size >= BIG:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(known, lambda temporary: temporary.write_text(found))
    return found


def fingerprint(path: Path) -> str:
    """Of a file's content, or of the names and contents of the files in a folder (hidden ones left out)."""
    if path.is_file():
        return file_sha256(path)[:20]
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    return digest({str(file.relative_to(path)): file_sha256(file) for file in files})


@cache
def code_digest(*places: str) -> str:
    """Of the code in files and folders of this package; comments, docstrings and layout do not count.

    ``code_digest("subject", "activations/harvest.py")``
    """
    return digest([_meaning(file.read_text()) for place in places for file in _sources(PACKAGE / place)])


def module_digest(file: Path) -> str:
    """Of one file of code, as `code_digest`."""
    return digest(_meaning(file.read_text()))


def function_digest(function: Callable[..., Any]) -> str:
    """Of a function's code and of the functions of this package and the constants that it names, and so on."""
    found: dict[str, str] = {}

    def visit(name: str, value: Any) -> None:
        value = inspect.unwrap(value) if callable(value) else value
        if inspect.isfunction(value) and value.__module__.startswith("autointerp."):
            key = f"{value.__module__}.{value.__qualname__}"
            if key not in found:
                found[key] = _meaning(textwrap.dedent(inspect.getsource(value)))
                for used in sorted(_names(value.__code__)):
                    visit(used, value.__globals__.get(used))
        elif isinstance(value, int | float | str | tuple):
            found[name] = repr(value)

    visit("", function)
    return digest(found)


def _names(code: CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return {*code.co_names}.union(*map(_names, inner))


def _sources(place: Path) -> Iterable[Path]:
    if not place.exists():
        raise FileNotFoundError(place)
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def _meaning(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                    node.body = rest
    return ast.dump(tree)
