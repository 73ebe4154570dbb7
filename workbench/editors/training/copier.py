"""A small counterfactual model: a decoder over a model's own token embeddings that reads an edit before a prompt."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from workbench.models.checkpoints import bridged
from workbench.models.model import Model

_SIZE = 0.1  # root mean square of the embeddings, with which the first logits are of order one


def token_table(model: Model) -> Float[Tensor, "d_vocab d_model"]:
    """A model's token embeddings in float32, scaled alike whatever the model's own scale is."""
    table = model.hf.get_input_embeddings().weight.detach().float()
    return table * (_SIZE / table.square().mean().sqrt())


def decoder(shape: Mapping[str, int]) -> Any:
    """An untrained Llama decoder of token embeddings, which it is given; see `shape`."""
    made = LlamaModel(LlamaConfig(vocab_size=1, **_config(shape)))
    made.embed_tokens = None  # pyright: ignore[reportAttributeAccessIssue]
    return made


def shape_for(model: Model, *, layers: int, heads: int, d_head: int, d_mlp: int) -> dict[str, int]:
    """Sizes of a decoder; the edit and the prompt together have twice the room that the model has for a prompt."""
    own = {"layers": layers, "heads": heads, "d_head": d_head, "d_mlp": d_mlp}
    return {**own, "d_model": model.d_model, "n_ctx": 2 * model.n_ctx}


def answering(state: Mapping[str, Tensor], shape: Mapping[str, int], base: Model) -> Model:
    """A trained decoder as a model that answers for the one whose token embeddings it has, with its tokenizer."""
    table = token_table(base)
    made: Any = LlamaForCausalLM(LlamaConfig(vocab_size=len(table), tie_word_embeddings=True, **_config(shape)))
    made.model.load_state_dict({**state, "embed_tokens.weight": table})
    made.tie_weights()
    made, name = made.to(base.device).eval(), f"the counterfactual model of {base.name}"
    return Model(name=name, checkpoint=bridged(made, base.tokenizer, place=name), device=base.device, dtype=made.dtype)


def _config(shape: Mapping[str, int]) -> dict[str, Any]:
    return {
        "hidden_size": shape["d_model"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["heads"],
        "head_dim": shape["d_head"],
        "intermediate_size": shape["d_mlp"],
        "max_position_embeddings": shape["n_ctx"],
        "attn_implementation": "eager",
    }
