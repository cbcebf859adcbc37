"""The house: which way imports point, and how long files and functions may be."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1] / "autointerp"
GROUND = (
    "records config registry plugins artifacts tables prompting answers stats progress resources hashing memory"
    " errors redact tracking overrides"
)
FLOORS = (
    set(GROUND.split()),
    {"catalog"},
    {"subject", "sae", "activations", "composites", "evaluation", "toys"},
    {"llm", "explainers", "scorers", "controls"},
    {"engine"},
    {"stages"},
    {"report"},
    {"commands"},
    {"cli", "__main__", "__init__"},
)
FILES = sorted(ROOT.rglob("*.py"))
MODULES = [".".join(file.relative_to(ROOT.parent).with_suffix("").parts) for file in FILES]
NAMES = {module.removesuffix(".__init__"): file for module, file in zip(MODULES, FILES)}


def room(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def floor(file: Path) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(file) in rooms)


def imported(file: Path) -> set[Path]:
    """Files of the package that a file imports anywhere: inside functions and for types too."""
    files = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            files.add(NAMES.get(name) or NAMES.get(name.rpartition(".")[0]))
    return {other for other in files if other is not None and other != file}


def test_every_file_stands_on_a_floor() -> None:
    rooms = {room(file) for file in FILES}
    assert rooms == set().union(*FLOORS)


def test_imports_point_down() -> None:
    upwards = [
        f"{file.relative_to(ROOT)} -> {other.relative_to(ROOT)}"
        for file in FILES
        for other in imported(file)
        if floor(other) > floor(file) or (other == ROOT / "__init__.py" and file.name != "cli.py")
    ]
    assert not upwards


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {file: imported(file) for file in FILES if file != ROOT / "__init__.py"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(str(file.relative_to(ROOT)) for file in error.args[1]))


def test_files_and_functions_are_read_in_one_sitting() -> None:
    lengths: dict[str, int] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                lengths[f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1
    assert not {name: length for name, length in lengths.items() if length > 70}
    assert median(lengths.values()) <= 10
    long = {str(f.relative_to(ROOT)): n for f in FILES if (n := f.read_text().count("\n")) > 450}
    assert not long
