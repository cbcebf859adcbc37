"""Self-explanation on real weights: patching a token's own activation is reading that token, and a scale is chosen."""

import re

import pytest
import torch

from autointerp.config import SubjectConfig
from autointerp.errors import ConfigError
from autointerp.explainers import self_explain
from autointerp.records import FeatureEvidence
from autointerp.sae.model import SAE, SAEConfig
from autointerp.subject.model import Subject, load_subject

PROMPT = "Once upon a time there was a dog named X. The"
DIRECTIONS = 6


@pytest.fixture(scope="module")
def subject(stories15m) -> Subject:
    hook = "blocks.3.hook_resid_post"
    return load_subject(SubjectConfig(model="stories15m", hook=hook, device="cpu"), stories15m, hook)


@pytest.fixture(scope="module")
def sae(subject) -> SAE:
    rows = torch.randn(DIRECTIONS, subject.d_model, generator=torch.Generator().manual_seed(0))
    return as_sae(rows)


def as_sae(rows: torch.Tensor) -> SAE:
    n, d = rows.shape
    weights = {"W_enc": rows.T.contiguous(), "b_enc": torch.zeros(n), "W_dec": rows, "b_dec": torch.zeros(d)}
    return SAE(SAEConfig("relu", d, n, "autointerp", "float32", apply_b_dec_to_input=False), weights)


def evidence(feature=2):
    return FeatureEvidence(feature, 1, 0.1, 1.0, (), (), ())


def test_a_token_s_own_activation_in_its_place_changes_nothing(subject) -> None:
    patched = self_explain._Patched(subject, PROMPT, 1)
    ids = torch.tensor([patched._ids])
    clean = patched._subject.activations(ids)[0, patched._place]
    (continued,) = patched.continued(clean, [1.0], 6)
    expected, held = patched._ids[:], len(patched._ids)
    for _ in continued:
        logits, _ = subject.logits(torch.tensor([expected]))
        expected.append(int(logits[0, -1].argmax()))
    assert continued == expected[held:]
    logits, _ = subject.logits(torch.tensor([expected]))
    likely = logits[0, held - 1 : -1].log_softmax(-1)
    mean = float(likely[range(len(continued)), continued].mean())
    own, other = patched.log_probabilities([(clean, continued), (-clean, continued)])
    assert own == pytest.approx(mean, abs=1e-4)
    assert other < own - 0.01


async def test_the_best_of_a_sweep_is_kept_and_all_are_listed(subject, sae) -> None:
    options = {"subject": subject, "sae": sae, "scales": (0.5, 1.0, 2.0), "tokens": 6, "seed": 0, "prompt": PROMPT}
    got = await self_explain.explain(evidence(), None, **options)
    rows = re.findall(r"^([+-]\d+\.\d\d)  at ([\d.]+): (.*)$", got.raw, re.M)
    assert 1 <= len(rows) <= 3
    best = max(rows, key=lambda row: float(row[0]))
    assert got.text.split(",")[0] in best[2]
    assert got == await self_explain.explain(evidence(), None, **options)


async def test_a_direction_that_says_what_all_say_has_no_value(subject) -> None:
    same = as_sae(torch.ones(DIRECTIONS, subject.d_model))
    got = await self_explain.explain(evidence(), None, subject=subject, sae=same, scales=(1.0,), tokens=6, seed=0)
    assert re.search(r"^[+-]0\.00  at 1:", got.raw, re.M)


async def test_what_cannot_be_patched_is_told(subject, sae) -> None:
    narrow = as_sae(torch.ones(DIRECTIONS, 7))
    got = await self_explain.explain(evidence(), None, subject=subject, sae=narrow, seed=0)
    assert "does not write into the residual stream" in got.failure
    with pytest.raises(ConfigError, match="no X stands in it"):
        await self_explain.explain(evidence(), None, subject=subject, sae=sae, prompt="a: b", seed=0)
    with pytest.raises(ConfigError):
        await self_explain.explain(evidence(), None, subject=subject, sae=sae, layer=99, seed=0)
