"""The command ``autointerp``: parse, call, print. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from autointerp.commands.printed import columns
from autointerp.errors import AutointerpError, ConfigError, Problems

app = typer.Typer(
    help="Explain the features of sparse autoencoders, and say how far each explanation can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: quicker, and the same everywhere
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of one in pipelines/.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name in results/.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the config; repeatable.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run's folder; results/NAME without it.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log everything; a traceback when something fails.")]


DecoderArgument = Annotated[
    str,
    typer.Argument(
        metavar="SAE", help="An SAE, or its decoder alone: a matrix [latents, d_model] in .npy, .safetensors or .pt."
    ),
]
Transpose = Annotated[bool, typer.Option("--transpose", help="Bare matrices are [d_model, latents].")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; auto: a GPU if there is.")]


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that lacks a character shows ?
    app()


def command(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function as a command of its name: `example` in its help, its failures as one line and an exit code."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **options: Any) -> None:
            with _failures(options["verbose"]), _logging(options["verbose"]):
                function(*args, **options)
                sys.stdout.flush()

        return app.command(epilog=f"Example: autointerp {example}")(guarded)

    return add


@command("run demo --set features.count=20")
def run(
    config: ConfigArgument,
    set: Set = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done: the same as plan.")] = False,
    verbose: Verbose = False,
) -> None:
    """Run the pipeline: what is done already is kept, what is stale or missing is done."""
    if dry_run:
        _print_plan(config, set, out)
        return
    from autointerp.commands.run import run as run_pipeline
    from autointerp.report import print_table

    folder = run_pipeline(config, set=_overrides(set), out=out).folder
    print_table(folder, limit=50)
    print(f"report: {folder / 'report.html'}")


@command("plan demo --set features.count=200")
def plan(config: ConfigArgument, set: Set = None, out: Out = None, verbose: Verbose = False) -> None:
    """Say what each stage would do and why, and what it would cost."""
    _print_plan(config, set, out)


@command("doctor demo")
def doctor(config: ConfigArgument, set: Set = None, out: Out = None, verbose: Verbose = False) -> None:
    """Look at everything that can be known wrong before a run; one short request goes to each endpoint."""
    from autointerp.commands.doctor import doctor as examine
    from autointerp.commands.printed import checks_text
    from autointerp.config import load_config

    seen = examine(load_config(config, _overrides(set)), out)
    print(_redact(checks_text(seen)))
    if code := max((check.exit_code for check in seen if check.wrong), default=0):
        raise typer.Exit(code)


@command("table demo --sort simulation --where \"detection > 0.8 and composite == 'composite'\"")
def table(
    run: RunArgument,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Highest first; the first scorer without it.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="EXPRESSION",
            help="Rows on which it holds: comparisons, and/or/not, in, + - * /, 'text' in column. "
            "A missing value satisfies none but `column is None`.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many rows.")] = None,
    format: Annotated[Format, typer.Option(help="A table to read, or data with all columns.")] = Format.table,
    verbose: Verbose = False,
) -> None:
    """Print the scored explanation table of a run."""
    from autointerp.report import print_table

    print_table(run, sort_by=sort, condition=where, limit=limit, format=format.value)


@command("show demo 1234")
def show(
    run: RunArgument,
    feature: Annotated[int, typer.Argument(metavar="FEATURE", help="The feature's number in its SAE.")],
    verbose: Verbose = False,
) -> None:
    """Print one feature: contexts, explanations, scores and controls, neighbours, composite verdict, logits."""
    from autointerp.report import show as show_feature

    show_feature(run, feature)


@command("prompts demo --feature 1234")
def prompts(
    config: ConfigArgument,
    feature: Annotated[int | None, typer.Option(metavar="N", help="This feature alone.")] = None,
    set: Set = None,
    out: Out = None,
    verbose: Verbose = False,
) -> None:
    """Print the exact prompts that would be sent, with token counts; nothing is sent."""
    from autointerp.commands.prompts import prompts as all_prompts
    from autointerp.config import load_config

    count = tokens = 0
    for view in all_prompts(load_config(config, _overrides(set)), feature, out):
        print(f"── {view.stage} · feature {view.feature} · {view.title} · {view.tokens:,} tokens")
        for message in view.messages:
            print(f"[{message.role}]\n{message.content}\n")
        count, tokens = count + 1, tokens + view.tokens
    print(f"{count:,} prompts, {tokens:,} tokens")


@command("models")
def models(verbose: Verbose = False) -> None:
    """List the models and texts of the catalogue: what is cached, and where the rest comes from."""
    from autointerp.catalog import models_table

    rows = models_table()
    names = ["name", "kind", "cached", "size", "licence"]
    lines = columns(names, [[_cell(row[name]) for name in names] for row in rows])
    print(lines[0])
    for line, row in zip(lines[1:], rows):
        print(line)
        for source in row["sources"]:
            print(f"    from {source}")
        if row["cached"]:
            print(f"    in   {row['path']}")


@command("report demo --out demo.html")
def report(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file; report.html in the run's folder without it.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write the report as one self-contained HTML file."""
    from autointerp.report import write_report

    print(write_report(run, out))


@command("composites my-sae --union wider-sae --out composites.parquet")
def composites(
    sae: DecoderArgument,
    union: Annotated[
        str | None,
        typer.Option(metavar="SAE2", help="Another SAE of the same activations, whose directions may be constituents."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All latents, as .parquet, .csv or .json by its suffix.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="Show so many composites.")] = 20,
    transpose: Transpose = False,
    device: Device = "auto",
    memory: Annotated[
        float, typer.Option(min=0, max=1e6, metavar="GB", help="For directions; more than fit are read as needed.")
    ] = 3.0,
    verbose: Verbose = False,
) -> None:
    """Find composite features, duplicates and split families in a decoder alone: no language model is needed."""
    from autointerp.commands import composites as decoder

    if out is not None:
        decoder.check_writable(out)
    found = decoder.check_decoder(sae, union, transpose=transpose, device=device, memory=int(memory * 2**30))
    _print_composites(found, limit)
    if out is not None:
        decoder.write_table(found, out)
        print(out)


@command("sweep relu-vs-topk")
def sweep(
    config: ConfigArgument,
    set: Set = None,
    out: Out = None,
    verbose: Verbose = False,
) -> None:
    """Train and evaluate the variants of a config on the same tokens; ends with their figures side by side."""
    from autointerp.commands.sweep import sweep as run_sweep
    from autointerp.report.sweep import print_sweep

    found = run_sweep(config, set=_overrides(set), out=out)
    print_sweep(found)
    print(f"picture: {found.folder / 'sweep.png'}")


@command("train train-demo --set sae.train.k=16")
def train(config: ConfigArgument, set: Set = None, out: Out = None, verbose: Verbose = False) -> None:
    """Train the SAE of a config and stop there."""
    from autointerp.commands.train import train as train_alone

    folder, figures = train_alone(config, set=_overrides(set), out=out)
    rows = [[name, f"{value:.4g}"] for name, value in figures.items() if isinstance(value, int | float)]
    print("\n".join(columns(["figure", "value"], rows)))
    print(f"SAE: {folder}")


@command("evaluate pipelines/saes/stories15m-l1 demo --set evaluation.tokens=20000")
def evaluate(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="A folder, file or hub id: any SAE that loads.")],
    config: ConfigArgument,
    set: Set = None,
    out: Out = None,
    verbose: Verbose = False,
) -> None:
    """Measure an SAE on the subject and the text of a config: sparsity, reconstruction, the patched model, latents."""
    from autointerp.commands.train import evaluate as evaluate_alone
    from autointerp.report.evaluation import print_evaluation

    folder = evaluate_alone(sae, config, set=_overrides(set), out=out).folder
    print_evaluation(folder)
    print(f"tables, saebench.json, evaluation.png: {folder}")


@command("geometry my-sae --other wider-sae --out geometry")
def geometry(
    sae: DecoderArgument,
    other: Annotated[
        str | None, typer.Option(metavar="SAE2", help="Another SAE of the same activations: which latents has it not?")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="For geometry.json and geometry.png.")] = Path(
        "geometry"
    ),
    meta_passes: Annotated[
        int, typer.Option(min=0, metavar="N", help="Over the rows, in training the meta-SAEs; 0: none.")
    ] = 50,
    transpose: Transpose = False,
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Report how the directions of an SAE lie: cosines beside two nulls, hubs, meta-SAE, what another SAE has not."""
    from autointerp.commands import composites as decoder
    from autointerp.commands.geometry import geometry_report

    rows, *others = decoder.load_decoders([sae, *([other] if other else [])], transpose=transpose)
    device = decoder.usable_device(device)
    found = geometry_report(rows, out, other=others[0] if others else None, meta_passes=meta_passes, device=device)
    lines = []
    for name, mean in found.mmcs.items():
        meta = found.meta_sae[name] if found.meta_sae else None
        explained = [f"{meta.explained_variance:.3f}", f"{meta.dead_fraction:.0%}"] if meta else ["–", "–"]
        lines.append([name, f"{mean:.3f}", *explained])
    print("\n".join(columns(["directions", "mean highest cosine", "meta-SAE explains", "dead"], lines)))
    if found.other:
        print(f"\nto {other}: mean highest cosine {found.other.mmcs:.3f}, {found.other.distinct:.1%} distinct (< .2)")
    print(out / "geometry.png")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        from autointerp import __version__

        print(__version__)
        raise typer.Exit


# --- printing ---------------------------------------------------------------------------------


def _print_plan(config: str, set: list[str] | None, out: Path | None) -> None:
    from autointerp.commands.plan import plan as make_plan
    from autointerp.commands.printed import plan_text
    from autointerp.config import load_config

    print(_redact(plan_text(make_plan(load_config(config, _overrides(set)), out))))


def _print_composites(found: Any, limit: int) -> None:
    """Counts by label, then the flagged latents: composite before possible, then by R²."""
    counts = found["label"].value_counts()
    rows = [[label, f"{count:,}", f"{count / len(found):.1%}"] for label, count in counts.items()]
    print("\n".join(columns(["label", "latents", "share"], rows)))
    flagged = found[found["atoms"].str.len() > 0].sort_values(["label", "r2"], ascending=[True, False], kind="stable")
    if not len(flagged) or not limit:
        return
    rows = []
    for row in flagged.head(limit).to_dict("records"):
        names = [*map(str, row["constituents"]), *(f"union:{part}" for part in row["union_constituents"])]
        parts = " + ".join(f"{weight:.2f}·{name}" for weight, name in zip(row["coefficients"], names))
        told = {*row["atoms"]} in ({*row["constituents"]}, {row["feature"]})  # nothing is expanded
        atoms = "" if told else " ".join(map(str, row["atoms"]))
        figures = [f"{row['r2']:.3f}", f"{row['partial_r2']:.3f}", f"{row['p_value']:.0e}"]
        rows.append([str(row["feature"]), row["label"], *figures, parts, atoms])
    print()
    print("\n".join(columns(["feature", "label", "R²", "partial", "p", "constituents", "atoms"], rows)))
    if limit < len(flagged):
        print(f"{limit} of {len(flagged):,} shown")


def _cell(value: object) -> str:
    """Of the catalogue: sizes in bytes, 0 where there is nothing to download."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB" if value else "–"
    return "–" if value is None else str(value)


# --- parsing, logging, failing ----------------------------------------------------------------


def _overrides(given: list[str] | None) -> dict[str, Any]:
    """``["a.b=1"]`` -> ``{"a.b": 1}``: values are YAML."""
    import yaml

    found = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals:
            raise ConfigError(f"--set {text}: write --set key.path=value")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: the value is not YAML ({' '.join(str(error).split())})") from error
    return found


@contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """Our log on stderr while a command runs: progress, and with `verbose` everything."""

    class Redacted(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return _redact(super().format(record))

    log, handler = logging.getLogger("autointerp"), logging.StreamHandler()
    handler.setFormatter(Redacted("%(asctime)s %(name)s: %(message)s" if verbose else "%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def _failures(verbose: bool) -> Iterator[None]:
    """Every way to fail as one line on stderr and an exit code; with `verbose` the traceback before it."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        _fail("stopped; run again to go on", 130, verbose)
    except BrokenPipeError:  # the reader has enough, as in `autointerp table demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit meets no pipe
        raise typer.Exit from None
    except AutointerpError as error:
        lines = error.lines if isinstance(error, Problems) else [str(error)]
        _fail("\n".join(" ".join(line.split()) for line in lines), error.exit_code, verbose)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail(
            f"disk full: free space and run again{where}" if full else f"{error.strerror or error}{where}",
            1,
            verbose,
        )
    except Exception as error:  # the outermost place: a defect of ours still reads as one line
        hint = "" if verbose else "; run with --verbose for the traceback"
        _fail(" ".join(f"{type(error).__name__}: {error}{hint}".split()), 1, verbose)


def _fail(text: str, code: int, verbose: bool) -> None:
    if verbose:
        print(_redact(traceback.format_exc()), file=sys.stderr)
    for line in text.splitlines():
        print(_redact(f"autointerp: {' '.join(line.split())}"), file=sys.stderr)
    raise typer.Exit(code)


def _redact(text: str) -> str:
    """`text` without the values of environment variables that name a key, token, secret or password."""
    for name, value in os.environ.items():
        if len(value) >= 8 and any(word in name.upper() for word in ("KEY", "TOKEN", "SECRET", "PASSWORD")):
            text = text.replace(value, f"[{name}]")
    return text
