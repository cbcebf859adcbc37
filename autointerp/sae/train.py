"""Train an SAE: the loop, its checkpoint, its log. What is specific to an architecture is in `recipes`.

With several ranks (`sae.ranks`) each has its rows of every batch. All add up their gradients; the first alone writes.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp import tracking
from autointerp.artifacts import write_atomically
from autointerp.errors import AutointerpError, ConfigError
from autointerp.progress import Progress, progress
from autointerp.sae.check import check_sae
from autointerp.sae.checkpoint import read_checkpoint, write_checkpoint
from autointerp.sae.formats.saelens import save_sae
from autointerp.sae.load import load_sae
from autointerp.sae.model import SAE, SAEConfig
from autointerp.sae.penalties import PENALTIES, Batch, mmcs
from autointerp.sae.ranks import ALONE, Ranks, here
from autointerp.sae.recipes import RECIPES, Recipe
from autointerp.sae.silence import silence_warning
from autointerp.sae.source import ActivationSource, ahead, batches_of
from autointerp.sae.spawn import Tell, ranks_wanted, run_ranks
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
    opened: Callable[[str], ActivationSource] | None = None,
) -> SAE:
    """Train, or go on where an earlier call in `folder` was stopped, or load what it finished.

    Args:
        source: the activations.
        held_out: [n, d_in] activations on which the result is measured.
        outlier_threshold: the norm above which a held-out activation is outlying and counts apart; the source leaves
            out what is not to be trained on.
        hook_name, model_name, context_size, prepend_bos: where the activations come from; kept in the SAE's config.
        opened: the source again, on the device that it is given: how each of several ranks (`config.ranks`) comes by
            it. None: `source` is pickled for them, of which a memory-mapped `ArraySource` is only opened again.

    `folder` gets ``cfg.json`` and ``sae_weights.safetensors`` (SAELens' form), ``log.csv`` and, last, ``train.json``
    with the config and the figures. While training it holds ``checkpoint.pt``: a run that is killed goes on from
    there, on a CPU with the same final weights bit for bit. In the log `loss` is without the penalty, `penalty`
    without its weight, and `mmcs` the mean of each decoder row's highest cosine to another.

    A script that torchrun started, and which has begun torch.distributed's group, calls this in each process, with its
    own `device`: they are the ranks then, and each returns the SAE.

    Raises:
        AutointerpError: `folder` holds the work of another config, the loss is no longer finite, or a rank ended.
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
    ranks = here(torch.device(device))
    run = _stepped(source, opened, config, folder, about, device, ranks)
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
    if ranks.first:
        run.keep(sae, held_out, outlier_threshold)
    ranks.meet()
    return sae


def _stepped(
    source: ActivationSource,
    opened: Callable[[str], ActivationSource] | None,
    config: TrainConfig,
    folder: Path,
    about: dict[str, Any],
    device: str,
    ranks: Ranks,
) -> _Training:
    """A training whose steps are taken: here, or by processes whose last checkpoint it then has."""
    count = ranks_wanted(config.ranks, device) if ranks.count == 1 else ranks.count
    if count > config.batch_size:
        raise ConfigError(f"{count} ranks cannot share a batch of {config.batch_size} tokens: take fewer")
    if count > ranks.count:
        work = partial(_as_rank, opened or partial(_given, source), config, folder, about)
        with _bar(config) as bar:
            run_ranks(work, count, device, partial(_show, bar))
    run = _Training(source, config, folder, about, device, ranks)
    if run.step < config.steps:
        with _bar(config) if ranks.first else nullcontext(_count(config)) as bar:
            run.go(bar)
    return run


def _as_rank(
    opened: Callable[[str], ActivationSource],
    config: TrainConfig,
    folder: Path,
    about: dict[str, Any],
    device: str,
    tell: Tell,
) -> None:
    """Take the steps as one of several ranks. The last checkpoint, which the first writes, is what is finished."""
    bar = _count(config)
    bar.on_advance = lambda: tell(bar.done, bar.skipped)
    _Training(opened(device), config, folder, about, device, here(torch.device(device))).go(bar)


def _given(source: ActivationSource, device: str) -> ActivationSource:
    return source


def _count(config: TrainConfig) -> Progress:
    return Progress("train the SAE", config.steps * config.batch_size, "tokens")


def _bar(config: TrainConfig) -> AbstractContextManager[Progress]:
    return progress("train the SAE", config.steps * config.batch_size, "tokens")


def _show(bar: Progress, done: float, skipped: float) -> None:
    bar.skipped = skipped
    bar.advance(done - bar.done)


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
        self,
        source: ActivationSource,
        config: TrainConfig,
        folder: Path,
        about: dict[str, Any],
        device: str,
        ranks: Ranks,
    ) -> None:
        self.source, self.config, self.folder, self.about = source, config, folder, about
        self.device, self.ranks = torch.device(device), ranks
        self.recipe: Recipe = RECIPES[config.architecture](config, source.d_in)
        self.recipe.ranks = ranks
        self.step = 0
        self.seconds = 0.0
        self.last: dict[str, float] = {}
        self.since_fired = torch.zeros(config.d_sae, dtype=torch.int64, device=self.device)  # tokens
        self.penalty: Tensor | None = None  # its last value
        self.penalty_keeps: dict[str, Tensor] = {}
        self.tracker_id: str | None = None
        state = self._checkpoint() if ranks.first else None
        ranks.meet()  # the first sets a damaged one aside
        if not ranks.first:
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
            self.tracker_id, self.last = state["tracker_id"], state["last"]
        self.recipe.to(self.device)
        groups = self.recipe.groups()
        self.optimiser = torch.optim.Adam(groups, lr=0.0, betas=config.betas, eps=6.25e-10, fused=True)
        self.recipe.learning = config.latents_at(self.step)
        if state is not None:
            self.optimiser.load_state_dict(state["optimiser"])
            if self.step < config.steps:
                log.info("training goes on from step %s of %s", f"{self.step:,}", f"{config.steps:,}")

    def _batches(self, start: int) -> Iterator[Tensor]:
        return batches_of(self.ranks, self.source, self.config.seed, start, self.config.batch_size)

    def _statistics(self) -> tuple[Tensor, float]:
        """Mean and scale of the inputs, from the first 65,536 or so."""
        batches, total = self._batches(0), self.ranks.sum
        count = max(1, min(65_536 // self.config.batch_size, self.config.steps))
        x = torch.cat([next(batches).float() for _ in range(count)]).to(self.device)
        tokens = count * self.config.batch_size
        mean = total(x.sum(0)) / tokens
        if not torch.isfinite(mean).all():
            raise AutointerpError("the activations hold NaN or infinite numbers: harvest them in float32 or bfloat16")
        if self.config.start == "geometric_median":
            mean = geometric_median(x, mean, self.ranks)
        power = float(total((x - mean).square().sum(1).sum()) / tokens)
        if power == 0:
            raise AutointerpError("the activations are all alike: there is nothing to learn; is the hook right?")
        return mean, math.sqrt(self.source.d_in / power)

    def go(self, bar: Progress) -> None:
        config = self.config
        rows = self._open_log()
        started = time.perf_counter() - self.seconds
        tracked = config.tracking if self.ranks.first else None
        with tracking.tracked(tracked, None, self.about, self.tracker_id) as tracker:
            self.tracker_id = tracker.id if tracker is not None else None
            bar.advance(self.step * config.batch_size, skipped=True)
            batches = self._batches(self.step)
            if self.device.type == "cuda":
                batches = ahead(batches)
            while self.step < config.steps:
                if config.stages > 1 and self.step == config.stage_at(self.step)[1]:
                    self._begin_stage()
                x = next(batches).to(self.device, torch.float32, non_blocking=True)
                row = self._train((x - self.mean) * self.scale)
                self.seconds = time.perf_counter() - started
                if row is not None and self.ranks.first:
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
        fired = self.ranks.any(outcome.fired)
        self._penalise(z, fired)
        self.ranks.add_up(tensor.grad for tensor in self.recipe.parameters() if tensor.grad is not None)
        self.recipe.before_step()
        # As clipping to 1 does for a loss summed over d_in: nearly every step is clipped, so that all count alike in
        # Adam's averages. Left as they are, the steep first steps slow down all later ones (benchmarks/training.py).
        torch.nn.utils.clip_grad_norm_(list(self.recipe.parameters()), 1.0 / self.source.d_in)
        self.optimiser.step()
        self.recipe.after_step()
        self.since_fired += config.batch_size
        self.since_fired.masked_fill_(fired, 0)
        self.step += 1
        if self.step % config.log_every and self.step < config.steps:
            return None
        total = self.ranks.sum
        loss = float(total(outcome.loss.detach()))
        if not math.isfinite(loss):
            raise AutointerpError(f"the loss is {loss} at step {self.step}: lower lr, or train in float32")
        spread = total((z - total(z.sum(0)) / config.batch_size).square().sum())
        self.last = {
            "loss": loss,
            "explained_variance": 1 - float(total(outcome.residual) / spread),
            "l0": float(total(outcome.active)) / config.batch_size,
            "dead_fraction": float(dead[learning].float().mean()),
            "mmcs": mmcs(self.recipe.weights["W_dec"][: learning.stop], self.recipe.dtype),
        }
        if self.penalty is not None:
            self.last["penalty"] = float(self.penalty)
        tokens = self.step * config.batch_size
        return {"step": self.step, "tokens": tokens, **self.last, "lr": config.lr_at(self.step - 1)}

    @torch.no_grad()
    def _penalise(self, z: Tensor, fired: Tensor) -> None:
        """Add the penalty's gradient, this rank's part of it; latents which have not begun are no part of it."""
        penalty, stop = self.config.penalty, self.recipe.learning.stop
        if penalty is None or self.step % penalty.every:
            return
        decoder = self.recipe.weights["W_dec"]
        seed, dtype = self.config.seed, self.recipe.dtype
        batch = Batch(decoder[:stop], z, fired[:stop], seed, self.step, dtype, self.penalty_keeps, self.ranks)
        self.penalty, gradient = PENALTIES[penalty.kind](batch, penalty)
        assert decoder.grad is not None
        decoder.grad[:stop].add_(gradient, alpha=penalty.weight * penalty.every / self.ranks.count)

    def keep(self, sae: SAE, held_out: Tensor | None, outlier_threshold: float | None) -> None:
        """Write the finished SAE and, last, what became of the training."""
        save_sae(sae, self.folder, dtype=self.config.save_dtype)
        figures: dict[str, Any] = {"steps": self.config.steps, "seconds": round(self.seconds, 2), **self.last}
        if held_out is not None:
            figures["held_out"] = _held_out_figures(sae, held_out, outlier_threshold)
        if warning := silence_warning(self.source, self.config, self.last["dead_fraction"]):
            log.warning("training: %s", warning)
            figures["warnings"] = [warning]
        text = json.dumps({**self.about, "figures": figures}, indent=2)
        write_atomically(self.folder / "train.json", lambda path: path.write_text(text))
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)

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
        if not self.ranks.first:
            return
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
            "last": self.last,
        }
        write_checkpoint(self.folder / "checkpoint.pt", state)

    def _checkpoint(self) -> dict[str, Any] | None:
        state = read_checkpoint(self.folder / "checkpoint.pt", self.device)
        if state is not None:
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
def geometric_median(x: Tensor, mean: Tensor, ranks: Ranks = ALONE, steps: int = 50) -> Tensor:
    """The point [d] of the least total distance to the rows of all ranks' x [n, d], by Weiszfeld's iteration from
    their mean."""
    median = mean
    for _ in range(steps):
        weights = 1 / (x - median).norm(dim=1).clamp_min(1e-6)
        before, median = median, ranks.sum(weights @ x) / ranks.sum(weights.sum())
        if (median - before).norm() <= 1e-5 * before.norm():
            break
    return median


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
