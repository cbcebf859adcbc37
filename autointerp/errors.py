"""Exceptions that a user sees as one line: wrong config (exit code 2), failed run (exit code 1)."""

from __future__ import annotations

from collections.abc import Sequence

NOT_IN_KEYS = "an error ends a stage, which then writes nothing"


class AutointerpError(Exception):
    """Something failed in a way we can name; the text says what is wrong and what to do. Exit code 1."""

    exit_code = 1


class ConfigError(AutointerpError):
    """The command line or the config is wrong. Exit code 2."""

    exit_code = 2


class Problems(AutointerpError):
    """Several things are wrong, each told in a line of its own."""

    def __init__(self, lines: Sequence[str], exit_code: int) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[Problems], tuple[Sequence[str], int]]:
        return type(self), (self.lines, self.exit_code)  # an exception is pickled by its one text otherwise


class OutOfBudget(AutointerpError):
    """The spending limit of the run is reached. What was answered is kept; a later run goes on."""


class EndpointDown(AutointerpError):
    """A language-model endpoint does not answer any more. What was answered is kept."""
