"""Figures of planted SAEs on the real story model: what must be 1, what must be 0, and what adds up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.artifacts import Corpus, CorpusInfo
from autointerp.config import CorpusConfig, SubjectConfig
from autointerp.errors import AutointerpError
from autointerp.evaluation import (
    Measured,
    Row,
    by_band,
    by_position,
    interference_figures,
    latent_figures,
    latent_table,
    measure,
    overall,
    rows_of,
    saebench,
    token_classes,
)
from autointerp.evaluation.figures import FIGURES
from autointerp.evaluation.rows import held_out_from
from autointerp.evaluation.run import PatchedSubject
from autointerp.evaluation.sums import COLUMNS
from autointerp.progress import Progress
from autointerp.sae import SAE, SAEConfig
from autointerp.subject import Subject, build_corpus, load_subject

STORIES = Path(__file__).parents[1] / "data" / "stories.jsonl"


@pytest.fixture(scope="module")
def subject(stories15m: Path) -> Subject:
    return load_subject(SubjectConfig(model=str(stories15m), device="cpu"), stories15m, "blocks.2.hook_resid_post")


@pytest.fixture(scope="module")
def corpus(stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    wanted = CorpusConfig(source=str(STORIES), tokens=500, context=40)
    return build_corpus(wanted, stories15m, tmp_path_factory.mktemp("corpus"))


def planted(d: int, decoder: torch.Tensor, **more: object) -> SAE:
    """Codes are the positive and the negative part of the input; `decoder` [d, d_out] maps it."""
    eye = torch.eye(d)
    tensors = {
        "W_enc": torch.cat([eye, -eye], 1),
        "W_dec": torch.cat([decoder, -decoder]),
        "b_enc": torch.zeros(2 * d),
        "b_dec": torch.zeros(decoder.shape[1]),
    }
    cfg = SAEConfig("relu", d, 2 * d, "autointerp", "float32", False, **more)  # type: ignore[arg-type]
    return SAE(cfg, tensors)


def run(
    subject: Subject,
    corpus: Corpus,
    sae: SAE,
    writes: Subject | None = None,
    context: int = 40,
    threshold: float | None = None,
    batch_tokens: int = 200,
) -> Measured:
    rows = rows_of(corpus, 200, context)
    classes = token_classes(subject.vocab_strings())
    model = PatchedSubject(subject, writes or subject)
    bar = Progress("evaluate", None, "tokens")
    return measure(
        rows, model, sae, sae.cfg.d_sae, classes,
        skip=1, batch_tokens=batch_tokens, device="cpu", outlier_threshold=threshold, bar=bar,
    )  # fmt: skip


def values(measured: Measured) -> dict[str, float | None]:
    return {row["metric"]: row["value"] for row in overall(measured, 0) + latent_figures(measured)}


@pytest.fixture(scope="module")
def perfect(subject: Subject, corpus: Corpus) -> Measured:
    return run(subject, corpus, planted(288, torch.eye(288)))


def test_a_perfect_sae_recovers_all(perfect: Measured) -> None:
    found = values(perfect)
    for name in (
        "ce_loss_recovered",
        "ce_loss_recovered_from_mean",
        "kl_loss_recovered",
        "kl_loss_recovered_from_mean",
    ):
        assert found[name] == pytest.approx(1, abs=1e-5)
    assert found["kl_sae"] == pytest.approx(0, abs=1e-5)
    assert found["ce_sae"] == pytest.approx(found["ce_clean"], abs=1e-5)
    for name in ("explained_variance", "cosine", "l2_ratio", "relative_reconstruction_bias"):
        assert found[name] == pytest.approx(1, abs=1e-5)
    assert found["l0"] == 288
    assert found["kl_zero"] is not None
    assert found["kl_zero"] > 1


def test_tokens_of_outlying_norm_are_left_as_they_are_and_counted_apart(subject: Subject, corpus: Corpus) -> None:
    rows = rows_of(corpus, 200, 40)
    y = torch.cat([subject.activations(torch.from_numpy(row.tokens)[None])[0, 1:] for row in rows])
    threshold = float(y.norm(dim=1).quantile(0.8))
    usual = y.norm(dim=1) <= threshold
    sae = planted(288, 0.5 * torch.eye(288))
    found = values(run(subject, corpus, sae, threshold=threshold))
    everything = values(run(subject, corpus, sae))

    def explained(y: torch.Tensor) -> float:
        return 1 - float((0.5 * y).square().sum() / (y - y.mean(0)).square().sum())

    assert found["explained_variance"] == pytest.approx(explained(y[usual]), abs=1e-4)
    assert found["explained_variance_with_outliers"] == pytest.approx(explained(y), abs=1e-4)
    assert found["explained_variance_with_outliers"] == pytest.approx(everything["explained_variance"], abs=1e-6)
    assert found["l0_with_outliers"] == everything["l0"]
    assert found["outlying_tokens"] == pytest.approx(1 - float(usual.double().mean()))
    assert everything["outlying_tokens"] == 0
    assert everything["explained_variance_with_outliers"] == everything["explained_variance"]
    for name in ("kl_sae", "kl_zero"):
        assert found[name] > 0  # type: ignore[operator]
    perfect = values(run(subject, corpus, planted(288, torch.eye(288)), threshold=threshold))
    assert perfect["kl_sae"] == pytest.approx(0, abs=1e-5)


def test_a_batch_of_sinks_alone_is_counted_and_a_corpus_of_them_refused(subject: Subject, corpus: Corpus) -> None:
    rows = rows_of(corpus, 200, 40)
    norms = [subject.activations(torch.from_numpy(row.tokens)[None])[0, 1:].norm(dim=1) for row in rows]
    threshold = sorted(float(norm.min()) for norm in norms if len(norm))[-1] - 1e-3  # all tokens of one row are above
    alone, together = (
        run(subject, corpus, planted(288, torch.eye(288)), threshold=threshold, batch_tokens=size) for size in (1, 200)
    )
    np.testing.assert_allclose(alone.by_document[:, -4:], together.by_document[:, -4:], rtol=1e-3)
    assert alone.by_document[:, COLUMNS.index("all_tokens")].sum() == sum(map(len, norms))
    with pytest.raises(AutointerpError, match=r"all \d+ activations have a norm above 0\.001"):
        run(subject, corpus, planted(288, torch.eye(288)), threshold=0.001)


def test_a_zero_sae_recovers_nothing(subject: Subject, corpus: Corpus) -> None:
    measured = run(subject, corpus, planted(288, torch.zeros(288, 288)))
    found = values(measured)
    assert found["ce_sae"] == found["ce_zero"]
    assert found["ce_loss_recovered"] == found["kl_loss_recovered"] == 0
    assert found["cosine"] == found["l2_ratio"] == 0
    assert found["relative_reconstruction_bias"] is None


def test_an_sae_that_says_the_mean_is_worth_mean_ablation(subject: Subject, corpus: Corpus, perfect: Measured) -> None:
    rows = rows_of(corpus, 200, 40)
    y = torch.cat([subject.activations(torch.from_numpy(row.tokens)[None])[0, 1:] for row in rows])
    sae = planted(288, torch.zeros(288, 288))
    sae.b_dec.copy_(y.mean(0))
    found = values(run(subject, corpus, sae))
    assert found["explained_variance"] == pytest.approx(0, abs=1e-4)
    assert found["ce_loss_recovered_from_mean"] == pytest.approx(0, abs=1e-4)
    assert found["kl_loss_recovered_from_mean"] == pytest.approx(0, abs=1e-4)


def test_clean_cross_entropy_is_that_of_transformers(stories15m: Path, corpus: Corpus, perfect: Measured) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(stories15m)
    losses: list[torch.Tensor] = []
    for row in rows_of(corpus, 200, 40):
        tokens = torch.from_numpy(row.tokens)
        with torch.no_grad():
            logits = model(tokens[None]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[1:-1], tokens[2:], reduction="none"))
    assert values(perfect)["ce_clean"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-4)


def test_divergence_from_zero_ablation_is_that_of_torch(subject: Subject, corpus: Corpus, perfect: Measured) -> None:
    found: list[torch.Tensor] = []
    for row in rows_of(corpus, 200, 40):
        tokens = torch.from_numpy(row.tokens)[None]
        clean, read = subject.logits(tokens, read=[subject.hook.name])
        zero = read[subject.hook.name]
        zero[:, 1:] = 0
        ablated, _ = subject.logits(tokens, patch={subject.hook.name: zero})
        log_p, log_q = clean[0, 1:].log_softmax(-1), ablated[0, 1:].log_softmax(-1)
        found.append(torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1))
    assert values(perfect)["kl_zero"] == pytest.approx(float(torch.cat(found).mean()), abs=1e-4)


def test_positions_and_documents_add_up_to_the_same(perfect: Measured) -> None:
    assert perfect.by_position.shape[1] == perfect.by_document.shape[1] == len(COLUMNS)
    assert np.allclose(perfect.by_position.sum(0), perfect.by_document.sum(0))
    assert (perfect.by_position[0] == 0).all(), "BOS is not replaced and does not count"
    rows, bands = by_position(perfect, 16), by_band(perfect, 16)
    assert [row["position"] for row in rows] == list(range(1, 40))
    assert [row["beyond"] for row in rows] == [position >= 16 for position in range(1, 40)]
    assert [(b["position"], b["last"]) for b in bands] == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 39)]
    total = values(perfect)
    for name in ("l0", "ce_clean"):
        counts = perfect.by_position[1:, COLUMNS.index("tokens" if name == "l0" else "predictions")]
        pooled = sum((row[name] or 0) * n for row, n in zip(rows, counts)) / counts.sum()
        assert pooled == pytest.approx(total[name])
    assert sum(band["n"] for band in bands) == perfect.by_document[:, 0].sum()


def test_batches_change_nothing(subject: Subject, corpus: Corpus, perfect: Measured, monkeypatch) -> None:
    monkeypatch.setattr("autointerp.evaluation.sums.LOGITS", {"cpu": 1})
    monkeypatch.setattr("autointerp.evaluation.sums.DENSE", 576 * 7)
    again = run(subject, corpus, planted(288, torch.eye(288)))
    assert np.allclose(again.by_position, perfect.by_position, atol=1e-2)
    assert np.allclose(again.firings, perfect.firings, atol=1)
    assert np.allclose(again.rows_fired, perfect.rows_fired, atol=1)


def test_a_transcoder_from_the_heads_to_what_they_write(subject: Subject, corpus: Corpus) -> None:
    reads, writes = subject.at("blocks.3.attn.hook_z"), subject.at("blocks.3.hook_attn_out")
    out = subject.bridge.blocks[3].attn.W_O.detach().flatten(0, 1).float()
    exact = values(run(reads, corpus, planted(288, out, d_out=288), writes))
    assert exact["ce_loss_recovered"] == pytest.approx(1, abs=1e-4)
    assert exact["explained_variance"] == pytest.approx(1, abs=1e-4)
    nothing = values(run(reads, corpus, planted(288, 0 * out, d_out=288), writes))
    assert nothing["ce_loss_recovered"] == 0


def test_heads_are_replaced_side_by_side(subject: Subject, corpus: Corpus) -> None:
    z = subject.at("blocks.3.attn.hook_z")
    assert values(run(z, corpus, planted(288, torch.eye(288))))["kl_loss_recovered"] == pytest.approx(1, abs=1e-4)


def test_rows_longer_than_the_corpus_reach_further(subject: Subject, corpus: Corpus) -> None:
    measured = run(subject, corpus, planted(288, torch.eye(288)), context=60)
    rows = by_position(measured, 40)
    assert max(row["position"] for row in rows) == 59
    assert {row["position"] for row in rows if row["beyond"]} == set(range(40, 60))


def test_numbers_that_are_not_finite_are_said(subject: Subject, corpus: Corpus) -> None:
    class Overflowing(PatchedSubject):
        def patched(self, tokens: torch.Tensor, replaced: torch.Tensor) -> torch.Tensor:
            return torch.full((*tokens.shape, 32000), torch.inf)

    model, sae = Overflowing(subject, subject), planted(288, torch.eye(288))
    bar = Progress("evaluate", None, "tokens")
    classes = token_classes(subject.vocab_strings())
    with pytest.raises(AutointerpError, match=r"set subject\.dtype to float32"):
        measure(rows_of(corpus, 9, 40), model, sae, 576, classes, skip=1, batch_tokens=200, device="cpu", bar=bar)


# --- without a model ------------------------------------------------------------------------------


def sums(**given: float) -> Measured:
    """Two documents with the same sums, and three latents."""
    row = np.array([given.get(name, 1.0) for name in COLUMNS])
    three = np.array([0.0, 3.0, 90.0])
    by_class = np.stack([three / 3] * 3, 1)
    return Measured(
        np.stack([0 * row, 2 * row]),
        np.stack([row, row]),
        three,
        three / 3,
        three * 2,
        three,
        by_class,
        np.array([0.0, 1.0, 0.0]),
        2,
    )


def test_nothing_to_recover_is_null_with_the_reason() -> None:
    rows = {row["metric"]: row for row in overall(sums(tokens=100, predictions=100, ce_zero=1, ce_clean=1), 0)}
    assert rows["ce_loss_recovered"]["value"] is None
    assert "costs less than 0.01 nats" in rows["ce_loss_recovered"]["note"]
    assert rows["ce_loss_recovered"]["low"] is None


def test_one_document_has_no_interval() -> None:
    two = sums()
    one = Measured(**{**{f: getattr(two, f) for f in two.__dataclass_fields__}, "by_document": two.by_document[:1]})
    row = overall(one, 0)[0]
    assert (row["value"], row["low"], row["note"]) == (1, None, "fewer than two documents: no interval")


def test_intervals_are_over_documents() -> None:
    rng = np.random.default_rng(0)
    by_document = np.ones((200, len(COLUMNS)))
    by_document[:, COLUMNS.index("l0")] = rng.normal(5, 1, 200)
    whole = sums()
    many = Measured(**{**{f: getattr(whole, f) for f in whole.__dataclass_fields__}, "by_document": by_document})
    row = overall(many, 0)[0]
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 / 200**0.5, rel=0.2)
    assert row["low"] < row["value"] < row["high"]


def test_latents_are_counted() -> None:
    measured = sums(tokens=100)
    found = {row["metric"]: row["value"] for row in latent_figures(measured)}
    assert found["dead_fraction"] == pytest.approx(1 / 3)
    assert found["dense_fraction"] == pytest.approx(1 / 3)
    assert found["frequent_fraction"] == pytest.approx(2 / 3)
    assert found["dense_firings"] == pytest.approx(90 / 93)
    assert found["l0_on_bos"] == 0.5
    table = latent_table(measured, np.array([-1, 2, 1]), np.array([-np.inf, 0.5, 0.5]))
    assert table["nearest"].isna().tolist() == [True, False, False]
    assert table["punctuation_share"].isna().tolist() == [True, False, False]
    assert table["bos_share"].tolist()[1:] == [0.25, 0]
    assert table["dense"].tolist() == [False, False, True]


def test_tokens_are_classed_by_their_text() -> None:
    found = token_classes([" the", "the", ".", ' "', "\n", "", " ", "'s", " 9", "…", "<0x0A>"])
    assert found[:, 0].nonzero()[:, 0].tolist() == [2, 3, 9]
    assert found[:, 1].nonzero()[:, 0].tolist() == [4]
    assert found[:, 2].nonzero()[:, 0].tolist() == [0, 8]


def test_interference_is_the_root_mean_square_of_all_pairs() -> None:
    W = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    alive = torch.ones(200, dtype=torch.bool)
    alive[:50] = False
    found = {row["metric"]: row["value"] for row in interference_figures(W, alive)}
    V = torch.nn.functional.normalize(W[50:].double(), dim=1)
    off = (V @ V.T)[~torch.eye(150, dtype=torch.bool)]
    assert found["interference_rms"] == pytest.approx(float(off.square().mean().sqrt()))
    assert found["interference_rms"] == pytest.approx(32**-0.5, rel=0.03)
    assert found["interference_capacity"] == pytest.approx(32 / 4 + 1, rel=0.06)
    orthogonal = interference_figures(torch.eye(8), torch.ones(8, dtype=torch.bool))
    assert {row["metric"]: row["value"] for row in orthogonal}["interference_capacity"] is None
    assert interference_figures(torch.eye(8), torch.zeros(8, dtype=torch.bool))[0]["value"] is None


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    bos=st.booleans(),
    context=st.integers(2, 9),
    wanted=st.integers(2, 12),
    tokens=st.integers(1, 60),
    held_out=st.integers(1, 40),
)
def test_rows_hold_whole_documents_from_the_end(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[int],
    bos: bool,
    context: int,
    wanted: int,
    tokens: int,
    held_out: int,
) -> None:
    head = [1] if bos else []
    text = {d: [100 * (d + 1) + i for i in range(n)] for d, n in enumerate(documents)}
    pieces = [
        (d, at, head + ids[at : at + context - len(head)])
        for d, ids in text.items()
        for at in range(0, len(ids), context - len(head))
    ]
    folder = tmp_path_factory.mktemp("rows")
    offsets = np.cumsum([0, *(len(row) for _, _, row in pieces)])
    info = CorpusInfo("s", "t", 1 if bos else None, context, int(offsets[-1]), len(pieces), len(documents), "")
    Corpus.save(
        folder,
        info,
        np.concatenate([row for *_, row in pieces]),
        offsets,
        np.array([d for d, *_ in pieces]),
        np.array([at for _, at, _ in pieces]),
    )
    corpus = Corpus(folder)
    rows = rows_of(corpus, tokens, wanted)
    assert all(len(row.tokens) <= wanted for row in rows)
    taken = sorted({row.document for row in rows})
    assert taken == list(range(taken[0], len(documents))), "the last documents, without a gap"
    for document in taken:
        own = [row.tokens[len(head) :] for row in rows if row.document == document]
        assert np.concatenate(own).tolist() == text[document]
    assert all(not bos or row.tokens[0] == 1 for row in rows)
    count = sum(len(row.tokens) for row in rows)
    assert count >= tokens or len(taken) == len(documents)

    unseen = min(held_out, sum(documents))
    first = held_out_from(corpus, unseen)
    kept = rows_of(corpus, 10**6, wanted, first_token=first)
    assert sum(len(row.tokens) - len(head) for row in kept) <= unseen


def test_rows_of_like_length_run_together() -> None:
    from autointerp.evaluation.rows import batches

    rows = [Row(0, np.arange(1, n + 1)) for n in (3, 9, 5, 9)]
    found = [([len(row.tokens) for row in some], tokens.shape) for some, tokens in batches(rows, 18)]
    assert found == [([9, 9], (2, 9)), ([5, 3], (2, 5))]


def test_saebench_s_form() -> None:
    measured = sums(tokens=100)
    rows = overall(measured, 0) + latent_figures(measured) + [{"metric": "mmcs", "value": 0.5, "n": 3}]
    features = latent_table(measured, np.array([-1, 2, 1]), np.array([-np.inf, 0.5, 0.5]))
    encoder = {name: torch.tensor([0.5, 1, 2]) for name in ("norm", "bias", "cosine", "max_cosine")}
    found = saebench(rows, features, encoder, {"eval_config": {}, "eval_id": "x"})
    assert list(found) == ["eval_type_id", "eval_config", "eval_id", "eval_result_metrics", "eval_result_details"]
    assert {category: sorted(metrics) for category, metrics in found["eval_result_metrics"].items()} == {
        "model_behavior_preservation": ["kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"],
        "model_performance_preservation": [
            "ce_loss_score",
            "ce_loss_with_ablation",
            "ce_loss_with_sae",
            "ce_loss_without_sae",
        ],
        "reconstruction_quality": ["cossim", "explained_variance", "explained_variance_legacy", "mse"],
        "shrinkage": ["l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"],
        "sparsity": ["l0", "l1"],
        "misc_metrics": [
            "average_max_decoder_cosine_sim",
            "average_max_encoder_cosine_sim",
            "frac_alive",
            "freq_over_10_percent",
            "freq_over_1_percent",
            "normalized_freq_over_10_percent",
            "normalized_freq_over_1_percent",
        ],
        "token_stats": ["total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"],
    }
    assert found["eval_result_metrics"]["misc_metrics"]["frac_alive"] == pytest.approx(2 / 3)
    assert found["eval_result_details"][0] == {
        "index": 0,
        "feature_density": 0.0,
        "consistent_activation_heuristic": None,
        "encoder_bias": 0.5,
        "encoder_norm": 0.5,
        "encoder_decoder_cosine_sim": 0.5,
        "max_decoder_cosine_sim": None,
        "max_encoder_cosine_sim": 0.5,
    }
    assert found["eval_result_details"][2]["feature_density"] == 0.45


def test_every_figure_has_its_own_name() -> None:
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
