"""Average effects over facts by a token's role (Meng et al. 2022, figure 2), and the layer they show.

One role a token: the prompt's last token is "last" whatever else it is, then the subject's last token is
"last_subject", its first "first_subject". So a subject of one token has only a last token, and a prompt that
ends with its subject has no "last_subject": recall and read-out cannot be told apart there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.intervals import student_half_width
from workbench.machine.shown import Shown
from workbench.tracing.trace import CausalTrace

ROLES = ("first_subject", "middle_subject", "last_subject", "first_subsequent", "further", "last")
"""Roles of a prompt's tokens, in the order of the paper's figure; tokens before the subject have none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AverageEffect(Shown):
    """Average indirect effect of one site over facts, with 95 % intervals (Student's t over facts)."""

    site: str
    """Where states were restored."""
    window: int
    """Layers restored together, 1 for `resid_post`; a layer's column is the window centred on it."""
    metric: str
    """What was measured: one of `METRICS`."""
    mean: Float[Tensor, "role layer"]
    """Mean over facts of the indirect effect, rows as `ROLES`; NaN where no fact has the role."""
    half_width: Float[Tensor, "role layer"]
    """The interval is mean +- half_width; NaN where fewer than two facts have the role."""
    counts: Mapping[str, int]
    """By role, how many facts have it among the tokens that were traced."""
    total: float
    """Average total effect: mean over facts of the clean minus the corrupted probability."""
    total_half_width: float
    """Half width of its 95 % interval; NaN for one fact."""
    facts: int
    """How many facts were averaged."""

    def __repr__(self) -> str:
        row = self.row("last_subject")
        peak = "" if row.isnan().all() else f"; at the last subject token {row.max():.3f} in layer {int(row.argmax())}"
        return f"AverageEffect({self.site} over {self.facts:,} facts: {self.total:.3f} in total{peak})"

    def _repr_html_(self) -> str:
        """The averages as a table with shaded cells, for notebooks."""
        effects = pd.DataFrame(self.mean.numpy(), index=pd.Index(ROLES)).dropna()
        caption = f"Average indirect effect of {self.site} over {self.facts} facts, by token role and layer"
        shaded = effects.style.set_caption(caption)
        shaded.background_gradient("Greens", axis=None).format("{:.3f}")  # these return a narrower type
        return shaded.to_html()

    def row(self, role: str) -> Float[Tensor, " layer"]:
        """The mean of one role, by layer; ValueError for an unknown role."""
        return self.mean[_role_index(role)]


def token_roles(n_tokens: int, subject: tuple[int, int]) -> tuple[str | None, ...]:
    """Every token's role in a prompt whose subject is the tokens [first, end); None before the subject."""
    first, end = subject

    def role(pos: int) -> str | None:
        if pos < first:
            return None
        if pos == n_tokens - 1:
            return "last"
        if pos < end:
            return "last_subject" if pos == end - 1 else "first_subject" if pos == first else "middle_subject"
        return "first_subsequent" if pos == end else "further"

    return tuple(role(pos) for pos in range(n_tokens))


def average_effects(traces: Sequence[CausalTrace], site: str) -> AverageEffect:
    """Average indirect effect of `site` by role and layer; a fact's tokens of one role are averaged first.

    Of a role's tokens those count that were traced; a fact without any does not count for the role.
    ValueError for no traces, traces of models of different depth or different windows, and a site not traced.
    """
    if not traces:
        raise ValueError("average effects need at least one trace, got none; does the model know any fact?")
    windowed = site != "resid_post"
    shapes = {(t.indirect_effect(site).shape[1], t.window if windowed else 1, t.metric) for t in traces}
    if len(shapes) > 1:
        raise ValueError(f"traces to average must agree in (layers, window, metric), got {sorted(shapes)}")
    n_layers, window, metric = shapes.pop()

    by_role: dict[str, list[Tensor]] = {role: [] for role in ROLES}
    for trace in traces:
        effect = trace.indirect_effect(site).double()
        roles = token_roles(len(trace.tokens), trace.subject)
        for role in ROLES:
            rows = [row for row, pos in enumerate(trace.positions) if roles[pos] == role]
            if rows:
                by_role[role].append(effect[rows].mean(dim=0))

    means, half_widths = [], []
    for role in ROLES:
        none = torch.empty(0, n_layers, dtype=torch.float64)
        mean, half_width = _mean_and_half_width(torch.stack(by_role[role]) if by_role[role] else none)
        means.append(mean)
        half_widths.append(half_width)
    totals = torch.tensor([[trace.total_effect] for trace in traces], dtype=torch.float64)
    total, total_half_width = _mean_and_half_width(totals)
    return AverageEffect(
        site=site,
        window=window,
        metric=metric,
        mean=torch.stack(means).float(),
        half_width=torch.stack(half_widths).float(),
        counts={role: len(by_role[role]) for role in ROLES},
        total=total.item(),
        total_half_width=total_half_width.item(),
        facts=len(traces),
    )


def mediating_layer(traces: Sequence[CausalTrace], *, site: str = "mlp_out", role: str = "last_subject") -> int:
    """The layer with the greatest average indirect effect of `site` at the tokens of `role`.

    For a windowed site it is the centre of the restored window (`restored_layers`). The lowest such layer on
    a tie. ValueError where no trace has a token of that role that was traced.
    """
    row = average_effects(traces, site).row(role)
    if row.isnan().all():
        raise ValueError(
            f"none of the {len(traces)} traces has a token in role {role!r} that was traced; add prompts or positions"
        )
    return int(row.argmax())


def _role_index(role: str) -> int:
    if role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    return ROLES.index(role)


def _mean_and_half_width(
    values: Float[Tensor, "fact layer"],
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """Mean over facts, and half width of its 95 % interval by Student's t; NaN for too few facts."""
    if not len(values):
        missing = torch.full_like(values.sum(dim=0), math.nan)
        return missing, missing
    return values.mean(dim=0), torch.from_numpy(student_half_width(values.numpy()))
