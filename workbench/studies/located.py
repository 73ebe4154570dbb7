"""What tracing a set of facts shows: the value that editing and measuring take, and its figures and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.figures.effects import METRIC_LABELS, average_effect_figure, trace_heatmap
from workbench.figures.plotting import ROLE_LABELS
from workbench.machine.shown import Shown
from workbench.models.model import SITES, Model
from workbench.records.facts import Fact
from workbench.runs.run import Run
from workbench.studies.defaults import planted_layers
from workbench.tables.published import published_effects
from workbench.tables.table import plus_minus
from workbench.tracing.averages import ROLES, AverageEffect, token_roles
from workbench.tracing.noise import Noise
from workbench.tracing.sweep import TraceSet
from workbench.tracing.trace import CausalTrace
from workbench.tracing.until_sure import AUTO, BLOCK, MOST, TOLERANCE, Samples, reached_most

HEAT_MAPS = 3
"""Single facts whose heat maps a run shows."""


@dataclass(frozen=True, kw_only=True)
class Located(Shown):
    """What tracing a set of facts shows."""

    found: TraceSet
    traces: Mapping[int, CausalTrace]
    """The traces by the `case_id` of their facts."""
    averages: tuple[AverageEffect, ...]
    """By site, in the order of `SITES`."""
    layer: int | None
    """The layer whose MLPs mediate recall at the last subject token: handed to the editors. None where no fact was
    traced there."""
    facts: Mapping[int, Fact]
    """All facts by `case_id`, also those beyond the limit."""
    noise: Noise
    """What subjects were corrupted with, fitted once: `trace_edited` takes it from here."""
    samples: Samples
    """Noise samples a fact, or "auto"."""
    seed: int
    """Of the noise."""
    form: Mapping[str, Any]
    """What else `trace_fact` was given."""


def show_location(run: Run, model: Model, located: Located) -> None:
    planted = planted_layers(model)
    traces, mlp = located.found.traces, located.averages[SITES.index("mlp_out")]
    facts, skipped = f"{len(traces)} fact{'s' * (len(traces) != 1)}", len(located.found.skipped)
    counted = f"{facts} that {model.name} knows ({skipped} skipped: not known)"
    measured, restored = METRIC_LABELS[mlp.metric].format("answer"), traces[0].restoring
    windows = f"of MLP and attention in windows of {mlp.window} layers around the one named"
    used, capped = [trace.samples for trace in traces], sum(map(reached_most, traces))
    if located.samples == AUTO:
        counted += (
            f". Noise samples a fact, until the nominal 95 % interval of its layer's lead, looked at after every block "
            f"of {BLOCK}, was ± {TOLERANCE} or narrower: {min(used)} to {max(used)}, {sum(used) / len(used):.1f} on "
            f"average; {capped or 'none'} of the facts reached {MOST} samples without it"
        )
        mean = sum(used) / len(used)
        run.note(samples_used={"fewest": min(used), "most": max(used), "mean": mean, "capped": capped})
    if any(mlp.counts.values()):  # tokens before the subject have no role
        run.save_figure(
            "average_effects",
            average_effect_figure(located.averages, planted=planted),
            caption=f"Average indirect effect on {measured} of restoring {restored}, {windows}, over {counted}; bands "
            f"are 95 % intervals over facts{', of which one has none' * (len(traces) == 1)}. Average total effect "
            f"{mlp.total:.3f}.",
        )
        run.save_table(
            "average_effects",
            _average_table(located.averages),
            caption=f"Largest average indirect effect on {measured} of restoring {restored}, {windows}, by site and "
            f"token role, over {counted}; ± is half of a 95 % interval (Student's t). Average total effect "
            f"{plus_minus(mlp.total, mlp.total_half_width)}.",
        )
    for number, trace in enumerate(traces[:HEAT_MAPS], start=1):
        some = f" Traced at {len(trace.positions)} of {len(trace.tokens)} tokens."
        run.save_figure(
            f"trace_{number}",
            trace_heatmap(trace),
            caption=f"Causal trace of “{trace.fact.prompt}”, restoring {trace.restoring}. Subject tokens "
            "carry a star." + some * (len(trace.positions) < len(trace.tokens)),
        )
    published, source = published_effects()
    run.save_table("published_effects", published, caption=source)
    run.note(
        layer=located.layer,
        window=mlp.window,
        facts_traced=len(traces),
        facts_skipped=len(located.found.skipped),
        total_effect=mlp.total,
        peak_effect=None if located.layer is None else float(mlp.row("last_subject").max()),
        peak_total_effect=_total_at_last_subject(traces),
        planted=list(planted) if planted else None,
    )


def _total_at_last_subject(traces: Sequence[CausalTrace]) -> float | None:
    """Average total effect over the facts that `peak_effect` averages: those that have the role and were traced there.

    None without such.
    """
    totals = [
        trace.total_effect
        for trace in traces
        if trace.last_subject in trace.positions
        and token_roles(len(trace.tokens), trace.subject)[trace.last_subject] == "last_subject"
    ]
    return sum(totals) / len(totals) if totals else None


def _average_table(averages: Sequence[AverageEffect]) -> pd.DataFrame:
    """The largest average effect by site and role."""
    lines = [
        {
            "Site": average.site,
            "Role": ROLE_LABELS[role],
            "Facts": average.counts[role],
            "Peak layer": int(average.row(role).argmax()),
            "Average indirect effect": plus_minus(
                float(average.row(role).max()), float(average.half_width[index][average.row(role).argmax()])
            ),
        }
        for average in averages
        for index, role in enumerate(ROLES)
        if average.counts[role]
    ]
    return pd.DataFrame(lines)
