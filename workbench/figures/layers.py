"""Scores of editing at each layer beside the effect of tracing there."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import fclusterdata

from workbench.figures.plotting import SCORE_STYLES, SITE_STYLES, STYLE, WIDTH, LineStyle, banded_line, layer_ticks

_CLOSE = 0.07
"""Distance of dots, as a part of a panel, at which their labels would meet."""
_MOST_NAMED = 16
"""Layers beyond which dots are told apart by colour, and only the located and the best one by name."""


@matplotlib.rc_context(STYLE)
def layer_comparison_figure(
    frame: pd.DataFrame,
    *,
    score: str = "S",
    window: int = 1,
    located: int | None = None,
    random_layer: float | None = None,
) -> Figure:
    """Does locating help? Edit scores by layer, the tracing effect by layer, and one against the other.

    Args:
        frame: columns `layer`, `measure`, `value`, `low`, `high` (the interval, may be NaN); the measure is
            `effect` (average indirect effect) or a score (`S`, `ES`, `PS`, `NS`, as shares of 1).
        score: the score of the third panel, whose title gives Pearson's correlation over layers.
        window: of layers restored together; the effect of a layer is that of the window centred on it.
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
    restored = "the MLP" if window == 1 else "MLPs"
    by_effect.set(title=f"Tracing: restoring {restored}", ylabel="Average indirect effect")
    for ax in (by_score, by_effect):
        if located is not None:
            ax.axvline(located, color="#999999", linewidth=5, alpha=0.35, zorder=0, label="Located layer")
        layer_ticks(ax, n_layers, most=12 if ax is by_score else 8)
    by_score.set_xlabel("Layer")
    by_effect.set_xlabel("Layer" if window == 1 else f"Centre of a window of {window} layers")
    _scatter(against, frame, score, located)
    for ax in (by_score, by_effect, against):
        sns.despine(ax=ax)
    handles, labels = by_score.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handlelength=3, columnspacing=1.2)
    return figure


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


def _scatter(ax: Axes, frame: pd.DataFrame, score: str, located: int | None) -> None:
    """The score against the effect, a dot a layer, and their correlation."""
    both = pd.concat([_measure(frame, "effect")["value"], 100 * _measure(frame, score)["value"]], axis=1).dropna()
    layers, (x, y) = both.index.to_numpy(), both.to_numpy(float).T
    if len(layers) <= _MOST_NAMED:
        _named_dots(ax, layers, x, y)
    else:
        _colored_dots(ax, layers, x, y, located)
    varies = len(both) > 2 and x.std() > 0 and y.std() > 0
    correlation = f"r = {np.corrcoef(x, y)[0, 1]:.2f}" if varies else "too few layers for r"
    ax.set_title(f"{score} against effect, {correlation}")
    ax.set(xlabel="Average indirect effect", ylabel=f"{score} (%)")
    ax.margins(0.12)


def _named_dots(ax: Axes, layers: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Dots with the numbers of their layers."""
    ax.plot(x, y, linestyle="none", marker="o", color="#222222", markersize=4)
    for some in _near(x, y):  # one label for dots that lie so close that theirs would meet
        above = {"xytext": (0, 5), "ha": "center"}
        left = layers[some[0]] > layers[x.argmax()]  # layers on either side of the peak have like effects
        beside = {"xytext": (-4 if left else 4, 3), "ha": "right" if left else "left"}
        where: dict[str, Any] = above if len(some) > 1 else beside
        spot = (x[some].mean(), y[some].max())
        ax.annotate(_named(layers[some]), spot, textcoords="offset points", fontsize=8, color="#555555", **where)


def _colored_dots(ax: Axes, layers: np.ndarray, x: np.ndarray, y: np.ndarray, located: int | None) -> None:
    """Dots in the colors of their layers, and the numbers of the best one and the located one."""
    dots = ax.scatter(x, y, c=layers, cmap="viridis", s=14, linewidths=0)
    bar = ax.figure.colorbar(dots, ax=ax, aspect=24, pad=0.02)
    bar.set_label("Layer")
    for place in {int(y.argmax()), *np.flatnonzero(layers == located)}:
        where: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
        ax.annotate(f"{layers[place]:g}", (x[place], y[place]), fontsize=8, color="#555555", **where)


def _near(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Indices of dots in groups, each dot of which has another one close by."""
    if len(x) < 2:
        return [np.arange(len(x))] if len(x) else []
    spread = [values / (np.ptp(values) or 1) for values in (x, y)]
    groups = fclusterdata(np.stack(spread, axis=1), t=_CLOSE, criterion="distance", method="single")
    return [np.flatnonzero(groups == group) for group in np.unique(groups)]


def _named(layers: np.ndarray) -> str:
    """Layers as a text, neighbors as from-to."""
    runs = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    texts = [f"{run[0]:g}-{run[-1]:g}" if len(run) > 2 else ", ".join(map("{:g}".format, run)) for run in runs]
    return ", ".join(texts)
