"""Where knowledge neurons lie, beside the layers that tracing finds."""

import matplotlib
import numpy as np
import seaborn as sns
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from workbench.figures.plotting import SITE_STYLES, STYLE, WIDTH, banded_line, layer_ticks


@matplotlib.rc_context(STYLE)
def neuron_figure(
    kept: Int[np.ndarray, "fact kept_layer"],
    effect: Float[np.ndarray, " layer"],
    half_width: Float[np.ndarray, " layer"],
    *,
    window: int = 1,
    located: int | None = None,
) -> Figure:
    """Do attribution and tracing agree? Knowledge neurons by layer, and the average effect of restoring the MLP there.

    Args:
        kept: how many neurons of each layer are kept for each fact.
        effect: average indirect effect of the MLP at the last subject token, by layer.
        half_width: half of its 95 % interval; may be NaN.
        window: of layers restored together.
        located: the layer that tracing chose, marked in both panels.
    """
    if kept.shape[0] < 1 or kept.shape[1] != len(effect):
        shape = " x ".join(map(str, kept.shape))
        raise ValueError(f"neuron_figure needs facts of a model of {len(effect)} layers, got kept of {shape}")
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    counts, traced = figure.subplots(1, 2)
    layers = np.arange(len(effect))
    counts.bar(layers, kept.mean(axis=0), width=0.8, color="#54278f", label="Knowledge neurons")
    facts = f"{len(kept)} fact{'s' * (len(kept) > 1)}"
    counts.set(title=f"Attribution, at the last token ({facts})", ylabel="Neurons kept a fact", xlabel="Layer")
    banded_line(
        traced, layers.astype(float), effect, (effect - half_width, effect + half_width), SITE_STYLES["mlp_out"]
    )
    traced.axhline(0, color="#777777", linewidth=0.6, zorder=1)
    traced.set(
        title="Tracing, at the last subject token",
        ylabel="Average indirect effect",
        xlabel="Layer" if window == 1 else f"Centre of a window of {window} layers",
    )
    for ax in (counts, traced):
        if located is not None:
            ax.axvline(located, color="#999999", linewidth=5, alpha=0.35, zorder=0, label="Located layer")
        layer_ticks(ax, len(layers), most=12)
        sns.despine(ax=ax)
    handles = {
        label: handle for ax in (counts, traced) for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), handlelength=3)
    return figure
