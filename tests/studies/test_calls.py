"""One call each does what its long form does with what the commands settle, and says what is missing in one line."""

import warnings
from pathlib import Path

import pytest
import torch
from known_edits import random_edit
from known_records import CAPITALS
from known_scores import nearly

import workbench
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Fact, Record
from workbench.records.reading import read_records
from workbench.studies import calls, defaults
from workbench.studies.edit import make_editor
from workbench.studies.locate import find_layer, fitted, true_facts
from workbench.tracing.fact import trace_fact
from workbench.tracing.noise import fact_generator, subject_span

pytestmark = pytest.mark.usefixtures("cache", "quick_presets")
SUBJECT, TRUE, NEW = CAPITALS[0]
TEMPLATE = "The capital of {} is"
OPTIONS = {"preset_of": "gpt2-xl", "second_moment": None, "contexts": ("{}",), "steps": 2}


@pytest.fixture(autouse=True)
def at_hand(records: Path, tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records about countries are those at hand, and nothing was located yet."""
    monkeypatch.setitem(defaults.RECORDS, "smollm2", records.parent)
    monkeypatch.setattr(calls, "records_path", lambda name: records)
    monkeypatch.setattr(tiny_gpt2, "_found", {})


@pytest.mark.slow
def test_a_trace_is_that_of_the_long_form(tiny_gpt2: Model, records: Path) -> None:
    found = workbench.trace(tiny_gpt2, f"The capital of {SUBJECT} is", SUBJECT, samples=2, window=2, seed=5)
    fact, facts = Fact(subject=SUBJECT, template=TEMPLATE, object=TRUE), [*true_facts(read_records(records)).values()]
    noise, (first, end) = fitted(tiny_gpt2, facts, "s3"), subject_span(tiny_gpt2, fact)
    drawn = noise.draw(2, end - first, generator=fact_generator(5, 0))
    wanted = trace_fact(tiny_gpt2, fact, noise=drawn, window=2)
    assert (found.fact.template, found.answer, found.subject) == (TEMPLATE, wanted.answer, wanted.subject)
    assert all(torch.equal(found.restored[site], wanted.restored[site]) for site in wanted.restored)
    request = EditRequest(template=TEMPLATE, subject=SUBJECT, target_new=NEW)
    for given in (fact, request, Record(case_id=0, request=request)):
        same = workbench.trace(tiny_gpt2, given, samples=2, window=2, seed=5, sites=["mlp_out"])
        assert torch.equal(same.restored["mlp_out"], wanted.restored["mlp_out"])


def test_an_edit_is_located_over_the_facts_at_hand(tiny_gpt2: Model, records: Path) -> None:
    layer = find_layer(tiny_gpt2, [*true_facts(read_records(records)).values()])
    request, before = EditRequest(template=TEMPLATE, subject=SUBJECT, target_new=NEW), tiny_gpt2.fingerprint()
    wanted = make_editor(tiny_gpt2, "rome", layer=layer, **OPTIONS)(tiny_gpt2, [request])
    found = workbench.edit(tiny_gpt2, f"The capital of {SUBJECT} is", SUBJECT, NEW, **OPTIONS)
    assert found.digest == wanted.digest and found.requests == (request,)
    assert tiny_gpt2.fingerprint() == before
    fact = Fact(subject=SUBJECT, template=TEMPLATE, object=TRUE)
    (made,) = workbench.edit(tiny_gpt2, fact, to=NEW, layer=1, **OPTIONS).requests
    assert (made.target_true, made.target_new) == (TRUE, NEW)
    every = read_records(records)[:2]
    several = workbench.edit(tiny_gpt2, every, layer=1, **OPTIONS)
    assert several.requests == tuple(record.request for record in every) and several.places == {(1, "W_out")}


def test_a_model_that_knows_nothing_at_hand(tiny_gpt2: Model, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = next(iter(true_facts(read_records(records)).values()))
    unknown = [Fact(subject="It", template="{} is", object="nowhere")]
    monkeypatch.setattr(calls, "_facts_at_hand", lambda model: unknown)
    request = EditRequest(template=known.template, subject=known.subject, target_new=NEW, target_true=known.object)
    (place,) = workbench.edit(tiny_gpt2, request, **OPTIONS).places
    assert place == (find_layer(tiny_gpt2, [known]), "W_out")
    with pytest.raises(ValueError, match="knows none of the facts at hand, so no layer is located: give layer="):
        workbench.edit(tiny_gpt2, TEMPLATE, SUBJECT, NEW, **OPTIONS)


def test_an_evaluation_tests_what_it_is_given(tiny_gpt2: Model, records: Path) -> None:
    record = read_records(records)[0]
    edit = random_edit(tiny_gpt2, 0, (2, "W_out"))
    options = {"generate": False, "fluency_tokens": None}
    whole = workbench.evaluate(
        tiny_gpt2, edit, record, paraphrases=["One more is"], neighbors=["Another is"], **options
    )
    assert [one.prompt for one in whole.post.prompts["paraphrase"]] == [*record.paraphrase_prompts, "One more is"]
    assert [one.prompt for one in whole.post.prompts["neighborhood"]] == [*record.neighborhood_prompts, "Another is"]
    alone = workbench.evaluate(tiny_gpt2, None, record.request, **options)
    assert nearly(alone.pre, alone.post) and nearly(alone.pre.prompts["rewrite"], whole.pre.prompts["rewrite"])
    with pytest.raises(ValueError, match="an edit of one request says what tests it, this has 0: give a record"):
        workbench.evaluate(tiny_gpt2, edit)
    for name in ("paraphrases", "neighbors"):
        with pytest.raises(ValueError, match=rf"{name}: expected a list of texts, got 'One more is': put it in \[ \]"):
            workbench.evaluate(tiny_gpt2, edit, record, **{name: "One more is"}, **options)


def test_a_subject_that_stands_twice_is_warned_of(tiny_gpt2: Model) -> None:
    with pytest.warns(UserWarning, match="'Rome' stands more than once"):
        found = workbench.trace(tiny_gpt2, "Rome is in Italy and Rome is", "Rome", samples=1, sites=("mlp_out",))
    assert found.fact.template == "{} is in Italy and Rome is"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        workbench.trace(tiny_gpt2, "Rome is in Italy and {} is", "Rome", samples=1, sites=("mlp_out",))


def test_what_is_missing_is_told(tiny_gpt2: Model) -> None:
    with pytest.raises(ValueError, match="the subject of 'The capital' is missing"):
        workbench.trace(tiny_gpt2, "The capital")
    with pytest.raises(
        ValueError, match=r"'Peru' does not stand in 'The capital': write the subject as there, or \{\}"
    ):
        workbench.edit(tiny_gpt2, "The capital", "Peru", "Lima")
    with pytest.raises(ValueError, match="in other code points for the same letters: copy it from there"):
        workbench.trace(tiny_gpt2, "Zu\u0308rich is in", "Z\u00fcrich")
    with pytest.raises(ValueError, match="the new answer is missing: give it as to="):
        workbench.edit(tiny_gpt2, "The capital of Peru", "Peru")
    with pytest.raises(ValueError, match="leave both out"):
        workbench.edit(tiny_gpt2, EditRequest(template="{} is", subject="It", target_new="so"), "It")
    with pytest.raises(ValueError, match="no editor 'rom'; there are"):
        workbench.edit(tiny_gpt2, "{} is", "It", "so", method="rom")


def test_a_layer_that_would_not_be_followed_is_refused(tiny_gpt2: Model) -> None:
    request = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow")
    with pytest.raises(ValueError, match="memit with the preset of gpt2-xl edits layers 13,17, so --layer 2 would not"):
        workbench.edit(tiny_gpt2, request, method="memit", layer=2, preset_of="gpt2-xl")
    edit = workbench.edit(tiny_gpt2, request, method="ft", layers=[1, 2], preset_of="gpt2-xl", steps=1)
    assert set(edit.norms(tiny_gpt2)) == {1, 2}
