"""Integrated gradients over the neurons of the MLPs: how much of an answer's probability is attributed to each.

Scaling a layer's activations at the last position changes nothing below that layer and no other position. So the fast
engine runs a prompt once, and for every point only its last position through the layers above, with the other
positions' keys and values as they are. The points of all layers climb together, each joining at its own layer, and one
backward pass gives the gradients of all. The plain engine, a whole forward and backward pass for every point, is its
oracle.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.models.blocks import Blocks, BlocksError
from workbench.models.blocks_check import blocks_of
from workbench.models.model import Model
from workbench.models.tokens import TokenRow

NeuronSite = Literal["mlp_key", "mlp_pre"]
"""What a neuron is: an activation after the nonlinearity (the paper) or before it (published code for GPT)."""
Points = Literal["right", "left", "ends"]
"""Where the integral's m points lie, in shares of the activations: k/m from 1 (the paper, section 3.1) or from 0 (its
code), or k/(m - 1) from 0 to both ends (EleutherAI's and EasyEdit's code)."""
Engine = Literal["auto", "fast", "plain"]
"""How gradients are taken, both to the same numbers; "auto" is fast where a model's blocks are known, else plain."""

_ROWS = 160
"""Points that climb together at most: enough for the speed of large products, few enough to attend as one text."""


def attribute_neurons(
    model: Model,
    asked: TokenRow,
    answers: Sequence[int],
    *,
    layers: Sequence[int],
    steps: int = 20,
    site: NeuronSite = "mlp_key",
    points: Points = "right",
    prompt_tokens: int | None = None,
    engine: Engine = "auto",
) -> Float[Tensor, "layer d_mlp"]:
    """Integrated gradients of the probability of a token (the mean, of several) right after some tokens (section 3.1):

        Attr(w) = w / m  sum_k  d p(alpha_k w) / d w

    for a layer's activations w at the last position, scaled together, as in the published code; the paper's notation
    scales each neuron alone. float32, on the CPU. ValueError if they are not finite; BlocksError from the "fast"
    engine for a model that it does not know, where "auto" warns and takes the plain one.

    Args:
        prompt_tokens: how many of the tokens are the prompt; all unless given.
    """
    names = [model.hook_name(site, layer) for layer in layers]
    alphas = _alphas(points, steps).to(model.device, torch.promote_types(model.dtype, torch.float32))
    runs = None if engine == "plain" else _fast_runs(model, asked, site, strict=engine == "fast")
    if runs is None:
        attributions = _plain(model, asked, answers, names, alphas, prompt_tokens or len(asked.ids))
    else:
        attributions = runs.attributions(answers, layers, alphas)
    if not attributions.isfinite().all():
        raise ValueError(
            f"the attributions after {asked.text!r} are not finite: check the weights and the dtype of {model.name}"
        )
    return attributions.float().cpu()


def _alphas(points: Points, steps: int) -> Float[Tensor, " step"]:
    if points == "ends":
        return torch.linspace(0, 1, steps, dtype=torch.float64)
    return (torch.arange(steps, dtype=torch.float64) + (points == "right")) / steps


def _probability(logits: Float[Tensor, "row vocab"], answers: Sequence[int], dtype: torch.dtype) -> Float[Tensor, ""]:
    """The mean over the answers, summed over rows, of which each has a gradient of its own."""
    return logits.to(dtype).softmax(dim=-1)[:, list(answers)].mean(dim=1).sum()


# ---- plain


def _plain(
    model: Model,
    asked: TokenRow,
    answers: Sequence[int],
    names: Sequence[str],
    alphas: Float[Tensor, " step"],
    prompt_tokens: int,
) -> Float[Tensor, "layer d_mlp"]:
    """Of the layers whose hooks are named."""
    states = model.activations(model.pad([asked], prompts=[prompt_tokens]), names)
    steps, found = len(alphas), []
    for name in names:
        state = states[name][0, -1].to(alphas.dtype)
        total = torch.zeros_like(state)
        for part in model.batches([asked] * steps, steps, keep=1, gradients=True):
            scaled = (alphas[part, None] * state).requires_grad_()
            with torch.enable_grad():
                batch = model.pad([asked] * len(part), prompts=[prompt_tokens] * len(part))
                logits = model.logits(batch, hooks=[(name, _putting(scaled))], keep_last=1)[:, -1]
                probability = _probability(logits, answers, alphas.dtype)
            total += torch.autograd.grad(probability, scaled)[0].sum(dim=0)
        found.append(state * total / steps)
    return torch.stack(found)


def _putting(scaled: Float[Tensor, "step d_mlp"]):
    """A hook that puts each row's activations in at the last position."""

    def put(state: Tensor, hook: object) -> Tensor:
        return torch.cat([state[:, :-1], scaled[:, None].to(state.dtype)], dim=1)

    return put


# ---- fast


def _fast_runs(model: Model, asked: TokenRow, site: NeuronSite, *, strict: bool) -> "_FastRuns | None":
    """Unless `strict`, None with a warning for a model or a prompt that the fast engine does not know."""
    try:
        return _FastRuns(blocks_of(model), asked, site)
    except BlocksError as error:
        if strict:
            raise
        warnings.warn(str(error).replace("use the plain engine", "attributing by the plain engine"), stacklevel=4)
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """What one layer of the untouched run keeps: of the tokens before the last, and of the last."""

    keys: Float[Tensor, "1 before kv_head d_head"]
    values: Float[Tensor, "1 before kv_head d_head"]
    resid: Float[Tensor, "1 d_model"]
    attn: Float[Tensor, "1 d_model"]
    state: Float[Tensor, "1 d_mlp"]
    """The neurons."""


class _FastRuns:
    """The runs of one prompt, computed where they differ."""

    @torch.no_grad()
    def __init__(self, blocks: Blocks, asked: TokenRow, site: NeuronSite) -> None:
        self._blocks, self._site = blocks, site
        ids = torch.tensor([asked.ids], device=blocks.model.device)
        everywhere = torch.arange(ids.shape[1], device=ids.device)
        self._last, self._layers = everywhere[-1:], []
        resid = blocks.resid_pre(blocks.embed_tokens(ids))
        for layer in range(blocks.n_layers):
            p = blocks.project(layer, resid, everywhere)
            attn = blocks.attn_out(layer, blocks.attend(layer, p.q, p.k, p.v))
            own = (blocks.mlp_pre if site == "mlp_pre" else blocks.mlp_key)(layer, resid[:, -1], attn[:, -1])
            kept = _Layer(keys=p.k[:, :-1], values=p.v[:, :-1], resid=resid[:, -1], attn=attn[:, -1], state=own)
            self._layers.append(kept)
            resid = resid + attn + blocks.mlp_out(layer, resid, attn)

    def attributions(
        self, answers: Sequence[int], layers: Sequence[int], alphas: Float[Tensor, " step"]
    ) -> Float[Tensor, "layer d_mlp"]:
        """See `attribute_neurons`."""
        totals = {layer: torch.zeros_like(self._layers[layer].state[0], dtype=alphas.dtype) for layer in layers}
        points = [(layer, alpha) for layer in sorted(totals) for alpha in alphas.tolist()]
        at_once = self._rows_at_once()
        for begin in range(0, len(points), at_once):
            scaled = self._scaled(points[begin : begin + at_once], alphas)
            with torch.enable_grad():
                probability = _probability(self._logits(scaled), answers, alphas.dtype)
            gradients = torch.autograd.grad(probability, list(scaled.values()))
            for layer, gradient in zip(scaled, gradients, strict=True):
                totals[layer] += gradient.sum(dim=0)
        return torch.stack([self._layers[layer].state[0] * totals[layer] / len(alphas) for layer in layers])

    def _scaled(
        self, points: Sequence[tuple[int, float]], alphas: Float[Tensor, " step"]
    ) -> dict[int, Float[Tensor, "_ d_mlp"]]:
        """Layer -> its neurons at those of the points that are its own, in ascending order of layers."""
        found = {}
        for layer in dict.fromkeys(layer for layer, _ in points):
            shares = alphas.new_tensor([alpha for other, alpha in points if other == layer])
            found[layer] = (shares[:, None] * self._layers[layer].state).requires_grad_()
        return found

    def _logits(self, scaled: dict[int, Float[Tensor, "_ d_mlp"]]) -> Float[Tensor, "row vocab"]:
        """Of the last position, with each layer's neurons in place, a row each."""
        blocks, first = self._blocks, min(scaled)
        resid = self._layers[first].resid[:0]
        for layer in range(first, blocks.n_layers):
            if len(resid):
                attn = self._attn_out(layer, resid)
                resid = resid + attn + blocks.mlp_out(layer, resid, attn)
            if layer in scaled:
                resid = torch.cat([resid, self._joining(layer, scaled[layer])])
        return blocks.unembed(resid)

    def _joining(self, layer: int, scaled: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_model"]:
        """The residual stream that leaves a layer with other neurons."""
        blocks, known = self._blocks, self._layers[layer]
        key = scaled.to(known.state.dtype)
        if self._site == "mlp_pre":
            key = blocks.mlp_key(layer, known.resid, known.attn, pre=key)
        return known.resid + known.attn + blocks.mlp_contribution(layer)(blocks.written(layer, key))

    def _attn_out(self, layer: int, resid: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """What attention adds at the last position: each row sees the tokens before it and itself, no other row.

        The rows are put as queries of one text, so that the keys before them are not copied for each.
        """
        blocks, known = self._blocks, self._layers[layer]
        p = blocks.project(layer, resid, self._last)
        window, before = blocks.window(layer), known.keys.shape[1]
        seen = torch.ones(len(resid), before, dtype=torch.bool, device=resid.device)
        if window is not None:
            seen[:, : max(before + 1 - window, 0)] = False
        mask = torch.cat([seen, torch.eye(len(resid), dtype=torch.bool, device=resid.device)], dim=1)
        keys, values = torch.cat([known.keys, p.k[None]], dim=1), torch.cat([known.values, p.v[None]], dim=1)
        return blocks.attn_out(layer, blocks.attend(layer, p.q[None], keys, values, mask)[0])

    def _rows_at_once(self) -> int:
        """How many fit into the memory, with what every layer computes for them."""
        model = self._blocks.model
        size = model.footprint
        scores = 3 * size.n_heads * (len(self._layers[0].keys[0]) + _ROWS) * max(size.itemsize, 4)
        one = size.training_size(1, 1, keep=1) + size.n_layers * scores
        return max(1, min(_ROWS, int(model.budget * 2**30 / one)))
