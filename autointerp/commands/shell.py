"""What every command shares: values of ``--set``, the log on stderr, failures as one line and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from autointerp.errors import AutointerpError, ConfigError, Problems
from autointerp.redact import redact

STOPPED = 130  # the exit code after Ctrl-C, as shells have it


def overrides(given: list[str] | None) -> dict[str, Any]:
    """``["a.b=1"]`` -> ``{"a.b": 1}``: values are YAML."""
    import yaml

    values = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals:
            raise ConfigError(f"--set {text}: write --set key.path=value")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: the value is not YAML ({' '.join(str(error).split())})") from error
    return values


@contextmanager
def logged(verbose: bool) -> Iterator[None]:
    """Our log on stderr while a command runs: progress, and with `verbose` everything."""

    class Redacted(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return redact(super().format(record))

    class Stderr(logging.StreamHandler):  # of the moment: a progress bar puts another in its place
        stream = property(lambda self: sys.stderr, lambda self, _: None)  # type: ignore[assignment]

    log, handler = logging.getLogger("autointerp"), Stderr()
    handler.setFormatter(Redacted("%(asctime)s %(name)s: %(message)s" if verbose else "%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def failures(verbose: bool) -> Iterator[None]:
    """Every way to fail as one line on stderr and an exit code; with `verbose` the traceback before it."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        _fail(["stopped; run again to go on"], STOPPED, verbose)
    except BrokenPipeError:  # the reader has enough, as in `autointerp table demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit meets no pipe
        raise typer.Exit from None
    except AutointerpError as error:
        lines = error.lines if isinstance(error, Problems) else [str(error)]
        _fail(lines, error.exit_code, verbose)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = f"disk full: free space and run again{where}" if full else f"{error.strerror or error}{where}"
        _fail([what], 1, verbose)
    except Exception as error:  # the outermost place: a defect of ours still reads as one line
        hint = "" if verbose else "; run with --verbose for the traceback"
        _fail([f"{type(error).__name__}: {error}{hint}"], 1, verbose)


def _fail(lines: Sequence[str], code: int, verbose: bool) -> None:
    if verbose:
        print(redact(traceback.format_exc()), file=sys.stderr)
    for line in lines:
        print(redact(f"autointerp: {' '.join(line.split())}"), file=sys.stderr)
    raise typer.Exit(code)
