"""Facts count as known in the first words that bring them, and not where the model says the same of everyone."""

import json
from dataclasses import replace

import pytest
from conftest import GOLDEN

from workbench.atlas.known import known_facts
from workbench.atlas.records import known_records
from workbench.atlas.world import Relation, World
from workbench.models.checkpoints import FETCHED
from workbench.models.generation import generate
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.counterfact import read_counterfact
from workbench.studies.defaults import RECORDS
from workbench.tracing.known import known_answers

SMOLLM2 = RECORDS["smollm2"]


@pytest.fixture(scope="module")
def world() -> World:
    """The countries that the golden model was trained on, with their languages."""
    told = json.loads((GOLDEN / "tiny-gpt2" / "world.json").read_text(encoding="utf-8"))
    facts: dict[str, dict[str, str]] = {}
    for subject, relation, answer in told["facts"]:
        facts.setdefault(subject, {})[relation] = answer
    relations = {
        name: Relation(name=name, templates=("Nothing follows {} here, or", *templates), inverse="{} is of")
        for name, templates in told["templates"].items()
    }
    return replace(World.load(), kinds={}, facts=facts, relations=relations, bridges=())


@pytest.mark.slow
def test_known_facts_stand_in_the_first_template_that_brings_them(tiny_gpt2: Model, world: World) -> None:
    known = known_facts(tiny_gpt2, world)
    assert len(known) > 0.8 * sum(map(len, world.facts.values()))
    first = {name: relation.templates[1] for name, relation in world.relations.items()}
    assert sum(template == first[relation] for (_, relation), template in known.items()) > 0.8 * len(known)
    assert not any(template.startswith("Nothing") for template in known.values())


def test_what_the_model_says_of_everyone_is_no_knowledge(tiny_gpt2: Model, world: World) -> None:
    capitals = {subject: {"capital": "Paris"} for subject in world.facts if subject == "France"}
    others = {f"the {word}": {"capital": "Rome"} for word in ("book", "people", "world")}
    relation = Relation(name="capital", templates=("People in {} speak of France, whose capital is",), inverse="{} is")
    guessing = replace(world, facts=capitals | others, relations={"capital": relation})
    asked = [relation.templates[0].replace("{}", subject) for subject in guessing.facts]
    tops = set(generate(tiny_gpt2, asked, max_new_tokens=1))
    assert len(tops) == 1, "the model says the same of all"
    named = {
        subject: {"capital": tops.copy().pop().strip() if subject == "France" else "Rome"} for subject in guessing.facts
    }
    assert known_facts(tiny_gpt2, replace(guessing, facts=named)) == {}


def test_known_records_ask_in_the_words_that_the_model_answers(world: World) -> None:
    every = World.load(templates=SMOLLM2 / "templates.yaml")
    pairs = {("Milan", "language"): "People in {} speak", ("Turin", "country"): "{} is situated in the country of"}
    records = [record for part in known_records(every, pairs) for record in part]
    assert {(r.request.subject, r.request.relation): r.request.template for r in records} == pairs
    for record in records:
        assert record.request.prompt not in record.paraphrase_prompts and len(record.paraphrase_prompts) == 2


@pytest.mark.slow
def test_the_committed_records_are_enough_and_split_by_subject() -> None:
    train, evaluation = (read_counterfact(SMOLLM2 / f"records_{part}.json") for part in ("train", "evaluation"))
    assert len(train) + len(evaluation) >= 150 and len(evaluation) >= 60
    world = World.load()
    assert {r.request.subject for r in evaluation} <= world.evaluation_subjects
    assert not {r.request.subject for r in train} & world.evaluation_subjects


@pytest.mark.slow
@pytest.mark.skipif(not (FETCHED["smollm2"] / "config.json").is_file(), reason="needs `workbench fetch smollm2`")
def test_smollm2_knows_every_committed_record() -> None:
    model = load_model("smollm2", device="cpu")
    facts = [record.request.fact for record in read_counterfact(SMOLLM2 / "records_evaluation.json")]
    assert all(answer is not None for answer in known_answers(model, facts))
