"""KE's network: from the words of an edit to a gated shift along its gradient (De Cao et al. 2021, section 3.2)."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.parametrizations import weight_norm

from workbench.editors.shared.factors import Factors
from workbench.editors.shared.passes import Place
from workbench.models.model import Model


class Condition(torch.nn.Module):
    """A text's tokens, embedded as the model embeds them, read in both directions."""

    def __init__(self, d_embed: int, *, hidden: int, width: int) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(d_embed, hidden, bidirectional=True, batch_first=True)
        self.linear = torch.nn.Linear(2 * hidden, width)

    def forward(self, embedded: Sequence[Tensor]) -> Float[Tensor, "edit width"]:
        last = [torch.cat([self._last(each, ""), self._last(each.flip(0), "_reverse")]) for each in embedded]
        return self.linear(torch.stack(last)).tanh()

    def _last(self, rows: Float[Tensor, "pos d_embed"], direction: str) -> Float[Tensor, " hidden"]:
        """The state after the last row, by hand: `torch.nn.LSTM` itself runs only where a device has kernels for it."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        inward, onward, *biases = (getattr(self.lstm, f"{name}_l0{direction}") for name in names)
        inputs = rows @ inward.T + sum(biases)
        state = cell = inputs.new_zeros(self.lstm.hidden_size)
        for row in inputs:
            take, keep, new, show = (row + onward @ state).chunk(4)
            cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
            state = show.sigmoid() * cell.tanh()
        return state


class Shift(torch.nn.Module):
    """What a condition makes of one matrix's gradient G: sigmoid(eta) (G * softmax(a) c^T + softmax(b) d^T).

    a and b have an element for each row of the matrix as `Model.weight` gives it, c and d for each column. Both parts
    stay factored: the first scales the gradient's factors, the second adds one to them.
    """

    def __init__(self, d_in: int, d_out: int, *, width: int, hidden: int) -> None:
        super().__init__()
        self.sizes = [d_out, d_in, d_out, d_in, 1]
        self.layers = torch.nn.Sequential(
            weight_norm(torch.nn.Linear(width, hidden)),
            torch.nn.Tanh(),
            weight_norm(torch.nn.Linear(hidden, sum(self.sizes))),
        )

    def forward(self, condition: Float[Tensor, "edit width"], factors: Factors, scale: float) -> tuple[Tensor, Tensor]:
        """Factors [edit d_in rank] and [edit rank d_out] of the shift."""
        c, a, d, b, gate = self.layers(condition).split(self.sizes, dim=1)
        left = [factors.u * a.softmax(dim=1)[:, None], b.softmax(dim=1)[:, None]]
        right = [factors.delta * c[:, None], d[:, None]]
        return scale * gate.sigmoid()[:, None] * torch.cat(left, dim=1).transpose(-1, -2), torch.cat(right, dim=1)


class GradientShifts(torch.nn.Module):
    """One condition for all matrices, a shift for each; and the multiplier of the constraint that training is under."""

    def __init__(
        self, shapes: Mapping[Place, tuple[int, int]], d_embed: int, *, hidden: int, width: int, margin: float
    ) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        self.condition = Condition(d_embed, hidden=hidden, width=width)
        self.shifts = torch.nn.ModuleDict(
            {_name(place): Shift(*shape, width=width, hidden=hidden) for place, shape in shapes.items()}
        )
        self.multiplier = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("margin", torch.tensor(margin))
        self.register_buffer("flipped", torch.zeros(()))
        self.register_buffer("asked", torch.zeros(()))

    def forward(
        self, embedded: Sequence[Tensor], factors: Mapping[Place, Factors], *, scale: float
    ) -> dict[Place, tuple[Tensor, Tensor]]:
        """Factors [edit d_in rank] and [edit rank d_out] of every matrix's shift, which is added."""
        condition = self.condition(embedded)
        return {place: self.shifts[_name(place)](condition, factors[place], scale) for place in self.shapes}


def embedded(model: Model, texts: Sequence[str]) -> list[Tensor]:
    """The tokens of each text as the model embeds them, [pos d_embed], without what its tokenizer puts in front."""
    table = model.hf.get_input_embeddings().weight.detach()
    rows = [[id for id, (_, end) in zip(row.ids, row.offsets, strict=True) if end] for row in model.encode(texts)]
    return [table[torch.tensor(ids, device=table.device)].to(model.device).float() for ids in rows]


def _name(place: Place) -> str:
    layer, matrix = place
    return f"{layer}_{matrix}"
