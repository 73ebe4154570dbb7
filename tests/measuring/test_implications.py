"""What follows from an edit is counted as defined, its prompts are the records', and edits of every kind are seen."""

import math
from dataclasses import replace
from typing import Any

import pytest
from known_kinds import Prefixes, Steers
from known_records import capital

from workbench.measuring.implications import IMPLICATIONS, Probed, followed, negated, probe, probes, reach
from workbench.measuring.metrics import target_probability
from workbench.measuring.survey import Answered
from workbench.models.model import Model
from workbench.models.scoring import score_targets
from workbench.records.facts import EditRequest, Probe, Record

RECORD = capital(
    3,
    "Portugal",
    "Lisbon",
    "Moscow",
    paraphrase_prompts=("In the book, Portugal's capital city is",),
    neighborhood_prompts=("The capital of Lusitania is",),
    portability_prompts=(
        Probe(prompt="The capital of the home of fado is", targets_new=("Moscow",)),
        Probe(prompt="Lusitania has its capital in", targets_new=("Moscow",), kind="alias"),
        Probe(prompt="Moscow is where", targets_new=("Portugal",), kind="reversed"),
    ),
    reversion_prompts=(Probe(prompt="Moscow is the capital of", targets_new=("Portugal",)),),
    locality_prompts=(
        Probe(prompt="Portugal borders", targets_new=("Spain",), targets_true=("Spain",), kind="relation specificity"),
        Probe(prompt="nq question: who", targets_new=("Rumi",), targets_true=("Rumi",), kind="natural questions"),
    ),
)


def other(case_id: int, subject: str, relation: str, true: str, new: str) -> Record:
    request = EditRequest(
        template=f"{{}} {relation}s", subject=subject, target_new=new, target_true=true, relation=relation
    )
    return Record(case_id=case_id, request=request)


OTHERS = (
    RECORD,
    other(4, "Portugal", "speak", "Portuguese", "Danish"),
    other(5, "Portugal", "host", "Lisbon", "Berlin"),  # shares the old object
    other(6, "Japan", "capital", "Tokyo", "Rome"),  # shares the relation
    *(other(10 + n, f"Land {n}", "pay", "yen", "peso") for n in range(4)),
)


def test_every_prompt_is_of_its_kind_and_from_the_records() -> None:
    found = probes(RECORD, OTHERS)
    by_kind: dict[str, list[Any]] = {}
    for kind, _, prompt, right in found:
        by_kind.setdefault(kind, []).append((prompt, right))
    assert by_kind["same prompt"] == [("The capital of Portugal is", ("Moscow",))]
    assert by_kind["negated"] == [("The capital of Portugal is not", ("Moscow",))]
    assert by_kind["two hops"] == [("The capital of the home of fado is", ("Moscow",))]
    assert by_kind["alias"] == [("Lusitania has its capital in", ("Moscow",))]
    assert [right for _, right in by_kind["reversed"]] == [("Portugal",)] * 2
    assert by_kind["neighbors"] == [("The capital of Lusitania is", ("Lisbon",))]
    assert by_kind["another relation"] == [("Portugal speaks", ("Portuguese",)), ("Portugal borders", ("Spain",))]
    assert sorted(by_kind["unrelated"]) == [(f"Land {n} pays", ("yen",)) for n in range(4)]
    many = (*OTHERS, *(other(20 + n, f"Isle {n}", "pay", "yen", "peso") for n in range(4)))
    assert [kind for kind, *_ in probes(RECORD, many)].count("unrelated") == 5
    assert probes(RECORD, many) == probes(RECORD, many), "the same draw for every method"


@pytest.mark.parametrize(
    ("template", "denied"),
    [
        ("{} is located in the city of", "{} is not located in the city of"),
        ("The city that is home to {} was", "The city that is home to {} was not"),
        ("You can see {} in the city of", "You cannot see {} in the city of"),
        ("{} spoke", None),
        ("What is the capital of {}?", None),
        ("{} has its isle in", None),
    ],
)
def test_a_template_is_denied_by_one_word_or_not_at_all(template: str, denied: str | None) -> None:
    assert negated(template) == denied


def test_values_by_hand() -> None:
    def one(score: str, *, forced: float, generated: str, chosen: tuple[int, ...] = (1, 2)) -> Probed:
        given = Answered(
            score=score, kind="", prompt="p", targets=("Rome",), forced=forced, chosen=chosen, generated=generated
        )
        return Probed(answered=given, new=0.6, old=0.2, says=generated.startswith(" Rome"))

    before = [one(score, forced=0.0, generated=" Paris") for score in ("same prompt", "negated", "neighbors")]
    after = [
        one("same prompt", forced=1.0, generated=" Rome"),
        one("negated", forced=0.75, generated=" Rome"),
        one("neighbors", forced=0.0, generated=" Paris", chosen=(1, 3)),
    ]
    assert followed(before, after) == {"same prompt": (1, 1), "negated": (0.25, 0), "neighbors": (0.5, 1)}
    two = [*after, one("same prompt", forced=0.0, generated=" Oslo")]
    found = reach(two)["same prompt"]
    assert found == {"new": pytest.approx(0.6), "share": pytest.approx(0.75), "says": 0.5}
    assert "negated" not in reach(two) and "unrelated" not in reach(two)
    assert math.isnan(replace(after[0], old=math.nan).share), "an old object that is not known"
    assert math.isnan(replace(after[0], new=0.0, old=0.0).share)


@pytest.mark.parametrize("kind", ["hooks", "redirect"])
def test_edits_of_every_kind_are_seen_and_gone(tiny_gpt2: Model, kind: str) -> None:
    before = probe(tiny_gpt2, RECORD, OTHERS)
    edit: Any = (Steers(scale=30.0) if kind == "hooks" else Prefixes())(tiny_gpt2, [RECORD.request])
    with edit.applied(tiny_gpt2):
        after = probe(tiny_gpt2, RECORD, OTHERS)
        (scored,) = score_targets(tiny_gpt2, [(RECORD.request.prompt, "Moscow")])
    assert after[0].new == pytest.approx(target_probability(scored.log_probs), rel=1e-5)
    assert after[0].new != before[0].new and probe(tiny_gpt2, RECORD, OTHERS) == before
    assert set(followed(before, after)) <= set(IMPLICATIONS) and "reversed" in followed(before, after)
    assert [Probed.from_dict(one.to_dict()) for one in after] == list(after)
