"""Labels and comments by hand: labels.jsonl in a run's folder, a row a feature, read by pandas as JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.artifacts import write_atomically
from autointerp.errors import AutointerpError, ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "labels.jsonl"
LONGEST = {"label": 300, "comment": 20_000}  # characters


@dataclass(frozen=True)
class ByHand:
    """What a person wrote of a feature; "" where nothing."""

    label: str = ""
    comment: str = ""
    changed: str = ""  # when, in UTC


NOTHING = ByHand()


def read_labels(run: Path) -> dict[int, ByHand]:
    """Feature -> what stands in the run's file; {} where there is none. Raises AutointerpError for a damaged file."""
    file = run / FILE
    if not file.is_file():
        return {}
    labels: dict[int, ByHand] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            words = ByHand(*(str(row.get(name) or "") for name in ("label", "comment", "changed")))
            labels[int(row["feature"])] = words
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AutointerpError(
                f"{file}, line {number}: not a label ({error}); mend the line or remove it"
            ) from error
    return labels


def write_label(run: Path, feature: int, label: str, comment: str) -> ByHand:
    """Keep a feature's label and comment, one empty text of both removes its row. Other processes wait meanwhile.

    Raises ConfigError for texts that are too long or hold what no file should (NUL, lone surrogates).
    """
    from filelock import FileLock

    words = {"label": " ".join(label.split()), "comment": comment.strip()}
    for name, text in words.items():
        if len(text) > LONGEST[name]:
            raise ConfigError(f"the {name} has {len(text):,} characters, {LONGEST[name]:,} are the most")
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise ConfigError(f"the {name} holds characters that are no text")
    made = ByHand(**words, changed=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()) if any(words.values()) else "")
    with FileLock(run / f".{FILE}.lock", timeout=10):
        labels = {**read_labels(run), feature: made}
        kept = {f: labels[f] for f in sorted(labels) if labels[f].label or labels[f].comment}
        text = "".join(json.dumps({"feature": f} | asdict(row), ensure_ascii=False) + "\n" for f, row in kept.items())
        write_atomically(run / FILE, lambda path: path.write_text(text, encoding="utf-8"))
    return made


def with_labels(features: pa.Table, labels: Mapping[int, ByHand]) -> pa.Table:
    """`features` with the columns `label` and `comment`, null where nothing was written."""
    import pyarrow as pa

    ids = features["feature"].to_pylist()
    for name in ("label", "comment"):
        if name not in features.column_names:
            texts = [(getattr(labels[f], name) or None) if f in labels else None for f in ids]
            features = features.append_column(name, pa.array(texts, pa.string()))
    return features
