"""``python -m autointerp.commands.reference [--check]``: write the docs' generated pages from the code.

1. docs/reference/config.md from the pydantic fields and the comments beside them.
2. docs/reference/plugins.md from the signatures and docstrings of the plug-ins and SAE formats that are built in.
3. docs/reference/stages.md, and the table in docs/architecture.md, from the stages' declarations.
4. docs/reference/tables.md from the columns of `autointerp.tables` and the comments beside them.
5. docs/reference/backends.md from the LLM backends and their protocol.
6. docs/reference/python.md from what `autointerp` exports.
7. docs/map.md from the first line of each file.

With ``--check`` nothing is written; the exit code is 1 where a page is not what the code gives.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autointerp import config, plugins, records, stages
from autointerp.artifacts import write_atomically
from autointerp.commands.reference_config import (
    REQUIRED,
    comments_beside,
    config_page,
    fields_in,
    first_line,
    named,
    plain,
    rows_of,
    value_of,
)
from autointerp.commands.reference_tables import tables_page
from autointerp.config import Config, LLMConfig
from autointerp.llm import backend as llm_backend
from autointerp.llm.registry import backends
from autointerp.registry import Registry
from autointerp.sae.formats import FORMATS

ROOT = Path(__file__).parents[2]
MADE = "<!-- Made from the code by `python -m autointerp.commands.reference`: change the code, not this page. -->"
STAGE_TABLE = ("<!-- the stages, made by `python -m autointerp.commands.reference` -->", "<!-- end of the stages -->")

NEEDS: dict[str, str] = {
    "llm": "the language model, an `autointerp.LLM`, as the argument after the evidence or the examples",
    "subject": "the loaded subject, an `autointerp.subject.model.Subject`",
    "sae": "the loaded SAE, an `autointerp.sae.model.SAE`",
    "neighbours": "the decoder neighbours, a tuple of `autointerp.records.Neighbour` with windows in which they"
    " fire and the feature is silent; of a control: feature -> the numbers of all explained features near it",
    "constituents": "what a flagged latent consists of, a tuple of `autointerp.records.Constituent`; an explainer finds"
    " them in `feature.constituents`, and is then asked about composites alone",
    "embedder": "sentence embeddings by a model of the catalogue, an `autointerp.catalog.embed.Embedder`",
    "activations": "an async function that gives the feature's activation on each token of any texts",
    "logit_effects": "an `autointerp.records.OutputEffects`: tokens that the decoder row raises by its product with the"
    " unembedding, and lists of other features that are not near",
    "steered": "an async function that gives an `OutputEffects` of texts, written by the subject while the feature is"
    " added to its activations",
    "ablated": "an async function that gives an `OutputEffects` of tokens, which become less likely where the feature"
    " is taken off",
    "token_table": "every token on which it fires in train documents, a tuple of `autointerp.records.TokenStat`",
    "shown": "the feature's train windows, firing and silent, a tuple of `autointerp.Context`",
    "calibration": "of a scorer with `pairs`: (truth, evidence) of its judge on train windows of other features",
    "natural_rate": "share of the windows of running text in which the feature fires",
    "random_windows": "windows of running text and where the feature fires, an `autointerp.records.RandomWindows`",
    "frequencies": "of a control: feature -> its firings over the tokens harvested",
}
RECORDS = (  # those that every plug-in meets
    records.FeatureEvidence,
    records.Context,
    records.TokenStat,
    records.Explanation,
    records.Score,
    records.Judgement,
    records.Message,
    records.Completion,
    records.Choices,
)


def pages() -> dict[str, str]:
    """Path below the repository's root -> text, of every page that is made from the code."""
    made = {
        "docs/reference/config.md": config_page(),
        "docs/reference/plugins.md": plugins_page(),
        "docs/reference/stages.md": stages_page(),
        "docs/reference/tables.md": tables_page(),
        "docs/reference/backends.md": backends_page(),
        "docs/reference/python.md": python_page(),
        "docs/map.md": map_page(),
    }
    made = {path: f"{MADE}\n\n{text.rstrip()}\n" for path, text in made.items()}
    return made | {"docs/architecture.md": with_stage_table((ROOT / "docs/architecture.md").read_text())}


# --- plugins.md -------------------------------------------------------------------------------


def plugins_page() -> str:
    intro = (
        "# Plug-ins\n\nA config names a plug-in by its registered name, or by a dotted path to a function of yours"
        " (`mine.explain`). Its options are written beside the name: `{name: default, examples: 8}`.\n"
        "`CONTRIBUTING.md` says how to write one."
    )
    needs = rows_of(["need", "what the plug-in is given"], ([f"`{need}`", NEEDS[need]] for need in plugins.NEEDS))
    given = (
        "## What a plug-in can ask for\n\nA plug-in lists its needs where it is registered,"
        ' `@scorer("mine", needs={"llm", "neighbours"})`, and has a keyword-only argument of each name. Keyword-only'
        f" arguments {' and '.join(f'`{name}`' for name in plugins.GIVEN)} are filled without being asked for."
    )
    parts = [intro, given, needs]
    for registry in (plugins.explainers, plugins.scorers, plugins.controls):
        parts.append(f"## {registry.kind.capitalize()}s\n\nEntry-point group: `{registry.group}`.")
        parts += [_plugin(name, target) for name, target in built_in(registry)]
    formats = [(name, type(target).__module__) for name, target in built_in(FORMATS)]
    rows = [[f"`{name}`", first_line(_file(module)).replace("``", "`")] for name, module in formats]
    parts.append(f"## SAE formats\n\nEntry-point group: `{FORMATS.group}`. A config names one with `sae.format`.")
    parts.append(rows_of(["name", "what it reads"], rows))
    parts.append("## What a plug-in reads and returns\n\nFrozen dataclasses of `autointerp.records`.")
    parts += [_record(record) for record in RECORDS]
    parts.append(f"### LLM\n\n{plain(records.LLM.__doc__ or '')}")
    return "\n\n".join([*parts, _methods(records.LLM)])


def _record(record: type) -> str:
    fields = comments_beside(inspect.getsource(record), fields_in)
    rows = [[f"`{name}`", f"`{record.__annotations__[name]}`", meaning] for name, meaning in fields.items()]
    return f"### {record.__name__}\n\n{plain(record.__doc__ or '')}\n\n" + rows_of(["field", "type", "meaning"], rows)


def built_in(registry: Registry[Any]) -> Iterator[tuple[str, Any]]:
    """Names and objects of a registry that are this package's own."""
    for name in registry.names():
        target = registry.get(name)
        module = getattr(target, "__module__", None) or type(target).__module__
        if module.startswith("autointerp."):
            yield name, target


def _file(module: str) -> Path:
    return Path(inspect.getsourcefile(sys.modules[module]) or "")


def _plugin(name: str, plugin: Callable[..., Any]) -> str:
    about = first_line(_file(plugin.__module__)).replace("``", "`")
    text = plain(plugin.__doc__ or "")
    needs = ", ".join(f"`{need}`" for need in sorted(plugins.needs(plugin))) or "nothing"
    head = f"### {name}\n\n{about}\n\n{text}\n\nNeeds: {needs}. File: `{_file(plugin.__module__).relative_to(ROOT)}`."
    filled = plugins.given_by_keyword(plugin)
    hints = typing.get_type_hints(plugin)
    options = [
        [
            f"`{option.name}`",
            named(hints[option.name]),
            REQUIRED if option.default is option.empty else value_of(option.default),
        ]
        for option in inspect.signature(plugin).parameters.values()
        if option.kind is option.KEYWORD_ONLY and option.name not in filled
    ]
    return head + ("\n\n" + rows_of(["option", "type", "default"], options) if options else "\n\nNo options.")


# --- stages.md and the table of architecture.md -----------------------------------------------


def stage_table() -> str:
    files = [[f"`{stage.kind}`", stage.about, ", ".join(stage.tables) or "–"] for stage in stages.STAGES]
    return rows_of(["stage", "what it writes", "tables in the run's folder"], files)


def with_stage_table(text: str) -> str:
    """`text` with the table between its marks made anew."""
    before, _, rest = text.partition(STAGE_TABLE[0])
    _, _, after = rest.partition(STAGE_TABLE[1])
    return f"{before}{STAGE_TABLE[0]}\n\n{stage_table()}\n\n{STAGE_TABLE[1]}{after}"


def stages_page() -> str:
    parts = [
        "# Stages\n\nA run is a graph of stages. Each is declared in one file of `autointerp/stages`. What a stage"
        " reads is listed as the shipped configs have it; a config that asks for less has fewer stages."
    ]
    read = _reads()
    for stage in stages.STAGES:
        module = f"autointerp.stages.{stage.kind}"
        lines = [
            f"## {stage.kind}",
            stage.about[0].upper() + stage.about[1:] + ".",
            plain(inspect.getdoc(sys.modules[module]) or "").partition("\n")[2].strip(),
            f"- reads: {', '.join(f'[{name}](#{name})' for name in read[stage.kind]) or 'nothing'}\n"
            f"- tables in the run's folder: {', '.join(f'`{name}`' for name in stage.tables) or 'none of its own'}\n"
            f"- when it is killed: {'goes on where it was' if stage.resumable else 'begins again'}",
        ]
        parts += [line for line in lines if line]
    return "\n\n".join(parts)


def _reads() -> dict[str, list[str]]:
    """Stage -> the stages that its uses read, over the shipped configs that have most of them."""
    read: dict[str, list[str]] = {stage.kind: [] for stage in stages.STAGES}
    for name in ("demo", "composites"):
        loaded: Config = config.load_config(name)
        for stage in stages.STAGES:
            for use in stage.uses(loaded):
                read[stage.kind] += [kind for need in use.needs if (kind := need.split("/")[0]) not in read[stage.kind]]
                read[stage.kind] = list(dict.fromkeys(read[stage.kind]))
    order = [stage.kind for stage in stages.STAGES]
    return {kind: sorted(others, key=order.index) for kind, others in read.items()}


# --- backends.md ------------------------------------------------------------------------------


def backends_page() -> str:
    parts = [
        "# LLM backends\n\nA config chooses a backend by `llm.backend`, by a word before a colon in `llm.model`"
        " (`vllm:ORG/NAME`), or leaves it out: a model with `llm.base_url` is asked by `openai`, any other by `local`."
        f" Entry-point group: `{backends.group}`. The keys of `llm` are in [config.md](config.md#llm).\n\n"
        "Capabilities are `choices` (probabilities of an answer's first token), `slots` (of tokens in a prompt) and"
        " `schema` (answers in a given JSON form). What scorers do without them:"
        " [no token probabilities](../endpoints.md#no-token-probabilities)."
    ]
    for name, kind in built_in(backends):
        able = kind.expected(LLMConfig(model="ORG/NAME", api_key_env=None))
        about = [
            f"## {name}",
            first_line(_file(kind.__module__)).replace("``", "`"),
            plain(kind.__doc__ or ""),
            f"- capabilities known before it is asked: {', '.join(f'`{each}`' for each in sorted(able)) or 'none'}\n"
            f"- file: `{_file(kind.__module__).relative_to(ROOT)}`",
        ]
        parts += [text for text in about if text]
    parts.append("## What a backend has\n\nClass methods, which answer before anything is asked:")
    parts.append(_methods(llm_backend.BackendKind))
    parts.append("Methods and properties of an open backend:")
    parts.append(_methods(llm_backend.Backend))
    return "\n\n".join(parts)


def _methods(protocol: type) -> str:
    rows = []
    for name, member in vars(protocol).items():
        if name.startswith("_"):
            continue
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function):
            given = ", ".join(p for p in inspect.signature(function).parameters if p not in ("self", "cls"))
            call = name if isinstance(member, property) else f"{name}({given})"
            kind = "async " if inspect.iscoroutinefunction(function) else ""
            rows.append([f"`{kind}{call}`", " ".join(plain(function.__doc__ or "").split())])
    return rows_of(["name", "what it does"], rows)


# --- python.md --------------------------------------------------------------------------------

OF_PLUGINS = {"explainer", "scorer", "control", *(record.__name__ for record in (*RECORDS, records.LLM))}


def python_page() -> str:
    from autointerp.report.compare import compare

    package = sys.modules["autointerp"]
    parts = [
        "# Python\n\n`import autointerp as ai` gives what follows. It also gives what plug-ins take: the decorators"
        " `ai.explainer`, `ai.scorer` and `ai.control`, and [records](plugins.md#what-a-plug-in-reads-and-returns)."
        " What is wrong with a config or an argument raises `autointerp.errors.ConfigError`. It is a kind of"
        " `AutointerpError`, which stands for all else that is known."
    ]
    for name in package.__all__:
        if name in OF_PLUGINS:
            continue
        target = getattr(package, name)
        parts.append(f"## {name}")
        if inspect.isclass(target):
            parts += [plain(target.__doc__ or ""), _methods(target)]
            parts += ["What `compare` takes, with the runs first:", _documented("compare", compare)]
        else:
            parts.append(_documented(f"ai.{name}", target))
    return "\n\n".join(parts)


def _documented(name: str, function: Callable[..., Any]) -> str:
    """Its arguments with their defaults, and its docstring, but for columns that tables.md has."""
    signature = inspect.signature(function)
    bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    signature = signature.replace(parameters=bare, return_annotation=signature.empty)
    before, table, after = plain(function.__doc__ or "").partition("Returns a row for each latent:")
    text = f"{before}{table} see tables.md.\n\n{after[after.index('Raises') :]}" if table else before
    return f"```text\n{name}{signature}\n\n{text.rstrip()}\n```"


# --- map.md -----------------------------------------------------------------------------------


def map_page() -> str:
    parts = [
        "# Map\n\nEvery file of the package with the first line of its docstring. A folder's line is that of its"
        " `__init__.py`. [architecture.md](architecture.md) says how the rooms stand to each other."
    ]
    for folder in ("autointerp", "benchmarks", "examples"):
        parts.append(f"```text\n{chr(10).join(_tree(ROOT / folder, ''))}\n```")
    return "\n\n".join(parts)


def _tree(folder: Path, indent: str) -> Iterator[str]:
    init = folder / "__init__.py"
    yield f"{indent}{folder.name}/".ljust(32) + (first_line(init) if init.is_file() else "")
    inside = sorted(folder.glob("*.py")) + sorted(p.parent for p in folder.glob("*/__init__.py"))
    for path in inside:
        if path.is_dir():
            yield from _tree(path, indent + "  ")
        elif path != init:
            yield f"{indent}  {path.name}".ljust(32) + first_line(path)


def main(arguments: Sequence[str]) -> int:
    made = pages()
    stale = [path for path, text in made.items() if not (ROOT / path).is_file() or (ROOT / path).read_text() != text]
    for path in stale:
        if "--check" in arguments:
            print(f"{path} is not what the code gives: run `python -m autointerp.commands.reference`")
            continue
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(ROOT / path, lambda file, text=made[path]: file.write_text(text, encoding="utf-8"))
        print(path)
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
