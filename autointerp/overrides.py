"""The raw sections of a config: read from YAML; ``--set a.b.0.c=value`` put in, sections made as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.errors import ConfigError

if TYPE_CHECKING:
    import yaml

NOT_IN_KEYS = "a stage's key holds the values of its section, not how they came there"


def read_yaml(file: Path) -> Any:
    """What the file says. Raises ConfigError for no YAML, and for a key that is there twice: the last would count."""
    import yaml

    text = file.read_text()
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    for key in _twice(tree, set()):
        raise ConfigError(f"{file}, line {key.start_mark.line + 1}: {key.value!r} is there twice")
    return raw


def _twice(node: Any, seen: set[int]) -> Iterator[yaml.ScalarNode]:
    """Keys of a YAML tree that stand in one mapping before."""
    parts = getattr(node, "value", None)
    if not isinstance(parts, list) or id(node) in seen:  # an alias is looked at once
        return
    seen.add(id(node))
    keys: set[str] = set()
    for part in parts:
        if isinstance(part, tuple):
            key, part = part
            if isinstance(key.value, str):
                if key.value in keys:
                    yield key
                keys.add(key.value)
        yield from _twice(part, seen)


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """``a.b.0.c`` = value; positions in a list are numbers."""
    *path, last = key.split(".")
    at: Any = raw
    for part, following in zip(path, [*path[1:], last]):
        if isinstance(at, dict) and at.get(part) is None:
            at[part] = [] if following.isdigit() else {}
        at = at[_place(at, part, key)]
    at[_place(at, last, key)] = value


def _place(section: Any, part: str, key: str) -> Any:
    """`part` as a key of a mapping or a position in a list."""
    if isinstance(section, dict):
        return part
    if not isinstance(section, list):
        raise ConfigError(f"--set {key}: {part!r} would be inside of {section!r}, which is no section")
    if not part.isdigit() or int(part) >= len(section):
        raise ConfigError(f"--set {key}: the list there has {len(section)} items, {part!r} is none of them")
    return int(part)
