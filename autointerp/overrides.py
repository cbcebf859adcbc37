"""``--set a.b.0.c=value``: put a value into the raw sections of a config, where they are made as they are needed."""

from __future__ import annotations

from typing import Any

from autointerp.errors import ConfigError

NOT_IN_KEYS = "a stage's key holds the values of its section, not how they came there"


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
