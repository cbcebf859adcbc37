"""Hashes of data, files and folders, of which a stage's key is made (hashes of code: engine/keys.py)."""

from __future__ import annotations

import ast
import hashlib
import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from autointerp.artifacts import write_atomically
from autointerp.resources import cache_dir

PACKAGE = Path(__file__).parent
BIG = 1 << 24  # bytes from which a file's hash is remembered on disk
SETTLED = 2_000_000_000  # nanoseconds after which a change of a file changes its time too, on any file system


def digest(value: Any) -> str:
    """A short, stable hash of JSON-able data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """Of a file's whole content. It is remembered until the file's size or time changes: by this process, and a big
    file's on disk, so that models are read once."""
    stat = path.stat()
    hashed = _remembered if time.time_ns() - stat.st_mtime_ns > SETTLED else _remembered.__wrapped__
    return hashed(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _remembered(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    known = cache_dir() / "hashes" / digest([str(path.resolve()), size, mtime_ns, inode])
    if size >= BIG and known.exists():
        return known.read_text()
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if size >= BIG:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(known, lambda temporary: temporary.write_text(sha256))
    return sha256


def read_sha256(path: Path) -> str:
    """Of a file's whole content as it is now: nothing is remembered."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """Of a file's content, or of the names and contents of the files in a folder (hidden ones left out)."""
    if path.is_file():
        return file_sha256(path)[:20]
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    return digest({str(file.relative_to(path)): file_sha256(file) for file in files})


def without_docstrings(tree: ast.AST) -> ast.AST:
    """`tree`, changed in place: what says something to a reader alone is taken out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                    node.body = rest
    return tree
