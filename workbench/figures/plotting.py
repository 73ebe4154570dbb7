"""What figures share: how sites are drawn, the style, heat maps, lines with bands, layer axes.

Figures are read at the width of a page and in greyscale: colour maps are monotone in lightness, and lines
differ by marker and dash as well as by colour.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.font_manager
import matplotlib.ticker
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from workbench.tracing.trace import SITE_LABELS

WIDTH = 10.0
"""Width of every figure in inches: 1,500 pixels at 150 dpi, read at about 850."""

_FALLBACK = (
    *("Noto Sans", "Source Han Sans", "WenQuanYi", "Droid Sans Fallback", "AR PL", "IPAGothic", "IPAexGothic", "Nanum"),
    *("PingFang", "Hiragino", "Heiti", "Apple SD Gothic", "Arial Unicode", "Thonburi"),
    *("Microsoft YaHei", "SimHei", "MS Gothic", "Yu Gothic", "Malgun Gothic", "Leelawadee", "Nirmala", "Unifont"),
)
"""How the names of fonts begin that draw what matplotlib's own has no glyphs for: on Linux, macOS, Windows."""


def font_families(installed: Iterable[str]) -> list[str]:
    """Matplotlib's own font and, for glyphs it has not, those installed that draw Chinese, Japanese, Thai, ..."""
    names = sorted(set(installed))
    return ["DejaVu Sans", *(name for start in _FALLBACK for name in names if name.startswith(start))]


STYLE: dict[Any, Any] = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper", font_scale=1.15),
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#777777",
    "axes.linewidth": 0.8,
    "xtick.color": "#777777",
    "ytick.color": "#777777",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "font.family": font_families(matplotlib.font_manager.fontManager.get_font_names()),
    "text.parse_math": False,  # prompts may hold dollar signs
}
"""Settings of matplotlib under which figures are made."""

PLANTED_COLOR = "#e6e6e6"


@dataclass(frozen=True, kw_only=True)
class LineStyle:
    """A line that can be told from others without its colour."""

    label: str
    """Its name in titles and legends."""
    color: str
    """Differs from the others' in lightness too."""
    marker: str
    """A marker of matplotlib."""
    dashes: tuple[float, ...] = ()
    """Lengths of dashes and gaps in line widths; () for a solid line."""
    cmap: str = "Greys"
    """A sequential colour map, monotone in lightness, for heat maps of the same thing."""

    def keywords(self) -> dict[str, Any]:
        """Keywords of `Axes.plot`."""
        return {
            "color": self.color,
            "marker": self.marker,
            "linestyle": (0, self.dashes) if self.dashes else "-",
            "markeredgecolor": "white",
            "markeredgewidth": 0.6,
        }


SITE_STYLES = {
    "resid_post": LineStyle(label=SITE_LABELS["resid_post"], color="#54278f", marker="o", cmap="Purples"),
    "mlp_out": LineStyle(label=SITE_LABELS["mlp_out"], color="#238b45", marker="s", dashes=(5.0, 1.5), cmap="Greens"),
    "attn_out": LineStyle(label=SITE_LABELS["attn_out"], color="#ef3b2c", marker="^", dashes=(1.5, 1.5), cmap="Reds"),
}
"""The colour maps are those of Meng et al. 2022."""


ROLE_LABELS = {
    "first_subject": "First subject token",
    "middle_subject": "Middle subject tokens",
    "last_subject": "Last subject token",
    "first_subsequent": "First token after it",
    "further": "Further tokens",
    "last": "Last token",
}

SCORE_STYLES = {
    "S": LineStyle(label="S, overall", color="#222222", marker="o"),
    "ES": LineStyle(label="ES, efficacy", color="#1f4e79", marker="s", dashes=(5.0, 1.5)),
    "PS": LineStyle(label="PS, paraphrase", color="#3b8bba", marker="D", dashes=(3.0, 1.0, 1.0, 1.0)),
    "NS": LineStyle(label="NS, neighborhood", color="#e08214", marker="^", dashes=(1.5, 1.5)),
}

BEFORE: dict[str, Any] = {"label": "Before", "marker": "o", "color": "#8a8a8a", "markerfacecolor": "white"}
AFTER: Sequence[dict[str, Any]] = (
    {"marker": "o", "color": "#1f4e79"},
    {"marker": "s", "color": "#e08214"},
    {"marker": "D", "color": "#238b45"},
    {"marker": "^", "color": "#7b3294"},
    {"marker": "v", "color": "#222222"},
)
"""The model before edits and, in turn, after those of each editor."""

SCORE_PANELS: Mapping[str, Mapping[str, str]] = {
    "Teacher-forced: the likelier answer": {
        "S": "S  overall (harmonic mean)",
        "ES": "ES  new answer on the prompt",
        "PS": "PS  new answer on paraphrases",
        "NS": "NS  old answer on neighbors",
    },
    "Generated: the text's beginning": {
        "generated.rewrite.new": "New answer on the prompt",
        "generated.paraphrase.new": "New answer on paraphrases",
        "generated.neighborhood.true": "Old answer on neighbors",
        "generated.portability.new": "New answer over two hops",
        "generated.reversion.new": "New answer, reversed",
    },
}
"""Scores by panel of `score_figure`: metric of `Summary` and what it asks for."""


def heatmap(ax: Axes, values: np.ndarray, cmap: str, scale: Normalize) -> Colorbar:
    """Rows down, layers across; the slim colour bar has a tip where values clearly leave the scale."""
    n_layers = values.shape[1]
    gap = 0.4 if n_layers <= 16 else 0.0
    sns.heatmap(values, ax=ax, cmap=cmap, norm=scale, cbar=False, linewidths=gap, rasterized=not gap)
    layer_ticks(ax, n_layers, offset=0.5, most=9)
    ax.tick_params(axis="y", left=False)
    for spine in ax.spines.values():
        spine.set_visible(True)
    low, high = (end if given is None else float(given) for given, end in ((scale.vmin, 0.0), (scale.vmax, 1.0)))
    slack = 0.05 * (high - low)
    below, above = np.nanmin(values) < low - slack, np.nanmax(values) > high + slack
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    bar = ax.figure.colorbar(
        ax.collections[0],
        ax=ax,
        aspect=16,
        pad=0.025,
        extend=extend[bool(below), bool(above)],
        extendfrac=0.06,
    )
    bar.outline.set_linewidth(0.6)  # type: ignore[operator]
    return bar


def write_heading(figure: Figure, text: str) -> None:
    """Lines above the panels that begin at the left edge."""
    figure.suptitle(text, x=0.008, ha="left", fontsize=11, linespacing=1.35)


def row_labels(ax: Axes, labels: Sequence[str]) -> None:
    """Name the rows of a heat map."""
    ax.set_yticks(np.arange(len(labels)) + 0.5, labels, rotation=0)


def banded_line(
    ax: Axes, x: np.ndarray, y: np.ndarray, interval: tuple[np.ndarray, np.ndarray], style: LineStyle
) -> None:
    """A line and the band of its interval (low, high)."""
    ax.fill_between(x, *interval, color=style.color, alpha=0.16, linewidth=0)
    ax.plot(x, y, label=style.label, markevery=max(1, len(x) // 16), **style.keywords())


def shade_layers(ax: Axes, layers: range | None) -> None:
    """Shade layers on an axis whose ticks are layers; nothing for None."""
    if layers is not None:
        ax.axvspan(layers.start - 0.5, layers.stop - 0.5, color=PLANTED_COLOR, zorder=0, linewidth=0)


def layer_ticks(ax: Axes, n_layers: int, *, offset: float = 0.0, most: int = 14) -> None:
    """Whole layers as ticks, at most `most` of them, and a margin as wide as half a layer."""
    step = next(step for step in (1, 2, 4, 5, 8, 10, 20, 40, 100, n_layers) if n_layers <= most * step)
    layers = np.arange(0, n_layers, step)
    ax.set_xticks(layers + offset, [str(layer) for layer in layers], rotation=0)
    ax.set_xlim(offset - 0.5, n_layers + offset - 0.5)


def few_ticks(bar: Colorbar) -> None:
    """Round numbers on a colour bar."""
    bar.locator = matplotlib.ticker.MaxNLocator(4)
    bar.update_ticks()


def layer_label(site: str, window: int) -> str:
    """What a layer on the axis of a trace is: itself, or the centre of a window."""
    return "Layer" if site == "resid_post" or window == 1 else f"Layer (window of {window})"
