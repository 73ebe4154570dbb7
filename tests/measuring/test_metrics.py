"""Known answers of the metrics, and the bootstrap against the obvious implementation."""

import math

import numpy as np
import pytest
import torch

from workbench.machine.intervals import Estimate, bootstrap_means, percentile_interval, record_means
from workbench.measuring.metrics import (
    harmonic_mean,
    kl_divergence,
    magnitude,
    ngram_entropy,
    success,
    target_probability,
)
from workbench.records.joining import starts_with_target

NAN = math.nan


def test_target_probability_is_the_geometric_mean_over_tokens() -> None:
    assert target_probability(torch.tensor([0.5, 0.125]).log()) == pytest.approx(0.25)
    assert target_probability(torch.tensor([0.3]).log()) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="at least one token"):
        target_probability(torch.tensor([]))


def test_success_and_magnitude() -> None:
    new, true = np.array([0.9, 0.1, 0.4, 0.5]), np.array([0.1, 0.8, 0.3, 0.5])
    assert success(new, true) == 0.5  # a tie is none, on either side
    assert success(true, new) == 0.25
    assert magnitude(new, true) == pytest.approx((0.8 - 0.7 + 0.1) / 4)
    assert magnitude(true, new) == -magnitude(new, true)


def test_scores_without_prompts_or_targets_are_nan_not_zero() -> None:
    nothing = np.array([], dtype=float)
    assert math.isnan(success(nothing, nothing))
    assert math.isnan(magnitude(nothing, nothing))
    assert math.isnan(success(np.array([0.5]), np.array([NAN])))
    assert math.isnan(magnitude(np.array([0.5]), np.array([NAN])))


def test_harmonic_mean() -> None:
    scores = np.array([[1.0, 0.5, 0.25], [1.0, 0.0, 1.0], [1.0, NAN, 1.0], [0.7, 0.7, 0.7]])
    assert harmonic_mean(scores) == pytest.approx(np.array([3 / 7, 0.0, NAN, 0.7]), nan_ok=True)
    # ROME on GPT-2 XL, table 4 of Meng et al. 2022: ES 100.0, PS 96.4, NS 75.4 give S 89.2.
    assert harmonic_mean(np.array([100.0, 96.4, 75.4])) == pytest.approx(89.2, abs=0.05)


@pytest.mark.parametrize(
    ("continuation", "target", "expected"),
    [
        (" Paris, the capital", "Paris", True),
        (" Paris", " Paris", True),
        ("\n Paris", "Paris", True),
        (" paris", "Paris", False),
        (" the city of Paris", "Paris", False),
        (" New York City", "New York", True),
        (" New", "New York", False),
        (" Parisian", "Paris", True),
        ("", "Paris", False),
    ],
)
def test_starts_with_target(continuation: str, target: str, expected: bool) -> None:
    assert starts_with_target(continuation, target) is expected


def test_a_blank_target_is_refused() -> None:
    with pytest.raises(ValueError, match="not whitespace, got ' '"):
        starts_with_target("anything", " ")


def test_ngram_entropy() -> None:
    # a b c d: 3 bigrams and 2 trigrams, all different.
    assert ngram_entropy("a b c d") == pytest.approx((2 / 3 * math.log2(3) + 4 / 3 * math.log2(2)) / 2)
    # a b a b a: bigrams ab ba ab ba (1 bit), trigrams aba bab aba (H(1/3)).
    h = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy("a b a b a") == pytest.approx((2 / 3 * 1 + 4 / 3 * h) / 2)
    assert ngram_entropy("no no no no no no") == 0
    assert ngram_entropy("") == 0
    assert ngram_entropy("a, b.") == ngram_entropy("a , b .")


def test_kl_divergence() -> None:
    p, q = (
        torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]),
        torch.tensor([[0.25, 0.75, 0.0], [0.2, 0.3, 0.5]]),
    )
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert kl_divergence(p.log(), q.log()).tolist() == pytest.approx([expected, 0.0])
    assert (kl_divergence(p.log(), p.log()) == 0).all()


def test_record_means_count_only_records_that_have_the_metric() -> None:
    values = np.array([[1.0, NAN, NAN], [0.0, 1.0, NAN], [0.5, 0.0, NAN]])
    assert record_means(values) == pytest.approx(np.array([0.5, 0.5, NAN]), nan_ok=True)


def test_bootstrap_means_have_the_mean_and_spread_of_the_obvious_bootstrap() -> None:
    generator = np.random.default_rng(0)
    values = generator.random((40, 2))
    values[::3, 1] = NAN
    fast = bootstrap_means(values, resamples=4000, generator=np.random.default_rng(1))
    slow = np.array([np.nanmean(values[generator.integers(40, size=40)], axis=0) for _ in range(4000)])
    assert fast.shape == (4000, 2)
    assert fast.mean(axis=0) == pytest.approx(slow.mean(axis=0), abs=0.005)
    assert fast.std(axis=0) == pytest.approx(slow.std(axis=0), rel=0.06)
    for metric in range(2):
        expected = percentile_interval(slow[:, metric])
        assert percentile_interval(fast[:, metric]) == pytest.approx(expected, abs=0.015)


def test_bootstrap_resamples_metrics_together_and_repeats_for_a_seed() -> None:
    column = np.random.default_rng(0).random(20)
    values = np.stack([column, 1 - column], axis=1)
    samples = bootstrap_means(values, resamples=50, generator=np.random.default_rng(3))
    assert samples.sum(axis=1) == pytest.approx(np.ones(50))
    again = bootstrap_means(values, resamples=50, generator=np.random.default_rng(3))
    assert (samples == again).all()


def test_bootstrap_of_many_records_is_done_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.machine.intervals._CELLS_AT_ONCE", 7000)  # 7 resamples at a time
    values = np.random.default_rng(0).random((1000, 3))
    samples = bootstrap_means(values, resamples=300, generator=np.random.default_rng(0))
    assert samples.shape == (300, 3)
    assert samples.std(axis=0) == pytest.approx(np.full(3, math.sqrt(1 / 12 / 1000)), rel=0.2)
    assert len(np.unique(samples[:, 0])) == 300


def test_bootstrap_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="record set is empty"):
        bootstrap_means(np.zeros((0, 2)), generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bootstrap_means(np.zeros((1, 2)), resamples=0, generator=np.random.default_rng(0))


def test_percentile_interval() -> None:
    samples = np.arange(101.0)
    assert percentile_interval(samples) == pytest.approx((2.5, 97.5))
    assert percentile_interval(samples, level=0.5) == pytest.approx((25.0, 75.0))
    assert percentile_interval(np.append(samples, NAN)) == pytest.approx((2.5, 97.5))
    assert all(map(math.isnan, percentile_interval(np.array([NAN, NAN]))))


def test_estimates_go_through_json() -> None:
    whole = Estimate(value=0.5, low=0.25, high=0.75, n=4)
    assert Estimate.from_dict(whole.to_dict()) == whole
    missing = Estimate(value=NAN, low=NAN, high=NAN, n=0)
    assert missing.to_dict() == {"value": None, "low": None, "high": None, "n": 0}
    assert math.isnan(Estimate.from_dict(missing.to_dict()).value)
