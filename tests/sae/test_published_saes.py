"""Every layout of SAELens' list of published SAEs: made small, fetched by release/sae_id, against SAELens itself."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from autointerp.errors import AutointerpError, ConfigError
from autointerp.sae import SAE, hub, load_sae, published

sae_lens = pytest.importorskip("sae_lens")
from sae_lens.loading import pretrained_sae_loaders as theirs  # noqa: E402
from sae_lens.saes import sae as their_sae  # noqa: E402

D, N, K = 8, 32, 4
Maker = Callable[[Path, published.Listed], None]
MAKERS: dict[str, Maker] = {}


def maker(loader: str) -> Callable[[Maker], Maker]:
    return lambda make: MAKERS.setdefault(loader, make)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) / shape[0] ** 0.25


def parts(d_out: int = D) -> dict[str, torch.Tensor]:
    return {
        "W_enc": draw(D, N),
        "W_dec": draw(N, d_out),
        "b_enc": draw(N) * 0.1,
        "b_dec": draw(d_out) * 0.1,
        "threshold": draw(N).abs() * 0.1,
    }


def without(weights: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if name not in names}


def linear(weights: dict[str, torch.Tensor], suffix: str = "") -> dict[str, torch.Tensor]:
    return {
        f"encoder{suffix}.weight": weights["W_enc"].T.contiguous(),
        f"encoder{suffix}.bias": weights["b_enc"],
        f"decoder{suffix}.weight": weights["W_dec"].T.contiguous(),
        f"decoder{suffix}.bias": weights["b_dec"],
    }


@maker("sae_lens")
def saelens_folder(folder: Path, listed: published.Listed) -> None:
    factor = listed.norm_factor
    config = {
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "hook_name": "blocks.2.hook_resid_post",
        "model_name": "gpt2-small",
        "normalize_activations": "expected_average_only_in" if factor else "none",
    }
    if listed.overrides.get("normalize_activations"):
        config["apply_b_dec_to_input"] = False
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(without(parts(), "threshold"), folder / "sae_weights.safetensors")


@maker("connor_rob_hook_z")
def attention_z(file: Path, listed: published.Listed) -> None:
    config = {"act_size": D, "dict_size": N, "act_name": "blocks.3.attn.hook_z", "seq_len": 128}
    (file.parent / f"{file.name.split('.pt')[0]}_cfg.json").write_text(json.dumps(config))
    torch.save(without(parts(), "threshold"), file)


@maker("gemma_2")
@maker("gemma_2_transcoder")
def gemma_scope(folder: Path, listed: published.Listed) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in parts().items()})


@maker("gemma_3")
def gemma_scope_2(folder: Path, listed: published.Listed) -> None:
    transcodes, affine = "transcoder" in listed.path, "affine" in listed.path
    folder.mkdir(parents=True)
    weights = {name.replace("W_", "w_"): tensor for name, tensor in parts(d_out=6 if transcodes else D).items()}
    if affine:
        weights["affine_skip_connection"] = draw(D, 6)
    save_file(weights, folder / "params.safetensors")
    module = "model.layers.3.output"
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": module}
    (folder / "config.json").write_text(json.dumps(config | ({"affine_connection": affine} if transcodes else {})))


@maker("llama_scope")
def llama_scope(folder: Path, listed: published.Listed) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    norm = D**0.5 / (listed.norm_factor or 1)
    config = {
        "d_model": D,
        "d_sae": N,
        "jump_relu_threshold": 0.1,
        "hook_point_in": "blocks.0.hook_resid_post",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
    }
    (folder / "hyperparams.json").write_text(json.dumps(config))
    save_file(linear(parts()), folder / "checkpoints" / "final.safetensors")


@maker("llama_scope_r1_distill")
def r1_distill(folder: Path, listed: published.Listed) -> None:
    folder.mkdir(parents=True)
    hook = "blocks.0.hook_resid_post"
    (folder / "config.json").write_text(
        json.dumps({"d_model": D, "expansion_factor": N // D, "hook_point_in": hook, "norm_activation": "dataset-wise"})
    )
    weights = parts()
    norm = torch.tensor(D**0.5 / (listed.norm_factor or 1))
    extra = {"log_jumprelu_threshold": weights["threshold"].log(), f"dataset_average_activation_norm.{hook}": norm}
    save_file(linear(weights) | extra, folder / "sae_weights.safetensors")


@maker("dictionary_learning_1")
def dictionary_learning(folder: Path, listed: published.Listed) -> None:
    folder.mkdir(parents=True)
    weights = parts()
    rows = weights["W_dec"] / weights["W_dec"].norm(dim=1, keepdim=True)
    pair = {"encoder.weight": weights["W_enc"].T, "decoder.weight": rows.T}
    biases = {"b_dec": weights["b_dec"], "encoder.bias": weights["b_enc"]}
    name = f"{listed.release} {listed.path}".lower()
    if "gated" in name:
        kind = "GatedAutoEncoder"
        state = pair | {"decoder_bias": weights["b_dec"]}
        state |= {"r_mag": draw(N) * 0.1, "gate_bias": draw(N, seed=1) * 0.1, "mag_bias": draw(N, seed=2) * 0.1}
    elif "matryoshka" in name:
        kind, state = "MatryoshkaBatchTopKSAE", {**weights, "threshold": torch.tensor(0.3), "k": torch.tensor(K)}
    elif listed.path.startswith("resid_post"):
        kind, state = "BatchTopKSAE", pair | biases | {"threshold": torch.tensor(0.2), "k": torch.tensor(K)}
    elif "jump" in name:
        kind, state = "JumpReluAutoEncoder", dict(weights)
    elif "topk" in name:
        kind, state = "AutoEncoderTopK", pair | biases | {"k": torch.tensor(K), "threshold": torch.tensor(-1.0)}
    else:
        kind, state = "AutoEncoder", pair | {"bias": weights["b_dec"], "encoder.bias": weights["b_enc"]}
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": N, "k": K, "layer": 3, "lm_name": "org/model"}
    config = {"trainer": trainer, "buffer": {"ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(state, folder / "ae.pt")


@maker("deepseek_r1")
def deepseek(file: Path, listed: published.Listed) -> None:
    torch.save(linear(parts()), file)


@maker("goodfire")
def goodfire(file: Path, listed: published.Listed) -> None:
    torch.save(linear(parts(), "_linear"), file)


@maker("qwen_scope")
def qwen_scope(file: Path, listed: published.Listed) -> None:
    weights = parts()
    n = 128  # the list's k go up to 100
    torch.save({"W_enc": draw(n, D), "W_dec": draw(D, n), "b_enc": draw(n) * 0.1, "b_dec": weights["b_dec"]}, file)


@maker("mwhanna_transcoder")
def mwhanna(file: Path, listed: published.Listed) -> None:
    weights = without(parts(), "threshold")
    save_file({**weights, "W_enc": weights["W_enc"].T.contiguous()}, file)
    wandb = {"d_model": {"value": D}, "d_feature": {"value": N}, "batch_size": {"value": 64}}
    (file.parent / "wandb-config.yaml").write_text(yaml.safe_dump(wandb))
    if "14b" not in listed.repo:
        (file.parent / "config.yaml").write_text(yaml.safe_dump({"model_name": "Qwen/Qwen3-4B"}))


@maker("mntss_clt_layer_transcoder")
def cross_layer(prefix: Path, listed: published.Listed) -> None:
    folder, layer, weights = prefix.parent, listed.path, parts()
    encoder = {"W_enc": weights["W_enc"].T.contiguous(), "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}
    save_file({f"{name}_{layer}": tensor for name, tensor in encoder.items()}, folder / f"W_enc_{layer}.safetensors")
    save_file({f"W_dec_{layer}": draw(N, 3, D)}, folder / f"W_dec_{layer}.safetensors")
    config = {"model_name": "google/gemma-2-2b", "feature_input_hook": "hook_resid_mid"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"feature_output_hook": "hook_mlp_out"}))


@maker("temporal")
def temporal(folder: Path, listed: published.Listed) -> None:
    folder.mkdir(parents=True)
    heads, factor = 2, 0.37
    settings = {
        "exp_factor": N // D,
        "n_heads": heads,
        "n_attn_layers": 2,
        "bottleneck_factor": 4,
        "sae_diff_type": "topk",
        "kval_topk": K,
        "tied_weights": True,
        "scaling_factor": factor,
    }
    config = {"llm": {"dimin": D}, "sae": settings, "data": {"dtype": "float32"}}
    (folder / "conf.yaml").write_text(yaml.safe_dump(config))
    weights = {"D": draw(N, D), "b": draw(D) * 0.1}
    for layer in range(2):
        for name, out in (("k_ctx", N // 4), ("q_target", N // 4), ("v_ctx", N), ("c_proj", N)):
            weights[f"attn_layers.{layer}.{name}.weight"] = draw(out, N, seed=layer)
            weights[f"attn_layers.{layer}.{name}.bias"] = draw(out, seed=layer + 7) * 0.1
    save_file(weights, folder / "latest_ckpt.safetensors")


# --- a hub of local folders, for SAELens and for us ----------------------------------------------------


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[published.Listed], Path]:
    """Makes an entry's files in a local copy of its repository, from which both libraries then download."""
    from huggingface_hub.errors import EntryNotFoundError

    def place(repo: str) -> Path:
        return tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / "1"

    def file_of(repo_id: str, filename: str, subfolder: str | None = None, **_: object) -> str:
        file = place(repo_id) / (subfolder or "") / filename
        if not file.exists():
            raise EntryNotFoundError(filename)
        return str(file)

    def snapshot(repo: str, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        """Leaves only what the patterns name, as the hub does."""
        root = place(repo)
        for file in [path for path in root.rglob("*") if path.is_file()] if allow_patterns else []:
            if not any(fnmatch.fnmatch(str(file.relative_to(root)), pattern) for pattern in allow_patterns or []):
                file.unlink()
        return str(root)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        from autointerp.sae.formats.files import safetensors_shapes

        return safetensors_shapes(place(repo_id) / filename)

    def small(release: str, sae_id: str) -> dict[str, object]:
        entry = published.find(release, sae_id)
        sizes = {"d_in": D, "d_sae": N}
        if entry.loader == "gemma_2_transcoder":
            sizes["d_out"] = D
        if entry.loader == "qwen_scope":
            sizes["d_sae"] = 128
        return {**entry.overrides, **({} if entry.loader in ("sae_lens", "gemma_3", "temporal") else sizes)}

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr(theirs, "hf_hub_download", file_of)
    monkeypatch.setattr(theirs, "get_safetensors_tensor_shapes", shapes)
    monkeypatch.setattr(their_sae, "get_config_overrides", small)

    def make(entry: published.Listed) -> Path:
        root = place(entry.repo)
        shutil.rmtree(root, ignore_errors=True)
        (root / entry.path).parent.mkdir(parents=True, exist_ok=True)
        MAKERS[entry.loader](root / entry.path, entry)
        return root

    return make


def layout(entry: published.Listed) -> tuple[str, ...]:
    """Entries of one loader whose paths differ in numbers alone lie in the same layout."""
    changed = (str(entry.norm_factor is not None), str(entry.overrides.get("normalize_activations")))
    return entry.loader, re.sub(r"\d+", "#", entry.path), *changed


LAYOUTS = {layout(entry): entry for entry in published.entries()}


@pytest.mark.parametrize("entry", LAYOUTS.values(), ids=lambda entry: f"{entry.release}/{entry.sae_id}"[:80])
def test_a_published_sae_gives_what_saelens_gives(entry: published.Listed, local_hub) -> None:
    local_hub(entry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = sae_lens.SAE.from_pretrained(entry.release, entry.sae_id)
    ours = load_sae(f"{entry.release}/{entry.sae_id}")
    agree(ours, module)


def agree(ours: SAE, module: sae_lens.SAE) -> None:
    module.turn_off_forward_pass_hook_z_reshaping()  # heads side by side, as our hooks give them
    x = draw(3, 5, ours.cfg.d_in, seed=3) * 2
    codes = ours.encode(x)
    assert (codes > 0).any()
    assert (codes == 0).any()
    with torch.no_grad():
        torch.testing.assert_close(codes, module.encode(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(ours(x), module(x), atol=1e-5, rtol=0)
        if not ours.needs_input_to_decode:
            torch.testing.assert_close(ours.decode(codes), module.decode(codes), atol=1e-5, rtol=0)


def test_nearly_all_of_the_list_opens(local_hub, capsys: pytest.CaptureFixture[str]) -> None:
    """An entry of each layout of each release is opened, and stands for the others of its release."""
    opens: dict[tuple[str, ...], bool] = {}
    for kind, entry in {(entry.release, *layout(entry)): entry for entry in published.entries()}.items():
        local_hub(entry)
        try:
            opens[kind] = load_sae(f"{entry.release}/{entry.sae_id}").cfg.d_in == D
        except (AutointerpError, ConfigError):
            opens[kind] = False
    counts = Counter(opens[entry.release, *layout(entry)] for entry in published.entries())
    share = counts[True] / counts.total()
    with capsys.disabled():
        print(f" {counts[True]:,} of the {counts.total():,} SAEs in SAELens' list open: {share:.1%} ", end="")
    assert share >= 0.98


def test_no_loader_of_saelens_is_without_a_checkpoint_here() -> None:
    assert MAKERS.keys() | {"sparsify"} == theirs.NAMED_PRETRAINED_SAE_LOADERS.keys() == {*published.READ}


def test_a_layout_of_a_later_saelens_goes_through_saelens_itself(local_hub, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entry for entry in published.entries() if entry.loader == "llama_scope")
    local_hub(entry)
    monkeypatch.setattr(published, "READ", ())
    ours = load_sae(f"{entry.release}/{entry.sae_id}")
    assert ours.cfg.source_format == "saelens"
    assert ours.cfg.hook_name == "blocks.0.hook_resid_post"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agree(ours, sae_lens.SAE.from_pretrained(entry.release, entry.sae_id))


def test_what_saelens_cannot_load_is_one_line(local_hub, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entry for entry in published.entries() if entry.loader == "llama_scope")
    monkeypatch.setattr(published, "READ", ())
    with pytest.raises(AutointerpError, match=r"SAELens cannot load llama_scope.*EntryNotFoundError") as caught:
        load_sae(f"{entry.release}/{entry.sae_id}")
    assert "\n" not in str(caught.value)


def test_sparsify_as_saelens_reads_it(tmp_path: Path) -> None:
    """SAELens takes a W_dec for its transpose and subtracts b_dec only without normalize_decoder; sparsify's own code,
    whose checkpoints are in golden/, does neither. Here both agree: a linear layer's decoder, normalize_decoder off."""
    folder = tmp_path / "layers.5"
    folder.mkdir()
    config = {"d_in": D, "num_latents": N, "k": K, "normalize_decoder": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    weights = without(parts(), "threshold")
    linear_decoder = {"decoder.weight": weights.pop("W_dec").T.contiguous(), "b_dec": weights.pop("b_dec")}
    encoder = {"encoder.weight": weights["W_enc"].T.contiguous(), "encoder.bias": weights["b_enc"]}
    save_file(encoder | linear_decoder, folder / "sae.safetensors")
    raw, state = theirs.sparsify_disk_loader(folder, cfg_overrides={"dtype": "float32"})
    module = sae_lens.SAE.from_dict(theirs.handle_config_defaulting(raw))
    module.load_state_dict(state)
    agree(load_sae(folder), module)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("matching_pursuit", {"residual_threshold": 0.5}),
        ("matching_pursuit", {"max_iterations": 3, "residual_threshold": 0.0, "apply_b_dec_to_input": False}),
        ("matching_pursuit", {"stop_on_duplicate_support": False, "normalize_activations": "layer_norm"}),
        ("abstopk", {"k": K}),
        ("abstopk", {"k": K, "rescale_acts_by_decoder_norm": False, "normalize_activations": "layer_norm"}),
        ("temporal", {"n_heads": 2, "bottleneck_factor": 4, "kval_topk": K, "n_attn_layers": 2}),
        ("temporal", {"n_heads": 1, "bottleneck_factor": 2, "sae_diff_type": "relu", "tied_weights": False}),
    ],
)
def test_the_other_architectures_as_saelens_saves_them(tmp_path: Path, architecture: str, options: dict) -> None:
    shape = {"architecture": architecture, "d_in": D, "d_sae": N, "device": "cpu", "dtype": "float32"}
    torch.manual_seed(0)
    module = sae_lens.SAE.from_dict({**shape, **options})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if architecture == "matching_pursuit":
            module.W_dec /= module.W_dec.norm(dim=1, keepdim=True)
    module.save_model(tmp_path)
    ours = load_sae(tmp_path)
    x = draw(3, 5, D, seed=3) * 2
    with torch.no_grad():
        expected, out = module.encode(x), module(x)
    codes = ours.encode(x)
    if architecture == "abstopk":  # each sign is a latent of its own
        assert (expected < 0).any()
        expected = torch.cat([expected.relu(), (-expected).relu()], -1)
    torch.testing.assert_close(codes, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(x), out, atol=1e-5, rtol=1e-5)
    sparse = ours.encode_sparse(x if ours.is_contextual else x.flatten(0, 1))
    rebuilt = torch.zeros(15, ours.cfg.d_sae)
    rebuilt[sparse.token_index, sparse.latent_index] = sparse.value
    torch.testing.assert_close(rebuilt, codes.flatten(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("spec", "facts"),
    [
        (
            "gemma-scope-2-1b-pt-res-all",
            {"hook_name": "blocks.#.hook_resid_post", "model_name": "google/gemma-3-1b-pt"},
        ),
        ("gemma-scope-2-270m-it-att", {"hook_name": "blocks.#.attn.hook_z", "model_name": "google/gemma-3-270m-it"}),
        ("gemma-scope-2-1b-pt-transcoders", {"hook_name": "blocks.#.mlp.hook_in", "d_out": 6}),
        ("qwen-scope-3-1.7b-base-w32k-l50", {"k": 50, "model_name": "Qwen/Qwen3-1.7B-Base"}),
        ("goodfire-llama-3.3-70b-instruct", {"model_name": "meta-llama/Llama-3.3-70B-Instruct"}),
        ("temporal-sae-gemma-2-2b", {"hook_name": "blocks.12.hook_resid_post", "model_name": "gemma-2-2b"}),
    ],
)
def test_what_a_published_sae_was_trained_on_is_known(local_hub, spec: str, facts: dict[str, object]) -> None:
    entry = next(entry for entry in published.entries() if entry.release == spec)
    local_hub(entry)
    cfg = load_sae(f"{entry.release}/{entry.sae_id}").cfg
    for name, value in facts.items():
        assert re.sub(r"blocks\.\d+", "blocks.#", str(getattr(cfg, name))) == re.sub(
            r"blocks\.\d+", "blocks.#", str(value)
        )


def test_without_saelens_an_id_of_its_list_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "releases", dict)
    with pytest.raises(ConfigError, match=r"pip install 'autointerp-sae\[saelens\]'"):
        hub.fetch("gpt2-small-res-jb/blocks.0/hook")
