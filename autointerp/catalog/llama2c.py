"""Convert a llama2.c checkpoint (``.bin``, version 0) to a Hugging Face Llama folder.

The file holds seven little-endian int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads,
vocab_size, seq_len), then float32 weights in the order of llama2.c's ``export.py``; a
positive vocab_size says that the head is tied to the embedding. Its rotary embedding turns
adjacent pairs, Hugging Face's turns halves, so the rows of wq and wk are permuted.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

HEADER = struct.Struct("<7i")


def convert_model(checkpoint: bytes, folder: Path) -> None:
    """Write ``config.json``, ``generation_config.json`` and ``model.safetensors`` to `folder`."""
    import numpy as np
    from safetensors.numpy import save_file

    dim, hidden, layers, heads, kv_heads, vocab, context = HEADER.unpack_from(checkpoint)
    if vocab <= 0:
        raise ValueError("an untied llama2.c checkpoint is not supported")
    weights = np.frombuffer(checkpoint, dtype="<f4", offset=HEADER.size)
    at = 0

    def take(*shape: int):
        nonlocal at
        size = int(np.prod(shape))
        part = weights[at : at + size].reshape(shape)
        at += size
        return part

    def halves(matrix):
        """Adjacent rotary pairs to halves: [heads * head_dim, dim] with rows reordered."""
        rows, columns = matrix.shape
        return matrix.reshape(-1, dim // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)

    kv_dim = dim * kv_heads // heads
    tensors = {"model.embed_tokens.weight": take(vocab, dim)}
    per_layer = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_dim, dim),
        "self_attn.v_proj": take(layers, kv_dim, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    for name, stacked in per_layer.items():
        for layer in range(layers):
            matrix = stacked[layer]
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                matrix = halves(matrix)
            tensors[f"model.layers.{layer}.{name}.weight"] = matrix
    tensors["model.norm.weight"] = take(dim)
    save_file(
        {name: np.ascontiguousarray(t, dtype=np.float32) for name, t in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 1}))


def convert_tokenizer(blob: bytes, folder: Path, context: int = 256) -> None:
    """Write the ``tokenizer.bin`` of llama2.c (SentencePiece pieces with scores) as a fast tokenizer.

    SentencePiece's BPE joins the pair whose result scores highest; the same order as merges is
    every split of every piece into two known pieces, best score first.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces: list[tuple[str, float]] = []
    at = 4  # max_token_length
    while at < len(blob):
        score, length = struct.unpack_from("<fi", blob, at)
        at += 8
        pieces.append((blob[at : at + length].decode("utf-8"), score))
        at += length
    names = [piece.replace(" ", "▁") for piece, _ in pieces]
    names[:259] = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {name: i for i, name in enumerate(names)}
    if len(vocab) != len(names):
        raise ValueError("the tokenizer has two pieces of one name")
    merges: list[tuple[float, int, int, str, str]] = []
    for i, name in enumerate(names[259:], start=259):  # after the specials and the 256 bytes
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            if left in vocab and right in vocab:
                merges.append((-pieces[i][1], vocab[left], vocab[right], left, right))
    merges.sort()
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[(left, right) for *_, left, right in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
