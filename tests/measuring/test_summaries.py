"""Means go over prompts, then over records; S is resampled as a whole; what no record has is NaN."""

import json
import math

import numpy as np
import pytest

from workbench.measuring.metrics import harmonic_mean
from workbench.measuring.scores import KINDS, Evaluation, PromptScores, RecordScores
from workbench.measuring.summaries import Summary, summarise

NAN = math.nan


def test_generation_accuracy_by_kind_of_prompt() -> None:
    scores = {
        kind: (_prompt(generated=generated, new=("Rome", "Roma"), true=("Paris",)),)
        for kind, generated in zip(KINDS, (" Rome is", " rome", " Paris", " Roma", None), strict=True)
    }
    values = RecordScores(prompts=scores).metrics()
    assert values["generated.rewrite.new"] == 1
    assert values["generated.rewrite.true"] == 0
    assert values["generated.paraphrase.new"] == 0
    assert values["generated.neighborhood.true"] == 1
    assert values["generated.portability.new"] == 1
    assert math.isnan(values["generated.reversion.new"])


def _prompt(
    *,
    p_new: float = 0.1,
    p_true: float = 0.2,
    generated: str | None = None,
    new: tuple[str, ...] = ("Rome",),
    true: tuple[str, ...] = ("Paris",),
) -> PromptScores:
    return PromptScores(
        prompt="The capital of France is",
        targets_new=new,
        targets_true=true,
        p_new=p_new,
        p_true=p_true,
        top_new=p_new > 0.5,
        top_true=p_true > 0.5,
        generated=generated,
    )


def _evaluation(
    case_id: int,
    *,
    rewrite: tuple[float, float] = (0.8, 0.1),
    paraphrases: tuple[tuple[float, float], ...] = (),
    neighbors: tuple[tuple[float, float], ...] = (),
    layer: int = 3,
) -> Evaluation:
    """An evaluation of (P[new], P[true]) after the edit; before it the model has 0.1 and 0.9 everywhere."""

    def state(changed: bool) -> RecordScores:
        def scores(pairs: tuple[tuple[float, float], ...]) -> tuple[PromptScores, ...]:
            return tuple(_prompt(p_new=new, p_true=true) if changed else _prompt(p_true=0.9) for new, true in pairs)

        by_kind = {"rewrite": (rewrite,), "paraphrase": paraphrases, "neighborhood": neighbors}
        return RecordScores(prompts={kind: scores(by_kind.get(kind, ())) for kind in KINDS})

    return Evaluation(
        case_id=case_id, pre=state(False), post=state(True), kl=NAN, relative_norms={layer: 0.01}, seconds=1.0
    )


def test_means_within_records_then_over_records() -> None:
    yes, no = (0.8, 0.1), (0.2, 0.6)
    summary = summarise(
        [
            _evaluation(0, rewrite=yes, paraphrases=(yes,), neighbors=(no, no, no)),
            _evaluation(1, rewrite=no, paraphrases=(no, no, no, yes), neighbors=(yes,)),
            _evaluation(2, rewrite=yes, neighbors=(no, yes)),
        ]
    )
    post = summary.post
    assert post["ES"].value == pytest.approx(2 / 3)
    assert post["EM"].value == pytest.approx((0.7 - 0.4 + 0.7) / 3)
    assert post["PS"].value == pytest.approx((1 + 1 / 4) / 2)  # not 2 of 5 prompts
    assert post["PS"].n == 2
    assert post["PM"].value == pytest.approx((0.7 + (0.7 - 3 * 0.4) / 4) / 2)
    assert post["NS"].value == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert post["NM"].value == pytest.approx((0.4 - 0.7 + (0.4 - 0.7) / 2) / 3)
    assert post["S"].value == pytest.approx(harmonic_mean(np.array([2 / 3, 5 / 8, 1 / 2])).item())
    assert post["S"].n == 2
    assert summary.pre["ES"].value == 0
    assert summary.pre["S"].value == 0
    assert summary.pre["NS"].value == 1
    assert summary.n == post["ES"].n == 3
    assert post["relative_norm.3"].value == pytest.approx(0.01)


def test_what_no_record_has_is_nan_with_n_zero() -> None:
    summary = summarise([_evaluation(0), _evaluation(1)])
    for metric in ("PS", "NS", "S", "kl", "fluency", "generated.rewrite.new"):
        estimate = summary.post[metric]
        assert math.isnan(estimate.value), metric
        assert math.isnan(estimate.low), metric
        assert estimate.n == 0, metric
    assert summary.post["ES"].n == 2


def test_layers_that_only_some_edits_change() -> None:
    summary = summarise([_evaluation(0, layer=3), _evaluation(1, layer=4), _evaluation(2, layer=4)])
    assert (summary.post["relative_norm.3"].n, summary.post["relative_norm.4"].n) == (1, 2)
    assert math.isnan(summary.post["relative_norm.3"].low)  # one record has no spread


def _many(n: int) -> list[Evaluation]:
    generator = np.random.default_rng(0)

    def pair() -> tuple[float, float]:
        new, true = generator.random(2).tolist()
        return new, true

    return [_evaluation(index, rewrite=pair(), paraphrases=(pair(), pair()), neighbors=(pair(),)) for index in range(n)]


def test_the_interval_of_s_is_of_the_harmonic_mean_of_each_resample() -> None:
    evaluations = _many(60)
    summary = summarise(evaluations, resamples=2000, seed=1)
    rows = np.array([[values[part] for part in ("ES", "PS", "NS")] for _, values in (e.metrics() for e in evaluations)])
    generator = np.random.default_rng(5)
    slow = [3 / (1 / rows[generator.integers(60, size=60)].mean(axis=0)).sum() for _ in range(2000)]
    s = summary.post["S"]
    assert (s.low, s.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.015)
    assert s.low < s.value < s.high


def test_a_summary_repeats_for_its_seed_and_goes_through_json() -> None:
    evaluations = _many(20)
    summary = summarise(evaluations, seed=3)
    assert summarise(evaluations, seed=3).to_dict() == summary.to_dict()
    assert summarise(evaluations, seed=4).to_dict() != summary.to_dict()
    read = Summary.from_dict(json.loads(json.dumps(summary.to_dict(), allow_nan=False)))
    assert read.to_dict() == summary.to_dict()
    assert read.post["ES"] == summary.post["ES"]
    assert (read.n, read.level, read.resamples) == (20, 0.95, 1000)


def test_no_evaluations_or_one_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="no evaluations to summarise: the record set is empty"):
        summarise([])
    with pytest.raises(ValueError, match="record 4 was evaluated 2 times"):
        summarise([_evaluation(4), _evaluation(5), _evaluation(4)])
