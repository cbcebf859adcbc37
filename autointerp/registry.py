"""Registry of plug-ins of one kind: built in, by decorator, by dotted path, or by entry point; "did you mean"."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from autointerp.errors import ConfigError

NOT_IN_KEYS = "a key holds the plug-in that was looked up"

T = TypeVar("T")


_PLACES: list[Path] = []  # folders beside the working folder whose modules can be named


def look_in(folder: Path) -> None:
    """Let modules of `folder` be named as plug-ins; installed modules go first."""
    if folder.resolve() not in _PLACES:
        _PLACES.append(folder.resolve())


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' – did you mean X?' where a known name is near, else the list of known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f" – did you mean {near[0]!r}?"
    return f" – known: {', '.join(names)}" if names else ""


def places() -> list[Path]:
    """Where modules of plug-ins are looked for, beside what is installed."""
    return [Path.cwd(), *_PLACES]


class Registry(Generic[T]):
    """Named things of one kind.

    A target is the object itself or a lazy ``"module:object"``, imported when it is first asked for.
    `check` says what is wrong with an object (None when nothing is), at registration or at import.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        builtin: dict[str, str] | None = None,
        check: Callable[[object], str | None] | None = None,
    ) -> None:
        self.kind = kind
        self.group = group
        self._targets: dict[str, object] = dict(builtin or {})
        self._check = check
        self._entry_points_read = False
        self.decorated: dict[str, object] = {}  # what was registered by decorator, which another process does not know

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds `name`; a second registration of one name by another object is an error."""

        def add(target: T) -> T:
            self._verify(name, target)
            present = self._targets.get(name)
            if present is not None and _origin(present) != _origin(target):
                raise ConfigError(f"{self.kind} {name!r} is registered twice: {_origin(present)} and {_origin(target)}")
            self._targets[name] = self.decorated[name] = target
            return target

        return add

    def names(self) -> list[str]:
        self._read_entry_points()
        return sorted(self._targets)

    def get(self, name: str) -> T:
        """The object called `name`; a dotted path ``package.module:object`` or ``package.module.object`` works too."""
        if name not in self._targets:
            self._read_entry_points()
        target = self._targets.get(name)
        if target is None:
            if ":" in name or "." in name:
                target = name
            else:
                raise ConfigError(f"no {self.kind} named {name!r}{did_you_mean(name, self._targets)}")
        if isinstance(target, str):
            target = self._load(name, target)
            self._verify(name, target)
            self._targets[name] = target
        return target  # type: ignore[return-value]

    def _load(self, name: str, path: str) -> object:
        module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
        try:
            return getattr(_imported(module), attribute)
        except ModuleNotFoundError as error:
            where = ", nor a file beside the config or in the working folder" if error.name == module else ""
            raise ConfigError(
                f"{self.kind} {name!r} needs the module {error.name!r}, which is not installed{where}"
            ) from error
        except AttributeError as error:
            raise ConfigError(f"{self.kind} {name!r}: module {module!r} has no {attribute!r}") from error
        except ConfigError:
            raise
        except Exception as error:  # whatever the module does when it is imported
            why = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{self.kind} {name!r}: module {module!r} cannot be imported ({why})") from error

    def _verify(self, name: str, target: object) -> None:
        wrong = self._check(target) if self._check else None
        if wrong:
            raise ConfigError(f"{self.kind} {name!r} ({_origin(target)}) {wrong}")

    def _read_entry_points(self) -> None:
        if self._entry_points_read:
            return
        self._entry_points_read = True
        for point in entry_points(group=self.group):
            self._targets.setdefault(point.name, point.value)


def _imported(module: str) -> ModuleType:
    """A module by name, of those installed, of the working folder, or of a config's folder."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.split(".")[0]
        inside = [folder for folder in places() if (folder / top).is_dir() or (folder / f"{top}.py").is_file()]
        if error.name != top or not inside or str(inside[0]) in sys.path:
            raise
        sys.path.append(str(inside[0]))
        importlib.invalidate_caches()
        return importlib.import_module(module)


def _origin(target: object) -> str:
    if isinstance(target, str):
        return target
    return f"{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', target)}"
