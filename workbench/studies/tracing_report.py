"""Comparisons of ways of tracing in words: tables, and the sentences that head the report."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from workbench.figures.plotting import SITE_STYLES
from workbench.machine.intervals import Estimate
from workbench.studies.tracing_methods import MethodResult
from workbench.tables.table import with_half
from workbench.tracing.attribution import Agreement


def method_table(found: Mapping[str, MethodResult]) -> pd.DataFrame:
    """A row a way of tracing; the column of planted layers is there where they are known."""
    return pd.DataFrame([
        {"Tracing": name, "Facts": str(one.facts)}
        | ({} if one.inside is None else {"Inside planted (%)": _interval(one.inside, 100.0, 1)})
        | {
            "Mean peak": with_half(one.mean_peak, 1),
            "Peak of average": str(one.peak),
            "Effect there": with_half(one.effect, 3),
            "Of total (%)": "-" if math.isnan(one.share) else f"{100 * one.share:.0f}",
            "Seconds a fact": "-" if one.seconds is None else f"{one.seconds:.3f}",
        }
        for name, one in found.items()
    ])  # fmt: skip


def agreement_table(found: Mapping[str, Agreement]) -> pd.DataFrame:
    """A row a site: how far estimates agree with exact traces."""
    return pd.DataFrame([
        {
            "Site": SITE_STYLES[site].label,
            "Facts": str(one.facts),
            "Rank correlation": with_half(one.spearman, 2),
            "Correlation": with_half(one.pearson, 2),
            "Same peak (%)": _interval(one.same_layer, 100.0, 0),
        }
        for site, one in found.items()
    ])  # fmt: skip


def tracing_headline(found: Mapping[str, Any]) -> str:
    """How often the peak is where it should be, plainly, from a comparison's results.json."""
    if "agreement" not in found:
        return "The comparison is not finished."
    (exact, one), *others = found["methods"].items()
    rank, same = (Estimate.from_dict(found["agreement"][name]).value for name in ("rank_correlation", "same_layer"))
    agree = (
        f"Attribution patching ranks a fact's cells as exact tracing does to a correlation of {rank:.2f}, and has the "
        f"same peak (within half a window) for {100 * same:.0f} % of the facts"
    )
    if found["planted"] is None:
        return (
            f"{exact} puts a fact's peak at layer {one['mean_peak']:.1f} on average over {one['facts']} facts. {agree}."
        )
    control = next(each for name, each in others if name.startswith("Control"))
    estimate = next(each for name, each in others if name == "Attribution patching")
    narrow = [(name, each["inside"]) for name, each in others
              if each not in (control, estimate) and 2 * each["window"] <= found["layers"]]  # fmt: skip
    narrow.sort(key=lambda item: -item[1]["value"])
    ends = [f"{_percent(inside)} ({name})" for name, inside in (*narrow[:1], *narrow[-1:])]
    others_say = "The other exact ways, with windows of at most half the layers, range from {} to {}. " if ends else ""
    return (
        f"{exact} puts the peak inside the planted layers for {_percent(one['inside'])} of {one['facts']} facts; in "
        f"the control, trained without planting, it is there for {_percent(control['inside'])}. "
        f"{others_say.format(*ends)}{agree}; its peak is inside for {_percent(estimate['inside'])}."
    )


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:.0f} % ({100 * estimate['low']:.0f}-{100 * estimate['high']:.0f})"


def _interval(estimate: Estimate, scale: float, digits: int) -> str:
    value, low, high = (f"{scale * part:.{digits}f}" for part in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low}-{high})"
