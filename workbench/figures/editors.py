"""Editors compared: their scores one edit at a time, and what becomes of a model as edits are stacked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from workbench.figures.plotting import SCORE_STYLES, STYLE, WIDTH, LineStyle, write_heading
from workbench.figures.scores import records_drawn
from workbench.machine.intervals import Estimate
from workbench.measuring.summaries import Summary
from workbench.tables.scores import UNEDITED

EDITOR_STYLES = (
    LineStyle(label="", color="#222222", marker="o"),
    LineStyle(label="", color="#1f4e79", marker="s", dashes=(5.0, 1.5)),
    LineStyle(label="", color="#e08214", marker="^", dashes=(1.5, 1.5)),
    LineStyle(label="", color="#238b45", marker="D", dashes=(3.0, 1.0, 1.0, 1.0)),
    LineStyle(label="", color="#7b3294", marker="v"),
    LineStyle(label="", color="#3b8bba", marker="P", dashes=(5.0, 1.5)),
    LineStyle(label="", color="#b2182b", marker="X", dashes=(1.5, 1.5)),
    LineStyle(label="", color="#8a8a8a", marker="<", dashes=(3.0, 1.0, 1.0, 1.0)),
)
"""Looks of editors in turn."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A measure drawn against the number of edits."""

    measure: str
    """As in the frame's column `measure`."""
    title: str
    label: str
    """Of the vertical axis."""
    scale: float = 1.0
    """What values are multiplied by."""
    limits: tuple[float, float] | None = None
    """Of the vertical axis, in shown units."""
    log: bool = False
    """Whether the vertical axis is logarithmic, if the values span more than a factor of ten."""


@matplotlib.rc_context(STYLE)
def editor_figure(summaries: Mapping[str, Summary], *, bars: Mapping[str, float] | None = None) -> Figure:
    """S with its interval, and ES, PS and NS, by editor; the unedited model (of the first editor) on top.

    `bars` are the least S in per cent that editors are to reach, drawn as a short line. ValueError for no summaries.
    """
    if not summaries:
        raise ValueError("editor_figure needs at least one editor's summary, got none")
    first = next(iter(summaries.values()))
    after = {name: summary.post for name, summary in summaries.items()}
    rows: dict[str, Mapping[str, Estimate]] = {UNEDITED: first.pre, **after}
    figure = Figure(figsize=(WIDTH, 1.5 + 0.36 * len(rows)), layout="constrained")
    ax = figure.subplots()
    for row, (name, estimates) in enumerate(rows.items()):
        for shift, (score, style) in zip((-0.21, -0.07, 0.07, 0.21), SCORE_STYLES.items(), strict=True):
            estimate = estimates.get(score)
            if estimate is None or np.isnan(estimate.value):
                continue
            thick = {"linewidth": 2.6 if score == "S" else 1.1, "color": style.color}
            ax.plot([100 * estimate.low, 100 * estimate.high], [row + shift, row + shift], **thick)
            look = {"marker": style.marker, "color": style.color, "markersize": 8 if score == "S" else 5}
            label = style.label if row == 0 else "_"
            ax.plot([100 * estimate.value], [row + shift], linestyle="none", label=label, **look)
        if bars and name in bars:
            ax.plot([bars[name], bars[name]], [row - 0.4, row + 0.4], color="#b2182b", linewidth=1.4, linestyle=":")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlim=(-3, 103), ylim=(len(rows) - 0.5, -0.5), xlabel="Score (%)")
    ax.grid(axis="x", color="#eeeeee")
    ax.hlines(np.arange(1, len(rows)) - 0.5, -3, 103, color="#eeeeee", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", left=False)
    sns.despine(ax=ax, left=True)
    handles, labels = ax.get_legend_handles_labels()
    if bars:
        (handle,) = ax.plot([], [], color="#b2182b", linewidth=1.4, linestyle=":")
        handles, labels = [*handles, handle], [*labels, "Least S asked for"]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    write_heading(figure, records_drawn(summaries.values(), ", one edit at a time"))
    return figure


@matplotlib.rc_context(STYLE)
def stack_figure(frame: pd.DataFrame, panels: Sequence[Panel], *, heading: str = "") -> Figure:
    """A panel each measure against the number of edits kept together, on a logarithmic axis, with a line each editor.

    Args:
        heading: what is drawn; it goes on to say where intervals are.
        frame: columns `editor`, `edits`, `measure`, `value`, `low`, `high` (the interval, may be NaN). Zero edits are
            the unedited model, a dotted line across the panel.

    ValueError for a frame without edits or no panels.
    """
    edited = frame.loc[frame["edits"] > 0]
    if edited.empty or not panels:
        raise ValueError("stack_figure needs at least one number of edits and one panel")
    editors = list(dict.fromkeys(edited["editor"]))
    many = len(editors) > _BANDED
    across = min(len(panels), 2 if many else 4)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(WIDTH, 0.9 + (2.6 if many else 2.3) * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True)
    for ax, panel in zip(grid.flat, panels, strict=False):
        rows = frame.loc[frame["measure"] == panel.measure]
        before = rows.loc[rows["edits"] == 0, "value"].to_numpy(float)
        vague = not many and _vague(rows.loc[rows["edits"] > 0], panel)
        if len(before) and np.isfinite(before[0]):
            ax.axhline(panel.scale * before[0], color="#777777", linewidth=1, linestyle=":", label=UNEDITED)
        for index, editor in enumerate(editors):
            some = rows.loc[(rows["editor"] == editor) & (rows["edits"] > 0)]
            _line(ax, some, panel, editor, index, banded=not (many or vague))
        numbers = sorted(set(edited["edits"]))
        ax.set_xscale("log")
        ax.set_xticks(numbers, _apart(numbers, inches=0.7 * WIDTH / across), fontsize=8)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(title=f"{panel.title}, no bands" if vague else panel.title, ylabel=panel.label)
        if panel.log and _spread(rows["value"].to_numpy(float)) > 10:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
        elif panel.limits:
            ax.set_ylim(panel.limits)
        sns.despine(ax=ax)
        if many:
            _name_lines(ax)
    for ax in grid.flat[len(panels) :]:
        ax.set_visible(False)
    for ax in grid.flat[max(0, len(panels) - across) : len(panels)]:  # the lowest of each column
        ax.set_xlabel("Edits")
        ax.tick_params(labelbottom=True)
    if not many:
        named: dict[str, Artist] = {}
        for ax in grid.flat:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                named.setdefault(label, handle)
        columns = min(len(named), 6)
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns, handlelength=3)
    if heading:
        bands = "bands are 95 % intervals, not drawn where they would cover a panel"
        write_heading(figure, f"{heading}; {'intervals are in the table' if many else bands}")
    return figure


def _line(ax: Axes, rows: pd.DataFrame, panel: Panel, editor: str, index: int, *, banded: bool) -> None:
    rows = rows.sort_values("edits")
    rows = rows.loc[np.isfinite(rows["value"].to_numpy(float))]
    if rows.empty:
        return
    style = EDITOR_STYLES[index % len(EDITOR_STYLES)]
    x, (y, low, high) = rows["edits"].to_numpy(float), (panel.scale * rows[c].to_numpy(float) for c in _BAND)
    if banded:
        ax.fill_between(x, low, high, color=style.color, alpha=0.1, linewidth=0)
    ax.plot(x, y, label=editor, **style.keywords())


def _vague(rows: pd.DataFrame, panel: Panel) -> bool:
    """Whether intervals of a share are so wide, on average, that bands would cover the panel."""
    width = panel.scale * (rows["high"] - rows["low"]).to_numpy(float)
    known = width[np.isfinite(width)]
    if panel.limits is None or not len(known):
        return False
    return float(known.mean()) > _VAGUE * (panel.limits[1] - panel.limits[0])


def _apart(numbers: Sequence[int], *, inches: float) -> list[str]:
    """Labels for ticks on a logarithmic axis so long, from the right on; those that would touch one are left out."""
    decades = np.log10(numbers[-1] / numbers[0]) or 1.0
    labels, edge = [f"{number:,}" for number in numbers], np.inf
    for index in reversed(range(len(numbers))):
        place, half = inches * np.log10(numbers[index] / numbers[0]) / decades, 0.035 * len(labels[index])
        if place + half + 0.06 > edge:
            labels[index] = ""
        else:
            edge = place - half
    return labels


def _name_lines(ax: Axes) -> None:
    """Names at the right ends of lines, as near to them as they can stand without touching."""
    to_axes = ax.transData + ax.transAxes.inverted()
    right = ax.get_xlim()[1]
    ends = []
    for line in ax.get_lines():
        x, y = (np.asarray(values, dtype=float)[-1] for values in line.get_data())
        ends.append((to_axes.transform((right, y))[1], x, y, line))
    ends.sort(key=lambda end: end[0])
    places = [height for height, *_ in ends]
    for _ in range(200):  # neighbors push each other apart
        for one in range(len(places) - 1):
            short = max(0.0, _GAP - (places[one + 1] - places[one]))
            places[one], places[one + 1] = places[one] - short / 2, places[one + 1] + short / 2
        places[0], places[-1] = max(places[0], -0.05), min(places[-1], 1.05)
    for place, (_, x, y, line) in zip(places, ends, strict=True):
        color = str(line.get_color())
        ax.annotate(
            str(line.get_label()), xy=(right if line.get_linestyle() == ":" else x, y), xytext=(1.05, place),
            textcoords="axes fraction", va="center", fontsize=8, color=color, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip


def _spread(values: np.ndarray) -> float:
    """The greatest value over the least, of those above zero."""
    above = values[values > 0]
    return float(above.max() / above.min()) if len(above) else 1.0


_BAND = ("value", "low", "high")
_BANDED = 4
"""Editors up to which bands can be told apart; the lines of more are named where they end."""
_VAGUE = 0.45
_GAP = 0.072
"""Of an axis, between the names of two lines."""
