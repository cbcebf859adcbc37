"""The commands that read decoders alone, as the command line declares them: composites, families, geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Verbose = Annotated[bool, typer.Option("--verbose", help="Log everything; a traceback when something fails.")]
DecoderArgument = Annotated[
    str,
    typer.Argument(
        metavar="SAE", help="An SAE, or its decoder alone: a matrix [latents, d_model] in .npy, .safetensors or .pt."
    ),
]
Transpose = Annotated[bool, typer.Option("--transpose", help="Bare matrices are [d_model, latents].")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; auto: a GPU if there is.")]
Memory = Annotated[
    float, typer.Option(min=0, max=1e6, metavar="GB", help="For directions; more than fit are read as needed.")
]


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
    inject: Annotated[
        int, typer.Option(min=0, metavar="N", help="Positive control: is it told if N sums of own latents are added?")
    ] = 0,
    transpose: Transpose = False,
    device: Device = "auto",
    memory: Memory = 3.0,
    verbose: Verbose = False,
) -> None:
    """Find composite features, duplicates and split families in a decoder alone: no language model is needed."""
    from autointerp.commands import composites as decoder
    from autointerp.report.composites import print_composites

    if out is not None:
        decoder.check_writable(out)
    room = int(memory * 2**30)
    latents, injected = decoder.check_decoder(
        sae, union, transpose=transpose, device=device, memory=room, inject=inject
    )
    print_composites(latents, limit, injected)
    if out is not None:
        decoder.write_table(latents, out)
        print(out)


def families(
    saes: Annotated[
        list[str],
        typer.Argument(metavar="SAE SAE2 [SAE3…]", help="SAEs or bare decoders of one hook, the narrowest first."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="For families.parquet, families.json and families.png.")
    ] = Path("families"),
    transpose: Transpose = False,
    device: Device = "auto",
    memory: Memory = 3.0,
    verbose: Verbose = False,
) -> None:
    """Follow latents into wider SAEs or other seeds: kept, split, taken apart, absorbed, new; do their labels stay?"""
    from autointerp.commands.composites import usable_device
    from autointerp.commands.families import follow
    from autointerp.report.families import print_families

    device = usable_device(device)
    followed = follow(saes, out, transpose=transpose, device=device, memory=int(memory * 2**30))
    print_families(*followed)
    print(out / "families.png")


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
    from autointerp.commands.composites import usable_device
    from autointerp.commands.geometry import geometry_report
    from autointerp.report.geometry import print_geometry
    from autointerp.sae.decoders import load_decoders

    rows, *others = load_decoders([sae, *([other] if other else [])], transpose=transpose)
    device = usable_device(device)
    report = geometry_report(rows, out, other=others[0] if others else None, meta_passes=meta_passes, device=device)
    print_geometry(report, other)
    print(out / "geometry.png")
