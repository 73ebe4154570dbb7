"""Figures about tracing itself: estimates against exact effects, and what the noise's size changes."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.figures.plotting import (
    AFTER,
    PLANTED_COLOR,
    SITE_STYLES,
    STYLE,
    WIDTH,
    LineStyle,
    banded_line,
    write_heading,
)
from workbench.tables.table import with_half
from workbench.tracing.attribution import agreement
from workbench.tracing.averages import ROLES, AverageEffect, token_roles
from workbench.tracing.trace import CausalTrace

_DASHES = ((), (5.0, 1.5), (3.0, 1.0, 1.0, 1.0), (1.5, 1.5), (7.0, 1.5, 1.5, 1.5))

_DOTS = {
    "other": ("#bbbbbb", ".", "Other tokens"),
    "last": ("#222222", "x", "Last token"),
    "last_subject": ("#1f4e79", "o", "Last subject token"),
}


@matplotlib.rc_context(STYLE)
def attribution_figure(exact: Sequence[CausalTrace], estimated: Sequence[CausalTrace]) -> Figure:
    """First-order estimates against exact indirect effects, a dot a cell from the subject on, a panel a site.

    Each panel's title gives the mean rank correlation within a fact; the heading how often both methods put the peak
    at the last subject token into the same layers (`workbench.tracing.attribution.agreement`).
    """
    if not exact:
        raise ValueError("attribution_figure needs at least one pair of traces, got none")
    sites = list(exact[0].restored)
    found = {site: agreement(exact, estimated, site) for site in sites}
    figure = Figure(figsize=(WIDTH, 4.1), layout="constrained")
    for ax, site in zip(figure.subplots(1, len(sites), squeeze=False)[0], sites, strict=True):
        groups: dict[str, list[np.ndarray]] = {group: [] for group in _DOTS}
        for one, other in zip(exact, estimated, strict=True):
            effects = np.stack([each.indirect_effect(site).float().numpy() for each in (one, other)])
            roles = token_roles(len(one.tokens), one.subject)
            for row, pos in enumerate(one.positions):
                if (role := roles[pos]) is not None:
                    groups[role if role in groups else "other"].append(effects[:, row])
        for group, (color, marker, label) in _DOTS.items():
            if groups[group]:
                x, y = np.concatenate(groups[group], axis=1)
                ax.scatter(x, y, s=14, c=color, marker=marker, alpha=0.6, linewidths=0.7, label=label, rasterized=True)
        ax.axline((0, 0), slope=1, color="#777777", linewidth=0.8, zorder=0)
        ax.set_title(f"{SITE_STYLES[site].label}: r_s = {with_half(found[site].spearman, 2)}")
        ax.set_xlabel("Exact indirect effect")
        sns.despine(ax=ax)
    figure.axes[0].set_ylabel("Estimate (attribution patching)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    shares = ", ".join(f"{SITE_STYLES[site].label} {100 * found[site].same_layer.value:.0f} %" for site in sites)
    heading = (
        f"Attribution patching against exact tracing over {len(exact)} facts; r_s is the rank correlation in a fact\n"
        f"Peak at the last subject token at most half a window apart: {shares}"
    )
    write_heading(figure, heading)
    return figure


@matplotlib.rc_context(STYLE)
def sensitivity_figure(averages: Mapping[tuple[float, int], AverageEffect], *, planted: range | None = None) -> Figure:
    """Peak of the average indirect effect at the last subject token, and the layer it is at, by noise.

    Args:
        averages: of one site, by noise level (in standard deviations of the subjects' embeddings) and number of
            samples; a line a number of samples.
        planted: layers that a model was trained to recall in, shaded.

    ValueError for no averages, averages of several sites, and one without a last subject token that was traced.
    """
    sites = {average.site for average in averages.values()}
    if len(sites) != 1:
        raise ValueError(f"sensitivity_figure needs averages of one site, got {', '.join(sorted(sites)) or 'none'}")
    if not all(average.counts["last_subject"] for average in averages.values()):
        raise ValueError("sensitivity_figure needs averages at the last subject token, which was not traced")
    role = ROLES.index("last_subject")
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    by_peak, by_layer = figure.subplots(1, 2)
    counts = sorted({samples for _, samples in averages})
    shifts = np.linspace(-0.1, 0.1, len(counts)) if len(counts) > 1 else [0.0]
    for index, (samples, shift) in enumerate(zip(counts, shifts, strict=True)):
        levels = sorted(level for level, n in averages if n == samples)
        rows = [averages[level, samples] for level in levels]
        peaks = [int(row.mean[role].argmax()) for row in rows]
        mean = np.array([float(row.mean[role, peak]) for row, peak in zip(rows, peaks, strict=True)])
        half = np.array([float(row.half_width[role, peak]) for row, peak in zip(rows, peaks, strict=True)])
        look = AFTER[index % len(AFTER)]
        style = LineStyle(label=f"{samples} sample{'s' * (samples > 1)}", **look, dashes=_DASHES[index % len(_DASHES)])
        banded_line(by_peak, np.array(levels), mean, (mean - half, mean + half), style)
        by_layer.plot(levels, np.array(peaks) + shift, **style.keywords())  # shifted, since lines may coincide
    if planted is not None:
        by_layer.axhspan(planted.start - 0.5, planted.stop - 0.5, color=PLANTED_COLOR, zorder=0, linewidth=0)
    n_layers = next(iter(averages.values())).mean.shape[1]
    by_layer.set(ylim=(-0.5, n_layers - 0.5), ylabel="Layer", title="Layer of the peak")
    by_layer.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    by_peak.set(ylabel="Average indirect effect", title="Peak at the last subject token")
    by_peak.axhline(0, color="#777777", linewidth=0.6, zorder=1)
    for ax in (by_peak, by_layer):
        ax.set_xlabel("Noise, standard deviations of the subjects' embeddings")
        sns.despine(ax=ax)
    handles, labels = by_peak.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), handlelength=3)
    first = next(iter(averages.values()))
    windowed = f" (window of {first.window} layers)" if first.window > 1 else ""
    shaded = "; planted layers shaded" if planted is not None else ""
    heading = (
        f"{SITE_STYLES[first.site].label}{windowed} restored, {first.facts} facts{shaded}; bands are 95 % intervals"
    )
    write_heading(figure, heading)
    return figure
