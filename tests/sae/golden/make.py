"""Writes the golden checkpoints beside this file, each with the project's own library, and what that library makes of
16 random inputs: expected.safetensors holds x, codes, out.

    pip install --target DIR --no-deps eai-sparsify==1.3.3 dictionary-learning==0.1.0 natsort simple_parsing \
        docstring_parser schedulefree
    PYTHONPATH=DIR python tests/sae/golden/make.py
"""

import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
D, N, K = 8, 32, 4


def folder(*parts: str) -> Path:
    path = HERE.joinpath(*parts)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def expect(path: Path, x, codes, out) -> None:
    tensors = {"x": x, "codes": codes, "out": out}
    save_file({name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}, path)


def inputs() -> torch.Tensor:
    return torch.randn(16, D) * 2 + torch.randn(D)


def shake(module: torch.nn.Module) -> None:
    """Biases and thresholds away from their starting values."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            if name.endswith("threshold"):
                parameter.abs_()


def saelens() -> None:
    from sae_lens import SAE

    cases = [
        ("standard", {}),
        ("standard", {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False}),
        ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        ("topk", {"k": K, "normalize_activations": "layer_norm"}),
        ("gated", {}),
        ("jumprelu", {}),
        ("transcoder", {"d_out": 6, "apply_b_dec_to_input": False}),
        ("jumprelu_transcoder", {"d_out": 6, "apply_b_dec_to_input": False}),
        ("skip_transcoder", {"d_out": 6, "apply_b_dec_to_input": False}),
    ]
    metadata = {
        "sae_lens_version": "6.54.12",
        "model_name": "gpt2",
        "hook_name": "blocks.1.hook_resid_pre",
        "context_size": 64,
        "prepend_bos": True,
    }
    for index, (architecture, options) in enumerate(cases):
        sae = SAE.from_dict({"architecture": architecture, "d_in": D, "d_sae": N, "metadata": metadata, **options})
        shake(sae)
        if architecture == "skip_transcoder":
            torch.nn.init.normal_(sae.W_skip, std=0.3)
        path = folder("saelens", f"{index}-{architecture}")
        sae.save_model(path)
        x = inputs()
        codes = sae.encode(x)
        expect(path / "expected.safetensors", x, codes, sae(x))


def saelens5() -> None:
    """The flat config of version 5: what version 6 makes of it."""
    from sae_lens import SAE

    sae = SAE.from_dict({"architecture": "topk", "d_in": D, "d_sae": N, "k": K, "metadata": {}})
    shake(sae)
    path = folder("saelens", "v5-topk")
    sae.save_model(path)
    flat = {
        "d_in": D, "d_sae": N, "dtype": "torch.float32", "device": "cpu", "model_name": "gpt2-small",
        "hook_point": "blocks.2.hook_resid_post", "hook_point_head_index": None, "context_size": 128,
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False,
        "apply_b_dec_to_input": True, "prepend_bos": False, "sae_lens_training_version": "5.1.0",
    }  # fmt: skip
    (path / "cfg.json").write_text(json.dumps(flat))
    again = SAE.load_from_disk(path)
    x = inputs()
    expect(path / "expected.safetensors", x, again.encode(x), again(x))


def sparsify() -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    cases = {
        "layers.5": {},
        "layers.5.mlp": {"transcode": True, "skip_connection": True},
        "layers.6": {"activation": "groupmax"},
    }
    for hook, options in cases.items():
        coder = SparseCoder(D, SparseCoderConfig(expansion_factor=N // D, k=K, **options))
        shake(coder)
        path = folder("sparsify", hook)
        coder.save_to_disk(path)
        x = inputs()
        top = coder.encode(x)
        codes = torch.zeros(len(x), N).scatter_(1, top.top_indices, top.top_acts)
        expect(path / "expected.safetensors", x, codes, coder(x).sae_out)


def dictionary_learning() -> None:
    for name in ("nnsight", "zstandard"):  # imported, not used here
        sys.modules.setdefault(name, types.SimpleNamespace(LanguageModel=object))
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    from dictionary_learning.utils import load_dictionary

    made = [
        dictionary.AutoEncoder(D, N),
        dictionary.AutoEncoderNew(D, N),
        dictionary.GatedAutoEncoder(D, N),
        dictionary.JumpReluAutoEncoder(D, N),
        AutoEncoderTopK(D, N, K),
        BatchTopKSAE(D, N, K),
        MatryoshkaBatchTopKSAE(D, N, K, [8, 8, 16]),
    ]
    for index, ae in enumerate(made):
        shake(ae)
        kind = type(ae).__name__
        if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            ae.threshold.fill_(0.4)
        path = folder("dictionary_learning", f"trainer_{index}")
        torch.save(ae.state_dict(), path / "ae.pt")
        trainer = {"dict_class": kind, "activation_dim": D, "dict_size": N, "k": K, "layer": 3, "lm_name": "org/model"}
        trainer["submodule_name"] = "resid_post_layer_3"
        (path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        ae, _ = load_dictionary(str(path), "cpu")
        x = inputs()
        codes = ae.encode(x)
        expect(path / "expected.safetensors", x, codes, ae.decode(codes))


def scopes() -> None:
    """Gemma Scope and Llama Scope, as sae-lens' own loaders read them."""
    from sae_lens import JumpReLUSAE
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig

    def local(repo_id, filename, subfolder=None, **_):
        return str(HERE.joinpath(repo_id, *([subfolder] if subfolder else []), filename))

    loaders.hf_hub_download = local

    def golden(path: Path, cfg: dict, state: dict, scale: float | None) -> None:
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=N, apply_b_dec_to_input=cfg["apply_b_dec_to_input"]))
        sae.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        if scale is not None:
            sae.fold_activation_norm_scaling_factor(scale)
        x = inputs()
        codes = sae.encode(x)
        expect(path / "expected.safetensors", x, codes, sae.decode(codes))

    path = folder("gemma-scope-2b-pt-res", "layer_3", "width_32")
    arrays = {
        "W_enc": torch.randn(D, N), "W_dec": torch.randn(N, D), "b_enc": torch.randn(N), "b_dec": torch.randn(D),
        "threshold": torch.rand(N) * 2,
    }  # fmt: skip
    np.savez(path / "params.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})
    cfg, state, _ = loaders.gemma_2_sae_huggingface_loader("gemma-scope-2b-pt-res", "layer_3/width_32")
    golden(path, cfg, state, None)

    tensors = {
        "encoder.weight": torch.randn(N, D), "encoder.bias": torch.randn(N),
        "decoder.weight": torch.randn(D, N), "decoder.bias": torch.randn(D),
    }  # fmt: skip
    path = folder("llama_scope", "L7R")
    (path / "checkpoints").mkdir()
    save_file(tensors, path / "checkpoints" / "final.safetensors")
    norm = {"in": 7.0, "out": 7.0}
    hyper = {
        "d_model": D, "d_sae": N, "jump_relu_threshold": 1.3, "hook_point_in": "blocks.7.hook_resid_post",
        "act_fn": "jumprelu", "norm_activation": "dataset-wise", "dataset_average_activation_norm": norm,
    }  # fmt: skip
    (path / "hyperparams.json").write_text(json.dumps(hyper))
    overrides = {"dtype": "float32"}
    cfg, state, _ = loaders.llama_scope_sae_huggingface_loader("llama_scope", "L7R", cfg_overrides=overrides)
    golden(path, cfg, state, D**0.5 / norm["in"])

    path = folder("llama_scope", "L8R-distill")
    save_file({**tensors, "log_jumprelu_threshold": torch.randn(N)}, path / "sae_weights.safetensors")
    config = {"d_model": D, "expansion_factor": N // D, "hook_point_in": "blocks.8.hook_resid_post"}
    config |= {"norm_activation": "dataset-wise", "dataset_average_activation_norm": norm}
    (path / "config.json").write_text(json.dumps(config))
    cfg, state, _ = loaders.llama_scope_r1_distill_sae_huggingface_loader("llama_scope", "L8R-distill")
    golden(path, cfg, state, D**0.5 / norm["in"])


if __name__ == "__main__":
    for make in (sparsify, dictionary_learning, saelens, saelens5, scopes):
        torch.manual_seed(0)
        make()
