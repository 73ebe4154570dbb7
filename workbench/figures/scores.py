"""Scores by editor, before the edits and after them."""

from collections.abc import Collection, Mapping
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from workbench.figures.plotting import AFTER, BEFORE, SCORE_PANELS, STYLE, WIDTH, write_heading
from workbench.machine.intervals import FEWEST, Estimate
from workbench.measuring.summaries import Summary
from workbench.tables.scores import span


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
    write_heading(figure, records_drawn(summaries.values()))
    return figure


def records_drawn(summaries: Collection[Summary], how: str = "") -> str:
    """How many records each of the summaries drawn is of, and what their lines are."""
    counts, level = {summary.n for summary in summaries}, next(iter(summaries)).level
    lines = f"lines are {100 * level:g} % bootstrap intervals"
    if min(counts) < FEWEST:
        lines = f"{lines}, none of fewer than {FEWEST}" if max(counts) >= FEWEST else f"no intervals below {FEWEST}"
    return f"{span(counts)} record{'s' * (counts != {1})}{how}; {lines}"


def _known(estimate: Estimate | None) -> bool:
    return estimate is not None and not np.isnan(estimate.value)


def _interval_point(ax: Axes, estimate: Estimate | None, y: float, look: Mapping[str, Any]) -> None:
    if estimate is not None and _known(estimate):
        ax.plot([100 * estimate.low, 100 * estimate.high], [y, y], color=look["color"], linewidth=1.4)
        ax.plot([100 * estimate.value], [y], markersize=6, linestyle="none", **look)
