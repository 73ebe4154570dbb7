"""Time against the size of the work, on logarithmic axes."""

from collections.abc import Mapping

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure

from workbench.figures.plotting import STYLE, WIDTH, LineStyle

_LINES = (
    LineStyle(label="", color="#222222", marker="o", dashes=(1.5, 1.5)),
    LineStyle(label="", color="#3b8bba", marker="s", dashes=(5.0, 1.5)),
    LineStyle(label="", color="#e08214", marker="^"),
)


@matplotlib.rc_context(STYLE)
def growth_figure(
    seconds: Mapping[str, Mapping[str, Mapping[int, float]]], exponents: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Seconds by axis, engine and size, a panel an axis and a line an engine; the exponents stand in the legends."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = figure.subplots(1, len(seconds), squeeze=False)[0]
    for ax, (axis, by_engine) in zip(panels, seconds.items(), strict=True):
        for (engine, by_size), style in zip(by_engine.items(), _LINES, strict=False):
            label = f"{engine} (exponent {exponents[axis][engine]:.2f})" if len(by_size) > 1 else engine
            ax.plot(list(by_size), list(by_size.values()), label=label, **style.keywords())
        sizes = sorted({size for by_size in by_engine.values() for size in by_size})
        ax.set(xscale="log", yscale="log", xlabel=axis.capitalize(), title=f"Over {axis}")
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.minorticks_off()
        ax.legend(fontsize=8)
        sns.despine(ax=ax)
    panels[0].set_ylabel("Seconds")
    return figure
