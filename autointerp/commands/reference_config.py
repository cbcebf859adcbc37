"""The generated page of the config's keys, and what generated pages share: Markdown tables, comments beside code.

A key's meaning is the comment beside its field, its bounds and default are those of pydantic.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from autointerp import config
from autointerp.report.sweep import Plan
from autointerp.sae import train_config

# --- Markdown ---------------------------------------------------------------------------------


def rows_of(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def plain(text: str) -> str:
    """A docstring's text as Markdown."""
    return inspect.cleandoc(text).replace("``", "`")


def first_line(file: Path) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def comments_beside(source: str, names: Callable[[ast.AST], Mapping[str, ast.AST]]) -> dict[str, str]:
    """Name -> the comments on the lines of its node and on the lines just above; `names` finds the nodes."""
    comments: dict[int, tuple[str, bool]] = {}  # line -> comment, and whether it has the line for itself
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# "), not token.line[: token.start[1]].strip()
    beside: dict[str, str] = {}
    for name, node in names(ast.parse(source)).items():
        first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        above = first
        while comments.get(above - 1, ("", False))[1]:
            above -= 1
        beside[name] = " ".join(comments[line][0] for line in range(above, last + 1) if line in comments)
    return beside


def fields_in(tree: ast.AST) -> dict[str, ast.AST]:
    """The annotated names of a class's source."""
    (cls,) = tree.body  # type: ignore[attr-defined]
    return {node.target.id: node for node in cls.body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]


# --- config.md --------------------------------------------------------------------------------

SECTIONS: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("top level", config.Config, ""),
    ("subject", config.SubjectConfig, ""),
    ("corpus", config.CorpusConfig, ""),
    ("sae", config.SaeConfig, ""),
    ("sae.neurons", config.NeuronsConfig, ""),
    ("sae.train", train_config.TrainConfig, ""),
    ("sae.train.penalty", train_config.PenaltyConfig, ""),
    ("features", config.FeaturesConfig, ""),
    ("contexts", config.ContextsConfig, ""),
    ("calibration", config.CalibrationConfig, ""),
    ("llm", config.LLMConfig, "Also below an item of `explainers` or `scorers`, and below `composites.semantic`."),
    (
        "plug-in",
        config.PluginConfig,
        "An item of `explainers`, `scorers` or `controls` is a name, or a mapping of these keys and the plug-in's own"
        " options ([plugins.md](plugins.md)).",
    ),
    ("composites", config.CompositesConfig, ""),
    ("composites.semantic", config.SemanticConfig, "`true` stands for the defaults."),
    ("composites.causal", config.CausalConfig, "`true` stands for the defaults."),
    ("evaluation", config.EvaluationConfig, ""),
    ("executor", config.ExecutorConfig, ""),
    ("tracking", config.TrackingConfig, "Also below `sae.train`, for a training alone."),
    (
        "sweep",
        Plan,
        "They stand at the top level of the file that `autointerp sweep` reads. A metric is one of"
        " [evaluation](tables.md#evaluation), `share_LABEL` for a [label](../composites.md#labels), a scorer's label,"
        " or `SCORER_control` or `SCORER_gain` (the value less the control's).",
    ),
)
TYPES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Any: "any",
    Path: "path",
}
REQUIRED = "–"  # in the place of a default
BOUNDS = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< "}


def config_page() -> str:
    parts = [
        "# The config\n\nA config is one YAML file. Unknown keys are errors that name the nearest known one. `--set"
        " key.path=value` on the command line overrides a key; `--set explainers.0.examples=8` reaches into a list."
        " A key without a default has to be given. `null` is written for a value that is not given.",
    ]
    for name, section, more in SECTIONS:
        about = [plain(section.__doc__ or ""), more]
        parts += [f"## {name}", " ".join(text for text in about if text), _keys(section)]
    return "\n\n".join(part for part in parts if part)


def _keys(section: type[BaseModel]) -> str:
    comments = comments_beside(inspect.getsource(section), fields_in)
    meaning = {name: re.sub(r"\bNone\b", "null", comment) for name, comment in comments.items()}
    hints = typing.get_type_hints(section)
    return rows_of(
        ["key", "type", "default", "meaning"],
        (
            [f"`{name}`", _type(hints[name], field.metadata), _default(field), meaning[name] or _about(hints[name])]
            for name, field in section.model_fields.items()
        ),
    )


def _about(hint: Any) -> str:
    """What a section says of itself."""
    section = next((each for _, each, _ in SECTIONS if hint is each or each in typing.get_args(hint)), None)
    return plain(section.__doc__ or "").partition("\n")[0] if section else ""


def _type(hint: Any, metadata: Sequence[Any]) -> str:
    bounds = [
        f"{sign}{getattr(rule, key):g}" for rule in metadata for key, sign in BOUNDS.items() if hasattr(rule, key)
    ]
    patterns = [f"`{rule.pattern}`" for rule in metadata if getattr(rule, "pattern", None)]
    return ", ".join([named(hint), *bounds, *patterns])


def named(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(named(each) for each in inner if each is not type(None))
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin in (list, tuple):
        return f"list of {named(inner[0])}"
    if origin in (dict, Mapping):
        return "mapping" if inner[1] in (Any, object) else f"mapping to {named(inner[1])}"
    for name, section, _ in SECTIONS:
        if hint is section:
            return f"[{name}](#{name.replace('.', '').replace(' ', '-')})"
    return TYPES.get(hint) or getattr(hint, "__name__", str(hint))


def _default(field: Any) -> str:
    return REQUIRED if field.is_required() else value_of(field.default)


def value_of(value: Any) -> str:
    if isinstance(value, config.PluginConfig):
        return value.name
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(value_of(each).strip('`') for each in value)}]`"
    if value is None or isinstance(value, bool):
        return f"`{'null' if value is None else str(value).lower()}`"
    return f"`{value:,}`".replace(",", "_") if isinstance(value, int) else f"`{value}`"
