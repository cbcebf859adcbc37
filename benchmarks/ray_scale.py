"""Workers on a local Ray cluster: how a stage that waits gets faster with 1, 2 and 4 of them.

    python benchmarks/ray_scale.py [--workers 1 2 4] [--out results/reference/ray-scale.json]

A stage's shards wait 100 ms a batch, as for an endpoint or a GPU, and write a file each. The cluster is started once,
with one node of one core a worker. Timed is a stage whose workers are there: from the first shard given out to the
stage's going on. The executor is the one that a run uses, with its records, keeper and driver.

Bar: with n workers at least .9 n times as fast as with one. Exits 1 where it is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from autointerp.config import parse_config
from autointerp.engine.executor import Shard, each_shard
from autointerp.engine.session import Session
from autointerp.engine.stage import Job, Use
from autointerp.progress import Progress

BAR = 0.9
SHARDS, BATCHES, SECONDS = 16, 20, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path, default=Path("results/reference/ray-scale.json"))
    options = parser.parse_args()
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    head = {**node, "num_cpus": 0, "_system_config": {"worker_niceness": 0}}  # what else runs here is no slower
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(max(options.workers)):
        cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    rows = []
    try:
        with tempfile.TemporaryDirectory() as place:
            for workers in options.workers:
                seconds = timed(Path(place), workers)
                first = rows[0] if rows else {"seconds": seconds, "workers": workers}
                linear = first["seconds"] * first["workers"] / (seconds * workers)
                rows.append({"workers": workers, "seconds": round(seconds, 2), "of_linear": round(linear, 3)})
                print(rows[-1], flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()
    least = min(row["of_linear"] for row in rows)
    made = {
        "command": f"python benchmarks/ray_scale.py --workers {' '.join(map(str, options.workers))}",
        "shards": SHARDS, "batches_a_shard": BATCHES, "seconds_a_batch": SECONDS, "ray": ray.__version__,
        "rows": rows, "bars": {"least_of_linear": [least, BAR]},
    }  # fmt: skip
    options.out.write_text(json.dumps(made, indent=1) + "\n")
    sys.exit(least < BAR)


def timed(place: Path, workers: int) -> float:
    """Seconds of a stage of `SHARDS` shards, once its workers are there."""
    from autointerp.engine.cluster.driver import on_cluster

    config = parse_config(
        {
            **{"name": "x", "subject": {"model": "m"}, "corpus": {"source": "s"}, "sae": {"load": "s"}},
            "executor": {"kind": "ray", "num_gpus": 0, "max_workers": workers},
        }
    )
    with Session(config, place / f"usage-{workers}.jsonl") as session, on_cluster(session, lambda use: work):
        for use, batches in (("begin", 2), ("waits", BATCHES)):
            folder = place / f"{use}-{workers}"
            folder.mkdir()
            begun = time.monotonic()
            work(Job(session, Use(use, given=batches), folder, {}))
            print(f"{use}, {workers} workers: {time.monotonic() - begun:.1f} s", flush=True)
    return time.monotonic() - begun


def work(job: Job) -> None:
    """Each shard waits for its batches and writes a file."""

    def prepare() -> Callable[[Shard], Sequence[Path]]:
        def wait(shard: Shard) -> Sequence[Path]:
            for _ in range(job.use.given):
                time.sleep(SECONDS)
            path = job.folder / f"shard-{shard.number}"
            path.write_text(str(shard.items))
            return [path]

        return wait

    shards = [Shard(number, (number, number + 1)) for number in range(SHARDS)]
    each_shard(job, shards, prepare, lambda shard: 1, Progress("x", None, "shards"))


if __name__ == "__main__":
    main()
