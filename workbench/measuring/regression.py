"""How far tracing explains where edits succeed: R^2 and rank correlations (Hase et al. 2023, arXiv:2301.04213).

Rows are facts and columns are layers: every fact was edited alone at every layer. Intervals are bootstrap percentiles
over facts, since the layers of one fact are not independent.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from workbench.machine.intervals import Estimate, from_samples

_TINY = 1e-12
"""Variances below this are rounding errors of numbers of the size of probabilities."""


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Shares of the variance of edits' success over facts and layers (R^2 of the fit itself) by what explains it."""

    facts: int
    """How many facts were edited."""
    effect: Estimate
    """By the tracing effect alone: one line for all layers."""
    layer: Estimate
    """By the layer alone, as a category: a mean each layer."""
    both: Estimate
    """By both: a line each layer, as published."""
    gain: Estimate
    """`both` minus `layer`: what the tracing effect explains beyond the choice of a layer; never negative."""
    chance: float
    """What `gain` is on average when facts exchange their effects, since lines also fit what has no connection."""
    p_value: float
    """Share of exchanges whose gain is no smaller, the data itself counted as one."""


def explained(
    effects: Float[np.ndarray, "fact layer"],
    success: Float[np.ndarray, "fact layer"],
    *,
    generator: np.random.Generator,
    resamples: int = 1000,
    exchanges: int = 500,
) -> Explained:
    """Regress the success of editing a fact at a layer on the fact's tracing effect there, on the layer, and on both.

    Facts with an unknown success (NaN) are left out; R^2 is NaN where the success does not vary. In an exchange every
    fact keeps its effects together and gets those of a fact drawn without replacement. ValueError where no
    fact has a success at every layer.
    """
    effects, success = _known_facts(effects, success)
    n = len(effects)
    found = _r_squared(np.ones((1, n)), effects, success)[0]
    draws = generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    resampled = _r_squared(draws, effects, success)
    by_chance = _gains_of_exchanges(effects, success, exchanges, generator)
    estimates = [from_samples(found[index], resampled[:, index], n) for index in range(4)]
    return Explained(
        facts=n,
        effect=estimates[0],
        layer=estimates[1],
        both=estimates[2],
        gain=estimates[3],
        chance=float(by_chance.mean()),
        p_value=float((1 + (by_chance >= found[3] - _TINY).sum()) / (1 + exchanges)),
    )


def rank_correlations(
    effects: Float[np.ndarray, "fact layer"], success: Float[np.ndarray, "fact layer"]
) -> Float[np.ndarray, " fact"]:
    """Spearman's correlation over the layers of each fact; NaN where a fact's effects or successes are all equal."""
    ranks = [rankdata(values, axis=1, nan_policy="propagate") for values in (effects, success)]
    x, y = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))


def _known_facts(effects: np.ndarray, success: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(effects + success).any(axis=1)
    if not known.any():
        raise ValueError(f"none of the {len(effects)} facts has an effect and a success at every layer")
    return effects[known], success[known]


def _r_squared(
    weights: Float[np.ndarray, "resample fact"],
    x: Float[np.ndarray, "fact layer"],
    y: Float[np.ndarray, "fact layer"],
) -> Float[np.ndarray, "resample 4"]:
    """R^2 by effect, by layer and by both, and the last minus the second, with facts counted by weights.

    A line each layer leaves the variance within layers that its slope does not explain, so that sums over facts are
    all that is needed: no matrix is inverted.
    """
    x, y = x - x.mean(), y - y.mean()
    n = weights.sum(axis=1, keepdims=True)
    sums = {name: weights @ part for name, part in {"x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}.items()}
    pooled = {name: part.sum(axis=1) for name, part in sums.items()}

    def spread(one: str, other: str) -> np.ndarray:
        """Sum of products of deviations within each layer."""
        return sums[one + other] - sums[one] * sums[other] / n

    def spread_over_all(one: str, other: str) -> np.ndarray:
        return pooled[one + other] - pooled[one] * pooled[other] / (n[:, 0] * x.shape[1])

    total = spread_over_all("y", "y")
    total = np.where(total > _TINY * n[:, 0], total, np.nan)
    effect = _share(spread_over_all("x", "y") ** 2, spread_over_all("x", "x")) / total
    layer = 1 - spread("y", "y").sum(axis=1) / total
    gain = _share(spread("x", "y") ** 2, spread("x", "x")).sum(axis=1) / total
    return np.stack([effect, layer, layer + gain, gain], axis=1)


def _gains_of_exchanges(
    x: Float[np.ndarray, "fact layer"], y: Float[np.ndarray, "fact layer"], n: int, generator: np.random.Generator
) -> Float[np.ndarray, " exchange"]:
    """`both` minus `layer` when facts exchange their x, which changes only the products with y."""
    total = ((y - y.mean()) ** 2).sum()
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    products = np.array([(x[generator.permutation(len(x))] * y).sum(axis=0) for _ in range(n)])
    explained = _share(products**2, np.broadcast_to((x**2).sum(axis=0), products.shape)).sum(axis=1)
    return explained / (total if total > _TINY * len(x) else np.nan)


def _share(square: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Their quotient; 0 where there is no spread, since a constant explains nothing."""
    return np.divide(square, spread, out=np.zeros_like(square), where=spread > _TINY)
