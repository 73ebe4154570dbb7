"""How far tracing explains where edits succeed: R^2 and rank correlations (Hase et al. 2023, arXiv:2301.04213).

Rows are facts and columns are layers: every fact was edited alone at every layer. Shares of variance have no interval:
a resample holds some facts twice, which lines fit the better, so that the bootstrap of an R^2 lies above it. What a
gain means is told by exchanging whole facts, since the layers of one fact are not independent.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from workbench.machine.intervals import Estimate

_TINY = 1e-12
"""Variances below this are rounding errors of numbers of the size of probabilities."""


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Shares of the variance of edits' success over facts and layers (R^2 of the fit itself, without intervals) by what
    explains it."""

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
    """Share of exchanges whose gain is no smaller, the data itself counted as one; NaN where the success does not
    vary."""

    @property
    def beyond_chance(self) -> float:
        """`gain` less `chance`: 0 on average where effect and success have no connection, so that it may be below."""
        return self.gain.value - self.chance


def explained(
    effects: Float[np.ndarray, "fact layer"],
    success: Float[np.ndarray, "fact layer"],
    *,
    generator: np.random.Generator,
    exchanges: int = 500,
) -> Explained:
    """Regress the success of editing a fact at a layer on the fact's tracing effect there, on the layer, and on both.

    Facts with an unknown success (NaN) are left out; R^2 is NaN where the success does not vary. In an exchange every
    fact keeps its effects together and gets those of a fact drawn without replacement. ValueError where no
    fact has a success at every layer.
    """
    effects, success = _known_facts(effects, success)
    shares = _r_squared(effects, success)
    by_chance = _gains_of_exchanges(effects, success, exchanges, generator)
    reached = (by_chance >= shares["gain"] - _TINY).sum()
    return Explained(
        facts=len(effects),
        **{name: Estimate(value=share, n=len(effects)) for name, share in shares.items()},
        chance=float(by_chance.mean()),
        p_value=math.nan if math.isnan(shares["gain"]) else float((1 + reached) / (1 + exchanges)),
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


def _r_squared(x: Float[np.ndarray, "fact layer"], y: Float[np.ndarray, "fact layer"]) -> dict[str, float]:
    """R^2 by effect, by layer and by both, and the gain of the last over the second; NaN where y does not vary.

    A line each layer leaves the variance within layers that its slope does not explain: no matrix is inverted.
    """
    x, y = x - x.mean(), y - y.mean()
    total = (y**2).sum()
    total = total if total > _TINY * len(y) else math.nan
    effect = _share((x * y).sum() ** 2, (x**2).sum()) / total
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    layer = 1 - (y**2).sum() / total
    gain = _share((x * y).sum(axis=0) ** 2, (x**2).sum(axis=0)).sum() / total
    return {"effect": float(effect), "layer": float(layer), "both": float(layer + gain), "gain": float(gain)}


def _gains_of_exchanges(
    x: Float[np.ndarray, "fact layer"], y: Float[np.ndarray, "fact layer"], n: int, generator: np.random.Generator
) -> Float[np.ndarray, " exchange"]:
    """`both` minus `layer` when facts exchange their x, which changes only the products with y."""
    total = ((y - y.mean()) ** 2).sum()
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    products = np.array([(x[generator.permutation(len(x))] * y).sum(axis=0) for _ in range(n)])
    explained = _share(products**2, np.broadcast_to((x**2).sum(axis=0), products.shape)).sum(axis=1)
    return explained / (total if total > _TINY * len(x) else np.nan)


def _share(square: np.ndarray | np.floating, spread: np.ndarray | np.floating) -> np.ndarray:
    """Their quotient; 0 where there is no spread, since a constant explains nothing."""
    return np.divide(square, spread, out=np.zeros(np.shape(square)), where=spread > _TINY)
