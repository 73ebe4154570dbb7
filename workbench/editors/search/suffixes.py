"""The tokens that depend on the values searched for, packed, and what they attend to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.editors.search.rows import Row
from workbench.machine.shown import Shown
from workbench.models.blocks import Blocks, Projections


@dataclass(kw_only=True, eq=False)
class Suffixes(Shown):
    """The tokens that depend on the values, packed without padding, and what they attend to before them."""

    request: Int[Tensor, " row"]
    """The request of each row."""
    before: Int[Tensor, " row"]
    """How many tokens stand before the subject's last one."""
    keys: dict[int, Float[Tensor, "row prefix head d_head"]]
    """By layer above the edited one, the keys of those tokens."""
    values: dict[int, Float[Tensor, "row prefix head d_head"]]
    """Their values."""
    states: dict[str, Float[Tensor, "row d_model"]]
    """By site, the edited layer's states at the subject's last token in the unedited model."""
    resid: Float[Tensor, "token d_model"]
    """The residual stream that leaves the edited layer."""
    projected: Projections | None
    """What the first layer above makes of it, which only the subject's last tokens change; None for the last layer."""
    row: Int[Tensor, " token"]
    """The row of each token."""
    place: Int[Tensor, " token"]
    """Its place in the row, 0 at the subject's last token."""
    read: Int[Tensor, " prediction"]
    """Tokens from which a target is predicted."""
    target: Int[Tensor, " prediction"]
    """Its id."""
    weight: Float[Tensor, " prediction"]
    """Its share of the mean over the request's target tokens and contexts."""
    essence: Int[Tensor, " request"]
    """The essence prompts' tokens."""
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    @cached_property
    def prefix(self) -> int:
        """The most tokens that stand before a subject's last one."""
        return int(self.before.max())

    @cached_property
    def width(self) -> int:
        """The most tokens of a row from there on."""
        return int(self.place.max()) + 1

    @cached_property
    def ends(self) -> Int[Tensor, " row"]:
        """The subjects' last tokens, among the packed ones."""
        return (self.place == 0).nonzero()[:, 0]

    @cached_property
    def needed(self) -> Int[Tensor, " some"]:
        """The tokens whose output is read: those that predict targets, then the essence prompts'."""
        return torch.cat([self.read, self.essence])

    def seen(self, window: int | None) -> Bool[Tensor, "row 1 place key"]:
        """Which keys each token of a padded row sees, with at most so many."""
        if window not in self._masks:
            rows, width, prefix = len(self.request), self.width, self.prefix
            at = torch.arange(prefix + width, device=self.before.device)
            known = at[None, None, :prefix] < self.before[:, None, None]
            causal = torch.ones(width, width, dtype=torch.bool, device=at.device).tril()
            mask = torch.cat([known.expand(rows, width, prefix), causal.expand(rows, width, width)], dim=-1)[:, None]
            if window is not None:
                own = (self.before[:, None] + at[None, :width])[:, None]  # positions of each row's last tokens
                stands = torch.cat([at[None, None, :prefix].expand(rows, 1, prefix), own], dim=-1)
                mask = mask & ((own.transpose(1, 2) - stands)[:, None] < window)
            self._masks[window] = mask
        return self._masks[window]

    def only(self, kept: Bool[Tensor, " request"]) -> "Suffixes":
        """Those of some of the requests, renumbered."""
        rows, tokens = kept[self.request], kept[self.request[self.row]]
        reads = tokens[self.read]
        number, row_number, token_number = (mask.cumsum(0) - 1 for mask in (kept, rows, tokens))
        return Suffixes(
            request=number[self.request[rows]],
            before=self.before[rows],
            keys={layer: each[rows] for layer, each in self.keys.items()},
            values={layer: each[rows] for layer, each in self.values.items()},
            states={site: each[rows] for site, each in self.states.items()},
            resid=self.resid[tokens],
            projected=None if self.projected is None else self.projected.at(tokens),
            row=row_number[self.row[tokens]],
            place=self.place[tokens],
            read=token_number[self.read[reads]],
            target=self.target[reads],
            weight=self.weight[reads],
            essence=token_number[self.essence[kept]],
        )


def suffixes_of(blocks: Blocks, rows: Sequence[Sequence[Row]], edited: int) -> Suffixes:
    """Those of the prompts of each request, from one pass over the whole prompts."""
    device = blocks.model.device
    flat = [row for each in rows for row in each]
    ids = torch.zeros(len(flat), max(len(row.ids) for row in flat), dtype=torch.long)
    for index, row in enumerate(flat):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)  # padded on the right, where causality hides it
    before = torch.tensor([row.subject for row in flat], device=device)
    prefix = int(before.max())
    everywhere, numbers = torch.arange(ids.shape[1], device=device), torch.arange(len(flat), device=device)
    resid = blocks.resid_pre(blocks.embed_tokens(ids.to(device)))
    keys, values, states, leaving, projected = {}, {}, {}, resid, None
    for layer in range(blocks.n_layers):
        p = blocks.project(layer, resid, everywhere)
        projected = p if layer == edited + 1 else projected
        if layer > edited:
            keys[layer], values[layer] = p.k[:, :prefix].clone(), p.v[:, :prefix].clone()
            if layer == blocks.n_layers - 1:
                break
        attn = blocks.attn_out(layer, blocks.attend(layer, p.q, p.k, p.v))
        write = blocks.mlp_write(layer, resid, attn)
        mlp = blocks.mlp_contribution(layer)(write)
        below, resid = resid, resid + attn + mlp
        if layer == edited:
            leaving = resid
            parts = {"resid_pre": below, "attn_out": attn, "mlp_write": write, "mlp_out": mlp, "resid_post": resid}
            states = {site: part[numbers, before] for site, part in parts.items()}

    places, read, target, weight, essence = [], [], [], [], []
    for index, row in enumerate(flat):
        if not row.targets:
            essence.append(len(places))
        places += [(index, place) for place in range(len(row.ids) - row.subject)]
        read += range(len(places) - len(row.targets), len(places))
        target += row.targets
        weight += [1 / len(row.targets) for _ in row.targets]
    row_of, place_of = torch.tensor(places, device=device).T
    owner = torch.tensor([number for number, each in enumerate(rows) for _ in each], device=device)
    contexts = torch.tensor([len(each) - 1 for each in rows], device=device)
    reads, position_of = torch.tensor(read, device=device), before[row_of] + place_of
    return Suffixes(
        request=owner, before=before, keys=keys, values=values, states=states,
        resid=leaving[row_of, position_of], row=row_of, place=place_of,
        projected=None if projected is None else projected.at((row_of, position_of)),
        read=reads, target=torch.tensor(target, device=device),
        weight=torch.tensor(weight, device=device) / contexts[owner[row_of[reads]]],
        essence=torch.tensor(essence, device=device),
    )  # fmt: skip
