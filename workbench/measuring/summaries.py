"""From the evaluations of many records to means with bootstrap intervals."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.machine.as_json import AsJson
from workbench.machine.intervals import Estimate, bootstrap_means, from_samples, record_means
from workbench.machine.shown import Shown, html_table, percent
from workbench.measuring.metrics import harmonic_mean
from workbench.measuring.scores import KINDS, Evaluation

_PARTS = ("ES", "PS", "NS")  # of S
NO_S = "These records lack prompts of a kind that S is made of, so there is no S."
"""What is said where S would be."""
_HEADLINES = ("S", "ES", "EM", "PS", "PM", "NS", "NM", *(f"generated.{kind}.new" for kind in KINDS))
"""Metrics that a notebook shows."""


@dataclass(frozen=True, kw_only=True)
class Summary(Shown, AsJson):
    """Means over records before and after the edits of one editor."""

    n: int
    """Number of records."""
    level: float
    """Level of the intervals: bootstrap percentiles over records."""
    resamples: int
    """Number of bootstrap resamples."""
    pre: Mapping[str, Estimate]
    """By metric: `S` and those of `RecordScores.metrics`."""
    post: Mapping[str, Estimate]
    """By metric: `S` and those of `Evaluation.metrics`."""

    def __repr__(self) -> str:
        told = [f"{name} {percent(self.post[name].value)}" for name in ("S", *_PARTS) if name in self.post]
        return f"Summary({self.n:,} records: {', '.join(told)})"

    def _repr_html_(self) -> str:
        """Each metric before and after with its interval, for notebooks; shares in %."""
        names = [name for name in _HEADLINES if name in self.post and not math.isnan(self.post[name].value)]
        rows = [(name, *(_told(of[name]) for of in (self.pre, self.post)), self.post[name].n) for name in names]
        return html_table(f"{self.n:,} records, {self.level:.0%} intervals", rows, head=("%", "before", "after", "n"))


def summarise(
    evaluations: Sequence[Evaluation], *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> Summary:
    """Mean of each metric over the records that have it, with bootstrap percentile intervals over records.

    S is the harmonic mean of the means ES, PS and NS, as published; inside each resample it is computed anew.
    Its n is the smallest of theirs. All metrics, before and after, come from the same resamples.

    Raises ValueError for no evaluations and for a record evaluated twice.
    """
    if not evaluations:
        raise ValueError("no evaluations to summarise: the record set is empty")
    case, times = Counter(evaluation.case_id for evaluation in evaluations).most_common(1)[0]
    if times > 1:
        raise ValueError(f"record {case} was evaluated {times} times: summarise one editor at a time")
    before, after = zip(*(evaluation.metrics() for evaluation in evaluations), strict=True)
    # Two generators in the same state, so that before and after are resampled alike.
    pre = _estimates(before, resamples, level, np.random.default_rng(seed))
    post = _estimates(after, resamples, level, np.random.default_rng(seed))
    return Summary(n=len(evaluations), level=level, resamples=resamples, pre=pre, post=post)


def _told(estimate: Estimate) -> str:
    between = "" if math.isnan(estimate.low) else f" ({percent(estimate.low)} to {percent(estimate.high)})"
    return percent(estimate.value) + between


def _estimates(
    rows: Sequence[Mapping[str, float]], resamples: int, level: float, generator: np.random.Generator
) -> dict[str, Estimate]:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row))
    values = np.array([[row.get(metric, math.nan) for metric in metrics] for row in rows], dtype=float)
    counts = (~np.isnan(values)).sum(axis=0)
    means = record_means(values)
    samples = bootstrap_means(values, resamples=resamples, generator=generator)

    parts = [metrics.index(part) for part in _PARTS]
    means = np.concatenate([[harmonic_mean(means[parts])], means])
    samples = np.concatenate([harmonic_mean(samples[:, parts])[:, None], samples], axis=1)
    counts = np.concatenate([[counts[parts].min()], counts])

    estimates = {}
    for index, metric in enumerate(["S", *metrics]):
        n = int(counts[index])
        estimates[metric] = from_samples(means[index], samples[:, index], n, level=level)
    return estimates
