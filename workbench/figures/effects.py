"""What causal tracing found: the map of one fact, and effects averaged over facts."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from workbench.figures.plotting import (
    PLANTED_COLOR,
    ROLE_LABELS,
    SITE_STYLES,
    STYLE,
    WIDTH,
    banded_line,
    few_ticks,
    heatmap,
    layer_label,
    layer_ticks,
    row_labels,
    shade_layers,
    write_heading,
)
from workbench.models.tokens import visible
from workbench.tables.table import plus_minus
from workbench.tracing.averages import ROLES, AverageEffect
from workbench.tracing.trace import CausalTrace

METRIC_LABELS = {"probability": "p({})", "logit_difference": "the logit of {} over the foil", "kl": "-KL(clean || run)"}
"""What each metric is called, with a {} for the answer."""


@matplotlib.rc_context(STYLE)
def trace_heatmap(trace: CausalTrace) -> Figure:
    """One fact's causal trace as in Meng et al. 2022, figure 1: tokens traced down, layers across, a panel a site.

    The panels share one scale, between the answer's corrupted and its clean probability, whichever is larger; a star
    marks the subject's tokens.
    """
    answer = visible(trace.answer)
    title = textwrap.fill(f"{trace.fact.prompt} → {answer}", 105)
    values = "its clean value" if trace.span == 1 else "clean values"
    corrupted, clean = ends = _told_apart(trace.corrupted, trace.clean)
    subtitle = (
        f"{METRIC_LABELS[trace.metric].format(answer)} with {trace.restoring} restored to {values}: "
        f"{corrupted} with the subject* corrupted, {clean} clean"
    )
    if trace.total_effect <= 0:
        subtitle += ", so that the noise takes nothing away"
    subtitle = textwrap.fill(subtitle, 115)
    height = 1.4 + 0.2 * (title.count("\n") + subtitle.count("\n")) + 0.25 * max(len(trace.positions), 5)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(trace.restored), sharey=True, squeeze=False)[0]
    low, high = sorted((trace.corrupted, trace.clean))
    scale = Normalize(low, max(high, low + 1e-6))
    for ax, (site, restored) in zip(panels, trace.restored.items(), strict=True):
        bar = heatmap(ax, restored.float().cpu().numpy(), SITE_STYLES[site].cmap, scale)
        bar.set_ticks([low, high], labels=ends if trace.corrupted <= trace.clean else ends[::-1])
        ax.set_title(SITE_STYLES[site].label)
        ax.set_xlabel(layer_label(site, trace.window))
    subject = range(*trace.subject)
    row_labels(panels[0], [visible(trace.tokens[pos]) + "*" * (pos in subject) for pos in trace.positions])
    write_heading(figure, f"{title}\n{subtitle}")
    return figure


def _told_apart(*values: float) -> list[str]:
    """With two decimals, or where these are the same with two digits that count."""
    texts = [f"{value:.2f}" for value in values]
    return texts if len(set(texts)) > 1 else [f"{value:.2g}" for value in values]


@matplotlib.rc_context(STYLE)
def average_effect_figure(
    averages: Sequence[AverageEffect], *, planted: range | None = None, title: str = ""
) -> Figure:
    """Average indirect effects: a heat map (role by layer) each site, and below them lines with 95 % bands.

    The lines show the last subject token, where facts are recalled, and the last token, where they are read; without
    both, the first role there is. A role that no fact has, or none was traced at, has neither row nor lines. `planted`
    marks the layers that a model was trained to recall in. ValueError for no averages, and for those without any role.
    """
    if not averages:
        raise ValueError("average_effect_figure needs at least one AverageEffect, got none")
    counts = averages[0].counts
    rows = [row for row, role in enumerate(ROLES) if counts[role]]
    if not rows:
        raise ValueError("average_effect_figure needs a role, but no token from the subject on was traced")
    figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.2), squeeze=False)[:, 0]
    means = [average.mean.float().cpu().numpy() for average in averages]
    scale = Normalize(0, max(float(np.nanmax(means)), 1e-6))
    maps = above.subplots(1, len(averages), sharey=True, squeeze=False)[0]
    for ax, average, mean in zip(maps, averages, means, strict=True):
        few_ticks(heatmap(ax, mean[rows], SITE_STYLES[average.site].cmap, scale))
        ax.set_title(SITE_STYLES[average.site].label, pad=9 if planted else None)
        ax.set_xlabel(layer_label(average.site, average.window))
        if planted is not None:
            ends = [planted.start, planted.stop]
            ax.plot(ends, [-0.2, -0.2], color="#555555", linewidth=2.5, clip_on=False)
    row_labels(maps[0], [f"{ROLE_LABELS[ROLES[row]]} ({counts[ROLES[row]]})" for row in rows])

    lined = [role for role in ("last_subject", "last") if counts[role]] or [ROLES[rows[0]]]
    panels = below.subplots(1, len(lined), sharey=True, squeeze=False)[0]
    for ax, role in zip(panels, lined, strict=True):
        for average, mean in zip(averages, means, strict=True):
            y = mean[ROLES.index(role)]
            half = average.half_width[ROLES.index(role)].float().cpu().numpy()
            banded_line(ax, np.arange(len(y)), y, (y - half, y + half), SITE_STYLES[average.site])
        shade_layers(ax, planted)
        ax.axhline(0, color="#777777", linewidth=0.6, zorder=1)
        ax.set_title(f"At the {ROLE_LABELS[role].lower()}")
        layer_ticks(ax, means[0].shape[1])
        ax.set_xlabel("Layer, or centre of the window of layers")
        sns.despine(ax=ax)
    panels[0].set_ylabel("Average indirect effect")
    handles: list[Line2D | Patch] = [_site_handle(average) for average in averages]
    if planted is not None:
        handles.append(Patch(color=PLANTED_COLOR, label="Planted layers (bar above the maps)"))
    below.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=3)

    first = averages[0]
    facts = f"{first.facts} fact{'s' * (first.facts != 1)}"
    heading = (
        f"Average indirect effect on {METRIC_LABELS[first.metric].format('answer')} over {facts}; "
        f"the average total effect is {plus_minus(first.total, first.total_half_width, 2)}"
    )
    write_heading(figure, f"{title}\n{heading}" if title else heading)
    return figure


def _site_handle(average: AverageEffect) -> Line2D:
    style = SITE_STYLES[average.site]
    windowed = f", window of {average.window}" if average.window > 1 else ""
    return Line2D([], [], label=style.label + windowed, **style.keywords())
