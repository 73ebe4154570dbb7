"""Pure functions from probabilities, texts and per-record values to the numbers that score an edit.

The scores are CounterFact's (Meng et al. 2022, section 3.3). With P[o] the probability of target o after a
prompt (`target_probability`), o* the new target and o_c the true one:

    ES = share of records with P[o*] > P[o_c] on the rewrite prompt;  EM = mean of P[o*] - P[o_c] there
    PS, PM = the same on paraphrases;  NS, NM = on neighborhood prompts with o* and o_c exchanged
    S = 3 / (1 / ES + 1 / PS + 1 / NS)

Within a record a score is the mean over its prompts; over records it is the mean of these means. A record
without the prompts of a score has the value NaN there and does not count.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import einops
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.joining import UNSPACED

_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
_CELLS_AT_ONCE = 4_000_000


# Probabilities -----------------------------------------------------------------------------------------


def target_probability(log_probs: Float[Tensor, " target"]) -> float:
    """P[target] = exp(mean of log p over the target's tokens): the published code compares mean negative
    log-likelihoods per token, so that a longer target is not less probable for its length alone."""
    if len(log_probs) == 0:
        raise ValueError("a target has at least one token, got none")
    return math.exp(log_probs.double().mean().item())


def success(better: Float[np.ndarray, " prompt"], worse: Float[np.ndarray, " prompt"]) -> float:
    """Share of prompts with P[better] > P[worse]; a tie is none. NaN without prompts or for an unknown P.

    ES and PS: better = new, worse = true. NS: better = true, worse = new.
    """
    return _mean(np.where(np.isnan(better + worse), np.nan, better > worse))


def magnitude(better: Float[np.ndarray, " prompt"], worse: Float[np.ndarray, " prompt"]) -> float:
    """Mean of P[better] - P[worse] over prompts, in [-1, 1]; NaN without prompts or for an unknown P."""
    return _mean(better - worse)


def harmonic_mean(scores: Float[np.ndarray, "*rows score"]) -> Float[np.ndarray, "*rows"]:
    """n / sum(1 / x) over the last axis; 0 if a score is 0, NaN if one is NaN."""
    with np.errstate(divide="ignore"):
        return np.asarray(scores.shape[-1] / (1 / scores).sum(axis=-1))


def kl_divergence(
    log_p: Float[Tensor, "prompt vocab"], log_q: Float[Tensor, "prompt vocab"]
) -> Float[Tensor, " prompt"]:
    """KL(p || q) = sum of p (log p - log q) over the vocabulary, in nats, for each prompt."""
    log_p, log_q = log_p.double(), log_q.double()
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p))
    return einops.reduce(terms, "prompt vocab -> prompt", "sum").clamp(min=0)  # rounding can leave -1e-17


# Generated text ----------------------------------------------------------------------------------------


def starts_with_target(continuation: str, target: str) -> bool:
    """Whether prompt + target begins prompt + continuation: case sensitive, but for leading whitespace.

    Compared as characters: the continuation "Parisian" starts with "Paris".
    """
    if not target.strip():
        raise ValueError(f"a target needs a character that is not whitespace, got {target!r}")
    return continuation.lstrip().startswith(target.strip())


def ngram_entropy(text: str) -> float:
    """Generation entropy ("fluency") of one text: the mean of 2/3 H_2 and 4/3 H_3, in bits, as published.

    H_n = - sum of f log2 f over the frequencies f of the text's n-grams; 0 where it has none, as for a single
    n-gram repeated. Words are runs of word characters, and other characters and those of scripts without spaces one
    by one; the published code splits with NLTK, which differs in contractions. Papers print it times 100.
    """
    words = _WORD.findall(text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return math.fsum(count / total * math.log2(total / count) for count in counts.values())


# Means over records and their uncertainty --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over records with its percentile interval."""

    value: float
    """NaN if no record has it."""
    low: float
    """NaN, like `high`, if fewer than two records have it: one record says nothing about spread."""
    high: float
    n: int
    """Number of records that have it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; NaN becomes null."""
        return {key: nan_to_none(getattr(self, key)) for key in ("value", "low", "high")} | {"n": self.n}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Estimate":
        return cls(**{key: none_to_nan(values[key]) for key in ("value", "low", "high")}, n=values["n"])


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


def percentile_interval(samples: Float[np.ndarray, " resample"], level: float = 0.95) -> tuple[float, float]:
    """The central `level` of bootstrap samples; NaN (resamples without a value) is left out, unless all are.

    It has no width where all records agree (100 % of 20): read the number of records beside it.
    """
    samples = samples[~np.isnan(samples)]
    if len(samples) == 0:
        return math.nan, math.nan
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def nan_to_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else float(value)


def none_to_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _weighted_means(
    weights: Float[np.ndarray, "resample record"], values: Float[np.ndarray, "record metric"]
) -> Float[np.ndarray, "resample metric"]:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return (weights @ np.where(known, values, 0.0)) / (weights @ known.astype(float))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan
