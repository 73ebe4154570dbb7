"""GGUF files of tiny Llamas, as llama.cpp writes them."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from workbench.studies.tiny_models import make_tokenizer

SHARED = {"vocab_size": 340, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}


def make_llama(folder: Path) -> Any:
    """A tiny random Llama with its tokenizer, every row of its matrices a whole number of quantised blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = transformers.LlamaConfig(
            num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
            max_position_embeddings=48, initializer_range=0.2, tie_word_embeddings=True, **SHARED,
        )  # fmt: skip
        hf = transformers.AutoModelForCausalLM.from_config(config).eval()
    hf.save_pretrained(folder)
    make_tokenizer(folder, bos=False)
    return hf


def write_gguf(folder: Path, path: Path, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> None:
    """The Llama in a Hugging Face folder as a GGUF file, its matrices stored as `kind`."""
    hf: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = hf.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    spoken = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(spoken["vocab"], key=spoken["vocab"].get))
    writer.add_token_types([3, 3] + [1] * (len(spoken["vocab"]) - 2))  # <s> and </s> are control tokens
    writer.add_token_merges([" ".join(pair) for pair in spoken["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in hf.named_parameters():
        value = parameter.detach().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp rotates pairs of neighbours
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        stored = kind if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = np.ascontiguousarray(value) if stored == 0 else gguf.quantize(np.ascontiguousarray(value), stored)
        base, _, end = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(base)}.{end}", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
