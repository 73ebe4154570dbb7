"""MEND's network: what it makes of the gradient's factors (Mitchell et al. 2022, arXiv:2110.11309, section 3.2)."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.editors.shared.factors import Factors
from workbench.editors.shared.passes import Place

_EPS = 1e-7
"""Added to standard deviations."""


class Layer(torch.nn.Module):
    """z + relu(scale_l * (U V z + b) + shift_l), with a scale and a shift of each matrix (equation 3)."""

    def __init__(self, width: int, rank: int, matrices: int) -> None:
        super().__init__()
        self.u = torch.nn.Parameter(torch.zeros(width, rank))
        self.v = torch.nn.Parameter(torch.zeros(rank, width))
        self.bias = torch.nn.Parameter(torch.zeros(width))
        self.scale = torch.nn.Parameter(torch.ones(matrices, width))
        self.shift = torch.nn.Parameter(torch.zeros(matrices, width))

    def forward(self, z: Float[Tensor, "row width"], which: int) -> Float[Tensor, "row width"]:
        inner = (z @ self.v.T) @ self.u.T + self.bias
        # Not `relu`, whose gradient at 0 is 0: an identity would stay one for good.
        return z + (self.scale[which] * inner + self.shift[which]).clamp(min=0)


class Transform(torch.nn.Module):
    """One network for all matrices of a shape: factors are normalised by running statistics, then two layers."""

    def __init__(self, d_in: int, d_out: int, *, rank: int, matrices: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(d_in + d_out, rank, matrices) for _ in range(2)])
        self.register_buffer("count", torch.zeros(()))
        for name, width in (("u", d_in), ("delta", d_out)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_squares", torch.zeros(width))

    @torch.no_grad()
    def observe(self, u: Float[Tensor, "row d_in"], delta: Float[Tensor, "row d_out"]) -> None:
        """Take rows into the statistics: means, and sums of squared deviations from them (Welford, many at once)."""
        before, new = self.get_buffer("count"), len(u)
        if not new:
            return
        total = before + new
        for name, rows in (("u", u), ("delta", delta)):
            mean, squares = self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_squares")
            its = rows.mean(dim=0)
            squares += (rows - its).square().sum(dim=0) + (its - mean).square() * before * new / total
            mean += (its - mean) * new / total
        before += new

    def forward(
        self, u: Float[Tensor, "row d_in"], delta: Float[Tensor, "row d_out"], which: int
    ) -> tuple[Tensor, Tensor]:
        """The transformed rows of the matrix of that number among those of its shape."""
        z = torch.cat([self._normalised("u", u), self._normalised("delta", delta)], dim=1)
        for layer in self.layers:
            z = layer(z, which)
        u, delta = z.split([u.shape[1], delta.shape[1]], dim=1)
        return u, delta

    def _normalised(self, name: str, rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """As it is while nothing has been observed: an untrained network changes nothing."""
        count = self.get_buffer("count")
        if count < 2:
            return rows
        spread = (self.get_buffer(f"{name}_squares") / (count - 1)).sqrt()
        return (rows - self.get_buffer(f"{name}_mean")) / (spread + _EPS)


class GradientTransforms(torch.nn.Module):
    """A transform for each shape of the edited matrices, and a learned rate for each matrix."""

    def __init__(self, shapes: Mapping[Place, tuple[int, int]], *, rank: int, rate: float) -> None:
        """An identity: U is zero, V is zero until `initialise_`."""
        super().__init__()
        self.shapes = dict(shapes)
        self.transforms = torch.nn.ModuleDict(
            {_name(shape): Transform(*shape, rank=rank, matrices=count) for shape, count in _counted(shapes).items()}
        )
        self.rates = torch.nn.Parameter(torch.full((len(shapes),), rate))

    def initialise_(self, generator: torch.Generator) -> "GradientTransforms":
        """Draw V by Xavier's rule, so that it can learn; it stays an identity, as U is zero."""
        for name, parameter in self.named_parameters():
            if name.endswith(".v"):
                torch.nn.init.xavier_uniform_(parameter, generator=generator)
        return self

    def forward(
        self, factors: Mapping[Place, Factors], *, descent: bool, observe: bool = False
    ) -> dict[Place, tuple[Tensor, Tensor]]:
        """Factors [edit d_in row] and [edit row d_out] of every matrix's change: -rate u^T delta; + without `descent`.

        `observe` takes the factors into the statistics before they are used.
        """
        seen: dict[str, int] = {}
        changes: dict[Place, tuple[Tensor, Tensor]] = {}
        for place, rate in zip(self.shapes, self.rates, strict=True):
            name = _name(self.shapes[place])
            which = seen[name] = seen.get(name, -1) + 1
            transform: Transform = self.transforms[name]  # pyright: ignore[reportAssignmentType]
            given, kept = factors[place], factors[place].nonzero
            rows = given.u[kept], given.delta[kept]
            if observe:
                transform.observe(*rows)
            # Rows that add nothing stay zero: what the network makes of them would be an edit.
            at = kept.nonzero(as_tuple=True)
            both = zip((given.u, given.delta), transform(*rows, which), strict=True)
            u, delta = (torch.zeros_like(whole).index_put(at, made) for whole, made in both)
            changes[place] = ((-rate if descent else rate) * u.transpose(-1, -2), delta)
        return changes


def _name(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _counted(shapes: Mapping[Place, tuple[int, int]]) -> dict[tuple[int, int], int]:
    kinds = list(shapes.values())
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
