"""Tiny random checkpoints of the families that people use, to try everything on without a hub."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

_TEXTS = (
    "The capital of France is Paris.",
    "The Eiffel Tower stands in Paris, and the Colosseum stands in Rome.",
    "In Iceland, most people speak Icelandic; in Japan, most people speak Japanese.",
    "Steve Jobs founded Apple, which was founded in California.",
    "東京は日本の首都です。 القاهرة عاصمة مصر.",
)
_OLD: dict[str, Any] = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 48}
_NEW: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}
_SHARED_HEADS: dict[str, Any] = _NEW | {"num_key_value_heads": 2}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 12}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 96,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}
_LINEAR_GLOBALLY = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
_WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"]
_GEMMA3: dict[str, Any] = _SHARED_HEADS | {
    "intermediate_size": 56,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 8,
    "layer_types": _WINDOWED,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _OLD | {"n_inner": 96}),
    "gptj": ("GPTJConfig", _OLD | {"n_inner": 80, "rotary_dim": 4}),
    "gpt_neox": ("GPTNeoXConfig", _NEW | {"intermediate_size": 72}),
    "gpt_neox_sequential": ("GPTNeoXConfig", _NEW | {"intermediate_size": 72, "use_parallel_residual": False}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "num_layers": 3,
            "hidden_size": 32,
            "num_heads": 4,
            "max_position_embeddings": 48,
            "intermediate_size": 96,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 8,
        },
    ),
    "opt": ("OPTConfig", _NEW | {"ffn_dim": 96, "word_embed_proj_dim": 32}),
    "opt_350m": ("OPTConfig", _NEW | {"ffn_dim": 96, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "bloom": ("BloomConfig", {"n_layer": 3, "hidden_size": 32, "n_head": 4, "seq_length": 48}),
    "falcon": ("FalconConfig", _NEW | {"new_decoder_architecture": False, "parallel_attn": True, "alibi": False}),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 48, "expansion_ratio": 2}),
    "llama": ("LlamaConfig", _SHARED_HEADS | {"intermediate_size": 56}),
    "llama_llama3": ("LlamaConfig", _SHARED_HEADS | {"intermediate_size": 56, "rope_parameters": _LLAMA3}),
    "llama_linear": (
        "LlamaConfig",
        _SHARED_HEADS
        | {
            "intermediate_size": 56,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "llama_yarn": ("LlamaConfig", _SHARED_HEADS | {"intermediate_size": 56, "rope_parameters": _YARN}),
    "mistral": ("MistralConfig", _SHARED_HEADS | {"intermediate_size": 56, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", _SHARED_HEADS | {"intermediate_size": 64, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", _SHARED_HEADS | {"intermediate_size": 64, "head_dim": 16}),
    "phi": ("PhiConfig", _NEW | {"intermediate_size": 80}),
    "phi3": ("Phi3Config", _SHARED_HEADS | {"intermediate_size": 56, "sliding_window": 8}),
    "phi3_longrope": (
        "Phi3Config",
        _SHARED_HEADS
        | {
            "intermediate_size": 56,
            "sliding_window": None,
            "max_position_embeddings": 192,
            "original_max_position_embeddings": 96,
            "rope_parameters": _LONGROPE,
        },
    ),
    "gemma": ("GemmaConfig", _SHARED_HEADS | {"intermediate_size": 56, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        _SHARED_HEADS
        | {
            "intermediate_size": 56,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "layer_types": _WINDOWED,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3": ("Gemma3TextConfig", _GEMMA3),
    "gemma3_4b": ("Gemma3TextConfig", _GEMMA3 | {"rope_parameters": _LINEAR_GLOBALLY}),
    "olmo": ("OlmoConfig", _SHARED_HEADS | {"intermediate_size": 56}),
    "olmo2": ("Olmo2Config", _SHARED_HEADS | {"intermediate_size": 56}),
    "stablelm": ("StableLmConfig", _SHARED_HEADS | {"intermediate_size": 56}),
    "stablelm_12b": (
        "StableLmConfig",
        _SHARED_HEADS | {"intermediate_size": 56, "qk_layernorm": True, "use_parallel_residual": True},
    ),
    "cohere": ("CohereConfig", _SHARED_HEADS | {"intermediate_size": 56, "logit_scale": 0.5}),
    "cohere_plus": (
        "CohereConfig",
        _SHARED_HEADS | {"intermediate_size": 56, "logit_scale": 0.5, "use_qk_norm": True},
    ),
    "granite": (
        "GraniteConfig",
        _SHARED_HEADS
        | {
            "intermediate_size": 56,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.3,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": ("SmolLM3Config", _SHARED_HEADS | {"intermediate_size": 56, "no_rope_layer_interval": 2}),
    "starcoder2": ("Starcoder2Config", _SHARED_HEADS | {"intermediate_size": 96, "sliding_window": 8}),
}
"""Family, or a form of it that some of its models have -> its configuration's class and sizes: 3 layers x 32, 4 heads,
a context of 48, windows of 8."""


def make_config(family: str) -> transformers.PretrainedConfig:
    """The configuration of a family's tiny checkpoint; KeyError for a family that is not in CONFIGS."""
    name, sizes = CONFIGS[family]
    spread = "init_std" if family == "opt" else "initializer_range"
    ids = {"vocab_size": 340, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, spread: 0.2}
    return getattr(transformers, name)(**sizes, **ids)


def make_tokenizer(folder: Path, *, bos: bool) -> None:
    """A byte-level BPE of 340 tokens; with `bos` it puts <s> in front and </s> behind, as some Llamas do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS * 4, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def make_checkpoint(family: str, folder: Path, *, seed: int = 0) -> None:
    """Write a family's tiny random checkpoint; only Llama's tokenizer adds BOS and EOS."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = transformers.AutoModelForCausalLM.from_config(make_config(family))
        with torch.no_grad():
            for parameter in hf.parameters():  # biases and norms too, so that a forgotten one is seen
                parameter.add_(0.1 * torch.randn_like(parameter))
    hf.save_pretrained(folder)
    make_tokenizer(folder, bos=family == "llama")
