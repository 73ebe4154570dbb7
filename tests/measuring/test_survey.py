"""The survey's scores are what their definitions say, under edits of every kind; the table shows them side by side."""

from dataclasses import replace
from typing import Any

import pytest
from known_edits import random_edit
from known_kinds import Prefixes, Steers

from workbench.measuring.survey import (
    Answered,
    SurveyScores,
    collected,
    questions,
    survey_scores,
    survey_state,
)
from workbench.models.generation import generate
from workbench.models.model import Model
from workbench.models.scoring import score_targets
from workbench.records.facts import EditRequest, Probe, Record
from workbench.tables.survey import FAILED, Cost, DataSet, survey_table
from workbench.tables.table import to_csv, to_latex, to_markdown

REQUEST = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow", target_true="Lisbon")
RECORD = Record(
    case_id=5,
    request=REQUEST,
    paraphrase_prompts=("In the book, Portugal's capital city is",),
    neighborhood_prompts=("The capital of France is",),
    portability_prompts=(
        Probe(prompt="One pays a visit to Portugal in", targets_new=("Moscow", "Lisbon"), kind="one hop"),
        Probe(prompt="The capital of Lusitania is", targets_new=("Moscow",), kind="alias"),
    ),
    reversion_prompts=(Probe(prompt="Moscow is the capital of", targets_new=("Portugal",)),),
    locality_prompts=(
        Probe(prompt="nq question: who", targets_new=("Rumi",), targets_true=("Rumi",), kind="natural questions"),
    ),
)


def answered(score: str, **changes: Any) -> Answered:
    some: dict[str, Any] = {"kind": "", "prompt": "p", "targets": ("Paris",), "forced": 0.5, "chosen": (1, 2, 3)}
    return Answered(score=score, generated=" Paris.", **(some | changes))


def test_every_prompt_counts_for_what_it_tests() -> None:
    assert [(score, kind, targets) for score, kind, _, targets in questions(RECORD)] == [
        ("reliability", "", ("Moscow",)),
        ("generalization", "", ("Moscow",)),
        ("locality", "neighborhood", ("Lisbon",)),
        ("locality", "natural questions", ("Rumi",)),
        ("portability", "one hop", ("Moscow", "Lisbon")),
        ("portability", "alias", ("Moscow",)),
        ("portability", "reversed", ("Portugal",)),
    ]
    unknown = replace(RECORD, request=replace(REQUEST, target_true=None))
    assert questions(unknown)[2][3] == ("Moscow",), "some places to compare outputs at"
    once = Probe(prompt="nq question: who", targets_new=("Rumi",))
    assert questions(replace(RECORD, locality_prompts=(once,)))[3][3] == ("Rumi",), "the same before and after"


def test_a_state_is_what_scoring_and_generation_say(tiny_gpt2: Model) -> None:
    state = survey_state(tiny_gpt2, RECORD)
    written = generate(tiny_gpt2, [one.prompt for one in state], max_new_tokens=8)
    for one, again in zip(state, written, strict=True):
        scores = score_targets(tiny_gpt2, [(one.prompt, target) for target in one.targets])
        hits = [[a == b for a, b in zip(each.tokens, each.chosen, strict=True)] for each in scores]
        assert one.forced == max(sum(some) / len(some) for some in hits)
        assert all((sum(some) == len(some)) == each.top for some, each in zip(hits, scores, strict=True))
        assert one.chosen == scores[0].chosen and len(one.chosen) == len(scores[0].log_probs)
        assert again.startswith(one.generated) and one.begins == any(again.lstrip().startswith(t) for t in one.targets)
    assert SurveyScores.from_dict(SurveyScores(case_id=5, before=state, after=state).to_dict()).before == state


def test_scores_by_hand() -> None:
    before = (answered("reliability"), answered("locality", kind="a"), answered("locality", kind="b"))
    after = (
        answered("reliability", forced=1.0, targets=("Rome",)),
        answered("locality", kind="a", chosen=(1, 2, 9)),
        answered("locality", kind="b", prompt="q", targets=("x",)),
    )
    found = SurveyScores(case_id=1, before=before, after=after).metrics()
    assert found["reliability.forced"] == 1 and found["reliability.generated"] == 0
    assert found["reliability.excess"] == 1
    assert found["locality.a.forced"] == pytest.approx(2 / 3) and found["locality.forced"] == pytest.approx(5 / 6)
    assert found["locality.generated"] == 1, "the texts are the same, whatever the answer"
    other = replace(after[1], generated=" Paris!")
    assert SurveyScores(case_id=1, before=before[1:2], after=(other,)).metrics()["locality.generated"] == 0
    longer = replace(after[1], chosen=(1, 2, 3, 4))
    assert SurveyScores(case_id=1, before=before[1:2], after=(longer,)).metrics()["locality.forced"] == 0.75
    assert "generalization.forced" not in found, "what a record lacks is left out"
    assert SurveyScores(case_id=1, before=before, after=after).unedited().metrics()["locality.forced"] == 1


@pytest.mark.parametrize("kind", ["weights", "hooks", "redirect"])
def test_edits_of_every_kind_are_seen_and_gone(tiny_gpt2: Model, kind: str) -> None:
    before = survey_state(tiny_gpt2, RECORD)
    if kind == "weights":
        edit: Any = random_edit(tiny_gpt2, 0, (2, "W_out"))
    else:
        edit = (Steers(scale=30.0) if kind == "hooks" else Prefixes())(tiny_gpt2, [REQUEST])
    scores = survey_scores(tiny_gpt2, edit, RECORD, before=before)
    with edit.applied(tiny_gpt2):
        assert scores.after == survey_state(tiny_gpt2, RECORD) != before
    assert survey_state(tiny_gpt2, RECORD) == before == scores.before
    assert scores.metrics()["locality.generated"] < 1


def test_the_table_has_a_row_a_score_and_a_column_a_method() -> None:
    state = (
        answered("reliability", forced=1.0),
        answered("generalization"),
        answered("portability", kind="alias"),
        answered("portability", kind="one hop", targets=("Rome",)),
    )
    scores = [SurveyScores(case_id=case, before=state, after=state) for case in range(4)]
    data = DataSet(name="flat", rephrased_by="EasyEdit's rephrase_prompt", scores={"ROME": scores})
    costs = {"ROME": Cost(train=3.0, seconds=[0.5, 0.7], memory=[2**21])}
    table = survey_table([data], ["ROME", "KN"], costs, {"KN": "ValueError: no preset"})
    frame = table.frame("value")
    assert list(frame) == ["Data set", "Score", "How", "Unedited", "ROME", "KN", "Records"]
    assert list(dict.fromkeys(frame["Score"])) == [
        "Reliability",
        "Generalization: EasyEdit's rephrase_prompt",
        "Portability",
        "Portability: one hop",
        "Portability: alias",
        "To train and make ready",
        "An edit",
    ]
    lines = frame.to_numpy().tolist()
    assert lines[0] == ["flat", "Reliability", "teacher-forced", "100.0", "100.0", FAILED, "4"]
    assert lines[3:6] == [
        ["flat", "Generalization: EasyEdit's rephrase_prompt", how, value, value, FAILED, "4"]
        for how, value in (("teacher-forced", "50.0"), ("generated", "100.0"), ("forced - generated", "-50.0"))
    ]
    assert lines[-3:] == [
        ["", "To train and make ready", "s", "-", "3.0", FAILED, ""],
        ["", "An edit", "s", "-", "0.60", FAILED, ""],
        ["", "An edit", "MiB, peak", "-", "2.0", FAILED, ""],
    ]
    assert "KN failed: ValueError: no preset." in table.caption and "mostly another question" in table.caption
    assert "100.0 (51.0-100.0)" in to_markdown(table) and r"Portability: alias" in to_latex(table)
    assert "ROME,Reliability | flat,flat/reliability.forced,100," in to_csv(table)
    assert collected(scores)["portability.forced"] == [0.5] * 4
    with pytest.raises(ValueError, match="no editor has made an edit yet"):
        survey_table([replace(data, scores={})], ["KN"], {}, {"KN": "why"})
