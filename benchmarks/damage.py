"""One bit flipped at random places of a run's artifacts and of its cache of requests: what the next run makes of it.

    python benchmarks/damage.py [--places 200] [--out results/reference/damage.json]

1. A whole run over planted features is made once, with composites and a judge of explanations.
2. For each place: the store and the cache are copied as they were, one bit of one file is flipped, and the artifacts
   that are made from the damaged one are removed, so that it is read. The kinds of artifact take turns.
3. The config is run again, in a fresh process' state. Its tables must be those of the undisturbed run, or the run must
   end with one clear line.

Exits 1 where a place gave another table or any other error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--places", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/reference/damage.json"))
    options = parser.parse_args()
    outcomes = list(damage(options.places, options.seed))
    table: dict[str, Counter[str]] = {}
    for kind, outcome, _ in outcomes:
        table.setdefault(kind, Counter())[outcome] += 1
    wrong = [each for each in outcomes if each[1] not in ("same tables", "one clear line")]
    found = {
        "command": f"python benchmarks/damage.py --places {options.places} --seed {options.seed}",
        "places": len(outcomes),
        "by_kind": {kind: dict(counts) for kind, counts in sorted(table.items())},
        "lines": sorted({text for _, outcome, text in outcomes if outcome == "one clear line"}),
        "wrong": wrong,
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    sys.exit(bool(wrong))


def damage(places: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """(kind of artifact, what came of it, the line that was said) for each place."""
    from endpoint import serving
    from planted import config, oracle_of, plant_composites

    from autointerp.catalog import resolve
    from autointerp.config import parse_config

    subject = resolve("stories15m", "model")
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["AUTOINTERP_CACHE"] = str(folder / "cache")
        _, parts = plant_composites(subject, folder / "planted")
        with serving(oracle_of(parts)) as endpoint:
            raw = config(folder / "planted" / "model", folder / "planted" / "sae", endpoint.url)
            raw |= {"explainers": ["default", "conjunction"], "composites": {"semantic": True}}
            wanted = parse_config(raw)
            undisturbed = tables_of(wanted, folder / "run")
            (folder / "cache").rename(folder / "whole")
            kinds = sorted(path.name.split("__")[0] for path in (folder / "whole" / "store").iterdir())
            kinds = [*dict.fromkeys(kinds), "requests"]
            for number in range(places):
                kind, own = kinds[number % len(kinds)], folder / f"place-{number}"
                os.environ["AUTOINTERP_CACHE"] = str(own / "cache")
                shutil.copytree(folder / "whole", own / "cache")
                flip(own / "cache", kind, chance)
                yield kind, *look(wanted, own / "run", undisturbed)
                print(number, kind, flush=True)
                shutil.rmtree(own, ignore_errors=True)


def look(wanted: Any, out: Path, undisturbed: dict[str, Any]) -> tuple[str, str]:
    from autointerp.errors import AutointerpError

    try:
        tables = tables_of(wanted, out)
    except AutointerpError as error:
        return "one clear line", str(error)
    except Exception as error:
        return "another error", f"{type(error).__name__}: {error}"
    same = {name for name in undisturbed.keys() & tables.keys() if undisturbed[name].equals(tables[name])}
    other = sorted((undisturbed.keys() | tables.keys()) - same)
    return ("another table", ", ".join(other)) if other else ("same tables", "")


def tables_of(wanted: Any, out: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    import autointerp as ai
    from autointerp.stages import TABLES

    run = ai.run(wanted, out=out)
    files = {name: run.folder / f"{name}.parquet" for name in TABLES}
    return {name: pq.read_table(file) for name, file in files.items() if file.exists()}


def flip(cache: Path, kind: str, chance: random.Random) -> None:
    """Flip one bit of one file of `kind`, and remove what was made from it."""
    store = cache / "store"
    if kind == "requests":
        files = [path for path in cache.iterdir() if path.is_file() and ".sqlite" in path.name]
    else:
        files = [path for path in store.glob(f"{kind}*/*/**/*") if path.is_file() and not path.name.endswith(".lock")]
    file = chance.choice([path for path in files if path.stat().st_size])
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    remade = ("explain", "score", "semantic", "tables") if kind == "requests" else LATER.get(kind, ("tables",))
    for name in remade:
        for folder in store.glob(f"{name}*"):
            shutil.rmtree(folder)


LATER = {  # stages that read an artifact, directly
    "corpus": ("sae", "harvest", "contexts"),
    "sae": ("harvest", "composites"),
    "harvest": ("select", "contexts"),
    "composites": ("reencode",),
    "reencode": ("semantic", "tables"),
    "select": ("directions", "contexts"),
    "directions": ("contexts", "tables"),
    "contexts": ("explain", "score", "tables"),
    "explain": ("score", "tables"),
}

if __name__ == "__main__":
    main()
