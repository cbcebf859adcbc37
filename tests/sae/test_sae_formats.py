"""Every format against what its own library made of the same checkpoint (golden/make.py), and damaged files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from autointerp.errors import AutointerpError, ConfigError
from autointerp.sae import SAE, SAEConfig, load_sae, save_sae

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = sorted(path.parent for path in GOLDEN.rglob("expected.safetensors"))


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_a_checkpoint_gives_what_its_own_library_gives(path: Path) -> None:
    sae = load_sae(path)
    expected = load_file(path / "expected.safetensors")
    x = expected["x"]
    codes = sae.encode(x)
    torch.testing.assert_close(codes, expected["codes"], atol=1e-5, rtol=0)
    torch.testing.assert_close(sae.decode(codes, x), expected["out"], atol=1e-5, rtol=0)
    torch.testing.assert_close(sae(x), expected["out"], atol=1e-5, rtol=0)
    sparse = sae.encode_sparse(x)
    rebuilt = torch.zeros_like(codes)
    rebuilt[sparse.token_index, sparse.latent_index] = sparse.value
    assert torch.equal(rebuilt, codes)
    assert (sparse.value > 0).all()
    assert (sparse.token_index.diff() >= 0).all()


def test_every_format_has_a_golden_checkpoint() -> None:
    from autointerp.sae.formats import FORMATS

    published = "gemma_scope_2 qwen_scope circuit_transcoders linear_layers attention_z temporal"  # test_published_saes
    made = {"openai", "neurons", *published.split()}
    assert {load_sae(path).cfg.source_format for path in CHECKPOINTS} | made == set(FORMATS.names())


@pytest.mark.parametrize(
    ("path", "facts"),
    [
        ("saelens/2-topk", {"hook_name": "blocks.1.hook_resid_pre", "context_size": 64, "prepend_bos": True, "k": 4}),
        (
            "saelens/v5-topk",
            {"hook_name": "blocks.2.hook_resid_post", "model_name": "gpt2-small", "prepend_bos": False},
        ),
        ("sparsify/layers.5", {"hook_name": "layers.5", "k": 4, "context_size": None}),
        ("sparsify/layers.5.mlp", {"hook_name": None, "hook_name_out": "layers.5.mlp", "d_out": 8}),
        ("dictionary_learning/trainer_5", {"hook_name": "blocks.3.hook_resid_post", "model_name": "org/model"}),
        ("gemma-scope-2b-pt-res/layer_3/width_32", {"hook_name": "blocks.3.hook_resid_post", "prepend_bos": True}),
        ("llama_scope/L7R", {"hook_name": "blocks.7.hook_resid_post", "apply_b_dec_to_input": False}),
    ],
)
def test_what_a_checkpoint_says_of_its_training_is_kept(path: str, facts: dict[str, object]) -> None:
    cfg = load_sae(GOLDEN / path).cfg
    assert {name: getattr(cfg, name) for name in facts} == facts


def test_a_fact_the_checkpoint_does_not_carry_is_asked_for_by_name() -> None:
    cfg = load_sae(GOLDEN / "sparsify" / "layers.5").cfg
    assert cfg.unknown == ("model_name", "context_size", "prepend_bos")
    with pytest.raises(AutointerpError, match="prepend_bos"):
        cfg.require("prepend_bos")
    assert cfg.require("hook_name") == "layers.5"


def openai_state(d: int, n: int, activation: str) -> dict[str, object]:
    state: dict[str, object] = {
        "pre_bias": torch.randn(d),
        "latent_bias": torch.randn(n),
        "encoder.weight": torch.randn(n, d),
        "decoder.weight": torch.randn(d, n),
        "stats_last_nonzero": torch.zeros(n, dtype=torch.long),
        "activation": activation,
    }
    return state | ({"activation_state_dict": {"k": 3}} if activation == "TopK" else {})


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_an_openai_checkpoint_norms_its_input_only_for_topk(tmp_path: Path, activation: str) -> None:
    torch.manual_seed(0)
    state = openai_state(6, 20, activation)
    torch.save(state, tmp_path / "8.pt")
    sae = load_sae(tmp_path / "8.pt")
    x = torch.randn(7, 6) * 3 + 1
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    z = (x - mean) / (std + 1e-5) if activation == "TopK" else x
    codes = torch.relu((z - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"])  # type: ignore[union-attr]
    if activation == "TopK":
        codes = torch.where(codes >= codes.topk(3).values[:, -1:], codes, 0.0)
    out = codes @ state["decoder.weight"].T + state["pre_bias"]  # type: ignore[union-attr]
    torch.testing.assert_close(sae.encode(x), codes, atol=1e-5, rtol=0)
    torch.testing.assert_close(sae(x), out * std + mean if activation == "TopK" else out, atol=1e-5, rtol=1e-5)
    if activation == "TopK":
        with pytest.raises(AutointerpError, match="needs its input"):
            sae.decode(codes)


def test_ours_is_read_by_saelens_with_the_same_result(tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    x = torch.randn(5, 8)
    for name in ("0-standard", "2-topk", "4-gated", "5-jumprelu", "7-jumprelu_transcoder", "8-skip_transcoder"):
        ours = load_sae(GOLDEN / "saelens" / name)
        save_sae(ours, tmp_path / name)
        theirs = sae_lens.SAE.load_from_disk(tmp_path / name)
        torch.testing.assert_close(theirs.encode(x), ours.encode(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(theirs(x), ours(x), atol=1e-5, rtol=0)
        assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"


@settings(max_examples=25, deadline=None)
@given(
    d_in=st.integers(1, 5),
    d_sae=st.integers(1, 9),
    architecture=st.sampled_from(["relu", "topk", "jumprelu", "gated"]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    known=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, d_in, d_sae, architecture, dtype, known, seed) -> None:
    folder = tmp_path_factory.mktemp("sae")
    generator = torch.Generator().manual_seed(seed)
    rounded = getattr(torch, dtype)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    from autointerp.sae.model import ARCHITECTURES

    shapes |= dict.fromkeys(ARCHITECTURES[architecture].tensors, (d_sae,))
    tensors = {name: torch.randn(*shape, generator=generator).to(rounded).float() for name, shape in shapes.items()}
    if architecture == "gated":
        tensors["b_enc"].zero_()
    cfg = SAEConfig(
        architecture, d_in, d_sae, "saelens", dtype, seed % 2 == 0, k=1 if architecture == "topk" else None,
        hook_name="blocks.0.hook_resid_pre" if known else None, prepend_bos=False if known else None,
    )  # fmt: skip
    save_sae(SAE(cfg, tensors), folder, dtype=dtype)
    again = load_sae(folder)
    assert again.cfg == cfg
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in tensors.items())


# --- what is refused, each in one line -------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path):
    def make(name: str) -> Path:
        return Path(shutil.copytree(GOLDEN / name, tmp_path / Path(name).name))

    return make


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("saelens/2-topk", "sae_weights.safetensors"),
        ("sparsify/layers.5", "sae.safetensors"),
        ("dictionary_learning/trainer_4", "ae.pt"),
        ("gemma-scope-2b-pt-res/layer_3/width_32", "params.npz"),
        ("llama_scope/L7R", "checkpoints/final.safetensors"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused_by_name(copy, name: str, file: str, share: float) -> None:
    path = copy(name)
    whole = (path / file).read_bytes()
    (path / file).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(AutointerpError, match=Path(file).name) as caught:
        load_sae(path)
    assert "\n" not in str(caught.value)


def test_wrong_shapes_nan_and_missing_tensors_are_refused(copy) -> None:
    path = copy("saelens/2-topk")
    whole = load_file(path / "sae_weights.safetensors")
    for damage, message in (
        ({"W_dec": whole["W_dec"][:-1]}, "no whole saelens checkpoint|shape"),
        ({"b_dec": whole["b_dec"][:-1]}, "b_dec has the shape"),
        ({"b_enc": whole["b_enc"] * float("nan")}, "NaN"),
        ({"surplus": torch.zeros(3)}, "surplus"),
    ):
        save_file({**whole, **damage}, path / "sae_weights.safetensors")
        with pytest.raises(AutointerpError, match=message):
            load_sae(path)
    save_file({k: v for k, v in whole.items() if k != "W_enc"}, path / "sae_weights.safetensors")
    with pytest.raises(AutointerpError, match="W_enc"):
        load_sae(path)


class _Runs:
    def __reduce__(self):
        return os.mkdir, (os.environ["AUTOINTERP_TEST_TRAP"],)


def test_a_pickle_with_code_is_refused_and_not_run(copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "trap"
    monkeypatch.setenv("AUTOINTERP_TEST_TRAP", str(trap))
    path = copy("dictionary_learning/trainer_0")
    torch.save({"encoder.weight": _Runs()}, path / "ae.pt")
    with pytest.raises(AutointerpError, match="never loaded"):
        load_sae(path)
    (path / "ae.pt").write_bytes(pickle.dumps(_Runs()))
    with pytest.raises(AutointerpError, match=r"ae\.pt"):
        load_sae(path)
    np.savez(tmp_path / "params.npz", W_enc=np.array([_Runs()], dtype=object))
    with pytest.raises(AutointerpError, match=r"params\.npz"):
        load_sae(tmp_path / "params.npz")
    assert not trap.exists()


def test_unknown_files_are_listed_with_the_formats_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"found weights\.bin; known formats: .*saelens.*sparsify"):
        load_sae(tmp_path)
    with pytest.raises(ConfigError, match=r"saelense.*did you mean 'saelens'"):
        load_sae(tmp_path, format="saelense")
    with pytest.raises(ConfigError, match="no SAE at"):
        load_sae(tmp_path / "nothing")


def test_an_architecture_or_class_that_is_not_known_is_named(copy) -> None:
    path = copy("saelens/0-standard")
    config = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps({**config, "architecture": "holographic"}))
    with pytest.raises(AutointerpError, match="'holographic' is not one of"):
        load_sae(path)
    (path / "cfg.json").write_text("{")
    with pytest.raises(AutointerpError, match="not JSON"):
        load_sae(path, format="saelens")


def test_a_format_of_a_plugin_is_found(tmp_path: Path) -> None:
    from autointerp.sae.formats import FORMATS

    class Mine:
        def detect(self, path: Path) -> bool:
            return (path / "mine.safetensors").exists()

        def load(self, path: Path):
            tensors = load_file(path / "mine.safetensors")
            return SAEConfig("relu", 2, 3, "mine", "float32", False), tensors

    tensors = {"W_enc": torch.ones(2, 3), "W_dec": torch.ones(3, 2), "b_enc": torch.zeros(3), "b_dec": torch.zeros(2)}
    save_file(tensors, tmp_path / "mine.safetensors")
    FORMATS.register("mine")(Mine())  # type: ignore[arg-type]
    try:
        assert load_sae(tmp_path).cfg.source_format == "mine"
    finally:
        FORMATS._targets.pop("mine")


def test_a_saelens_id_that_is_not_there_is_answered_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    from autointerp.sae import hub, published

    listed = {"gpt2-res": {"repo_id": "org/repo", "saes": [{"id": "blocks.8.hook_resid_pre", "path": "eight"}]}}
    monkeypatch.setattr(published, "releases", lambda: listed)
    asked = []
    monkeypatch.setattr(hub, "_download", lambda *where: asked.append(where[1:4]) or GOLDEN / "saelens" / "2-topk")
    assert load_sae("gpt2-res/blocks.8.hook_resid_pre").cfg.k == 4
    load_sae("org/other@abc:folder/sub")
    assert asked == [("org/repo", None, "eight"), ("org/other", "abc", "folder/sub")]
    with pytest.raises(ConfigError, match=r"did you mean 'blocks\.8\.hook_resid_pre'"):
        load_sae("gpt2-res/blocks.8.hook_resid_pr")
