"""What kind of network a checkpoint holds: which are refused, and the text part of those that also read images."""

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    FalconConfig,
    FalconForCausalLM,
    PretrainedConfig,
)

from workbench.models.ordinary import relative_error, tolerance

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
_STATES = ("state_size", "ssm_state_size", "mamba_d_state", "mamba_num_heads", "rescale_every", "lru_width")


_DEQUANTISED = ("fp8", "gguf")
"""Ways of quantisation whose weights are read as plain ones."""
_PARTS = (".weight_scale_inv", ".qweight", ".scales", ".lora_A.weight", ".lora_B.weight")
"""Ends of names of weights without which others are not what they are taken for."""


def quantisation(config: PretrainedConfig) -> str | None:
    """How a checkpoint's weights are quantised, as its config says; None for plain ones."""
    told = getattr(config, "quantization_config", None)
    if not told:
        return None
    told = told if isinstance(told, dict) else told.to_dict()
    method = told.get("quant_method")
    return str(getattr(method, "value", method) or "bitsandbytes")  # whose first files do not say


def refusal(config: PretrainedConfig) -> str | None:
    """Why no model of this configuration can be read and edited here, as far as it tells; None if it may."""
    if (how := quantisation(config)) not in (None, *_DEQUANTISED):
        return (
            f"it is quantised ({how}), and only plain weights are traced and edited: give the checkpoint that it was "
            "made from, or save it dequantised"
        )
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, and only decoders are traced and edited"
    config = config.get_text_config(decoder=True)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return "it reads text in both directions, and only what goes from left to right is traced and edited"
    if any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS):
        return "it is a mixture of experts, whose layers have no single W_out to read and edit"
    if any(getattr(config, name, None) for name in _STATES):
        return "it is a state-space or recurrent model, whose layers have no attention to trace and no MLP to edit"
    if config.model_type == "falcon" and getattr(config, "alibi", False) and _counts_biases_twice():
        return "transformers adds its linear biases (ALiBi) twice where attention can be traced, unlike by default"
    return None


def _counts_biases_twice() -> bool:
    """Whether a Falcon with linear biases says something else under eager attention than under its default, as in
    transformers 5.23; seen on a tiny one."""
    sizes: dict[str, Any] = {"vocab_size": 16, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}

    def tiny(how: str | None) -> Any:
        config = FalconConfig(**sizes, alibi=True, parallel_attn=False, initializer_range=0.2)
        return FalconForCausalLM._from_config(config, attn_implementation=how)

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reseed GPUs too
        eager, default = tiny("eager"), tiny(None)
        default.load_state_dict(eager.state_dict())
        ids = torch.arange(16)[None]
        said, expected = (each.eval()(input_ids=ids, use_cache=False).logits for each in (eager, default))
    return relative_error(said, expected) > tolerance(expected.dtype)


def missing_parts(bridge: Any) -> str | None:
    """What the layers of a loaded model lack of attention and an MLP with a W_out; None if nothing."""
    for layer, block in enumerate(bridge.blocks):
        for part, found in (
            ("attention", hasattr(block, "attn")),
            ("an MLP with a W_out", getattr(getattr(block, "mlp", None), "W_out", None) is not None),
        ):
            if not found:
                return f"its layer {layer} lacks {part}, which is traced or edited"
    return None


def load_decoder(source: str, config: PretrainedConfig, **options: Any) -> Any:
    """The causal language model of a checkpoint; of one that reads images too, the language model alone.

    ValueError for one whose language model transformers does not know by itself, and for weights that are missing from
    it, of another shape than its config's, or not finite.
    """
    text: Any = config.get_text_config(decoder=True)
    if text is config:
        return _whole(AutoModelForCausalLM, source, **options)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"transformers knows no language model by itself for its text part, {text.model_type!r}")
    whole: Any = _whole(AutoModelForImageTextToText, source, **options)
    text = whole.config.get_text_config(decoder=True)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
    with torch.device("meta"):
        decoder = kind._from_config(text)
    decoder.model, decoder.lm_head = whole.get_decoder(), whole.get_output_embeddings()
    decoder.config.architectures = [kind.__name__]
    decoder.generation_config = whole.generation_config
    return decoder


def _whole(kind: Any, source: str, **options: Any) -> Any:
    """A checkpoint's model, all of whose weights are the checkpoint's: transformers fills what lacks at random.

    What the checkpoint has and the model has not is named in a warning, for transformers drops it without a word.
    """
    model, info = kind.from_pretrained(
        source, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    unused = info["unexpected_keys"]
    for what, names in (
        ("lacks", info["missing_keys"]),
        ("has other shapes than its config for", [name for name, *_ in info["mismatched_keys"]]),
        ("holds NaN or infinity in", [name for name, weight in model.named_parameters() if not _finite(weight)]),
        ("is quantised or has adapters, of which its config says nothing:", [n for n in unused if n.endswith(_PARTS)]),
    ):
        if names:
            raise ValueError(f"the checkpoint {what} {_some(names)}")
    if unused:
        warnings.warn(f"{source} holds weights that its config has no use for, left out: {_some(unused)}", stacklevel=2)
    return model


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _finite(weight: Tensor) -> bool:
    return weight.numel() == 0 or all(bound.isfinite() for bound in weight.detach().aminmax())


def cast_rotary_tables_(model: Any) -> None:
    """Have rotary tables come in the type of the states that they turn, as most families' do.

    OLMo's are float32 whatever the weights are, and TransformerLens's attention does not cast what it multiplies by
    them back.
    """

    def cast(module: torch.nn.Module, arguments: tuple[Any, ...], tables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(table.to(arguments[0].dtype) for table in tables)

    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.register_forward_hook(cast)
