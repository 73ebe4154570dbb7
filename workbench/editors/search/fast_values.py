"""Values of many requests at once, from the work that an edit's value can change.

Below the edited layer, and before the subject's last token, nothing depends on the value that `optimise_value`
searches. So one pass keeps the residual streams that enter the first layer above, and the keys and values of
earlier positions; each step then runs the layers above on the subject's last token and what follows it up to the
last token that predicts the target, for all prompts of all requests together. Requests keep their own loss, clamp,
early stop and Adam state, so each finds what it would find alone.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.editors.search.rows import Row, in_batches, rows_of
from workbench.editors.search.suffixes import suffixes_of
from workbench.editors.search.values import LOSS_REACHED, OptimisedValue, ValueLoss, optimise_value
from workbench.machine import graphs
from workbench.models.blocks import Blocks, BlocksError
from workbench.models.blocks_check import blocks_of
from workbench.models.model import Model
from workbench.records.facts import EditRequest

CAPTURE_PAYS = 4
"""Steps after which capturing a step, which takes as long as some of them, has paid."""


def optimise_values(
    model: Model,
    requests: Sequence[EditRequest],
    templates: Sequence[Sequence[str]],
    *,
    site: str,
    layer: int,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    clamp: float,
    kl_weight: float,
    kl_template: str = "{} is a",
    loss_layer: int | None = None,
) -> list[OptimisedValue]:
    """What `optimise_value` finds for each request, with `templates` a list for each; see there.

    Requests run together as far as the memory reaches. A model whose blocks cannot be run part by part is
    optimised one request at a time over the whole network, with a warning.
    """
    return search_together(
        Search, optimise_value, model, requests, templates,
        site=site, layer=layer, steps=steps, learning_rate=learning_rate, weight_decay=weight_decay, clamp=clamp,
        kl_weight=kl_weight, kl_template=kl_template, loss_layer=loss_layer,
    )  # fmt: skip


def search_together(
    search: "type[Search]",
    alone: Callable[..., OptimisedValue],
    model: Model,
    requests: Sequence[EditRequest],
    templates: Sequence[Sequence[str]],
    **options: Any,
) -> list[OptimisedValue]:
    """What `alone(model, request, templates, **options)` finds for each request, by the `search` that equals it.

    A model whose blocks cannot be run part by part, or not over prompts this long, is left to `alone`, with a warning.
    """
    if not requests:
        return []
    layer, loss_layer = options["layer"], options["loss_layer"]
    if loss_layer is not None and loss_layer < layer:
        raise ValueError(f"loss_layer {loss_layer} lies below the edited layer {layer}, which cannot change it")
    try:
        blocks = blocks_of(model)
        essence = options["kl_template"]
        rows = [rows_of(model, request, (*each, essence)) for request, each in zip(requests, templates, strict=True)]
        found: list[OptimisedValue] = []
        for batch in in_batches(model, rows, layer):
            found += search(blocks, [requests[i] for i in batch], [rows[i] for i in batch], options).run()
    except BlocksError as error:
        why = str(error).removesuffix("; use the plain engine")
        warnings.warn(f"{why}; values are optimised over the whole network", stacklevel=3)
        return [alone(model, request, each, **options) for request, each in zip(requests, templates, strict=True)]
    return found


class Search:
    """The optimisation of a batch of requests: one delta for each of `sites`, all of them added at once."""

    what: ClassVar[str] = "value"
    """What is searched, in messages."""

    def __init__(
        self, blocks: Blocks, requests: Sequence[EditRequest], rows: Sequence[Sequence[Row]], options: dict[str, Any]
    ) -> None:
        self.blocks, self.requests, self.options = blocks, requests, options
        self.layer: int = options["layer"]
        last = blocks.n_layers - 1
        self.loss_layer: int = last if options["loss_layer"] is None else options["loss_layer"]
        with torch.no_grad():
            self.suffixes = suffixes_of(blocks, rows, self.layer)
        bare = torch.tensor([0, *(len(each) for each in rows[:-1])], device=blocks.model.device).cumsum(0)
        initial = torch.stack([self.suffixes.states[site][bare] for site in self.sites], dim=1)
        self.initial: Float[Tensor, "request site d_model"]
        self.initial = initial.to(torch.promote_types(initial.dtype, torch.float32))
        model = blocks.model  # a graph is of one device
        self.capture = graphs.captured if graphs.pays(model.device) and not model.spread else None
        self.most_left = 0.5 if self.capture else 1.0

    @property
    def sites(self) -> tuple[str, ...]:
        """The states of the edited layer that are changed; the last one's value is what is found."""
        return (self.options["site"],)

    def run(self) -> list[OptimisedValue]:
        """Adam on all deltas until each request's loss is reached or the steps are used up."""
        steps, clamp = self.options["steps"], self.options["clamp"]
        n = len(self.requests)
        active = torch.arange(n, device=self.initial.device)  # those that are computed
        running = torch.ones_like(active, dtype=torch.bool)  # of these, those that have not ended
        captured: Callable[..., tuple[Tensor, Tensor]] | None = None
        delta = torch.zeros_like(self.initial, requires_grad=True)
        found = torch.zeros_like(self.initial)
        essence: Tensor | None = None
        losses: list[list[ValueLoss]] = [[] for _ in range(n)]
        optimiser = torch.optim.Adam([delta], lr=self.options["learning_rate"])
        with torch.enable_grad():
            for step in range(steps):
                if self.capture and step and steps - step > CAPTURE_PAYS and captured is None:
                    captured = self.capture(self._log_probs, delta[active])
                said, now = (captured or self._log_probs)(delta[active])
                nll = self._nll(said, active)
                essence = now.detach().clone() if essence is None else essence  # a graph's results are overwritten
                divergence = (now.exp() * (now - essence[active])).sum(dim=-1)  # as published: KL(now || before)
                kl = self.options["kl_weight"] * divergence
                sizes = delta[active].norm(dim=-1) / self.initial[active].norm(dim=-1) ** 2
                decay = self.options["weight_decay"] * sizes.sum(dim=-1)
                total = nll + kl + decay
                terms = torch.stack([active.to(nll), nll, kl, decay]).T[running].tolist()
                for index, *values in terms:
                    losses[int(index)].append(ValueLoss(nll=values[0], kl=values[1], weight_decay=values[2]))
                self._check_finite(total[running], active[running], losses, step)
                going = running & ~self._reached(total, kl, said, active) & (step < steps - 1)
                ended = active[running & ~going]
                with torch.no_grad():
                    found[ended] = delta[ended]
                left = int(going.sum())
                if not left:
                    break
                (delta.grad,) = torch.autograd.grad(total[going].sum(), [delta])
                optimiser.step()
                if left <= len(active) * self.most_left and left < len(active):
                    active, self.suffixes, captured = active[going], self.suffixes.only(going), None
                    running = torch.ones_like(active, dtype=torch.bool)
                else:
                    running = going
                with torch.no_grad():
                    largest = clamp * self.initial.norm(dim=-1, keepdim=True)
                    size = delta.norm(dim=-1, keepdim=True)
                    delta.copy_(torch.where(size > largest, delta * (largest / size), delta))
        return [
            OptimisedValue(initial=self.initial[i, -1], delta=found[i, -1], losses=tuple(losses[i])) for i in range(n)
        ]

    def _leaving(self, delta: Float[Tensor, "row site d_model"]) -> Float[Tensor, "row d_model"]:
        """The residual stream that leaves the edited layer at the subject's last token, with each row's deltas."""
        states, contribution = self.suffixes.states, self.blocks.mlp_contribution(self.layer)
        if self.sites != ("mlp_write",) or contribution.direct:
            return states["resid_post"] + delta[:, 0]
        return states["resid_pre"] + states["attn_out"] + contribution(states["mlp_write"] + delta[:, 0])

    def _nll(
        self, said: Float[Tensor, "prediction vocab"], active: Int[Tensor, " request"]
    ) -> Float[Tensor, " request"]:
        """Negative log-likelihood of each request's target, mean over its tokens and contexts."""
        s = self.suffixes
        share = said.gather(1, s.target[:, None])[:, 0] * s.weight
        return said.new_zeros(len(active)).index_add(0, s.request[s.row[s.read]], -share)

    def _reached(
        self,
        total: Float[Tensor, " request"],
        kl: Float[Tensor, " request"],
        said: Float[Tensor, "prediction vocab"],
        active: Int[Tensor, " request"],
    ) -> Bool[Tensor, " request"]:
        """Which of the active requests end before their next step."""
        return total < LOSS_REACHED

    def _check_finite(self, total: Tensor, active: Tensor, losses: Sequence[Sequence[ValueLoss]], step: int) -> None:
        if not total.isfinite().all():
            index = int(active[~total.isfinite()][0])
            request = self.requests[index]
            raise ValueError(
                f"the {self.what} for {request.prompt!r} -> {request.target_new!r} diverged at step {step}: "
                f"{losses[index][-1]}; check the model's weights, or lower learning_rate "
                f"({self.options['learning_rate']})"
            )

    def _log_probs(
        self, delta: Float[Tensor, "request site d_model"]
    ) -> tuple[Float[Tensor, "prediction vocab"], Float[Tensor, "request vocab"]]:
        """Log-probabilities where targets are predicted, and at the requests' essence prompts."""
        blocks, s = self.blocks, self.suffixes
        leaving = self._leaving(delta[s.request].to(s.resid.dtype))
        ends, needed = s.ends, s.needed
        resid = s.resid.index_copy(0, ends, leaving)
        prefix = s.prefix
        predicting = resid[s.read]
        for layer in range(self.layer + 1, blocks.n_layers):
            if layer == self.layer + 1 and s.projected is not None:
                p = s.projected.replaced(ends, blocks.project(layer, leaving, s.before[s.row[ends]]))
            else:
                p = blocks.project(layer, resid, s.before[s.row] + s.place)
            q, k, v = map(self._unpacked, (p.q, p.k, p.v))
            k, v = torch.cat([s.keys[layer][:, :prefix], k], dim=1), torch.cat([s.values[layer][:, :prefix], v], dim=1)
            heads = blocks.attend(layer, q, k, v, s.seen(blocks.window(layer)))[s.row, s.place]
            if layer == blocks.n_layers - 1:
                heads, resid = heads[needed], resid[needed]
            attn = blocks.attn_out(layer, heads)
            resid = resid + attn + blocks.mlp_out(layer, resid, attn)
            if layer == self.loss_layer:
                predicting = resid[: len(s.read)] if layer == blocks.n_layers - 1 else resid[s.read]
        if self.layer == blocks.n_layers - 1:
            resid = resid[needed]
        said, now = (blocks.unembed(x).to(delta.dtype).log_softmax(dim=-1) for x in (predicting, resid[len(s.read) :]))
        return said, now

    def _unpacked(self, packed: Float[Tensor, "token head d_head"]) -> Float[Tensor, "row place head d_head"]:
        """Packed tokens as padded rows."""
        s = self.suffixes
        empty = packed.new_zeros(len(s.request), s.width, *packed.shape[1:])
        return empty.index_put((s.row, s.place), packed)
