"""Figures that compare: ways of tracing by the layers they point to, and edits at every layer with tracing effects."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.figures.plotting import STYLE, WIDTH, few_ticks, heatmap, row_labels
from workbench.machine.intervals import Estimate
from workbench.measuring.layer_choice import CHOICES, LayerComparison

_PREDICTORS = {
    "effect": {"label": "Tracing effect", "marker": "o", "color": "#238b45"},
    "layer": {"label": "Layer", "marker": "s", "color": "#1f4e79"},
    "both": {"label": "Both", "marker": "D", "color": "#222222"},
}
_CHOICE_COLORS = {"random": "#8a8a8a", "located": "#238b45", "own": "#238b45", "best": "#1f4e79"}


@matplotlib.rc_context(STYLE)
def peak_figure(
    peaks: Mapping[str, Float[np.ndarray, " layer"]],
    *,
    inside: Mapping[str, Estimate] | None = None,
    planted: range | None = None,
) -> Figure:
    """Where ways of tracing put their peaks: a row each, and beside it how often that is inside the planted layers.

    Args:
        peaks: by way of tracing, the share of facts whose effect is greatest at each layer.
        inside: by way of tracing, the share of facts whose peak is inside the planted layers; None without such.
        planted: those layers, marked above the map; the dotted line is their share of all layers.

    ValueError for no way of tracing.
    """
    if not peaks:
        raise ValueError("peak_figure needs at least one way of tracing, got none")
    figure = Figure(figsize=(WIDTH, 1.3 + 0.25 * len(peaks)), layout="constrained")
    shares = np.stack(list(peaks.values()))
    widths = (1.0,) if inside is None else (1.5, 1.0)
    ax, *others = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    bar = heatmap(ax, 100 * shares, "Greys", Normalize(0, 100))
    bar.set_label("Facts (%)")
    few_ticks(bar)
    row_labels(ax, list(peaks))
    ax.set(title="Layer of the greatest effect", xlabel="Layer, or centre of the window of layers")
    if planted is not None:
        ax.set_title("Layer of the greatest effect; bar: planted layers", pad=9)
        ax.plot([planted.start, planted.stop], [-0.15, -0.15], color="#555555", linewidth=2.5, clip_on=False)
    if inside is not None:
        points = others[0]
        for row, name in enumerate(peaks):
            _interval(points, 100.0, inside.get(name), row + 0.5, {"marker": "o", "color": "#238b45"})
        if planted is not None:
            chance = 100 * len(planted) / shares.shape[1]
            points.axvline(chance, color="#777777", linewidth=1, linestyle=":")
        points.set(xlim=(-3, 103), ylim=ax.get_ylim(), yticks=[], title="Inside the planted layers", xlabel="Facts (%)")
        points.grid(axis="x", color="#eeeeee")
        points.set_axisbelow(True)
        sns.despine(ax=points, left=True)
    return figure


@matplotlib.rc_context(STYLE)
def layer_choice_figure(comparisons: Mapping[str, LayerComparison]) -> Figure:
    """What tracing says of edits, a row an editor: a dot a fact and layer, R^2 by predictor, S by choice of the layer.

    Lines are bootstrap 95 % intervals over facts. ValueError for no editor.
    """
    if not comparisons:
        raise ValueError("layer_choice_figure needs at least one editor, got none")
    figure = Figure(figsize=(WIDTH, 0.5 + 2.9 * len(comparisons)), layout="constrained")
    grid = figure.subplots(len(comparisons), 3, squeeze=False, width_ratios=(1.25, 1, 1))
    for (name, found), (dots, shares, choices) in zip(comparisons.items(), grid, strict=True):
        _dots(figure, dots, name, found)
        _shares(shares, found)
        _choices(choices, found)
    handles, labels = grid[0, 1].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), title="R² of regressing on", columnspacing=1.2
    )
    return figure


def _dots(figure: Figure, ax: Axes, name: str, found: LayerComparison) -> None:
    layers = np.broadcast_to(np.array(found.layers, dtype=float), found.effects.shape)
    look = {"s": 12, "cmap": "viridis", "alpha": 0.8, "linewidths": 0, "rasterized": True}
    scatter = ax.scatter(found.effects, found.outcomes["rewrite"], c=layers, **look)  # type: ignore[arg-type]
    bar = figure.colorbar(scatter, ax=ax, aspect=18, pad=0.02)
    bar.set_label("Layer edited")
    bar.locator = MaxNLocator(integer=True, nbins=5)
    bar.update_ticks()
    rank = found.ranks.get("rewrite")
    said = "" if rank is None or np.isnan(rank.value) else f", rank correlation {rank.value:.2f}"
    ax.set_title(f"{name}{said}")
    ax.set(xlabel="Effect at the layer (share of total)", ylabel="Rewrite score", ylim=(-0.03, 1.03))
    sns.despine(ax=ax)


def _shares(ax: Axes, found: LayerComparison) -> None:
    for row, explained in enumerate(found.explained.values()):
        for shift, (predictor, look) in zip((-0.2, 0.0, 0.2), _PREDICTORS.items(), strict=True):
            label = look | {"label": look["label"] if row == 0 else "_"}
            _interval(ax, 1.0, getattr(explained, predictor), row + shift, label)
    _rows(ax, [outcome.capitalize() for outcome in found.explained])
    ax.set(title="Explained by", xlim=(-0.03, 1.03), xlabel="R²")


def _choices(ax: Axes, found: LayerComparison) -> None:
    for row, choice in enumerate(CHOICES):
        look = {"marker": "o", "color": _CHOICE_COLORS[choice]}
        _interval(ax, 100.0, found.choices.scores[choice]["S"], float(row), look)
    _rows(ax, ["Random", "Located", "Each fact's\nown", "Best"])
    ax.set(title="S by choice of the layer", xlim=(-3, 103), xlabel="S (%)")


def _rows(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", left=False)
    ax.grid(axis="x", color="#eeeeee")
    ax.set_axisbelow(True)
    sns.despine(ax=ax, left=True)


def _interval(ax: Axes, scale: float, estimate: Estimate | None, y: float, look: Mapping[str, str]) -> None:
    """A point and the line of its interval."""
    if estimate is not None and not np.isnan(estimate.value):
        ax.plot([scale * estimate.low, scale * estimate.high], [y, y], color=look["color"], linewidth=1.4)
        ax.plot([scale * estimate.value], [y], markersize=6, linestyle="none", **look)  # type: ignore[arg-type]
