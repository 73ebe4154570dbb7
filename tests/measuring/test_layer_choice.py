"""What choosing a layer is worth, with known answers."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from known_traces import trace_of

from workbench.measuring.layer_choice import (
    CHOICES,
    SUCCESSES,
    comparable,
    compare_choices,
    compare_method,
    last_subject_effect,
    normalised_scores,
)
from workbench.measuring.scores import KINDS, Evaluation, PromptScores, RecordScores
from workbench.tracing.trace import CausalTrace

LAYERS = (2, 5, 7)


def prompt(p_new: float, p_true: float = 0.5) -> PromptScores:
    return PromptScores(
        prompt="x", targets_new=("a",), targets_true=("b",), p_new=p_new, p_true=p_true,
        top_new=bool(p_new > 0.5), top_true=False, generated=None,
    )  # fmt: skip


def evaluation(case_id: int = 0, **kinds: list[tuple[float, float]]) -> Evaluation:
    """By kind of prompt, the new target's probability before and after the edit."""

    def state(index: int) -> RecordScores:
        return RecordScores(
            prompts={kind: tuple(prompt(pair[index]) for pair in kinds.get(kind, [])) for kind in KINDS}
        )

    return Evaluation(case_id=case_id, pre=state(0), post=state(1), kl=math.nan, relative_norms={}, seconds=0.0)


def made(effect: list[float], *, corrupted: float = 0.1, subject: tuple[int, int] = (1, 3)) -> CausalTrace:
    """A trace with the effect at the subject's last token only."""
    effects = torch.zeros(5, len(effect))
    effects[subject[1] - 1] = torch.tensor(effect)
    return trace_of(effects, corrupted=corrupted, subject=subject)


def test_normalised_scores_are_shares_of_the_possible_change() -> None:
    scores = normalised_scores(
        evaluation(rewrite=[(0.2, 0.6)], paraphrase=[(0.5, 0.4), (0.0, 1.0)], neighborhood=[(0.2, 0.6), (0.5, 0.5)])
    )
    assert scores["rewrite"] == pytest.approx(0.5)
    assert scores["paraphrase"] == pytest.approx(0.5)  # a fall counts as no rise
    assert scores["neighborhood"] == pytest.approx((0.5 + 1) / 2)
    assert math.isnan(normalised_scores(evaluation(rewrite=[(0.2, 0.6)]))["paraphrase"])


def test_the_effect_is_a_share_of_the_total_at_the_last_subject_token() -> None:
    np.testing.assert_allclose(last_subject_effect(made([0.2, 0.4])), [0.25, 0.5], rtol=1e-6)
    assert comparable(made([0.2, 0.4]))
    assert not comparable(made([0.2], corrupted=0.88))
    assert not comparable(made([0.2], subject=(3, 5)))


def choose(success: np.ndarray, **options):
    same: dict[str, np.ndarray] = dict.fromkeys(SUCCESSES, success)
    own = options.pop("own", np.zeros(len(success), dtype=int))
    return compare_choices(same, layers=LAYERS, own=own, generator=np.random.default_rng(0), **options)


def test_choices_have_the_scores_of_their_layers() -> None:
    # Of four facts two can be edited at layer 2 alone, two at layer 5 alone, all at layer 7; and thrice the same.
    success = np.array([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]] * 3, dtype=float)
    found = choose(success, located=2, own=np.array([0, 0, 1, 0] * 3))
    value = {choice: found.scores[choice]["S"].value for choice in CHOICES}
    assert value == pytest.approx({"random": (0.5 + 0.5 + 1) / 3, "located": 0.5, "own": 0.75, "best": 1})
    assert (found.best, found.near) == (7, (7,))
    assert found.against_random["located"].value == pytest.approx(0.5 - 2 / 3)
    assert found.against_best["located"].value == pytest.approx(-0.5)
    assert found.against_best["best"].value == found.against_random["random"].value == 0
    assert found.scores["best"]["ES"].low == found.scores["best"]["ES"].high == 1


def test_differences_are_paired_over_facts() -> None:
    # Each layer's score varies with the facts drawn, their difference does not.
    success = np.array([[1, 1, 0.5]] * 5 + [[0.5, 0.5, 0.25]] * 5)
    found = choose(success, located=7)
    assert found.scores["located"]["S"].low < found.scores["located"]["S"].high
    assert (found.best, found.near) == (2, (2, 5))  # the lowest on a tie
    ratio = found.against_best["located"].value / found.scores["best"]["S"].value
    assert ratio == pytest.approx(-0.5)
    assert found.against_best["located"].high < 0


def test_a_method_is_compared_fact_by_fact() -> None:
    cases, effects = [4, 9], np.array([[0.9, 0.5, 0.1], [0.1, 0.5, 0.9]])
    evaluations = {
        (layer, case): evaluation(
            case, rewrite=[(0.0, float(effects[i, j]))], paraphrase=[(0.0, 0.8)], neighborhood=[(0.0, 0.1)]
        )
        for j, layer in enumerate(LAYERS)
        for i, case in enumerate(cases)
    }
    found = compare_method(evaluations, cases=cases, layers=LAYERS, effects=effects, located=5, seed=0)
    assert found.ranks["rewrite"].value == pytest.approx(1)
    assert found.explained["rewrite"].effect.value == pytest.approx(1)
    assert found.explained["rewrite"].layer.value == pytest.approx(0)
    assert np.isnan(found.ranks["paraphrase"].value)
    np.testing.assert_allclose(found.outcomes["rewrite"], effects)
    # Each fact's own layer is where its effect, and so its P[new], is greatest: both edits succeed there.
    assert found.choices.scores["own"]["ES"].value == 1
    assert found.choices.scores["located"]["ES"].value == 0
    without = {place: dataclasses.replace(each, pre=blank(each.pre), post=blank(each.post))
               for place, each in evaluations.items()}  # fmt: skip
    alone = compare_method(without, cases=cases, layers=LAYERS, effects=effects, located=5, seed=0)
    assert set(alone.explained) == {"rewrite"}


def blank(state: RecordScores) -> RecordScores:
    """Without paraphrases and neighbors."""
    return RecordScores(prompts={kind: state.prompts[kind] if kind == "rewrite" else () for kind in KINDS})
