"""Every interval that a table or a figure shows, at 95 % unless told: Student's, Wilson's and the bootstrap's.

Means over facts have Student's t, shares of few outcomes Wilson's, scores over records (and what is computed from
several of them) the percentiles of a bootstrap. NaN among the values means that a record does not have the metric.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import norm
from scipy.stats import t as student_t

from workbench.machine.as_json import AsJson

LEVEL = 0.95
"""Of an interval unless told otherwise."""
FEWEST = 10
"""Of how many values a bootstrap's percentiles are shown: those of 10 cover the mean in 90 % of samples, those of 5 in
86 %, of 2 in 50 %."""
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Estimate(AsJson):
    """A number from several records, facts or groups, with the interval that the function which made it names."""

    value: float
    """NaN if there was none."""
    low: float = math.nan
    """NaN, like `high`, where there is no interval: of one record, or of a number that is no mean."""
    high: float = math.nan
    n: int
    """How many it is from."""


# Student's t, and Wilson's ------------------------------------------------------------------------------------


def student(values: Sequence[float] | Float[np.ndarray, " fact"]) -> Estimate:
    """Mean with its interval by Student's t; NaN for no values, and no interval for one."""
    array = np.asarray(values, dtype=float)
    if not len(array):
        return Estimate(value=math.nan, n=0)
    mean, half = float(array.mean()), float(student_half_width(array[:, None])[0])
    return Estimate(value=mean, low=mean - half, high=mean + half, n=len(array))


def student_half_width(values: Float[np.ndarray, "fact column"]) -> Float[np.ndarray, " column"]:
    """Half width of the interval of the mean over the first axis; NaN for fewer than two."""
    n = len(values)
    if n < 2:
        return np.full(values.shape[1], math.nan)
    return student_t.ppf((1 + LEVEL) / 2, n - 1) * values.std(axis=0, ddof=1) / math.sqrt(n)


def wilson(values: Sequence[float] | Sequence[bool]) -> Estimate:
    """Mean of values between 0 and 1 with Wilson's interval (1927).

    It has a width also where all agree. For values strictly between 0 and 1 it is wider than it need be: no
    distribution on [0, 1] varies more than that of zeros and ones. NaN for no values.
    """
    n, z = len(values), float(norm.ppf((1 + LEVEL) / 2))
    if n == 0:
        return Estimate(value=math.nan, n=0)
    mean = sum(values) / n
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Estimate(value=mean, low=max(0.0, centre - half), high=min(1.0, centre + half), n=n)


# The bootstrap ------------------------------------------------------------------------------------------------


def bootstrap_mean(
    values: Sequence[float] | Float[np.ndarray, " record"],
    *,
    generator: np.random.Generator | None = None,
    resamples: int = 1000,
) -> Estimate:
    """Mean of the values that are not NaN, with its percentile interval; NaN if none is.

    Without a `generator` the draws are those of seed 0.
    """
    column = np.asarray(values, dtype=float)[:, None]
    n = int((~np.isnan(column)).sum())
    if n == 0:
        return Estimate(value=math.nan, n=0)
    generator = np.random.default_rng(0) if generator is None else generator
    samples = bootstrap_means(column, resamples=resamples, generator=generator)
    return from_samples(float(record_means(column)[0]), samples[:, 0], n)


def from_samples(value: float, samples: Float[np.ndarray, " resample"], n: int, *, level: float = LEVEL) -> Estimate:
    """A value with the percentile interval of its bootstrap samples; none of fewer than `FEWEST` records."""
    low, high = percentile_interval(samples, level) if n >= FEWEST else (math.nan, math.nan)
    return Estimate(value=float(value), low=low, high=high, n=n)


def record_means(values: Float[np.ndarray, "record metric"]) -> Float[np.ndarray, " metric"]:
    """Mean of each metric over the records that have it (not NaN); NaN if none has."""
    return _weighted_means(np.ones((1, len(values))), values)[0]


def bootstrap_means(
    values: Float[np.ndarray, "record metric"], *, resamples: int = 1000, generator: np.random.Generator
) -> Float[np.ndarray, "resample metric"]:
    """Means over records drawn with replacement, all metrics by the same draws (Efron 1979).

    Drawing n of n records gives each a multinomial count, so a resample's mean is a weighted mean. With the
    same draws for all metrics, a function of several (S) can be computed inside each resample.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no records to resample: the record set is empty")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    at_once = max(1, _CELLS_AT_ONCE // n)
    means = []
    for start in range(0, resamples, at_once):
        draws = generator.multinomial(n, np.full(n, 1 / n), size=min(at_once, resamples - start))
        means.append(_weighted_means(draws.astype(float), values))
    return np.concatenate(means)


def percentile_interval(samples: Float[np.ndarray, " resample"], level: float = LEVEL) -> tuple[float, float]:
    """The central `level` of bootstrap samples; NaN (resamples without a value) is left out, unless all are.

    It has no width where all records agree (100 % of 20): read the number of records beside it.
    """
    samples = samples[~np.isnan(samples)]
    if len(samples) == 0:
        return math.nan, math.nan
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _weighted_means(
    weights: Float[np.ndarray, "resample record"], values: Float[np.ndarray, "record metric"]
) -> Float[np.ndarray, "resample metric"]:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return (weights @ np.where(known, values, 0.0)) / (weights @ known.astype(float))
