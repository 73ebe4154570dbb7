"""R^2 is that of least squares; rank correlations are scipy's; what has no connection explains no more than chance."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from workbench.machine.intervals import bootstrap_mean
from workbench.measuring.regression import explained, rank_correlations


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def data(n_facts: int = 12, n_layers: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = rng(1)
    effects = generator.normal(size=(n_facts, n_layers)) + np.linspace(0, 1, n_layers)
    success = 0.4 * effects + generator.normal(size=effects.shape) + np.linspace(1, 0, n_layers) ** 2
    return effects, success


def least_squares(design: np.ndarray, outcome: np.ndarray) -> float:
    fitted = design @ np.linalg.lstsq(design, outcome, rcond=None)[0]
    return 1 - ((outcome - fitted) ** 2).sum() / ((outcome - outcome.mean()) ** 2).sum()


def test_r_squared_is_that_of_least_squares() -> None:
    effects, success = data()
    found = explained(effects, success, generator=rng())
    x, y = effects.ravel(), success.ravel()
    layer = np.eye(effects.shape[1])[np.tile(np.arange(effects.shape[1]), len(effects))]
    assert found.effect.value == pytest.approx(least_squares(np.stack([np.ones_like(x), x], axis=1), y))
    assert found.layer.value == pytest.approx(least_squares(layer, y))
    assert found.both.value == pytest.approx(least_squares(np.hstack([layer, layer * x[:, None]]), y))
    assert found.gain.value == pytest.approx(found.both.value - found.layer.value)


def test_facts_twice_as_often_change_no_r_squared() -> None:
    effects, success = data()
    once = explained(effects, success, generator=rng(), exchanges=1)
    often = explained(np.tile(effects, (8, 1)), np.tile(success, (8, 1)), generator=rng(), exchanges=1)
    assert often.both.value == pytest.approx(once.both.value)


def test_where_nothing_is_connected_chance_gives_the_gain_and_no_interval_claims_more() -> None:
    found = [
        explained(each.normal(size=(30, 10)), each.normal(size=(30, 10)), generator=each, exchanges=100)
        for each in map(rng, range(100))
    ]
    gains, beyond = np.array([(one.gain.value, one.beyond_chance) for one in found]).T
    assert gains.mean() == pytest.approx(1 / 29, rel=0.15)  # the mean of a correlation's square over all exchanges
    assert abs(beyond.mean()) < 3 * beyond.std(ddof=1) / 10
    assert np.mean([one.p_value <= 0.05 for one in found]) < 0.12
    # A bootstrap's would lie above the gain itself.
    for one in found[:3]:
        for part in (one.effect, one.layer, one.both, one.gain):
            assert np.isnan([part.low, part.high]).all()


def test_success_by_layer_alone_leaves_nothing_to_the_effect() -> None:
    effects, _ = data()
    success = np.broadcast_to(np.linspace(0, 1, effects.shape[1]), effects.shape).copy()
    found = explained(effects, success, generator=rng())
    assert found.layer.value == pytest.approx(1)
    assert found.gain.value == pytest.approx(0, abs=1e-9)
    assert found.p_value > 0.9


def test_exchanging_facts_tells_a_connection_from_chance() -> None:
    effects, _ = data(n_facts=30)
    slopes = np.array([1.0, -2.0, 3.0, 0.5, 1.0])
    connected = explained(effects, slopes * effects + 5 * np.arange(5), generator=rng(), exchanges=200)
    assert connected.both.value == pytest.approx(1)
    assert connected.p_value == pytest.approx(1 / 201)
    none = explained(effects, rng(3).normal(size=effects.shape), generator=rng(), exchanges=200)
    assert none.gain.value == pytest.approx(none.chance, abs=0.05)
    assert none.p_value > 0.05
    # L lines take up about a share 1 / (facts - 1) of what is left within layers.
    assert none.chance == pytest.approx((1 - none.layer.value) / 29, rel=0.25)


def test_facts_without_a_score_are_left_out() -> None:
    effects, success = data()
    lacking = success.copy()
    lacking[3, 1] = np.nan
    keep = np.arange(len(effects)) != 3
    found = explained(effects, lacking, generator=rng())
    assert found.facts == len(effects) - 1
    assert found.both.value == pytest.approx(explained(effects[keep], success[keep], generator=rng()).both.value)
    with pytest.raises(ValueError, match="none of the 12 facts"):
        explained(effects, np.full_like(success, np.nan), generator=rng())


def test_a_constant_explains_nothing_and_cannot_be_explained() -> None:
    effects, success = data()
    found = explained(np.ones_like(effects), success, generator=rng())
    assert found.effect.value == 0
    assert found.gain.value == 0
    same = explained(effects, np.ones_like(success), generator=rng())
    assert np.isnan([same.layer.value, same.gain.value, same.beyond_chance, same.p_value]).all()


def test_rank_correlations_are_spearmans_within_facts() -> None:
    effects, success = data()
    success = success.round()  # with ties
    wanted = np.array([spearmanr(x, y)[0] for x, y in zip(effects, success, strict=True)], dtype=float)
    np.testing.assert_allclose(rank_correlations(effects, success), wanted)
    success[2] = 1.0
    success[4, 0] = np.nan
    found = rank_correlations(effects, success)
    assert np.isnan(found[[2, 4]]).all()
    mean = bootstrap_mean(found, generator=rng())
    assert mean.n == len(effects) - 2
    assert mean.value == pytest.approx(np.nanmean(found))
    assert mean.low < mean.value < mean.high
