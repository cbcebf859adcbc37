"""The command line ``autointerp``: parse, call, print. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from autointerp.commands import decoders
from autointerp.commands.decoders import Verbose
from autointerp.commands.shell import STOPPED, failures, logged, overrides
from autointerp.errors import AutointerpError, ConfigError, Problems
from autointerp.redact import redact

app = typer.Typer(
    help="Explain the features of sparse autoencoders, and say how far each explanation can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: quicker, and the same everywhere
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of one in pipelines/.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its URL, or its name in results/.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the config; repeatable.")
]
Out = Annotated[
    str | None, typer.Option("--out", metavar="DIR", help="The run's folder, or a URL; results/NAME without it.")
]


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


class By(StrEnum):
    explainer = "explainer"
    judge = "judge"
    run = "run"


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that lacks a character shows ?
    try:
        app()
    except SystemExit as end:
        if end.code == STOPPED:  # at once: threads in the middle of a forward pass are not waited for
            sys.stdout.flush()
            os._exit(STOPPED)
        raise


def command(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function as a command of its name: `example` in its help, its failures as one line and an exit code."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **options: Any) -> None:
            with failures(options["verbose"]), logged(options["verbose"]):
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
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Ask again for every failed row, whatever its reason; without it only for what may pass.",
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Run the pipeline: what is done already is kept, what is stale or missing is done.

    Exits with 1 where no feature could be explained, or none scored by one of the scorers.
    """
    if dry_run:
        _print_plan(config, set, out, retry_failed=retry_failed)
        return
    from autointerp.commands.run import run as run_pipeline
    from autointerp.report import print_table

    ended = run_pipeline(config, set=overrides(set), out=out, retry_failed=retry_failed)
    print_table(ended.folder, limit=50)
    print(f"report: {ended.folder / 'report.html'}")
    if ended.total_failures:  # the run has said which
        raise typer.Exit(1)


@command("plan demo --set features.count=200")
def plan(
    config: ConfigArgument,
    set: Set = None,
    out: Out = None,
    nodes: Annotated[int | None, typer.Option(min=1, metavar="N", help="Plan for a cluster of so many nodes.")] = None,
    gpus: Annotated[int, typer.Option(min=0, metavar="N", help="GPUs of each of them.")] = 0,
    verbose: Verbose = False,
) -> None:
    """Say what each stage would do and why, and what it would cost, here or on a cluster; of a sweep, each variant."""
    from autointerp.config import read_config

    machines = (nodes, gpus) if nodes else None
    if "variants" not in read_config(config)[0]:
        _print_plan(config, set, out, machines=machines)
        return
    from autointerp.commands.plan_sweep import plan_sweep
    from autointerp.commands.printed import sweep_plan_text

    made = plan_sweep(config, overrides(set), out, machines=machines)
    print(redact(sweep_plan_text(made)))
    if made.whole.problems:
        raise typer.Exit(ConfigError.exit_code)


@command("doctor demo")
def doctor(config: ConfigArgument, set: Set = None, out: Out = None, verbose: Verbose = False) -> None:
    """Look at everything that can be known wrong before a run; one short request goes to each endpoint."""
    from autointerp.commands.doctor import doctor as examine
    from autointerp.commands.printed import checks_text
    from autointerp.config import load_config

    seen = examine(load_config(config, overrides(set)), out)
    print(redact(checks_text(seen)))
    if code := max((check.exit_code for check in seen if check.wrong), default=0):
        raise typer.Exit(code)


@command("table demo --sort simulation --where \"detection > 0.8 and composite == 'composite'\"")
def table(
    run: RunArgument,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="[-]COLUMN", help="Highest first, with a minus lowest first; the first scorer without it."
        ),
    ] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="Lowest first.")] = False,
    explainer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose explanations and scores; the config's first without it.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="EXPRESSION",
            help="Rows on which it holds: comparisons, and/or/not or & | ~, in, + - * /, abs, 'text' in column; also "
            "columns of scores.parquet (detection_f1); `a-name` in backquotes. A missing value "
            "satisfies none but `column is None`.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many rows.")] = None,
    format: Annotated[Format, typer.Option(help="A table to read, or data with all columns.")] = Format.table,
    raw_cells: Annotated[
        bool, typer.Option("--raw-cells", help="csv: no apostrophe before texts that a spreadsheet would compute.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Print the scored explanation table of a run."""
    from autointerp.report import print_table

    print_table(
        run,
        explainer=explainer,
        sort_by=sort,
        ascending=ascending,
        condition=where,
        limit=limit,
        format=format.value,
        raw_cells=raw_cells,
    )


@command("compare demo other-judge --by judge --scorer detection")
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Folders of runs, or their names in results/.")],
    by: Annotated[
        By | None,
        typer.Option(help="What is compared. Of several runs: run; of one: explainer, or judge where there is one."),
    ] = None,
    scorer: Annotated[str | None, typer.Option(metavar="NAME", help="This scorer alone.")] = None,
    measure: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of scores.parquet; without it the value above chance.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which one the others stand against; the first without it.")
    ] = None,
    format: Annotated[Format, typer.Option(help="Lines to read, or data with all columns.")] = Format.table,
    verbose: Verbose = False,
) -> None:
    """Compare explainers, judges, subjects or SAEs, feature by feature, and each with its control."""
    from autointerp.report.compare import print_comparison

    how = None if by is None else by.value
    print_comparison(*runs, by=how, scorer=scorer, measure=measure, against=against, format=format.value)


@command("export demo --to neuronpedia --model gpt2-small --source 8-res-16k")
def export(
    run: RunArgument,
    to: Annotated[
        str, typer.Option("--to", metavar="NAME", help="neuronpedia, saebench, circuit-tracer, delphi, hub.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to; exports/NAME in the run's folder without it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="What the other tool calls the subject.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="What it calls the SAE, such as 8-res-16k.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="ORG/NAME", help="hub: send it there, with the token in HF_TOKEN.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write a run as files that Neuronpedia, SAEBench, circuit-tracer, delphi or the Hugging Face hub read."""
    from autointerp.commands.export import export as write_export

    print(write_export(run, to, out=out, model=model, source=source, push=push))


@command("show mine 1234")
def show(
    run: RunArgument,
    feature: Annotated[int, typer.Argument(metavar="FEATURE", help="The feature's number in its SAE.")],
    verbose: Verbose = False,
) -> None:
    """Print one feature: contexts, explanations, scores and controls, neighbours, composite verdict, logits."""
    from autointerp.report import show as show_feature

    show_feature(run, feature)


@command("prompts mine --feature 1234")
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
    for view in all_prompts(load_config(config, overrides(set)), feature, out):
        print(f"── {view.stage} · feature {view.feature} · {view.title} · {view.tokens:,} tokens")
        for message in view.messages:
            print(f"[{message.role}]\n{message.content}\n")
        count, tokens = count + 1, tokens + view.tokens
    print(f"{count:,} prompts, {tokens:,} tokens")


@command("models")
def models(verbose: Verbose = False) -> None:
    """List the models and texts of the catalogue: what is cached, and where the rest comes from."""
    from autointerp.commands.models import model_lines

    print("\n".join(model_lines()))


@command("report demo --out demo.html")
def report(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file; report.html in the run's folder without it.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write the report as one self-contained HTML file."""
    from autointerp.report import find_run, so_far, write_report

    print(write_report(run, out))
    if unfinished := so_far(find_run(run)):
        print(unfinished, file=sys.stderr)


@command("view demo")
def view(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN [OTHER…]", help="A run's folder, or its name in results/; others to compare with."),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Of 127.0.0.1; 0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the address in a browser.")] = True,
    verbose: Verbose = False,
) -> None:
    """Look at a run of any size in a browser: served to this machine alone, until Ctrl-C."""
    from autointerp.commands.view import view as serve

    serve(runs[0], runs[1:], port=port, browser=browser)


composites = command("composites my-sae --union wider-sae --out composites.parquet")(decoders.composites)
families = command("families narrow-sae wider-sae --out families")(decoders.families)


@command("sweep relu-vs-topk")
def sweep(
    config: ConfigArgument,
    set: Set = None,
    out: Out = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, metavar="N", help="Variants at once, a process each.")
    ] = 1,
    verbose: Verbose = False,
) -> None:
    """Train (or load) and evaluate the variants of a config on the same text; ends with their figures side by side."""
    from autointerp.commands.sweep import sweep as run_sweep
    from autointerp.report.sweep import print_sweep

    swept = run_sweep(config, set=overrides(set), out=out, jobs=jobs)
    print_sweep(swept)
    print(f"picture: {swept.folder / 'sweep.png'}")
    if swept.failures:
        raise Problems([f"{variant}: {why}" for variant, why in swept.failures.items()], AutointerpError.exit_code)


@command("train train-demo --set sae.train.k=16")
def train(config: ConfigArgument, set: Set = None, out: Out = None, verbose: Verbose = False) -> None:
    """Train the SAE of a config and stop there."""
    from autointerp.commands.train import train as train_alone
    from autointerp.report.text import aligned

    folder, figures = train_alone(config, set=overrides(set), out=out)
    held_out = {f"held-out {name}": value for name, value in figures.get("held_out", {}).items()}
    rows = [[n, f"{value:.4g}"] for n, value in (figures | held_out).items() if isinstance(value, int | float)]
    print("\n".join(aligned(["figure", "value"], rows)))
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

    folder = evaluate_alone(sae, config, set=overrides(set), out=out).folder
    print_evaluation(folder)
    print(f"tables, saebench.json, evaluation.png: {folder}")


geometry = command("geometry my-sae --other wider-sae --out geometry")(decoders.geometry)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        from autointerp import __version__

        print(__version__)
        raise typer.Exit


# --- printing ---------------------------------------------------------------------------------


def _print_plan(config: str, set: list[str] | None, out: str | None, **more: Any) -> None:
    from autointerp.commands.plan import plan as make_plan
    from autointerp.commands.printed import plan_text
    from autointerp.config import load_config

    made = make_plan(load_config(config, overrides(set)), out, **more)
    print(redact(plan_text(made)))
    if made.problems:
        raise typer.Exit(ConfigError.exit_code)
