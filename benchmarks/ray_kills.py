"""A whole run on a Ray cluster of three local nodes: a node is killed in each stage in turn, then the driver.

    python benchmarks/ray_kills.py [--drivers 3] [--out results/reference/ray-kills.json]

1. The run is done in one process. Its endpoint counts what it is asked and knows what each planted feature means.
2. The same on a cluster, with a cache of its own. In each stage that workers do, once it is under way, a node with its
   workers is killed, and another takes its place.
3. The same with another cache; the driver is killed some times, by its requests and by the clock, and started again.

Bars: the tables of all three are equal; of what was answered nothing is asked again but what was on its way when a node
or the driver was killed, at most as many requests as may be in flight. Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pandas as pd
import yaml
from endpoint import Endpoint, bodies, serving
from planted import config, oracle, plant

from autointerp.catalog import resolve
from autointerp.stages import TABLES, stage_of

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
HEAD = {**NODE, "num_cpus": 0, "_system_config": {"worker_niceness": 0}}
CONCURRENCY = 6
BY_WORKERS = ("harvest", "contexts", "explain", "calibrate", "score", "semantic")  # or `Stage.apart`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drivers", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/reference/ray-kills.json"))
    options = parser.parse_args()
    from ray.cluster_utils import Cluster

    model = resolve("stories15m", "model")
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    for _ in range(3):
        cluster.add_node(**NODE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            plant(model, place / "sae")
            with serving(oracle, latency=0.05) as endpoint:
                made = measured(place, cluster, model, endpoint, options.drivers)
    finally:
        cluster.shutdown()
    made["command"] = f"python benchmarks/ray_kills.py --drivers {options.drivers}"
    options.out.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made["bars"]))
    sys.exit(any(value > limit for value, limit in made["bars"].values()))


def measured(place: Path, cluster: Any, model: Path, endpoint: Endpoint, drivers: int) -> dict[str, Any]:
    files = {kind: write_config(place, model, endpoint, kind, cluster.address) for kind in ("local", "ray")}
    local, count, seconds = undisturbed(place, files["local"], endpoint)
    print(f"local: {count} requests, {seconds:.0f} s", flush=True)
    nodes, killed = with_nodes_killed(place, files["ray"], endpoint, cluster)
    print("nodes killed in:", ", ".join(killed), flush=True)
    driven, times = with_drivers_killed(place, files["ray"], endpoint, drivers)
    print("drivers killed in:", ", ".join(times), flush=True)
    rows = [{"what": "nodes", "killed_in": killed, **nodes}, {"what": "driver", "killed_in": times, **driven}]
    for row, name in zip(rows, ("nodes", "driver")):
        row["tables_that_differ"] = differing(local, place / name)
        row["missing_requests"] = count - row["distinct"]
    bars = {
        f"{row['what']}_{name}": [value, limit]
        for row in rows
        for name, value, limit in (
            ("tables_that_differ", len(row["tables_that_differ"]), 0),
            ("asked_twice", row["asked_twice"], CONCURRENCY * len(row["killed_in"])),
        )
    }
    return {"requests": count, "rows": rows, "bars": bars}


def write_config(place: Path, model: Path, endpoint: Endpoint, kind: str, address: str) -> Path:
    wanted = config(model, place / "sae", endpoint.url)
    wanted["llm"]["concurrency"] = CONCURRENCY
    wanted["controls"] = ["other_feature"]  # with all its donors: a stage lasts until a node is killed
    wanted["executor"] = {"kind": kind, "address": address, "num_gpus": 0, "shard_tokens": 8000}
    file = place / f"{kind}.yaml"
    file.write_text(yaml.safe_dump(wanted))
    return file


def start(place: Path, file: Path, name: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "AUTOINTERP_CACHE": str(place / f"cache-{name}"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "autointerp", "run", str(file), "--out", str(place / name)]
    log = open(place / f"{name}.log", "ab")  # noqa: SIM115 - the process' own
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)


def ended(process: subprocess.Popen[bytes], place: Path, name: str) -> None:
    if process.wait() != 0:
        raise SystemExit((place / f"{name}.log").read_text()[-3000:])


def undisturbed(place: Path, file: Path, endpoint: Endpoint) -> tuple[Path, int, float]:
    begun = time.monotonic()
    ended(start(place, file, "local"), place, "local")
    return place / "local", len(set(bodies(endpoint))), time.monotonic() - begun


def stage_under_way(folder: Path) -> str | None:
    try:
        return json.loads((folder / "progress.json").read_text())["stage"]
    except (OSError, ValueError):
        return None


def with_nodes_killed(place: Path, file: Path, endpoint: Endpoint, cluster: Any) -> tuple[dict[str, int], list[str]]:
    first, chance = len(endpoint.requests), random.Random(3)
    process, killed = start(place, file, "nodes"), []
    while process.poll() is None:
        stage = stage_under_way(place / "nodes")
        if stage is not None and stage not in killed and done_by_workers(stage):
            time.sleep(chance.uniform(0.3, 1.5))
            if stage_under_way(place / "nodes") == stage:
                killed.append(stage)
                cluster.remove_node(chance.choice([*cluster.worker_nodes]), allow_graceful=False)
                cluster.add_node(**NODE)
                print(f"node killed in {stage}", flush=True)
        time.sleep(0.1)
    ended(process, place, "nodes")
    return asked(bodies(endpoint)[first:]), killed


def done_by_workers(stage: str) -> bool:
    return stage.split("/")[0] in BY_WORKERS or stage_of(stage).apart


def with_drivers_killed(place: Path, file: Path, endpoint: Endpoint, drivers: int) -> tuple[dict[str, int], list[str]]:
    first, chance, killed = len(endpoint.requests), random.Random(5), []
    while len(killed) < drivers:
        process = start(place, file, "driver")
        if killed:
            at = len(endpoint.requests) + chance.randrange(20, 120)
            while len(endpoint.requests) < at and process.poll() is None:
                time.sleep(0.05)
        else:  # before anything is asked
            while stage_under_way(place / "driver") != "harvest":
                time.sleep(0.05)
            time.sleep(3)
        if process.poll() is not None:
            raise SystemExit("the run ended before its driver was killed: ask for fewer --drivers")
        killed.append(stage_under_way(place / "driver") or "?")
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"driver killed in {killed[-1]}", flush=True)
    ended(start(place, file, "driver"), place, "driver")
    return asked(bodies(endpoint)[first:]), killed


def asked(requests: list[str]) -> dict[str, int]:
    counts = Counter(requests)
    return {"distinct": len(counts), "asked_twice": sum(counts.values()) - len(counts)}


def differing(one: Path, other: Path) -> list[str]:
    differ = []
    for table in TABLES:
        there = [(folder / f"{table}.parquet").exists() for folder in (one, other)]
        tables = [pd.read_parquet(folder / f"{table}.parquet") for folder in (one, other)] if all(there) else []
        if any(there) and not (tables and tables[0].equals(tables[1])):
            differ.append(table)
    return differ


if __name__ == "__main__":
    main()
