"""The path to the answer, drawn: the logit lens before and after an edit."""

import textwrap

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from workbench.figures.plotting import AFTER, ROLE_LABELS, STYLE, WIDTH, LineStyle, layer_ticks, write_heading
from workbench.models.tokens import visible
from workbench.tracing.lens import PLACES, Lens


@matplotlib.rc_context(STYLE)
def lens_figure(before: Lens, after: Lens) -> Figure:
    """Probability (above) and rank (below) of each answer by layer, at the last subject token and the last token.

    Broken lines with open markers are the model before the edit, solid ones after it. ValueError for lenses of other
    prompts or answers.
    """
    if (before.prompt, before.targets) != (after.prompt, after.targets):
        raise ValueError(
            f"lenses to compare must be of one prompt and the same answers, got {before.prompt!r} with "
            f"{', '.join(before.targets)} and {after.prompt!r} with {', '.join(after.targets)}"
        )
    n_layers = before.rank.shape[1]
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    panels = figure.subplots(2, len(PLACES), sharex=True, sharey="row", squeeze=False)
    for column, place in enumerate(PLACES):
        for index, (target, token) in enumerate(zip(before.targets, before.tokens, strict=True)):
            shown = target.strip() if visible(token) == target.strip() else f"{target.strip()} [{visible(token)}]"
            look = AFTER[index % len(AFTER)]
            for lens, when, dashes in ((before, "before", (3.0, 1.5)), (after, "after", ())):
                keywords = LineStyle(label=f"{shown}, {when}", **look, dashes=dashes).keywords()
                if lens is before:
                    keywords |= {"markerfacecolor": "white", "markeredgecolor": look["color"]}
                for ax, values in zip(panels[:, column], (lens.probability, lens.rank), strict=True):
                    y = values[column, :, index].numpy()
                    every = max(1, n_layers // 16)
                    ax.plot(np.arange(n_layers), y, label=f"{shown}, {when}", markevery=every, **keywords)
        panels[0, column].set_title(f"At the {ROLE_LABELS[place].lower()}")
        panels[1, column].set_xlabel("Layer")
        for ax in panels[:, column]:
            layer_ticks(ax, n_layers)
            sns.despine(ax=ax)
    panels[0, 0].set(ylabel="Probability", ylim=(-0.03, 1.03))
    worst = int(max(before.rank.max(), after.rank.max()))
    panels[1, 0].set(ylabel="Rank (1 is the top token)", yscale="log", ylim=(1.3 * max(worst, 2), 0.75))
    powers = [10**power for power in range(len(str(worst)))]
    panels[1, 0].set_yticks(powers, [f"{power:,}" for power in powers])
    panels[1, 0].yaxis.set_minor_locator(NullLocator())
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), handlelength=3)
    heading = f"{textwrap.fill(before.prompt, 105)}\nLogit lens: the answers' first tokens if each layer were the last"
    write_heading(figure, heading)
    return figure
