"""One pass of the subject for several SAEs: shards of many harvests, made side by side.

1. `shares` says which uses of the stage harvest can take part, and `common` what those of one pass have in common.
2. `rounds` divides them, so that what a pass holds of all its SAEs fits in memory, into jobs (`passing`).
3. `work` makes every shard that one of them lacks, each in the folder and with the record of its own stage's work.
4. That work then finds its shards done, and merges them: keys and files are those of a harvest alone.

What goes wrong with one SAE leaves that one out; the work of its own stage says so again, and fails.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import Corpus
from autointerp.config import Config, RedrawnSae
from autointerp.engine import models
from autointerp.engine.executor import Shard, each_shard, is_done, record
from autointerp.engine.session import Session
from autointerp.engine.stage import Job, Use, plain
from autointerp.engine.store import MANIFEST, RECORDS
from autointerp.errors import AutointerpError
from autointerp.progress import Progress, progress
from autointerp.stages.corpus import cached_by_delphi
from autointerp.stages.harvest import USUAL_ACTIVE, shards_of, tokens_of, wanted_of

if TYPE_CHECKING:
    from autointerp.activations.harvest import Harvest
    from autointerp.subject.model import Subject

NOT_IN_KEYS = "it decides which harvests share a pass; what a shard holds is made by the stage harvest's own code"

log = logging.getLogger("autointerp")

FIRING = 8  # bytes of a firing until its shard is written
FLOAT = 4
COPIES = 2  # of an encoder and decoder: as read, and as they are multiplied fastest


@dataclass(frozen=True)
class Member:
    """A harvest that takes part: what its stage's own job would be given."""

    config: Config
    use: Use
    folder: Path
    inputs: Mapping[str, Path]

    def job(self, passing: Job) -> Job:
        return Job(passing.session.under(self.config), self.use, self.folder, self.inputs)

    @property
    def bytes(self) -> float:
        """That a pass holds for it, about, from what the stage sae says of the SAE."""
        about = json.loads((self.inputs["sae"] / "sae.json").read_text())["cfg"]
        facts = json.loads((self.inputs["sae"] / MANIFEST).read_text())["facts"]
        d_in, latents = about["d_in"], about["d_sae"]
        tokens = min(self.config.executor.shard_tokens, self.config.corpus.tokens)
        firings = tokens * (facts.get("l0") or USUAL_ACTIVE)
        activations = self.config.subject.batch_tokens * d_in
        return firings * FIRING + FLOAT * (activations + COPIES * 2 * d_in * latents)


def shares(config: Config, use: Use) -> bool:
    """Whether this is the harvest of an SAE that was loaded, for which the subject runs. One that the run trains has
    its activations stored, and needs no pass."""
    loaded = config.sae.load is not None and not isinstance(config.sae, RedrawnSae)
    return plain(use.name) == "harvest" and loaded and not cached_by_delphi(config)


def common(config: Config) -> str:
    """Of a config what all SAEs of one session, and so of one pass, have in common: the subject, and where it runs."""
    subject = config.subject.model_copy(update={"hook": None, "hook_out": None})
    return subject.model_dump_json() + config.executor.model_dump_json()


def rounds(members: Iterable[Member], most: float | None) -> Iterator[list[Member]]:
    """Those of one text together, in their order, so many that they need at most `most` bytes, and two or more."""
    by_text: dict[Path, list[Member]] = {}
    for member in members:
        by_text.setdefault(member.inputs["corpus"], []).append(member)
    for alike in by_text.values():
        taken: list[Member] = []
        for member in alike:
            if most is not None and len(taken) > 1 and sum(each.bytes for each in [*taken, member]) > most:
                yield taken
                taken = []
            taken.append(member)
        if len(taken) > 1:
            yield taken


def passing(members: Sequence[Member], session: Session) -> Job:
    """The job of one pass. It keeps its own records among those of its first member, which go when that is merged."""
    folder = members[0].folder / RECORDS / "pass"
    shutil.rmtree(folder, ignore_errors=True)  # of a pass of other SAEs that was killed
    folder.mkdir(parents=True, exist_ok=True)
    use = Use("harvest", under=members[0].config, given=tuple(members))
    return Job(session, use, folder, members[0].inputs)


def work(job: Job) -> None:
    """Make the shards that members lack. Raises nothing for one member's sake."""
    corpus, members = Corpus(job.inputs["corpus"]), job.use.given
    shards = shards_of(corpus, members[0].config)
    with progress(f"harvest of {len(members)} SAEs", corpus.info.n_tokens, "tokens") as bar:
        each_shard(job, shards, partial(_prepare, job, corpus, bar), partial(tokens_of, corpus), bar)


@dataclass
class _Reading:
    """A member, opened."""

    member: Member
    wanted: Harvest
    subject: Subject
    lost: bool = False


def _prepare(job: Job, corpus: Corpus, bar: Progress) -> Callable[[Shard], Sequence[Path]]:
    ways: dict[tuple[str, bool], list[_Reading]] = {}
    for member in job.use.given:
        own = member.job(job)
        try:
            wanted = wanted_of(own)
            subject = models.subject(own.session, wanted.hook)
            ways.setdefault((subject.forward.way(subject.hook), wanted.skip_bos), []).append(
                _Reading(member, wanted, subject)
            )
        except AutointerpError as error:
            leave_out(member.config, error)

    def make(shard: Shard) -> Sequence[Path]:
        shown = bar
        for readings in ways.values():
            left = [each for each in readings if not (each.lost or is_done(each.member.folder, shard))]
            if left:
                _make(left, shard, shown)
                shown = Progress("the same text", None, "tokens")
        if shown is bar:
            bar.advance(tokens_of(corpus, shard), skipped=True)
        return []

    return make


def _make(readings: Sequence[_Reading], shard: Shard, bar: Progress) -> None:
    """One shard of each, and its record."""
    from autointerp.activations.harvest import harvest_side_by_side, shard_path

    hooks = list({each.subject.hook.name: each.subject.hook for each in readings}.values())
    at = [[hook.name for hook in hooks].index(each.subject.hook.name) for each in readings]

    def read(tokens: Any) -> list[Any]:
        values = readings[0].subject.activations_at(tokens, hooks)
        return [values[number] for number in at]

    paths = [shard_path(each.member.folder, shard.number) for each in readings]
    first, last = shard.items
    failures = harvest_side_by_side([each.wanted for each in readings], read, first, last, paths, bar)
    for each, path, failure in zip(readings, paths, failures):
        if failure is None:
            record(each.member.folder, shard, [path], {})
        else:
            each.lost = True
            leave_out(each.member.config, failure)


def leave_out(config: Config, error: AutointerpError) -> None:
    log.warning("%s is left out of the pass: %s", config.sae.load, error)
