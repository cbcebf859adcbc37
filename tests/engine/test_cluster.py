"""Shards on a Ray cluster of three local nodes: the same files as in one process, whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, bodies, serving

from autointerp.config import Config, PluginConfig, parse_config
from autointerp.engine import asking
from autointerp.engine.executor import Read, Rows, Shard, Work, each_feature, each_shard, is_done, merge_parts
from autointerp.engine.session import Session
from autointerp.engine.stage import Job, Use
from autointerp.errors import AutointerpError, OutOfBudget
from autointerp.progress import Progress
from autointerp.records import Message

ray = pytest.importorskip("ray")
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
HEAD = {**NODE, "num_cpus": 0, "_system_config": {"worker_niceness": 0}}  # as fast as the tests beside them


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """The driver's node has no room for workers: it is not among those that are killed."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=HEAD)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def nodes(cluster: Any) -> list[Any]:
    for _ in range(3 - len(cluster.worker_nodes)):
        cluster.add_node(**NODE)
    cluster.wait_for_nodes(timeout=300)
    return [*cluster.worker_nodes]


# --- the work, as a stage does it --------------------------------------------------------------

FEATURES = list(range(48))


def explain(job: Job) -> None:
    """A request for each feature."""

    def prepare() -> tuple[Read[None], Work[None]]:
        llm = asking.client(job.session, PluginConfig(name="default"))

        async def explained(feature: int, _: None) -> Rows:
            with asking.asked(llm, "explain", feature) as counts:
                answer = await llm.complete([Message("user", f"What is {feature}?")])
            row = {"feature": feature, "explanation": answer.text, "failure": answer.failure}
            return Rows({"explanations": [row]}, counts.retryable_failures)

        return dict.fromkeys, explained

    job.to_retry += each_feature(job, FEATURES, prepare, width=4, bar=Progress("x", None, "features"))
    merge_parts(job.folder, ["explanations"])


def harvest(job: Job) -> None:
    """Two divisions of the text, the second of which reads what the first wrote."""
    for first, name in ((0, "half"), (4, "square")):
        shards = [Shard(first + n, (10 * n, 10 * n + 10)) for n in range(4)]

        def prepare(name: str = name) -> Callable[[Shard], Sequence[Path]]:
            def make(shard: Shard) -> Sequence[Path]:
                path = job.folder / f"{name}-{shard.number}"
                if name == "square":
                    assert (job.folder / f"half-{shard.number - 4}").exists()
                (job.inputs["corpus"] / f"{shard.number}-{os.getpid()}").touch()
                time.sleep(0.3)
                path.write_text(json.dumps(list(shard.items)))
                return [path]

            return make

        each_shard(job, shards, prepare, lambda shard: 10, Progress("x", None, "tokens"))


def dies(job: Job) -> None:
    def prepare() -> Callable[[Shard], Sequence[Path]]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    each_shard(job, [Shard(0, (0, 1))], prepare, lambda shard: 1, Progress("x", None, "tokens"))


def train(job: Job) -> None:
    """Has no shards; the first worker dies over it."""
    if not (begun := job.folder / "begun").exists():
        begun.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    job.facts["trained by"] = os.getpid()
    job.to_retry = 2


def stages(use: str) -> Callable[[Job], None]:
    return {"explain": explain, "harvest": harvest, "dies": dies, "train": train}[use]


def config_of(kind: str, **llm: Any) -> Config:
    endpoint = {"base_url": "http://127.0.0.1:9/v1", "api_key_env": None, "logprobs": False}
    return parse_config(
        {
            **{"name": "x", "subject": {"model": "m"}, "corpus": {"source": "s"}, "sae": {"load": "s"}},
            "llm": {"model": "test-model", **endpoint, **llm},
            "executor": {"kind": kind, "num_gpus": 0},
        }
    )


def run(use: str, place: Path, kind: str, **llm: Any) -> Path:
    """The folder that a use of a stage wrote into."""
    from autointerp.engine.cluster.driver import on_cluster

    folder, corpus = place / use, place / "corpus"
    for each in (folder, corpus):
        each.mkdir(parents=True, exist_ok=True)
    config = config_of(kind, **llm)
    with Session(config, place / "usage.jsonl") as session:
        job = Job(session, Use(use), folder, {"corpus": corpus})
        if kind == "local":
            stages(use)(job)
        else:
            with on_cluster(session, stages):
                stages(use)(job)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(lambda messages, body: f"heard {messages[-1]['content']}", latency=0.1) as endpoint:
        yield endpoint


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def twice(endpoint: Endpoint) -> int:
    return sum(count - 1 for count in Counter(bodies(endpoint)).values())


def test_the_files_are_those_of_one_process_and_nothing_is_asked_twice(nodes, place: Path, endpoint: Endpoint) -> None:
    for use in ("explain", "harvest"):
        here = run(use, place / "here", "local", base_url=endpoint.url)
        asked = len(endpoint.requests)
        there = run(use, place / "there", "ray", base_url=endpoint.url)
        assert files(there) == files(here)
        assert asked == len(endpoint.requests), "the keeper has what the local run was answered"
    workers = {path.name.split("-")[1] for path in (place / "there" / "corpus").iterdir()}
    assert len(workers) > 1


def test_a_node_that_dies_costs_its_shard(cluster: Any, nodes, place: Path, endpoint: Endpoint) -> None:
    import threading

    def kill() -> None:
        endpoint.until(lambda: len(endpoint.requests) > 6, timeout=300)
        cluster.remove_node(nodes[0], allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    there = run("explain", place, "ray", base_url=endpoint.url)
    thread.join()
    assert twice(endpoint) <= 4, "only what was on its way in that node's hands"
    here = run("explain", place / "here", "local", base_url=endpoint.url)
    assert files(there) == files(here)


def test_a_worker_that_dies_while_it_harvests_costs_its_shard(nodes, place: Path) -> None:
    import threading

    corpus = place / "corpus"

    def kill() -> None:
        while not (begun := list(corpus.glob("1-*"))):
            time.sleep(0.01)
        os.kill(int(begun[0].name.split("-")[1]), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    there = run("harvest", place, "ray")
    thread.join()
    tried = Counter(path.name.split("-")[0] for path in corpus.iterdir())
    assert {number for number, times in tried.items() if times > 1} == {"1"}
    assert len(tried) == 8
    assert all(is_done(there, Shard(n, (10 * (n % 4), 10 * (n % 4) + 10))) for n in range(8))


def test_a_shard_that_ends_every_worker_ends_the_run(nodes, place: Path) -> None:
    with pytest.raises(AutointerpError, match="ended each worker that had it"):
        run("dies", place, "ray")


def test_a_stage_without_shards_is_done_whole_by_a_worker_and_by_another_where_that_dies(nodes, place: Path) -> None:
    from autointerp.engine.cluster.driver import on_cluster

    (folder := place / "train").mkdir()
    with Session(config_of("ray"), place / "usage.jsonl") as session, on_cluster(session, stages):
        job = Job(session, Use("train"), folder, {})
        assert session.executor.whole(job)
    assert job.facts["trained by"] != os.getpid()
    assert job.to_retry == 2


def test_workers_share_one_budget_and_what_is_in_flight(nodes, place: Path, endpoint: Endpoint) -> None:
    with pytest.raises(OutOfBudget, match="max_requests=30 is reached"):
        run("explain", place, "ray", base_url=endpoint.url, max_requests=30, concurrency=3)
    assert len(endpoint.requests) == 30
    assert endpoint.max_in_flight <= 3 + 3, "a worker that begins does not yet know of the others"


def test_an_error_of_a_worker_is_the_run_s(nodes, place: Path, endpoint: Endpoint) -> None:
    with pytest.raises(AutointerpError, match="has no model 'another'"):
        run("explain", place, "ray", base_url=endpoint.url, model="another")
