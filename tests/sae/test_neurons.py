"""A model's own neurons as an SAE, on real weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autointerp.catalog import resolve
from autointerp.config import SubjectConfig
from autointerp.errors import AutointerpError
from autointerp.sae import SAE, load_sae
from autointerp.sae.neurons import save_neurons
from autointerp.subject.model import Subject, load_subject

pytestmark = pytest.mark.weights
TOKENS = torch.tensor([[1, 403, 501, 2501, 29889, 376, 540]])


@pytest.fixture(scope="module")
def subject() -> Subject:
    config = SubjectConfig(model="stories15m", device="cpu")
    return load_subject(config, resolve("stories15m", "model"), "blocks.2.mlp.hook_post")


def kept(subject: Subject, folder: Path, signed: bool, k: int | None = None) -> SAE:
    save_neurons(subject, folder, signed=signed, k=k, model_name="stories15m", context_size=64, bos=True)
    return load_sae(folder)


def test_the_neurons_of_an_mlp_are_a_transcoder_to_its_output(subject: Subject, tmp_path: Path) -> None:
    sae = kept(subject, tmp_path, signed=True)
    x = subject.activations(TOKENS)[0]
    codes = sae.encode(x)
    d = subject.d_hook
    assert codes.shape[1] == 2 * d
    assert torch.equal(codes[:, :d] - codes[:, d:], x)
    assert not ((codes[:, :d] > 0) & (codes[:, d:] > 0)).any()
    assert sae.cfg.hook_name_out == "blocks.2.hook_mlp_out"
    written = subject.at("blocks.2.hook_mlp_out").activations(TOKENS)[0]
    torch.testing.assert_close(sae.decode(codes), written, atol=1e-5, rtol=1e-4)


def test_without_signs_a_negative_neuron_is_silent(subject: Subject, tmp_path: Path) -> None:
    sae = kept(subject, tmp_path, signed=False)
    x = subject.activations(TOKENS)[0]
    assert torch.equal(sae.encode(x), x.relu())
    sparse = sae.encode_sparse(x)
    assert len(sparse.value) == int((x > 0).sum())
    torch.testing.assert_close(sae.pre_activations(x), x)


def test_with_k_the_strongest_of_a_token_fire(subject: Subject, tmp_path: Path) -> None:
    sae = kept(subject, tmp_path, signed=True, k=5)
    x = subject.activations(TOKENS)[0]
    codes = sae.encode(x)
    assert (codes > 0).sum(1).tolist() == [5] * len(x)
    assert torch.equal(codes.max(1).values, x.abs().max(1).values)
    assert len(sae.encode_sparse(x).value) == 5 * len(x)
    with pytest.raises(AutointerpError, match="needs k between 1"):
        kept(subject, tmp_path, signed=False, k=10_000)


def test_at_the_residual_stream_a_latent_is_a_direction_of_it(subject: Subject, tmp_path: Path) -> None:
    stream = subject.at("blocks.2.hook_resid_post")
    sae = kept(stream, tmp_path, signed=True)
    x = stream.activations(TOKENS)[0]
    assert not sae.is_transcoder
    torch.testing.assert_close(sae(x), x)


def test_a_part_that_is_missing_is_one_line(subject: Subject, tmp_path: Path) -> None:
    kept(subject, tmp_path, signed=True)
    (tmp_path / "neurons.safetensors").unlink()
    with pytest.raises(AutointerpError, match=r"neurons\.safetensors is missing"):
        load_sae(tmp_path)
