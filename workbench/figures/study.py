"""Results as figures: each function takes a result and returns a Figure, which `runs.save_figure` saves.

Figures are read at the width of a page and in greyscale: colour maps are monotone in lightness, and lines
differ by marker and dash as well as by colour.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from workbench.figures.plotting import (
    AFTER,
    BEFORE,
    PLANTED_COLOR,
    ROLE_LABELS,
    SCORE_PANELS,
    SCORE_STYLES,
    SITE_STYLES,
    STYLE,
    WIDTH,
    LineStyle,
    banded_line,
    few_ticks,
    heatmap,
    layer_label,
    layer_ticks,
    row_labels,
    shade_layers,
)
from workbench.machine.intervals import Estimate
from workbench.measuring.summaries import Summary
from workbench.models.tokens import visible
from workbench.tracing.averages import ROLES, AverageEffect
from workbench.tracing.trace import CausalTrace

METRIC_LABELS = {"probability": "p({})", "logit_difference": "the logit of {} over the foil", "kl": "-KL(clean || run)"}
"""What each metric is called, with a {} for the answer."""


@matplotlib.rc_context(STYLE)
def trace_heatmap(trace: CausalTrace) -> Figure:
    """One fact's causal trace as in Meng et al. 2022, figure 1: tokens traced down, layers across, a panel a site.

    The panels share one scale, from the answer's corrupted to its clean probability; a star marks the
    subject's tokens.
    """
    answer = visible(trace.answer)
    title = textwrap.fill(f"{trace.fact.prompt} → {answer}", 105)
    subtitle = (
        f"{METRIC_LABELS[trace.metric].format(answer)} with one state restored to its clean value: "
        f"{trace.corrupted:.2f} with the subject* corrupted, {trace.clean:.2f} clean"
    )
    height = 1.4 + 0.2 * title.count("\n") + 0.25 * max(len(trace.positions), 5)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(trace.restored), sharey=True, squeeze=False)[0]
    scale = Normalize(trace.corrupted, max(trace.clean, trace.corrupted + 1e-6))
    for ax, (site, restored) in zip(panels, trace.restored.items(), strict=True):
        bar = heatmap(ax, restored.float().cpu().numpy(), SITE_STYLES[site].cmap, scale)
        bar.set_ticks([trace.corrupted, trace.clean], labels=[f"{trace.corrupted:.2f}", f"{trace.clean:.2f}"])
        ax.set_title(SITE_STYLES[site].label)
        ax.set_xlabel(layer_label(site, trace.window))
    subject = range(*trace.subject)
    row_labels(panels[0], [visible(trace.tokens[pos]) + "*" * (pos in subject) for pos in trace.positions])
    _heading(figure, f"{title}\n{subtitle}")
    return figure


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
    interval = f" ± {first.total_half_width:.2f}" if np.isfinite(first.total_half_width) else ""
    heading = (
        f"Average indirect effect on {METRIC_LABELS[first.metric].format('answer')} over {first.facts} facts; "
        f"the average total effect is {first.total:.2f}{interval}"
    )
    _heading(figure, f"{title}\n{heading}" if title else heading)
    return figure


@matplotlib.rc_context(STYLE)
def layer_comparison_figure(
    frame: pd.DataFrame, *, score: str = "S", located: int | None = None, random_layer: float | None = None
) -> Figure:
    """Does locating help? Edit scores by layer, the tracing effect by layer, and one against the other.

    Args:
        frame: columns `layer`, `measure`, `value`, `low`, `high` (the interval, may be NaN); the measure is
            `effect` (average indirect effect) or a score (`S`, `ES`, `PS`, `NS`, as shares of 1).
        score: the score of the third panel, whose title gives Pearson's correlation over layers.
        located: the layer that tracing chose, marked in the first two panels.
        random_layer: the `score` of editing at a random layer, a dotted line in the first panel.
    """
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    by_score, by_effect, against = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    n_layers = int(frame["layer"].to_numpy().max()) + 1
    for measure, style in SCORE_STYLES.items():
        if measure in set(frame["measure"]):
            _measure_line(by_score, frame, measure, 100.0, style)
    if random_layer is not None:
        label = f"{score}, random layer"
        by_score.axhline(100 * random_layer, color="#222222", linewidth=1, linestyle=":", label=label)
    by_score.set(title="Editing at the layer", ylabel="Score (%)", ylim=(-3, 103))
    _measure_line(by_effect, frame, "effect", 1.0, SITE_STYLES["mlp_out"])
    by_effect.set(title="Tracing: restoring the MLP", ylabel="Average indirect effect")
    for ax in (by_score, by_effect):
        if located is not None:
            ax.axvline(located, color="#999999", linewidth=5, alpha=0.35, zorder=0, label="Located layer")
        layer_ticks(ax, n_layers, most=12)
        ax.set_xlabel("Layer")
    _scatter(against, frame, score)
    for ax in (by_score, by_effect, against):
        sns.despine(ax=ax)
    handles, labels = by_score.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handlelength=3, columnspacing=1.2)
    return figure


@matplotlib.rc_context(STYLE)
def score_figure(summaries: Mapping[str, Summary]) -> Figure:
    """Scores by editor with intervals, teacher-forced and generated in panels of their own.

    The model before the edits (of the first editor) comes first. Scores that no record has are left out.
    ValueError for no summaries.
    """
    if not summaries:
        raise ValueError("score_figure needs at least one editor's summary, got none")
    first = next(iter(summaries.values()))
    states: list[tuple[Mapping[str, Estimate], dict[str, Any]]] = [(first.pre, BEFORE)]
    for index, (name, summary) in enumerate(summaries.items()):
        states.append((summary.post, {**AFTER[index % len(AFTER)], "label": f"After {name}"}))
    shown = {
        panel: {metric: text for metric, text in texts.items() if _known(first.post.get(metric))}
        for panel, texts in SCORE_PANELS.items()
    }
    shown = {panel: texts for panel, texts in shown.items() if texts} or {"No scores": {}}
    rows = max(len(texts) for texts in shown.values())
    figure = Figure(figsize=(WIDTH, 1.5 + (0.16 + 0.1 * len(states)) * rows), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    shifts = np.linspace(-0.13, 0.13, len(states)) * (len(states) / 2) ** 0.5
    for ax, (panel, texts) in zip(panels, shown.items(), strict=True):
        for row, metric in enumerate(texts):
            for shift, (estimates, look) in zip(shifts, states, strict=True):
                _interval_point(ax, estimates.get(metric), row + shift, look)
        ax.set_yticks(range(len(texts)), list(texts.values()))
        ax.set(title=panel, xlim=(-3, 103), ylim=(len(texts) - 0.5, -0.5), xlabel="Share (%)")
        ax.grid(axis="x", color="#eeeeee")
        ax.hlines(np.arange(1, len(texts)) - 0.5, -3, 103, color="#eeeeee", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", left=False)
        sns.despine(ax=ax, left=True)
    handles = [Line2D([], [], markersize=6, linewidth=1.4, **look) for _, look in states]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    _heading(figure, f"{first.n} records; lines are {100 * first.level:g} % bootstrap intervals")
    return figure


def _heading(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.008, ha="left", fontsize=11, linespacing=1.35)


def _site_handle(average: AverageEffect) -> Line2D:
    style = SITE_STYLES[average.site]
    windowed = f", window of {average.window}" if average.window > 1 else ""
    return Line2D([], [], label=style.label + windowed, **style.keywords())


def _measure(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows of one measure by layer; ValueError if there are none."""
    rows = frame.loc[frame["measure"] == measure]
    if rows.empty:
        raise ValueError(f"layer_comparison_figure needs rows with measure {measure!r}, got none")
    return rows.set_index("layer").sort_index()


def _measure_line(ax: Axes, frame: pd.DataFrame, measure: str, scale: float, style: LineStyle) -> None:
    rows = _measure(frame, measure)
    y, low, high = (scale * rows[column].to_numpy(float) for column in ("value", "low", "high"))
    banded_line(ax, rows.index.to_numpy(float), y, (low, high), style)


def _known(estimate: Estimate | None) -> bool:
    return estimate is not None and not np.isnan(estimate.value)


def _interval_point(ax: Axes, estimate: Estimate | None, y: float, look: Mapping[str, Any]) -> None:
    if estimate is not None and _known(estimate):
        ax.plot([100 * estimate.low, 100 * estimate.high], [y, y], color=look["color"], linewidth=1.4)
        ax.plot([100 * estimate.value], [y], markersize=6, linestyle="none", **look)


def _scatter(ax: Axes, frame: pd.DataFrame, score: str) -> None:
    """The score against the effect, a dot a layer with its number, and their correlation."""
    both = pd.concat([_measure(frame, "effect")["value"], 100 * _measure(frame, score)["value"]], axis=1).dropna()
    layers, (x, y) = both.index.to_numpy(), both.to_numpy(float).T
    ax.plot(x, y, linestyle="none", marker="o", color="#222222", markersize=4)
    for index, layer in enumerate(layers):
        left = layer > layers[x.argmax()]  # layers on either side of the peak have like effects
        where: dict[str, Any] = {"xytext": (-4 if left else 4, 3), "ha": "right" if left else "left"}
        spot = (x[index], y[index])
        ax.annotate(f"{layer:g}", spot, textcoords="offset points", fontsize=8, color="#555555", **where)
    varies = len(both) > 2 and x.std() > 0 and y.std() > 0
    correlation = f"r = {np.corrcoef(x, y)[0, 1]:.2f}" if varies else "too few layers for r"
    ax.set_title(f"{score} against effect, {correlation}")
    ax.set(xlabel="Average indirect effect", ylabel=f"{score} (%)")
    ax.margins(0.12)
