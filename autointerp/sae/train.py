"""Train an SAE: the loop, its checkpoint, its log. What is specific to an architecture is in `recipes`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp import tracking
from autointerp.artifacts import write_atomically
from autointerp.errors import AutointerpError, ConfigError
from autointerp.progress import progress
from autointerp.sae.check import check_sae
from autointerp.sae.formats.saelens import save_sae
from autointerp.sae.load import load_sae
from autointerp.sae.model import SAE, SAEConfig
from autointerp.sae.penalties import PENALTIES, Batch, mmcs
from autointerp.sae.recipes import RECIPES, Outcome, Recipe
from autointerp.sae.silence import silence_warning
from autointerp.sae.source import ActivationSource
from autointerp.sae.train_config import TrainConfig

log = logging.getLogger("autointerp")


_LOG: tuple[str, ...] = (
    "step", "tokens", "loss", "explained_variance", "l0", "dead_fraction", "mmcs", "penalty", "lr", "seconds",
)  # fmt: skip


def train_sae(
    source: ActivationSource,
    config: TrainConfig,
    folder: str | Path,
    *,
    held_out: Tensor | None = None,
    outlier_threshold: float | None = None,
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
        outlier_threshold: the norm above which a held-out activation is outlying and counts apart; the source leaves
            out what is not to be trained on.
        hook_name, model_name, context_size, prepend_bos: where the activations come from; kept in the SAE's config.

    `folder` gets ``cfg.json`` and ``sae_weights.safetensors`` (SAELens' form), ``log.csv`` and, last, ``train.json``
    with the config and the figures. While training it holds ``checkpoint.pt``: a run that is killed goes on from
    there, on a CPU with the same final weights bit for bit. In the log `loss` is without the penalty, `penalty`
    without its weight, and `mmcs` the mean of each decoder row's highest cosine to another.

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
    if config.tracking is not None:
        tracking.check(config.tracking)  # a missing package shows before there is work to lose
    run = _Training(source, config, folder, about, device)
    run.go()
    cfg = SAEConfig(
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
    sae = run.finished(cfg)
    save_sae(sae, folder, dtype=config.save_dtype)
    figures: dict[str, Any] = {"steps": config.steps, "seconds": round(run.seconds, 2), **run.last}
    if held_out is not None:
        figures["held_out"] = _held_out_figures(sae, held_out, outlier_threshold)
    if warning := silence_warning(source, config, run.last["dead_fraction"]):
        log.warning("training: %s", warning)
        figures["warnings"] = [warning]
    write_atomically(done, lambda path: path.write_text(json.dumps({**about, "figures": figures}, indent=2)))
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return sae


def _held_out_figures(sae: SAE, held_out: Tensor, outlier_threshold: float | None) -> dict[str, Any]:
    """What the SAE does on activations [n, d_in] that it has not seen."""
    check = check_sae(sae, held_out, outlier_threshold=outlier_threshold)
    log.info(
        "held-out: explained variance %.3f, L0 %.1f, %.1f %% of latents silent on %s tokens",
        check.explained_variance, check.l0, 100 * check.dead_fraction, f"{check.tokens:,}",
    )  # fmt: skip
    figures = {
        "tokens": check.tokens,
        "explained_variance": check.explained_variance,
        "l0": check.l0,
        "dead_fraction": check.dead_fraction,
    }
    if check.outlying:
        l0, explained = check.with_outliers
        log.info("held-out: explained variance %.3f with %d of outlying norm", explained, check.outlying)
        figures |= {"outlying": check.outlying, "l0_with_outliers": l0, "explained_variance_with_outliers": explained}
    return figures


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
        self.penalty: Tensor | None = None  # its last value
        self.penalty_keeps: dict[str, Tensor] = {}
        self.tracker_id: str | None = None
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
            self.penalty, self.penalty_keeps = state["penalty"], dict(state["penalty_keeps"])
            self.tracker_id = state["tracker_id"]
        self.recipe.to(self.device)
        groups = self.recipe.groups()
        self.optimiser = torch.optim.Adam(groups, lr=0.0, betas=config.betas, eps=6.25e-10, fused=True)
        self.recipe.learning = config.latents_at(self.step)
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
        mean = x.mean(0) if self.config.start == "mean" else geometric_median(x)
        power = float((x - mean).square().sum(1).mean())
        if power == 0:
            raise AutointerpError("the activations are all alike: there is nothing to learn; is the hook right?")
        return mean, math.sqrt(self.source.d_in / power)

    def go(self) -> None:
        config = self.config
        rows = self._open_log()
        started = time.perf_counter() - self.seconds
        with (
            progress("train the SAE", config.steps * config.batch_size, "tokens") as bar,
            tracking.tracked(config.tracking, None, self.about, self.tracker_id) as tracker,
        ):
            self.tracker_id = tracker.id if tracker is not None else None
            bar.advance(self.step * config.batch_size, skipped=True)
            batches = self.source.batches(config.seed, self.step, config.batch_size)
            if self.device.type == "cuda":
                batches = _ahead(batches)
            while self.step < config.steps:
                if config.stages > 1 and self.step == config.stage_at(self.step)[1]:
                    self._begin_stage()
                x = next(batches).to(self.device, torch.float32, non_blocking=True)
                row = self._train((x - self.mean) * self.scale)
                self.seconds = time.perf_counter() - started
                if row is not None:
                    rows.append(row | {"seconds": round(self.seconds, 3)})
                    self._write_log(rows)
                    if tracker is not None:
                        tracker.log(rows[-1], step=self.step)
                bar.advance(config.batch_size)
                if self.step % config.checkpoint_every == 0 and self.step < config.steps:
                    self._save_checkpoint()
        self._save_checkpoint()

    def _begin_stage(self) -> None:
        """New latents learn what is left over, as dead ones do; without the optimiser's momentum frozen ones rest."""
        self.recipe.learning = self.config.latents_at(self.step)
        self.optimiser.state.clear()
        self.since_fired[self.recipe.learning] = self.config.dead_after_tokens if self.recipe.learning.start else 0

    def _train(self, z: Tensor) -> dict[str, Any] | None:
        """One step; returns the log's row if one is due."""
        config, learning = self.config, self.recipe.learning
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr_at(self.step) * group["rate"]
        dead = self.since_fired >= config.dead_after_tokens
        dead[: learning.start] = False
        dead[learning.stop :] = False
        outcome = self.recipe.loss(z, dead, self.step)
        self.optimiser.zero_grad()
        outcome.loss.backward()
        self._penalise(z, outcome)
        self.recipe.before_step()
        # As clipping to 1 does for a loss summed over d_in: nearly every step is clipped, so that all count alike in
        # Adam's averages. Left as they are, the steep first steps slow down all later ones (benchmarks/training.py).
        torch.nn.utils.clip_grad_norm_(list(self.recipe.parameters()), 1.0 / self.source.d_in)
        self.optimiser.step()
        self.recipe.after_step()
        self.since_fired += len(z)
        self.since_fired.masked_fill_(outcome.fired, 0)
        self.step += 1
        if self.step % config.log_every and self.step < config.steps:
            return None
        loss = float(outcome.loss.detach())
        if not math.isfinite(loss):
            raise AutointerpError(f"the loss is {loss} at step {self.step}: lower lr, or train in float32")
        self.last = {
            "loss": loss,
            "explained_variance": 1 - float(outcome.residual / (z - z.mean(0)).square().sum()),
            "l0": float(outcome.active) / len(z),
            "dead_fraction": float(dead[learning].float().mean()),
            "mmcs": mmcs(self.recipe.weights["W_dec"][: learning.stop], self.recipe.dtype),
        }
        if self.penalty is not None:
            self.last["penalty"] = float(self.penalty)
        return {"step": self.step, "tokens": self.step * len(z), **self.last, "lr": config.lr_at(self.step - 1)}

    @torch.no_grad()
    def _penalise(self, z: Tensor, outcome: Outcome) -> None:
        """Add the penalty's gradient; latents which have not begun are no part of it."""
        penalty, stop = self.config.penalty, self.recipe.learning.stop
        if penalty is None or self.step % penalty.every:
            return
        decoder = self.recipe.weights["W_dec"]
        seed, dtype = self.config.seed, self.recipe.dtype
        batch = Batch(decoder[:stop], z, outcome.fired[:stop], seed, self.step, dtype, self.penalty_keeps)
        self.penalty, gradient = PENALTIES[penalty.kind](batch, penalty)
        assert decoder.grad is not None
        decoder.grad[:stop].add_(gradient, alpha=penalty.weight * penalty.every)

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
            "penalty": self.penalty,
            "penalty_keeps": self.penalty_keeps,
            "tracker_id": self.tracker_id,
        }
        saved = io.BytesIO()
        torch.save(state, saved)
        digest = hashlib.sha256(saved.getbuffer()).digest()

        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.write(digest)
                file.write(saved.getbuffer())

        write_atomically(self.folder / "checkpoint.pt", write)

    def _checkpoint(self) -> dict[str, Any] | None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return None
        content = path.read_bytes()
        # torch raises ten kinds of error for a damaged file, or none and gives other numbers
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            log.warning("the checkpoint of this training is damaged: set aside as %s, trained anew", aside)
            return None
        state = torch.load(io.BytesIO(content[32:]), map_location=self.device, weights_only=True)
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


@torch.no_grad()
def geometric_median(x: Tensor, steps: int = 50) -> Tensor:
    """The point [d] of the least total distance to the rows of x [n, d], by Weiszfeld's iteration."""
    median = x.mean(0)
    for _ in range(steps):
        weights = 1 / (x - median).norm(dim=1).clamp_min(1e-6)
        before, median = median, (weights @ x) / weights.sum()
        if (median - before).norm() <= 1e-5 * before.norm():
            break
    return median


def _ahead(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same batches, each read while a GPU is busy with the one before it."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches)
        while True:
            batch = coming.result()
            coming = reader.submit(next, batches)
            yield batch if batch.is_cuda else batch.pin_memory()


def _same(held: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    # through TrainConfig: a key that is newer than the folder has its default there
    before = {**held, **TrainConfig.model_validate(held["config"]).model_dump(mode="json")}
    now = {**wanted, **wanted["config"]}
    different = [key for key in now if key != "config" and before.get(key) != now[key]]
    if different:
        key = different[0]
        raise ConfigError(
            f"{folder} holds an SAE trained with {key} = {before.get(key)!r}, this config says {now[key]!r}: "
            "train into another folder, or remove this one"
        )
