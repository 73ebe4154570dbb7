"""The tokens that depend on the values searched for, packed, and what they attend to."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.models.blocks import Projections


@dataclass(kw_only=True, eq=False)
class Suffixes:
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
