"""One pass of the patched model over the text: the sums from which every evaluation figure follows.

What is replaced: the activations written at the hook, at every position but the BOS that the corpus prepends and
those where what the SAE reads has an outlying norm, as an attention sink has (the harvest leaves both out too, and most
SAEs were not trained on them). Clean, reconstructed, zero- and mean-ablated runs differ at these positions and nowhere
else, so a figure that compares them compares like with like. What is outlying counts in the columns ``all_…`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from autointerp.activations.outliers import is_outlying
from autointerp.errors import AutointerpError
from autointerp.evaluation.rows import Row, batches

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from autointerp.progress import Progress

# Summed over tokens; see `figures` for what becomes of them.
COLUMNS = (
    *("tokens", "l0", "l1", "residual", "variance", "cosine", "norm_in", "norm_out", "norm_ratio", "unexplained"),
    *("mse", "out_out", "in_out", "punctuation", "newline", "fired_punctuation", "fired_newline", "predictions"),
    *("ce_clean", "ce_sae", "ce_zero", "ce_mean", "kl_sae", "kl_zero", "kl_mean"),
    *("all_tokens", "all_l0", "all_residual", "all_variance"),
)
CLASSES = ("punctuation", "newline", "word_start")  # of tokens, see `latents.token_classes`
LOGITS = {"cpu": 1 << 26, "cuda": 1 << 29}  # numbers of one run's logits held at a time: 256 MB, 2 GB in float32
DENSE = 1 << 24  # numbers of dense codes or of probabilities held at a time: 64 MB


class PatchedModel(Protocol):
    """The subject at one hook, or a transcoder's two."""

    def ends(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [b, s] -> what the SAE reads [b, s, d_in] and what it should give back [b, s, d_out]; later layers
        need not run."""
        ...

    def run(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [b, s] -> logits [b, s, vocabulary], what the SAE reads [b, s, d_in], what it should give back."""
        ...

    def patched(self, tokens: Tensor, replaced: Tensor) -> Tensor:
        """Logits with `replaced` [b, s, d_out] in place of what the model writes."""
        ...


class Coder(Protocol):
    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, codes: Tensor, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Measured:
    """Sums; the columns are `COLUMNS`. Prepended BOS tokens count in `at_bos` and `bos_tokens` alone."""

    by_position: np.ndarray  # [context, columns] float64; position 0 is the BOS where there is one
    by_document: np.ndarray  # [documents, columns] float64
    firings: np.ndarray  # [latents] tokens on which the latent is above 0
    rows_fired: np.ndarray  # [latents] rows in which it fires
    activation: np.ndarray  # [latents] sum of its activations
    peak: np.ndarray  # [latents]
    by_class: np.ndarray  # [latents, CLASSES] firings on tokens of each class
    at_bos: np.ndarray  # [latents] firings on prepended BOS tokens
    bos_tokens: int


def measure(
    rows: Sequence[Row],
    model: PatchedModel,
    sae: Coder,
    d_sae: int,
    classes: Tensor,
    *,
    skip: int,
    batch_tokens: int,
    device: str | torch.device,
    outlier_threshold: float | None = None,
    bar: Progress,
) -> Measured:
    """Run `rows` clean, reconstructed, zero-ablated and mean-ablated, and sum up.

    classes: [vocabulary, CLASSES] bool. skip: 1 leaves position 0 (the BOS) as it is. outlier_threshold: tokens where
    the SAE would read a higher norm are left as they are. The mean is that of the same rows. `bar` advances by tokens,
    BOS included.

    Raises AutointerpError for activations or logits that are not finite, and where nothing is left to measure.
    """
    import torch

    documents = sorted({row.document for row in rows})
    number = {document: i for i, document in enumerate(documents)}
    with torch.no_grad():
        mean, mean_of_all = _means(rows, model, skip, outlier_threshold, batch_tokens, device)
        context = max(len(row.tokens) for row in rows)
        by_position = torch.zeros(context, len(COLUMNS), dtype=torch.float64, device=device)
        by_document = torch.zeros(len(documents), len(COLUMNS), dtype=torch.float64, device=device)
        latents = _Latents(d_sae, classes.to(device), device)
        size = min(batch_tokens, LOGITS.get(torch.device(device).type, LOGITS["cpu"]) // len(classes))
        for batch, tokens in batches(rows, size):
            tokens = tokens.to(device)
            logits, x, y = model.run(tokens)
            kept, apart = _kept(batch, tokens, x, skip, outlier_threshold)
            lengths = torch.tensor([len(row.tokens) for row in batch], device=device)
            owner = torch.tensor([number[row.document] for row in batch], device=device)
            if apart.any():
                row, position = apart.nonzero().unbind(1)
                values = _outlying(sae, x[apart], y[apart], mean_of_all)
                by_position.index_add_(0, position, values)
                by_document.index_add_(0, owner[row], values)
            bar.advance(int(lengths.sum()))
            if not kept.any():
                continue
            row, position = kept.nonzero().unbind(1)
            x_kept, y_kept = x[kept], y[kept]
            latents.bos(sae, x[:, :skip].flatten(0, 1))
            out, sums = _reconstruct(sae, x_kept, y_kept, mean, d_sae, latents, row, tokens[kept])
            replaced = {"sae": out, "zero": torch.zeros_like(y_kept), "mean": mean.expand_as(y_kept)}
            runs = {name: _patched(model, tokens, y, kept, values) for name, values in replaced.items()}
            last = position == lengths[row] - 1  # nothing follows to predict
            following = tokens.roll(-1, 1)[kept]
            sums |= _compare(logits, runs, kept, following, last)
            sums |= {"all_tokens": sums["tokens"], "all_l0": sums["l0"], "all_residual": sums["residual"]}
            sums["all_variance"] = (y_kept - mean_of_all).square().sum(1)
            for name, on in zip(CLASSES[:2], latents.classes[tokens[kept]].T):
                sums |= {name: on, f"fired_{name}": on * sums["l0"]}
            values = torch.stack([sums[name].double() for name in COLUMNS], 1)
            if not torch.isfinite(values).all():
                raise AutointerpError("activations or logits are not finite: set subject.dtype to float32")
            by_position.index_add_(0, position, values)
            by_document.index_add_(0, owner[row], values)
    return Measured(
        by_position=by_position.cpu().numpy(),
        by_document=by_document.cpu().numpy(),
        bos_tokens=skip * len(rows),
        **latents.arrays(),
    )


def _patched(model: PatchedModel, tokens: Tensor, y: Tensor, kept: Tensor, values: Tensor) -> Tensor:
    """Logits with `values` [m, d_out] in place of y [b, s, d_out] where `kept` [b, s]."""
    patch = y.clone()
    patch[kept] = values
    return model.patched(tokens, patch)


def _kept(rows: Sequence[Row], tokens: Tensor, x: Tensor, skip: int, threshold: float | None) -> tuple[Tensor, Tensor]:
    """[b, s] bool each: tokens that are replaced and counted; those left as they are because x [b, s, d_in], what the
    SAE reads there, has a norm above `threshold`."""
    import torch

    column = torch.arange(tokens.shape[1], device=tokens.device)
    lengths = torch.tensor([len(row.tokens) for row in rows], device=tokens.device)
    real = (column < lengths[:, None]) & (column >= skip)
    apart = torch.zeros_like(real) if threshold is None else real & is_outlying(x, threshold).to(real.device)
    return real & ~apart, apart


def _means(
    rows: Sequence[Row],
    model: PatchedModel,
    skip: int,
    threshold: float | None,
    batch_tokens: int,
    device: str | torch.device,
) -> tuple[Tensor, Tensor]:
    """[d_out] each: over the tokens that are replaced, and over the outlying ones too."""
    import torch

    total = others = torch.zeros((), dtype=torch.float64)
    count = more = 0
    for batch, tokens in batches(rows, batch_tokens):
        tokens = tokens.to(device)
        x, y = model.ends(tokens)
        kept, apart = _kept(batch, tokens, x, skip, threshold)
        total, count = total.to(y.device) + y[kept].sum(0, dtype=torch.float64), count + int(kept.sum())
        if apart.any():
            others, more = others.to(y.device) + y[apart].sum(0, dtype=torch.float64), more + int(apart.sum())
    if not count:
        why = f": all {more} activations have a norm above {threshold:g}, raise sae.outlier_norm" if more else ""
        raise AutointerpError(f"the corpus has no token to evaluate on{why or ': raise corpus.tokens'}")
    return (total / count).float(), ((total + others.to(total.device)) / (count + more)).float()


def _outlying(sae: Coder, x: Tensor, y: Tensor, mean_of_all: Tensor) -> Tensor:
    """What tokens of outlying norm add to the sums: [m, columns] float64."""
    import torch

    codes = sae.encode(x)
    values = torch.zeros(len(x), len(COLUMNS), dtype=torch.float64, device=x.device)
    for name, value in {
        "all_tokens": 1.0,
        "all_l0": (codes > 0).sum(1).double(),
        "all_residual": (y - sae.decode(codes, x).float()).square().sum(1).double(),
        "all_variance": (y - mean_of_all).square().sum(1).double(),
    }.items():
        values[:, COLUMNS.index(name)] = value
    return values


def _reconstruct(
    sae: Coder,
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    d_sae: int,
    latents: _Latents,
    row: Tensor,
    tokens: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """x [m, d_in] -> the reconstruction [m, d_out] and what it adds to the sums, [m] each; `latents` counts firings."""
    import torch

    parts: list[Tensor] = []
    added: dict[str, list[Tensor]] = {"l0": [], "l1": []}
    step = max(1, DENSE // d_sae)
    for at in range(0, len(x), step):
        piece = slice(at, at + step)
        codes = sae.encode(x[piece])
        added["l0"].append((codes > 0).sum(1))
        added["l1"].append(codes.sum(1, dtype=torch.float32))
        latents.add(codes, row[piece], tokens[piece])
        parts.append(sae.decode(codes, x[piece]).float())
    latents.end_rows()
    out = torch.cat(parts)
    norm_in, norm_out = y.norm(dim=1), out.norm(dim=1)
    inner = (y * out).sum(1)
    residual, variance = (y - out).square().sum(1), (y - mean).square().sum(1)
    least = 1e-12  # a zero vector has no direction: its cosine and ratio count as 0
    return out, {
        "tokens": torch.ones_like(norm_in),
        **{name: torch.cat(values) for name, values in added.items()},
        "residual": residual,
        "mse": residual / y.shape[1],
        "variance": variance,
        "unexplained": residual / variance.clamp_min(least),
        "cosine": inner / (norm_in * norm_out).clamp_min(least),
        "norm_in": norm_in,
        "norm_out": norm_out,
        "norm_ratio": norm_out / norm_in.clamp_min(least),
        "out_out": norm_out.square(),
        "in_out": inner,
    }


def _compare(
    clean: Tensor, runs: dict[str, Tensor], kept: Tensor, following: Tensor, last: Tensor
) -> dict[str, Tensor]:
    """Cross-entropies of the following token (0 at a row's last) and KL(clean ‖ run), in nats, [m] each.

    KL is summed as Σ p (l_clean − l_run) + lse_run − lse_clean: exactly 0 for equal logits, and of the size of the
    rounding of their difference otherwise. Probabilities are made for few tokens at a time.
    """
    import torch

    where = kept.nonzero()
    parts: dict[str, list[Tensor]] = {name: [] for name in COLUMNS if name.startswith(("ce_", "kl_"))}
    step = max(1, DENSE // clean.shape[-1])
    for at in range(0, len(where), step):
        rows, columns = where[at : at + step].unbind(1)
        target = following[at : at + step, None]
        base = clean[rows, columns].float()
        normaliser = base.logsumexp(1)
        parts["ce_clean"].append(normaliser - base.gather(1, target)[:, 0])
        probabilities = (base - normaliser[:, None]).exp_()
        for name, logits in runs.items():
            other = logits[rows, columns].float()
            of_other = other.logsumexp(1)
            parts[f"ce_{name}"].append(of_other - other.gather(1, target)[:, 0])
            apart = (probabilities * other.neg_().add_(base)).sum(1)
            parts[f"kl_{name}"].append((apart + of_other - normaliser).clamp_min(0))
    joined = {name: torch.cat(values) for name, values in parts.items()}
    for name in joined:
        if name.startswith("ce_"):
            joined[name] = joined[name].masked_fill(last, 0.0)
    return joined | {"predictions": (~last).float()}


class _Latents:
    """Counts of each latent's firings."""

    def __init__(self, d_sae: int, classes: Tensor, device: str | torch.device) -> None:
        import torch

        self.classes = classes.float()
        self.firings = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self.rows_fired, self.activation, self.at_bos = (torch.zeros_like(self.firings) for _ in range(3))
        self.peak = torch.zeros(d_sae, device=device)
        self.by_class = torch.zeros(d_sae, classes.shape[1], dtype=torch.float64, device=device)
        self._row, self._fired = -1, torch.zeros(d_sae, dtype=torch.bool, device=device)

    def add(self, codes: Tensor, row: Tensor, tokens: Tensor) -> None:
        """codes [m, latents] of tokens [m] in rows `row` [m], which rises; a row may go on in the next call."""
        import torch

        on = codes > 0
        self.firings += on.sum(0)
        self.activation += codes.sum(0, dtype=torch.float64)
        self.peak = torch.maximum(self.peak, codes.amax(0).float())
        self.by_class += on.float().T @ self.classes[tokens]
        for number, length in zip(*(t.tolist() for t in row.unique_consecutive(return_counts=True))):
            if number != self._row:
                self.end_rows()
                self._row = number
            self._fired |= on[:length].any(0)
            on = on[length:]

    def end_rows(self) -> None:
        """The rows given so far are over."""
        self.rows_fired += self._fired
        self._fired.zero_()
        self._row = -1

    def bos(self, sae: Coder, x: Tensor) -> None:
        if len(x):
            self.at_bos += (sae.encode(x) > 0).sum(0)

    def arrays(self) -> dict[str, np.ndarray]:
        names = ("firings", "rows_fired", "activation", "peak", "by_class", "at_bos")
        return {name: getattr(self, name).cpu().numpy() for name in names}
