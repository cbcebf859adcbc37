"""What makes a stage stale when code changes: a hash of all definitions that a function can reach.

1. Start at the function. Collect every name that it reads, in its body, its signature and its annotations.
2. Resolve each name: a definition of the same file, an import of the file (in a ``try`` or an ``if`` too; one under
   TYPE_CHECKING tells whose methods are called) or of the function, an attribute of a submodule, or a target written as
   text, ``"package.module:object"``.
3. Go on from there, through the files of this package and, for a plug-in, of the folder that the plug-in lies in.
4. Hash each definition that was reached, without docstrings, comments and layout. Statements that a file runs when it
   is imported count with the first definition of the file that is reached.

A function of no file, such as a notebook's, is looked at as it is in memory: its compiled code, and the values that it
reads, those of other cells too.

A class counts whole. A file that holds the constant ``NOT_IN_KEYS`` does not count, and nothing is followed from it:
its text says why what it does cannot change a result, or where else the key holds it.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from autointerp.hashing import PACKAGE, digest, without_docstrings

NOT_IN_KEYS = "it makes the keys; a change of what they hold is a change of the keys themselves"

_EXEMPT = "NOT_IN_KEYS"
_AT_IMPORT = "at import"
_STAR = "*"  # before a module's name, where all of its names are imported
_IN_MEMORY = "(no file)"  # in the place of a module's name
_TARGET = re.compile(r"[A-Za-z_]\w*(\.\w+)+:[A-Za-z_]\w*")  # "package.module:object"
_Imports = Mapping[str, tuple[str, str | None]]  # local name -> (module, name in it; None: the module itself)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def reached(function: Callable[..., Any]) -> Mapping[str, str]:
    """Module -> hash of the definitions in it that `function` can reach; its own module first."""
    function = inspect.unwrap(function)
    file = _file_of(function)
    if file is None:
        return _in_memory(function)
    name = function.__qualname__.split(".")[0]
    return _reached(file, name if name != "<lambda>" and "<locals>" not in function.__qualname__ else None)


_walked: dict[tuple[Path, str | None], tuple[Mapping[Path, tuple[int, int]], Mapping[str, str]]] = {}


def _reached(file: Path, name: str | None) -> Mapping[str, str]:
    """The walk from a definition of a file, or from all of it (None): again only after a file on the way changed."""
    stamps, hashes = _walked.get((file, name), ({}, {}))
    if not stamps or any(_stamp(each) != stamp for each, stamp in stamps.items()):
        walk = _Walk(tuple(dict.fromkeys((_scope(file), (PACKAGE.parent, PACKAGE)))))
        walk.visit(file, name)
        hashes = walk.hashes()
        _walked[file, name] = {each: module.stamp for each, module in walk.modules.items()}, hashes
    return hashes


def _stamp(file: Path) -> tuple[int, int] | None:
    """By which a change of a file is noticed; None where it is gone."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _file_of(value: object) -> Path | None:
    """The Python file that a function, class or module comes from; None where there is none."""
    try:
        file = Path(inspect.getsourcefile(value) or "")  # type: ignore[arg-type]
    except (TypeError, OSError):  # built in, or of a notebook
        return None
    return file if file.is_file() else None


# --- what has no file -------------------------------------------------------------------------


def _in_memory(function: Callable[..., Any]) -> Mapping[str, str]:
    """`reached` of a function or class that was defined at a prompt or in a notebook."""
    meanings: list[Any] = []
    modules: dict[str, str] = {}
    pending: list[Any] = [function]
    seen: list[Any] = []
    while pending:
        value = pending.pop()
        if not isinstance(value, FunctionType | type | ModuleType):
            meanings.append(_stable(value))
        elif not any(value is each for each in seen):
            seen.append(value)
            file = _file_of(value)
            if file is not None and _is_local(file):
                modules |= _reached(file, None) if isinstance(value, ModuleType) else reached(value)
            elif isinstance(value, FunctionType) and file is None:
                meanings.append(_stable(value))
                pending += _read_by(value)
            elif isinstance(value, type) and value.__module__ == "__main__":
                meanings.append(value.__qualname__)
                pending += [*value.__bases__, *_members(value)]
            else:  # of Python or of an installed package
                meanings.append(value.__name__)
    return {_IN_MEMORY: digest(meanings)} | modules


def _read_by(function: FunctionType) -> Iterator[Any]:
    """Its defaults, and the values that it reads around it."""
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    yield from (cell.cell_contents for cell in function.__closure__ or ())
    pending = [function.__code__]
    while pending:
        code = pending.pop()
        pending += [each for each in code.co_consts if isinstance(each, CodeType)]
        yield from (function.__globals__[name] for name in code.co_names if name in function.__globals__)


def _members(kind: type) -> Iterator[Any]:
    """A class' own functions and values, each behind its name."""
    for name, member in sorted(vars(kind).items()):
        if name in ("__init__", "__call__") or not name.startswith(("__", "_abc_")):
            yield name
            yield member.fget if isinstance(member, property) else getattr(member, "__func__", member)


def _stable(value: Any) -> Any:
    """A value as JSON has it, the same in every process where its text is."""
    if isinstance(value, CodeType):
        steps = value.co_code.hex(), value.co_exceptiontable.hex(), value.co_argcount, value.co_kwonlyargcount
        return [*steps, value.co_names, value.co_varnames, [_stable(each) for each in value.co_consts]]
    if isinstance(value, FunctionType):
        return [value.__qualname__, _stable(value.__code__)]
    if isinstance(value, tuple | list):
        return [_stable(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(digest(_stable(each)) for each in value)
    if isinstance(value, dict):
        return [[_stable(key), _stable(each)] for key, each in value.items()]
    return repr(value)


def _is_local(file: Path) -> bool:
    """Whether a file is this package's or a user's own, and not of Python or of an installed package."""
    if file.is_relative_to(PACKAGE):
        return file != PACKAGE / "__init__.py"
    installed = {"site-packages", "dist-packages"} & {*file.parts}
    return not installed and not file.is_relative_to(sysconfig.get_path("stdlib"))


# --- what has one -----------------------------------------------------------------------------


def _root_of(file: Path) -> Path:
    """The folder that absolute imports of this file's package start from."""
    folder = file.resolve().parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder


def _scope(file: Path) -> tuple[Path, Path]:
    """Where a file's absolute imports start from, and the folder of the files that are followed: its package, or the
    folder of a lone file (that file alone where the folder is one of installed packages)."""
    root = _root_of(file)
    if root != file.resolve().parent:
        return root, root / file.resolve().relative_to(root).parts[0]
    return root, file.resolve() if root.name in ("site-packages", "dist-packages") else root


@dataclass(frozen=True)
class _Reference:
    """A name that a definition reads: of its own file (no module), or imported, with the attributes asked of it."""

    module: str | None
    name: str | None
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Definition:
    meaning: str  # hash of its code
    references: tuple[_Reference, ...]


@dataclass
class _Module:
    """A file's definitions and imports by name; what a definition means is found out when it is asked for."""

    file: Path
    stamp: tuple[int, int]
    statements: Mapping[str, tuple[ast.stmt, ...]]  # `_AT_IMPORT`: what runs at import beside definitions and imports
    imports: _Imports
    exempt: bool
    made: dict[str, _Definition] = field(default_factory=dict)

    def definition(self, name: str) -> _Definition:
        if name not in self.made:
            statements = self.statements[name]
            references = dict.fromkeys(each for statement in statements for each in self._references(statement))
            meaning = digest([ast.dump(without_docstrings(statement)) for statement in statements])
            self.made[name] = _Definition(meaning, tuple(references))
        return self.made[name]

    def _references(self, statement: ast.stmt) -> Iterator[_Reference]:
        for name, attributes, imports in _names(statement, self.file, frozenset(), self.imports):
            if ":" in name:
                module, _, target = name.partition(":")
                yield _Reference(module, target)
            elif name in imports:
                yield _Reference(*imports[name], attributes)
            elif name in self.statements:
                yield _Reference(None, name)


@dataclass
class _Walk:
    scopes: tuple[tuple[Path, Path], ...]  # where imports start from, and the folder that is followed
    modules: dict[Path, _Module] = field(default_factory=dict)
    seen: set[tuple[Path, str]] = field(default_factory=set)
    meanings: dict[Path, dict[str, str]] = field(default_factory=dict)  # file -> definition -> its meaning

    def hashes(self) -> dict[str, str]:
        return {self._name(file): digest(meanings) for file, meanings in self.meanings.items()}

    def _name(self, file: Path) -> str:
        for root, folder in self.scopes:
            if file.is_relative_to(folder):
                return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        return file.stem

    def module(self, file: Path) -> _Module:
        if file not in self.modules:
            stamp = _stamp(file)
            if stamp is None:
                raise FileNotFoundError(file)
            self.modules[file] = _parsed(file, stamp)
        return self.modules[file]

    def visit(self, file: Path, name: str | None) -> None:
        """Take in definition `name` of a file, or all of the file (None)."""
        pending = [(file.resolve(), name)]
        while pending:
            file, name = pending.pop()
            module = self.module(file)
            if module.exempt:
                continue
            names = [name] if name is not None else [*module.statements, *module.imports]
            for each in names:
                if (file, each) not in self.seen:
                    self.seen.add((file, each))
                    pending += self._take(module, each)

    def _take(self, module: _Module, name: str) -> Iterator[tuple[Path, str | None]]:
        """Take in one name of a file; where to go on from it."""
        if name in module.statements:
            definition = module.definition(name)
            self.meanings.setdefault(module.file, {})[name] = definition.meaning
            if _AT_IMPORT in module.statements:
                yield module.file, _AT_IMPORT
            for local, (imported, _) in module.imports.items():
                if local.startswith(_STAR) and (file := self._file(imported)) is not None:
                    yield file, None
            for reference in definition.references:
                yield from self._follow(module, reference)
        elif name in module.imports:
            yield from self._target(*module.imports[name])
        elif name != _AT_IMPORT and module.file.name != "__init__.py":
            yield module.file, None  # made in some way that is not seen: all of the file counts

    def _follow(self, module: _Module, reference: _Reference) -> Iterator[tuple[Path, str | None]]:
        where, name = reference.module, reference.name
        if where is None:
            yield module.file, name
            return
        parts = [f"{where}.{name}" if name else where, *reference.attributes]
        for end in range(len(parts) - 1, 0, -1):  # ``package.module.name``: after the longest that is a module
            if self._file(inner := ".".join(parts[:end])) is not None:
                yield from self._target(inner, parts[end])
                return
        yield from self._target(where, name)

    def _target(self, module: str, name: str | None) -> Iterator[tuple[Path, str | None]]:
        """Where ``from module import name`` leads; nothing for other packages' modules. Of a module taken as a whole
        only what runs at import: its attributes follow where they are named."""
        inner = self._file(f"{module}.{name}" if name is not None else module)
        if inner is not None:
            yield inner, _AT_IMPORT
        elif name is not None and (file := self._file(module)) is not None:
            yield file, name

    def _file(self, module: str) -> Path | None:
        return _find(self.scopes, module)


@cache
def _find(scopes: tuple[tuple[Path, Path], ...], module: str) -> Path | None:
    for root, folder in scopes:
        place = root.joinpath(*module.split("."))
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_relative_to(folder) and file.is_file():
                return file.resolve()
    return None


_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _names(
    node: ast.AST, file: Path, bound: frozenset[str], imports: _Imports
) -> Iterator[tuple[str, tuple[str, ...], _Imports]]:
    """Each name that `node` reads and that no scope around it binds, with the attributes asked of it, and the imports
    that hold there; and each text that names a target."""
    root, attributes = _chain(node)
    if isinstance(root, ast.Name):
        if root.id not in bound:
            yield root.id, attributes, imports
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str) and _TARGET.fullmatch(node.value):
            yield node.value, (), imports
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        outside, inside = _parts_of(node)
        for part in outside:
            yield from _names(part, file, bound, imports)
        own, imported = _bound_in(inside, file)
        arguments = {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
        for part in inside:
            yield from _names(part, file, (bound | arguments | own) - set(imported), {**imports, **imported})
    elif isinstance(node, _COMPREHENSIONS):
        targets = {n.id for part in node.generators for n in ast.walk(part.target) if isinstance(n, ast.Name)}
        yield from _names(node.generators[0].iter, file, bound, imports)
        for part in ast.iter_child_nodes(node):
            yield from _names(part, file, bound | targets, imports)
    else:
        for part in ast.iter_child_nodes(node):
            yield from _names(part, file, bound, imports)


def _chain(node: ast.AST) -> tuple[ast.AST, tuple[str, ...]]:
    """``a.b.c`` -> the node of a, and (b, c)."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    return node, tuple(attributes)


def _parts_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> tuple[list[ast.AST], list[ast.AST]]:
    """What of a function is evaluated around it, and what within."""
    defaults = [each for each in (*node.args.defaults, *node.args.kw_defaults) if each is not None]
    notes = [each.annotation for each in ast.walk(node.args) if isinstance(each, ast.arg) and each.annotation]
    if isinstance(node, ast.Lambda):
        return [*defaults, *notes], [node.body]
    return [*defaults, *notes, *node.decorator_list, *([node.returns] if node.returns else [])], [*node.body]


def _bound_in(statements: Sequence[ast.AST], file: Path) -> tuple[set[str], _Imports]:
    """Names that a function's own statements assign (those of functions and comprehensions inside it apart), and what
    they import."""
    names: set[str] = set()
    imports: dict[str, tuple[str, str | None]] = {}
    pending = list(statements)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= _imported(node, file)
        elif isinstance(node, (*_DEFINITIONS, ast.ExceptHandler)):
            names.add(node.name or "")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if not isinstance(node, (*_DEFINITIONS, ast.Lambda, *_COMPREHENSIONS)):
            pending += ast.iter_child_nodes(node)
    declared = {name for s in statements for n in ast.walk(s) if isinstance(n, ast.Global) for name in n.names}
    return names - declared, imports


@cache
def _parsed(file: Path, stamp: tuple[int, int]) -> _Module:
    """`stamp`: the file's time and size, so that a file that changed is read again."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    definitions: dict[str, list[ast.stmt]] = {}
    imports: dict[str, tuple[str, str | None]] = {}
    exempt = False
    pending = list(tree.body)
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= _imported(node, file)
        elif isinstance(node, _DEFINITIONS):
            definitions.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.If) and _type_checking(node.test):
            pending[:0] = node.body
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names = {n.id for t in _targets(node) for n in ast.walk(t) if isinstance(n, ast.Name)}
            exempt = exempt or _EXEMPT in names
            for name in names:
                definitions.setdefault(name, []).append(node)
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            definitions.setdefault(_AT_IMPORT, []).append(node)
            imports |= _bound_in([node], file)[1]
    return _Module(file, stamp, {name: tuple(nodes) for name, nodes in definitions.items()}, imports, exempt)


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _imported(node: ast.Import | ast.ImportFrom, file: Path) -> dict[str, Any]:
    """Local names that an import binds, each with its module and name there."""
    if isinstance(node, ast.Import):
        return {
            a.asname or a.name.split(".")[0]: (a.name if a.asname else a.name.split(".")[0], None) for a in node.names
        }
    module = node.module or ""
    if node.level:
        folder = file.parent
        for _ in range(node.level - 1):
            folder = folder.parent
        module = ".".join([*folder.relative_to(_root_of(file)).parts, *([module] if module else [])])
    if node.names[0].name == "*":
        return {f"{_STAR}{module}": (module, None)}
    return {alias.asname or alias.name: (module, alias.name) for alias in node.names}
