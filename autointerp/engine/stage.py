"""The protocol of a stage: its declaration (one file of `stages/`), its uses in a config, and its job.

A stage turns files into files. Everything that has to be known of it stands in its declaration: the key, the plan,
the prompts shown, the tables copied into a run's folder and the table of the documentation are made from it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autointerp.config import Config
from autointerp.engine.estimate import Amount, Asks, Sample, Sizes
from autointerp.engine.session import Session
from autointerp.records import LLM

RUN = "run:"  # before the name of a use that a branch needs of the run itself


def plain(use: str) -> str:
    """A use's name without its branch: ``redrawn_subject:harvest`` -> ``harvest``."""
    branch, colon, rest = use.partition(":")
    return rest if colon and "/" not in branch else use


@dataclass(frozen=True)
class Use:
    """One use of a stage in a config, e.g. ``score/detection/default``."""

    name: str
    needs: tuple[str, ...] = ()
    section: Mapping[str, Any] = field(default_factory=dict)  # of the config and the world outside: all it depends on
    given: Any = None  # what tells this use from the stage's others, for its work: a plug-in, say
    plugins: tuple[Callable[..., Any], ...] = ()  # whose code counts beside the stage's own
    under: Config | None = None  # of a branch: the config that it is made with; None: the run's

    def config(self, run: Config) -> Config:
        return self.under or run


@dataclass
class Job:
    """What a stage's work is given: the session, where to write, its inputs' folders; and what it tells of itself."""

    session: Session
    use: Use
    folder: Path
    inputs: Mapping[str, Path]
    to_retry: int = 0  # items that failed for a reason that may pass; a later run tries the stage again
    facts: dict[str, Any] = field(default_factory=dict)  # small figures for run.json

    @property
    def config(self) -> Config:
        return self.session.config


@dataclass(frozen=True)
class Stage:
    """A stage's declaration.

    `uses` gives its uses in a config, none where the config does not ask for it. `work` does one use; it calls
    `engine.executor` for what it does in shards. The key needs nothing else of it.

    The last three fields are for `plan` and `prompts`; `work` reaches none of them. `amount` says what the time of a
    use grows with, `asks` which language model it asks (None: it asks none, with these options), and `rehearse` makes
    the requests for one feature.
    """

    kind: str  # the first part of its uses' names
    about: str  # what it writes, for the documentation
    uses: Callable[[Config], Iterable[Use]]
    work: Callable[[Job], None]
    tables: tuple[str, ...] = ()  # Parquet files that go into the run's folder
    resumable: bool = False  # the work goes on from files that it left when it was killed
    apart: bool = False  # it has no shards and runs a model, or takes long: on a cluster a worker does it
    remade: bool = False  # its files are quicker made again than fetched: no mirror keeps them
    amount: Callable[[Config, Use, Sizes], Amount] | None = None
    asks: Callable[[Config, Use], Asks | None] | None = None
    rehearse: Callable[[Use, Sample, LLM], Awaitable[None]] | None = None

    def named(self, config: Config) -> dict[str, Use]:
        return {use.name: use for use in self.uses(config)}
