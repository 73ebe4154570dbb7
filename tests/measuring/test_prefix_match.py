"""Scores by what the model writes: known answers, and one by one as all together."""

import json
import math

import pytest
from known_records import RECORDS
from scipy.stats import binomtest

from workbench.machine.intervals import wilson
from workbench.measuring.prefix_match import Answer, Question, answer, questions, scores, share
from workbench.models.generation import generate
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record


def given(case_id: int, score: str, generated: str) -> Answer:
    question = Question(case_id=case_id, score=score, prompt="?", new=("new", "newer"), old=("old",))
    return Answer(question=question, generated=generated)


def test_every_prompt_is_asked_with_its_right_answers() -> None:
    asked = questions(RECORDS[:1])
    assert [(one.score, one.new, one.old) for one in asked] == [
        ("efficacy", ("Moscow",), ("Lisbon",)),
        ("paraphrase", ("Moscow",), ("Lisbon",)),
        ("neighborhood", ("Lisbon",), ("Lisbon",)),
        ("neighborhood", ("Lisbon",), ("Lisbon",)),
        ("portability", ("Moscow",), ()),
    ]
    with pytest.raises(ValueError, match="no target_true"):
        questions([Record(case_id=1, request=EditRequest(template="{} is", subject="it", target_new="new"))])


def test_a_score_is_the_mean_over_records_of_the_share_of_their_prompts() -> None:
    answers = [
        given(1, "efficacy", " newer."), given(2, "efficacy", "newest"), given(3, "efficacy", " not new"),
        given(1, "paraphrase", "new"), given(1, "paraphrase", "old"), given(2, "paraphrase", "new"),
        given(1, "neighborhood", " New"), given(2, "neighborhood", "new"),
    ]  # fmt: skip
    found = scores(answers)
    assert [found[score].value for score in ("efficacy", "paraphrase", "neighborhood")] == [2 / 3, 3 / 4, 1 / 2]
    assert [found[score].n for score in ("efficacy", "paraphrase", "neighborhood", "portability")] == [3, 2, 2, 0]
    assert math.isnan(found["portability"].value)
    assert found["overall"].value == pytest.approx(3 / (3 / 2 + 4 / 3 + 2))
    assert share(answers[3:6], old=True).value == 1 / 4
    assert [Answer.from_dict(json.loads(json.dumps(one.to_dict()))) for one in answers] == answers


def test_wilsons_interval() -> None:
    for right, n in ((0, 10), (10, 10), (3, 7), (79, 80)):
        expected = binomtest(right, n).proportion_ci(method="wilson")
        found = wilson([1.0] * right + [0.0] * (n - right))
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
        assert (found.value, found.n) == (right / n, n)
    assert wilson([0.5] * 10) == wilson([0.0, 1.0] * 5)
    assert wilson([]).n == 0


@pytest.mark.slow
def test_all_prompts_together_are_continued_as_one_by_one(tiny_gpt2: Model) -> None:
    asked = questions(RECORDS)
    longest = int(tiny_gpt2.tokenize(["Lisbon", "Tokyo", "Cairo", "Moscow", "Rome", "Athens"]).mask.sum(dim=1).max())
    together = answer(tiny_gpt2, asked, batch_size=4)
    for one in together[::2]:
        (alone,) = generate(tiny_gpt2, [one.question.prompt], max_new_tokens=longest + 2)
        assert one.generated == alone
    known = share([one for one in together if one.question.score == "efficacy"], old=True)
    assert known.value == 1.0  # the golden model knows these capitals
