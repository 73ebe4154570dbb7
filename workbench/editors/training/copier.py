"""A small counterfactual model: two layers over a model's own token embeddings that copy the answer of an edit."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from workbench.models.checkpoints import bridged
from workbench.models.model import Model

_SIZE = 0.1  # root mean square of the embeddings, on which the sizes of the first weights rest


def token_table(model: Model) -> Float[Tensor, "d_vocab d_model"]:
    """A model's token embeddings in float32, their mean taken off, and each scaled to the same length."""
    table = model.hf.get_input_embeddings().weight.detach().to(model.device).float()
    table = table - table.mean(dim=0)
    return table * (_SIZE / table.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-9))


@torch.no_grad()
def decoder(shape: Mapping[str, int]) -> Any:
    """A Llama decoder of two layers, of token embeddings that it is given, which copies before it is trained.

    Its heads begin as the two kinds that copy in trained models (Olsson et al. 2022, arXiv:2209.11895): those of the
    first layer look at the token before, and write half of what they see where it is out of the way; those of the
    second look for the token that followed what stands now, and write it. The MLPs begin as nothing.
    """
    made: Any = LlamaModel(LlamaConfig(vocab_size=1, **_config(shape)))
    made.embed_tokens = None
    heads, d_head, d_model = shape["heads"], shape["d_head"], shape["d_model"]
    code = heads * d_head // 2
    if heads * d_head > d_model - code:
        raise ValueError(f"{heads} heads of {d_head} need at least {3 * code} dimensions, but there are {d_model}")
    basis = torch.linalg.qr(torch.randn(d_model, d_model))[0]
    now, before, rest = basis[:code], basis[code : 2 * code], torch.cat([basis[:code], basis[2 * code :]])
    # Dimensions that rotate slowly tell tokens apart at any distance; all of them together tell what is next to what.
    quarter = d_head // 4
    slow = torch.cat([torch.arange(quarter, 2 * quarter), torch.arange(3 * quarter, d_head)])
    at = torch.cat([slow + head * d_head for head in range(heads)])
    layers: Any = made.layers
    first, second = (layer.self_attn for layer in layers)
    for layer in layers:
        layer.mlp.down_proj.weight.zero_()
        for matrix in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.self_attn.o_proj):
            matrix.weight.zero_()
            matrix.bias.zero_()
    angles = 10_000 ** (-torch.arange(d_head // 2) / (d_head // 2))
    first.q_proj.bias.copy_(9 * torch.cat([angles.cos(), -angles.sin()]).repeat(heads))
    first.k_proj.bias.copy_(9 * torch.cat([torch.ones(d_head // 2), torch.zeros(d_head // 2)]).repeat(heads))
    first.v_proj.weight[at] = now
    first.o_proj.weight[:, at] = 0.5 * before.T
    second.q_proj.weight[at] = 20 * now
    second.k_proj.weight[at] = before
    second.v_proj.weight.copy_(rest[: heads * d_head])
    second.o_proj.weight.copy_(6 * math.sqrt(d_model / (heads * d_head)) * rest[: heads * d_head].T)
    made.norm.weight.fill_(2)
    return made


def shape_for(model: Model, *, heads: int, d_head: int, d_mlp: int) -> dict[str, int]:
    """Sizes of a decoder; the edit and the prompt together have twice the room that the model has for a prompt."""
    return {"heads": heads, "d_head": d_head, "d_mlp": d_mlp, "d_model": model.d_model, "n_ctx": 2 * model.n_ctx}


def answering(state: Mapping[str, Tensor], shape: Mapping[str, int], base: Model) -> Model:
    """A trained decoder as a model that answers for the one whose token embeddings it has, with its tokenizer."""
    table = token_table(base)
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and replaced
        made: Any = LlamaForCausalLM(LlamaConfig(vocab_size=len(table), tie_word_embeddings=True, **_config(shape)))
    made.model.load_state_dict({**state, "embed_tokens.weight": table})
    made.tie_weights()
    made, name = made.to(base.device).eval(), f"the counterfactual model of {base.name}"
    return Model(name=name, checkpoint=bridged(made, base.tokenizer, place=name), device=base.device, dtype=made.dtype)


def _config(shape: Mapping[str, int]) -> dict[str, Any]:
    return {
        "hidden_size": shape["d_model"],
        "num_hidden_layers": 2,
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["heads"],
        "head_dim": shape["d_head"],
        "intermediate_size": shape["d_mlp"],
        "max_position_embeddings": shape["n_ctx"],
        "attention_bias": True,
        "attn_implementation": "eager",
    }
