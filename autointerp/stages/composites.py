"""Stage composites: what the decoder alone says of every latent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import Firings
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes
from autointerp.engine.stage import Job, Stage, Use
from autointerp.stages.branches import UNION

if TYPE_CHECKING:
    import torch

    from autointerp.sae.model import SAE


def uses(config: Config) -> Iterator[Use]:
    if config.composites.enabled:
        section = config.composites.model_dump(exclude={"tokens", "semantic", "causal"}) | union_section(config)
        yield Use("composites", ("sae", "harvest", *lent_harvest(config)), section)


def union_section(config: Config) -> dict[str, Any]:
    """What the section of a stage that reads the union SAE holds of it."""
    union = config.composites.union
    return {"union": models.identity(union) if union else None}


def lent_harvest(config: Config) -> tuple[str, ...]:
    """The name of the union SAE's harvest, where there is one."""
    return (f"{UNION}harvest",) if config.composites.union is not None else ()


def work(job: Job) -> None:
    from autointerp.composites.check import find_composites
    from autointerp.composites.io import save_composites

    config = job.config.composites
    sae = models.open_sae(job.session, job.inputs["sae"])
    union = models.load_sae(job.session, config.union).W_dec if config.union else None
    alive, *union_alive = (Firings(job.inputs[name]).counts > 0 for name in ("harvest", *lent_harvest(job.config)))
    masks = {"alive": alive, "union_alive": union_alive[0] if union_alive else None}
    device = models.device(job.session)
    table = find_composites(sae.W_dec, union, neighbours=config.neighbours, **masks, device=device)
    save_composites(table, job.folder / "composites.parquet")
    job.facts |= {"labels": table["label"].value_counts().to_dict()}


def decoder_rows(job: Job, table: Any, sae: SAE) -> torch.Tensor:
    """Decoder rows [n, d] in float32 on the processor; behind them those of the union dictionary, where it lends to a
    flagged latent of `table` (of `find_composites`)."""
    import torch

    from autointerp.composites.union import lends

    union, rows = job.config.composites.union, [sae.W_dec]
    if union is not None and lends(table):
        rows.append(models.load_sae(job.session, union).W_dec)
    return torch.cat([each.detach().float().cpu() for each in rows])


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    """Every latent is compared with every other."""
    return Amount((sizes.latents or 0) ** 2, "pairs of latents", f"width {sizes.width}", guess=1e-7)


STAGE = Stage("composites", "what the decoder alone says of every latent", uses, work, apart=True, amount=amount)
