"""Methods side by side: what of an edit each of them brings about, and how that falls with a distance or a number."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures.plotting import STYLE, WIDTH, LineStyle, write_heading
from workbench.machine.intervals import Estimate
from workbench.tables.scores import UNEDITED
from workbench.tables.survey import Measures

_STYLES = (
    LineStyle(label="", color="#1f4e79", marker="o"),
    LineStyle(label="", color="#e08214", marker="s", dashes=(5.0, 1.5)),
    LineStyle(label="", color="#238b45", marker="D", dashes=(1.5, 1.5)),
    LineStyle(label="", color="#7b3294", marker="^", dashes=(3.0, 1.0, 1.0, 1.0)),
)
"""Looks of the ways of measuring in turn."""
_BEFORE = "#9a9a9a"
_ACROSS = 4


@matplotlib.rc_context(STYLE)
def asked_figure(measures: Measures, asked: Mapping[str, str], *, heading: str) -> Figure:
    """A panel each of what is asked (key -> title), a row an editor, a point with its interval each way of measuring.

    An editor without a value keeps its row. ValueError where no editor has any.
    """
    keys = [key for key in asked if any(key in one for one in measures.values())]
    hows = _ways(measures)
    across = min(_ACROSS, len(keys))
    down = -(-len(keys) // across)
    figure = Figure(figsize=(WIDTH, 0.9 + down * (0.75 + 0.2 * len(measures))), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    shifts = np.linspace(-0.16, 0.16, len(hows)) if len(hows) > 1 else [0.0]
    for ax, key in zip(grid.flat, keys, strict=False):
        for row, one in enumerate(measures.values()):
            for shift, how, style in zip(shifts, hows, _STYLES, strict=False):
                _point(ax, one.get(key, {}).get(how), row + shift, how, style)
        ax.set(title=asked[key], xlim=(-4, 104))
        ax.set_yticks(range(len(measures)), list(measures))
        ax.set_ylim(len(measures) - 0.5, -0.5)
        ax.hlines(np.arange(1, len(measures)) - 0.5, -4, 104, color="#eeeeee", linewidth=0.8)
        ax.grid(axis="x", color="#eeeeee")
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", left=False)
        sns.despine(ax=ax, left=True)
    _finish(figure, grid, len(keys), across, heading, xlabel="%")
    return figure


@matplotlib.rc_context(STYLE)
def course_figure(measures: Measures, asked: Mapping[str, str], *, heading: str) -> Figure:
    """A panel an editor: what is asked (key -> label) from left to right, a line each way of measuring, with intervals.

    The unedited model is grey in every panel. An editor without a value is left out. ValueError where none has any.
    """
    keys = [key for key in asked if any(key in one for one in measures.values())]
    hows, before = _ways(measures), measures.get(UNEDITED, {})
    names = [name for name, one in measures.items() if one and name != UNEDITED] or [UNEDITED]
    across = min(_ACROSS, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(WIDTH, 2.2 + 1.75 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    shifts = 0.024 * len(keys) * np.linspace(-1, 1, len(hows)) if len(hows) > 1 else [0.0]
    for ax, name in zip(grid.flat, names, strict=False):
        for shift, how, style in zip(shifts, hows, _STYLES, strict=False):
            x, (y, low, high) = np.arange(len(keys)) + shift, _curve(measures[name], keys, how).T
            if name != UNEDITED:
                plain = {"color": _BEFORE, "linestyle": style.keywords()["linestyle"], "label": "the same, unedited"}
                ax.plot(x, _curve(before, keys, how)[:, 0], linewidth=1.0, **plain)
            ax.vlines(x, low, high, color=style.color, linewidth=1.0)
            ax.plot(x, y, label=how, **style.keywords())
        ax.set(title=name, ylim=(-4, 104), xlim=(-0.4, len(keys) - 0.6))
        ax.set_xticks(range(len(keys)), [asked[key] for key in keys], rotation=35, ha="right", fontsize=8)
        ax.grid(axis="y", color="#eeeeee")
        ax.set_axisbelow(True)
        sns.despine(ax=ax)
    for row in grid:
        row[0].set_ylabel("%")
    _finish(figure, grid, len(names), across, heading)
    return figure


def _finish(
    figure: Figure, grid: np.ndarray, panels: int, across: int, heading: str, *, xlabel: str | None = None
) -> None:
    """Hide empty panels, tick the lowest of each column, and write legend and heading."""
    for ax in grid.flat[panels:]:
        ax.set_visible(False)
    for ax in grid.flat[max(0, panels - across) : panels]:
        ax.tick_params(labelbottom=True)
        if xlabel:
            ax.set_xlabel(xlabel)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))  # each once
    ordered = sorted(named, key="the same, unedited".__eq__)  # the last
    handles = [named[name] for name in ordered]
    columns = len(ordered) if len(ordered) < 5 else 3
    figure.legend(handles, ordered, loc="outside lower center", ncols=columns, handlelength=3)
    write_heading(figure, heading)


def _ways(measures: Measures) -> list[str]:
    found = list(dict.fromkeys(how for one in measures.values() for hows in one.values() for how in hows))
    if not found:
        raise ValueError("there is nothing to draw: no editor has a measure")
    return found


def _point(ax: Axes, estimate: Estimate | None, y: float, how: str, style: LineStyle) -> None:
    """A point with the line of its interval; the legend takes its look from the first."""
    values = (np.nan,) * 3 if estimate is None else (estimate.value, estimate.low, estimate.high)
    value, low, high = (100 * one for one in values)
    ax.plot([low, high], [y, y], color=style.color, linewidth=1.2)
    ax.plot([value], [y], label=how, linestyle="none", marker=style.marker, color=style.color, markersize=5)


def _curve(one: Mapping[str, Mapping[str, Estimate]], keys: Sequence[str], how: str) -> np.ndarray:
    """Value, low and high in per cent by key; NaN where it is not measured."""
    found = [one.get(key, {}).get(how) for key in keys]
    return 100 * np.array([(np.nan,) * 3 if e is None else (e.value, e.low, e.high) for e in found])
