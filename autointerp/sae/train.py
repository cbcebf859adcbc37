"""Training an SAE: the loop, its checkpoint and its log. What is specific to an architecture is in `recipes`."""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from autointerp.artifacts import write_atomically
from autointerp.config import Section
from autointerp.errors import AutointerpError, ConfigError
from autointerp.progress import progress
from autointerp.sae.check import check_sae
from autointerp.sae.formats.saelens import save_sae
from autointerp.sae.load import load_sae
from autointerp.sae.model import SAE, SAEConfig
from autointerp.sae.recipes import RECIPES, Recipe
from autointerp.sae.source import ActivationSource

log = logging.getLogger("autointerp")


class TrainConfig(Section):
    """How to train. Lengths are in tokens, each presentation of one counted."""

    architecture: Literal["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated", "rescaled"] = "topk"
    d_sae: int = Field(4096, ge=2)
    k: int = Field(32, ge=1)  # active latents a token, of the topk kinds and jumprelu
    sparsity: float | None = Field(None, ge=0)  # weight of the sparsity loss; None: 5 for L1, 1 for jumprelu's L0
    sparsity_warmup: float = Field(0.05, ge=0, le=1)  # share of the steps over which that weight rises from 0
    bandwidth: float = Field(1e-3, gt=0)  # of jumprelu's step, in units of the inputs' root mean square norm
    groups: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)  # matryoshka: shares of the latents
    tokens: int = Field(10_000_000, ge=1)  # presentations: the source's epochs do not matter
    batch_size: int = Field(4096, ge=1)
    lr: float | None = Field(None, gt=0)  # None: that of the architecture, see peak_lr
    warmup: int = Field(0, ge=0)  # steps over which lr rises from 0
    decay: float = Field(0.2, ge=0, le=1)  # last share of the steps, over which lr falls to 0
    aux_k: int | None = Field(None, ge=0)  # dead latents that explain the residual; None: d_in / 2; 0: none
    aux_coefficient: float = Field(1 / 32, ge=0)
    dead_after: int | None = Field(None, ge=1)  # tokens without firing; None: 10M or a twentieth of `tokens`
    centre: bool = True  # subtract the inputs' mean: fewer latents die
    tied_start: bool = True  # the encoder starts as the decoder transposed
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the large products; weights are float32
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0
    checkpoint_every: int = Field(500, ge=1)  # steps
    log_every: int = Field(100, ge=1)  # steps

    @model_validator(mode="after")
    def fits(self) -> TrainConfig:
        if self.k > self.d_sae:
            raise ValueError(f"k = {self.k} is more than d_sae = {self.d_sae}")
        if self.tokens < self.batch_size:
            raise ValueError(f"tokens = {self.tokens} is less than one batch of {self.batch_size}")
        if self.architecture == "matryoshka" and (min(self.groups) <= 0 or abs(sum(self.groups) - 1) > 1e-6):
            raise ValueError(f"groups are positive shares that add up to 1, these make {sum(self.groups):g}")
        return self

    @property
    def peak_lr(self) -> float:
        """Given, or 3e-4 for the batchtopk kinds, 7e-5 for jumprelu (2407.14435), and 2406.04093's rule for others."""
        usual = {"batchtopk": 3e-4, "matryoshka": 3e-4, "jumprelu": 7e-5}
        return self.lr or usual.get(self.architecture, 2e-4 / math.sqrt(self.d_sae / 2**14))

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_size

    @property
    def dead_after_tokens(self) -> int:
        return self.dead_after or min(10_000_000, max(self.tokens // 20, self.batch_size))

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, …: linear up, flat, linear down to 0 at the end."""
        rise = (step + 1) / self.warmup if step < self.warmup else 1.0
        falling = self.decay * self.steps
        fall = min((self.steps - step) / falling, 1.0) if falling else 1.0
        return self.peak_lr * min(rise, fall)


_LOG: tuple[str, ...] = ("step", "tokens", "loss", "explained_variance", "l0", "dead_fraction", "lr", "seconds")


def train_sae(
    source: ActivationSource,
    config: TrainConfig,
    folder: str | Path,
    *,
    held_out: Tensor | None = None,
    hook_name: str | None = None,
    model_name: str | None = None,
    context_size: int | None = None,
    prepend_bos: bool | None = None,
    device: str = "cpu",
) -> SAE:
    """Train, or go on where an earlier call in `folder` was stopped, or load what it finished.

    Args:
        source: the activations.
        held_out: [n, d_in] activations on which the result is measured.
        hook_name, model_name, context_size, prepend_bos: where the activations come from; kept in the SAE's config.

    `folder` gets ``cfg.json`` and ``sae_weights.safetensors`` (SAELens' form), ``log.csv`` and, last, ``train.json``
    with the config and the figures. While training it holds ``checkpoint.pt``: a run that is killed goes on from
    there, on a CPU with the same final weights bit for bit.

    Raises:
        AutointerpError: `folder` holds the work of another config, or the loss is no longer finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "config": config.model_dump(mode="json"),
        "d_in": source.d_in,
        "hook_name": hook_name,
        "model_name": model_name,
    }
    done = folder / "train.json"
    if done.exists():
        _same(json.loads(done.read_text()), about, folder)
        return load_sae(folder, format="saelens", device=device)
    run = _Training(source, config, folder, about, device)
    run.go()
    sae = run.finished(
        SAEConfig(
            architecture=run.recipe.result,
            d_in=source.d_in,
            d_sae=config.d_sae,
            source_format="autointerp",
            dtype=config.save_dtype,
            apply_b_dec_to_input=True,
            k=config.k if config.architecture in ("topk", "batchtopk", "matryoshka", "jumprelu") else None,
            hook_name=hook_name,
            model_name=model_name,
            context_size=context_size,
            prepend_bos=prepend_bos,
        )
    )
    save_sae(sae, folder, dtype=config.save_dtype)
    figures: dict[str, Any] = {"steps": config.steps, "seconds": round(run.seconds, 2), **run.last}
    if held_out is not None:
        check = check_sae(sae, held_out)
        figures["held_out"] = {
            "tokens": check.tokens,
            "explained_variance": check.explained_variance,
            "l0": check.l0,
            "dead_fraction": check.dead_fraction,
        }
        log.info(
            "held-out: explained variance %.3f, L0 %.1f, %.1f %% of latents silent on %s tokens",
            check.explained_variance, check.l0, 100 * check.dead_fraction, f"{check.tokens:,}",
        )  # fmt: skip
    write_atomically(done, lambda path: path.write_text(json.dumps({**about, "figures": figures}, indent=2)))
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return sae


class _Training:
    """Inputs are trained on as z = (x − mean) · scale, with E‖z‖² = d_in; `finished` brings the weights back to x."""

    def __init__(
        self, source: ActivationSource, config: TrainConfig, folder: Path, about: dict[str, Any], device: str
    ) -> None:
        self.source, self.config, self.folder, self.about = source, config, folder, about
        self.device = torch.device(device)
        self.recipe: Recipe = RECIPES[config.architecture](config, source.d_in)
        self.step = 0
        self.seconds = 0.0
        self.last: dict[str, float] = {}
        self.since_fired = torch.zeros(config.d_sae, dtype=torch.int64, device=self.device)  # tokens
        state = self._checkpoint()
        if state is None:
            self.mean, self.scale = self._statistics()
            self.recipe.initialise(torch.Generator().manual_seed(config.seed))
            if not config.centre:
                self.recipe.weights["b_dec"] = (self.mean * self.scale).cpu()
                self.mean = torch.zeros_like(self.mean)
        else:
            self.mean, self.scale = state["mean"].to(self.device), float(state["scale"])
            self.recipe.load_state(state["recipe"])
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.since_fired.copy_(state["since_fired"])
        self.recipe.to(self.device)
        self.optimiser = torch.optim.Adam(self.recipe.parameters(), lr=0.0, eps=6.25e-10, fused=True)
        if state is not None:
            self.optimiser.load_state_dict(state["optimiser"])
            log.info("training goes on from step %s of %s", f"{self.step:,}", f"{config.steps:,}")

    def _statistics(self) -> tuple[Tensor, float]:
        """Mean and scale of the inputs, from the first 65,536 or so."""
        batches = self.source.batches(self.config.seed, 0, self.config.batch_size)
        count = max(1, min(65_536 // self.config.batch_size, self.config.steps))
        x = torch.cat([next(batches).float() for _ in range(count)]).to(self.device)
        if not torch.isfinite(x).all():
            raise AutointerpError("the activations hold NaN or infinite numbers: harvest them in float32 or bfloat16")
        mean = x.mean(0)
        power = float((x - mean).square().sum(1).mean())
        if power == 0:
            raise AutointerpError("the activations are all alike: there is nothing to learn; is the hook right?")
        return mean, math.sqrt(self.source.d_in / power)

    def go(self) -> None:
        config = self.config
        rows = self._open_log()
        started = time.perf_counter() - self.seconds
        with progress("train the SAE", config.steps * config.batch_size, "tokens") as bar:
            bar.advance(self.step * config.batch_size, skipped=True)
            batches = self.source.batches(config.seed, self.step, config.batch_size)
            while self.step < config.steps:
                x = next(batches).to(self.device, torch.float32)
                self._train((x - self.mean) * self.scale, rows, started)
                self.seconds = time.perf_counter() - started
                bar.advance(config.batch_size)
                if self.step % config.checkpoint_every == 0 and self.step < config.steps:
                    self._save_checkpoint()
        self._save_checkpoint()

    def _train(self, z: Tensor, rows: list[dict[str, Any]], started: float) -> None:
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr_at(self.step)
        dead = self.since_fired >= config.dead_after_tokens
        outcome = self.recipe.loss(z, dead, self.step)
        self.optimiser.zero_grad()
        outcome.loss.backward()
        self.recipe.before_step()
        torch.nn.utils.clip_grad_norm_(list(self.recipe.parameters()), 1.0)
        self.optimiser.step()
        self.recipe.after_step()
        self.since_fired += len(z)
        self.since_fired[outcome.fired] = 0
        self.step += 1
        if self.step % config.log_every == 0 or self.step == config.steps:
            loss = float(outcome.loss.detach())
            if not math.isfinite(loss):
                raise AutointerpError(f"the loss is {loss} at step {self.step}: lower lr, or train in float32")
            self.last = {
                "loss": loss,
                "explained_variance": 1 - float(outcome.residual / (z - z.mean(0)).square().sum()),
                "l0": float(outcome.active) / len(z),
                "dead_fraction": float(dead.float().mean()),
            }
            rate, seconds = config.lr_at(self.step - 1), round(time.perf_counter() - started, 3)
            rows.append({"step": self.step, "tokens": self.step * len(z), **self.last, "lr": rate, "seconds": seconds})
            self._write_log(rows)

    def _open_log(self) -> list[dict[str, Any]]:
        """Rows up to the checkpoint; those after it are trained again."""
        path = self.folder / "log.csv"
        if self.step == 0 or not path.exists():
            return []
        with path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["step"]) <= self.step]

    def _write_log(self, rows: list[dict[str, Any]]) -> None:
        def write(path: Path) -> None:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, _LOG)
                writer.writeheader()
                writer.writerows(rows)

        write_atomically(self.folder / "log.csv", write)

    def _save_checkpoint(self) -> None:
        state = {
            "about": json.dumps(self.about),
            "step": self.step,
            "seconds": self.seconds,
            "mean": self.mean,
            "scale": self.scale,
            "since_fired": self.since_fired,
            "recipe": self.recipe.state(),
            "optimiser": self.optimiser.state_dict(),
        }
        write_atomically(self.folder / "checkpoint.pt", lambda path: torch.save(state, path))

    def _checkpoint(self) -> dict[str, Any] | None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise AutointerpError(f"{path} cannot be read ({type(error).__name__}): remove it to start anew") from error
        _same(json.loads(state["about"]), self.about, self.folder)
        return state

    @torch.no_grad()
    def finished(self, cfg: SAEConfig) -> SAE:
        """The SAE for raw activations. With z = (x − mean)·scale: x̂ = f W_dec + b_dec/scale + mean and f as before
        but for every vector of the encoder divided by scale; encoding x − b_dec adds (b_dec/scale) W_enc to it."""
        trained = {name: tensor.detach().float() for name, tensor in self.recipe.result_tensors().items()}
        for name in trained.keys() - {"W_enc", "W_dec", "r_mag"}:
            trained[name] = trained[name] / self.scale
        self.recipe.shift(trained, trained["b_dec"] @ trained["W_enc"])
        trained["b_dec"] = trained["b_dec"] + self.mean
        return SAE(cfg, trained)


def _same(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    # through TrainConfig: a key that is newer than the folder has its default there
    before = {**found, **TrainConfig.model_validate(found["config"]).model_dump(mode="json")}
    now = {**wanted, **wanted["config"]}
    different = [key for key in now if key != "config" and before.get(key) != now[key]]
    if different:
        key = different[0]
        raise ConfigError(
            f"{folder} holds an SAE trained with {key} = {before.get(key)!r}, this config says {now[key]!r}: "
            "train into another folder, or remove this one"
        )
