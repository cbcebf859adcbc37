"""Activations of any text: the same as those of the harvest."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from autointerp.activations.texts import RUNNING, TextActivations
from autointerp.config import CorpusConfig, SubjectConfig
from autointerp.sae.load import load_sae
from autointerp.subject.corpus import build_corpus
from autointerp.subject.model import load_subject

SAE = Path(__file__).parents[2] / "pipelines" / "saes" / "stories15m-l1"


@pytest.fixture(scope="module")
def activations(stories15m: Path) -> TextActivations:
    sae = load_sae(str(SAE))
    subject = load_subject(SubjectConfig(model=str(stories15m)), stories15m, sae.cfg.hook_name)
    return TextActivations(subject, sae, subject.bos_id)


def test_a_texts_activations_do_not_hang_on_its_neighbours(activations: TextActivations) -> None:
    short, long = "Tim saw a cat.", "Once upon a time there was a little girl named Lily who loved the sun."
    read = activations.of(2577)
    alone, together = read([short]), read([long, short])
    assert together[1].tokens == alone[0].tokens
    assert together[1].activations == pytest.approx(alone[0].activations, abs=1e-4)
    assert len(alone[0].tokens) == len(alone[0].activations)
    assert "".join(alone[0].tokens).strip() == short


def test_a_feature_of_a_name_fires_on_the_name(activations: TextActivations) -> None:
    (seen,) = activations.of(2577)(["One day Tim went out. Tim was happy."])
    fires = [token.strip() for token, value in zip(seen.tokens, seen.activations) if value > 0]
    assert fires
    assert set(fires) <= {"Tim", "my", "T", "im"}


@pytest.mark.parametrize("bos", [True, False])
def test_a_text_begins_as_the_rows_of_the_corpus_do(
    bos: bool, activations: TextActivations, stories15m: Path, tmp_path: Path
) -> None:
    subject, sae, text = activations._subject, activations._sae, "One day Tim went out. Tim was happy."
    (tmp_path / "text.txt").write_text(text)
    corpus = build_corpus(CorpusConfig(source=str(tmp_path / "text.txt"), bos=bos), stories15m, tmp_path)
    row = torch.from_numpy(corpus.row(0).astype("int64"))
    harvested = sae.encode(subject.activations(row[None]))[0, int(bos) :, 2577]
    on_text = TextActivations(subject, sae, corpus.info.bos_id)
    (seen,) = on_text.of(2577)([text])
    tokens, by_latent = on_text.fired(text)
    assert float(harvested.max()) > 0
    assert seen.activations == pytest.approx(harvested.tolist(), abs=1e-4)
    assert by_latent[2577] == pytest.approx(harvested.tolist(), abs=1e-4)
    assert "".join(tokens).strip() == "".join(seen.tokens).strip() == text


def test_no_text_gives_no_rows(activations: TextActivations) -> None:
    assert activations.of(0)([]) == []


def test_no_two_threads_run_one_subject_at_once(activations: TextActivations, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks of one pass would read the numbers of the other, whoever asks."""
    subject, free = activations._subject, []

    def watched(tokens: torch.Tensor) -> torch.Tensor:
        other = threading.Thread(target=lambda: free.append(RUNNING.acquire(blocking=False)))
        other.start()
        other.join()
        return type(subject).activations(subject, tokens)

    monkeypatch.setattr(subject, "activations", watched)
    TextActivations(subject, activations._sae, subject.bos_id).of(0)(["A cat."])
    TextActivations(subject, activations._sae, subject.bos_id).fired("A cat.")
    assert free == [False, False]
