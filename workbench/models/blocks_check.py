"""Whether a model's blocks, run part by part, give what the model itself gives.

Every layer is handed the model's own residual stream, so errors do not add up and the first part that differs is
named. What may differ is rounding, and how much that is, the model says itself: in a second row of the same run, each
layer's input is moved by one rounding unit. Real models amplify that by orders of magnitude at some tokens (massive
activations) and hardly at others, so no fixed tolerance fits them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.allocator import out_of_memory
from workbench.machine.precision import float32_products
from workbench.models.blocks import LONGEST_WINDOW, Blocks, unknown
from workbench.models.hooks_check import ordinary_tokens
from workbench.models.model import SITES, Model
from workbench.models.ordinary import LENGTH
from workbench.models.tokens import Tokens

_OTHERS = (3, 72)
"""Tokens of texts on which the first layer of each kind alone is: attention over many keys has another kernel."""
_ABOVE = ("mlp_out", "resid_post")
"""The sites of a layer that stand above W_out."""


def blocks_of(model: Model, *, above: int | None = None) -> Blocks:
    """The model's blocks, found and compared with its own states once.

    BlocksError where they are not reproduced, and while edits act by hooks, which the blocks would pass by; ValueError
    while edits redirect prompts. With `above` only hooks above W_out of that layer matter: of one who takes what
    stands below from the model itself.
    """
    model.check_direct()
    sites = [(layer, site) for edit in model.edits for site, layer, _ in edit.hooks(model)]
    if any(above is None or layer > above or (layer == above and site in _ABOVE) for layer, site in sites):
        raise unknown(model, "edits that change activations are applied to it")
    return model.once(_compared)


def _compared(model: Model) -> Blocks:
    try:
        with float32_products():  # TF32 would hide small faults, and spoil the angles of the model's own rotations
            blocks = Blocks(model)
            found = difference(blocks)
    except (AttributeError, TypeError, LookupError, RuntimeError) as error:
        if out_of_memory(error):  # which says nothing of the model
            raise
        raise unknown(model, str(error).split("\n")[0]) from error
    if found is not None:
        raise unknown(model, found)
    return blocks


@torch.no_grad()
def difference(blocks: Blocks) -> str | None:
    """What differs by more than rounding, in words; None if nothing does."""
    model = blocks.model
    kinds = {blocks.window(layer): layer for layer in reversed(range(model.n_layers))}
    beyond = [window + 8 for window in kinds if window is not None and window <= LONGEST_WINDOW]
    some = max(kinds.values()) + 1
    unit = _rounding_unit(model)
    # Faults reach thousandths: in half precision they stand out less, in single there is room for unlucky rounding.
    spreads = 64 if unit < 1e-5 else 2
    for length, layers in [(LENGTH, model.n_layers), *((length, some) for length in (*_OTHERS, *beyond))]:
        tokens = ordinary_tokens(model, min(length, model.n_ctx), rows=2)
        for where, own, moved, mine in _states(blocks, tokens, layers, unit):
            if not own.isfinite().all():
                return None  # what comes of such weights is told where their numbers are used
            explained = spreads * (_error(moved, own) + unit)
            error = _error(mine, own)
            if not error <= explained:
                return f"{where} differs from its own by {error:.2g} of its size, and rounding explains {explained:.2g}"
    return None


def _rounding_unit(model: Model) -> float:
    """Relative distance of neighbouring numbers in the coarsest type that the model computes in."""
    single = torch.finfo(torch.float32).eps  # norms and softmax are taken in float32 also where weights are finer
    if model.dtype != torch.float32:
        return max(torch.finfo(model.dtype).eps, single)
    return {"highest": single, "high": 2**-10}.get(torch.get_float32_matmul_precision(), 2**-7)


def _states(blocks: Blocks, tokens: Tokens, layers: int, unit: float) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """What each part of the first layers gives, [pos d]: its name, the model's own, its own from inputs that are moved
    by a rounding unit, and the blocks'."""
    model = blocks.model
    embed, last = model.hook_name("embed"), layers - 1
    inputs = [model.hook_name("resid_pre", layer) for layer in range(layers)]
    names = {(site, layer): model.hook_name(site, layer) for layer in range(layers) for site in SITES}
    whole = layers == model.n_layers
    changed = [*inputs, names["resid_post", last]] if whole else inputs

    def move(state: Tensor, hook: object) -> Tensor:
        signs = 2 * torch.randint(0, 2, state[0].shape, generator=torch.Generator().manual_seed(0)) - 1
        return torch.stack([state[0], state[0] + state[0] * (unit * signs).to(state)])

    kept = [embed, *inputs, *names.values(), *(["logits"] if whole else [])]
    states = model.activations(tokens, kept, hooks=[(name, move) for name in changed])
    own = {name: state[:1] for name, state in states.items()}
    found = [(embed, blocks.embed_tokens(tokens.ids[:1])), (inputs[0], blocks.resid_pre(own[embed]))]
    for layer in range(layers):
        if layer:
            found.append((inputs[layer], own[names["resid_post", layer - 1]]))
        found += [(names[site, layer], mine) for site, mine in _parts(blocks, layer, own[inputs[layer]]).items()]
    if whole:
        found.append(("logits", blocks.unembed(own[names["resid_post", last]][:, -1:])))
    return [(name, states[name][0], states[name][1], mine[0]) for name, mine in found]


def _parts(
    blocks: Blocks, layer: int, resid: Float[Tensor, "batch pos d_model"]
) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """By site, what the blocks give for the residual stream that enters a layer."""
    p = blocks.project(layer, resid, torch.arange(resid.shape[1], device=resid.device))
    attn = blocks.attn_out(layer, blocks.attend(layer, p.q, p.k, p.v))
    mlp = blocks.mlp_out(layer, resid, attn)
    return {"attn_out": attn, "mlp_out": mlp, "resid_post": resid + attn + mlp}


def _error(found: Float[Tensor, "pos d"], expected: Float[Tensor, "pos d"]) -> float:
    """Largest relative error of a position."""
    size = expected.double().norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return ((found.double() - expected.double()).norm(dim=-1) / size).max().item()
