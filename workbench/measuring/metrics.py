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

import einops
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.records.joining import UNSPACED

_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")


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


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan
