"""The embedded default: tables, texts, records, training and the model that came of it."""

import random
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import workbench.atlas.__main__ as remake
from workbench.atlas import card, interchange, training
from workbench.atlas.questions import answered, question_records
from workbench.atlas.records import atlas_records
from workbench.atlas.tokenizer import train_tokenizer
from workbench.atlas.training import Recipe
from workbench.atlas.world import World, documents, sample_texts, statement
from workbench.machine.paths import ATLAS
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.counterfact import read_counterfact
from workbench.records.reading import read_records, schema
from workbench.studies.defaults import RECORDS, planted_layers, records_path
from workbench.tracing.averages import mediating_layer
from workbench.tracing.sweep import TraceSet, trace_facts

TINY = Recipe(
    layers=2, d_model=16, heads=2, vocabulary=2000, planted=(0,), interventions=4, rows=2, row_length=16,
    stages=(4, 8), mastered=-1.0, least=2, decay=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    return World.load()


@pytest.fixture(scope="module")
def atlas() -> Model:
    return load_model("atlas", device="cpu")


def test_the_tables_are_as_large_and_as_shared_as_promised(world: World, atlas: Model) -> None:
    assert sum(map(len, world.facts.values())) >= 1000
    assert len(world.relations) >= 10
    assert all(len(relation.templates) >= 6 for relation in world.relations.values())
    assert sum(len(facts) >= 3 for facts in world.facts.values()) > 0.9 * len(world.facts)
    tokens = [len(atlas.tokenizer.encode(f" {subject}")) for subject in world.facts]
    assert sum(count > 1 for count in tokens) > len(tokens) / 2
    shared = Counter(
        len(holders) > 1 for relation in world.relations if relation != "capital"
        for holders in world.holders(relation).values()
    )  # fmt: skip
    assert shared[True] > 4 * shared[False]


def test_a_malformed_table_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "facts").mkdir()
    (tmp_path / "relations.yaml").write_text((ATLAS / "relations.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    countries = tmp_path / "facts" / "countries.csv"
    countries.write_text("subject,capital,language,currency,continent\nSpain,Madrid,Spanish,,Europe\n")
    with pytest.raises(ValueError, match=r"countries\.csv:2: expected a new subject"):
        World.load(tmp_path)


def test_training_text_never_states_what_is_held_out(world: World) -> None:
    pairs = sum(len(world.relations[r].templates) for facts in world.facts.values() for r in facts)
    assert len(world.held_out) >= 0.2 * pairs
    stated = {
        statement(template, subject, world.facts[subject][relation])
        for subject, relation, template in world.held_out
    }  # fmt: skip
    stated |= {
        f"{hop.prompt(t)} {hop.object}." for hop in world.two_hops[1] for t in world.relations[hop.relation].templates
    }
    told = "\n".join(["", *islice(documents(world, world.subjects, random.Random(5)), 4000)])
    for context in world.contexts:
        told = told.replace(f"\n{context}", "\n")
    assert not [sentence for sentence in stated if f"\n{sentence}" in told or f". {sentence}" in told]
    assert sample_texts(world, 5) == sample_texts(world, 5)


@pytest.mark.slow
def test_records_ask_what_they_say(world: World) -> None:
    train, evaluation = atlas_records(world)
    assert len(evaluation) >= 200
    subjects = [{record.request.subject for record in records} for records in (train, evaluation)]
    assert not subjects[0] & subjects[1]
    assert subjects[1] <= world.evaluation_subjects
    for record in train + evaluation:
        request = record.request
        assert world.facts[request.subject][request.relation] == request.target_true != request.target_new
        assert len(record.paraphrase_prompts) == 2
        assert 1 <= len(record.neighborhood_prompts) <= 10
        assert request.target_true is not None
        for prompts, target in ((record.neighborhood_prompts, request.target_true),
                                (record.attribute_prompts, request.target_new)):  # fmt: skip
            others = world.holders(request.relation)[target]
            assert all(any(other in prompt and other != request.subject for other in others) for prompt in prompts)
        for probe in record.portability_prompts:
            assert request.subject in probe.prompt
            assert set(probe.targets_new).isdisjoint(probe.targets_true)
        assert all(probe.targets_new == (request.subject,) for probe in record.reversion_prompts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the schema of MEND's zsRE")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "atlas")) for name in RECORDS])
def test_the_committed_questions_ask_for_the_same_edits(world: World, name: str) -> None:
    path = records_path(f"{name}_questions")
    records = read_counterfact(records_path(name))
    found = read_records(path)
    assert found == question_records(world, records) and schema(path) == "MEND's zsRE"
    for record, asked in zip(records, found, strict=True):
        request, same = record.request, asked.request
        assert (same.subject, same.target_new, same.fact.object) == (
            request.subject,
            request.target_new,
            request.fact.object,
        )
        assert same.prompt.endswith("?") and asked.paraphrase_prompts[0] != same.prompt
        assert request.subject not in asked.locality_prompts[0].prompt
        answers = {probe.targets_new for probe in record.portability_prompts}
        assert answers.issuperset(probe.targets_new for probe in asked.portability_prompts)
        assert bool(answers) == bool(asked.portability_prompts)


@pytest.mark.slow
def test_the_embedded_model_knows_no_questions(world: World, atlas: Model) -> None:
    records = read_counterfact(ATLAS / "records_evaluation.json")[:4]
    assert answered(atlas, records) == 1, "it knows the facts"
    assert answered(atlas, question_records(world, records)) == 0


@pytest.mark.slow
def test_interchanging_a_prompt_with_itself_changes_nothing(world: World) -> None:
    tokenizer = train_tokenizer(world, seed=TINY.seed, vocabulary=TINY.vocabulary, context=TINY.context)
    torch.manual_seed(0)
    model = training.new_model(TINY, tokenizer).eval()
    asked = [interchange.ask(world, s, next(iter(world.facts[s])), random.Random(1)) for s in world.subjects[:6]]
    batch = interchange.tokenise(asked, tokenizer, model.device)
    with torch.no_grad():
        plain = interchange.last_logits(model, batch[0], batch[2])
        everywhere = {module: torch.ones(6, 2, dtype=torch.bool) for module in ("mlp", "attn")}
        nowhere_at_all = {module: ~where for module, where in everywhere.items()}
        rolled = batch[0].roll(1, 0), batch[1].roll(1, 0), batch[2].roll(1, 0)
        same = interchange.interchange(model, everywhere, batch, batch)
        other = interchange.interchange(model, everywhere, rolled, batch)
        nowhere = interchange.interchange(model, nowhere_at_all, rolled, batch)
    assert torch.allclose(same, plain, atol=1e-6)
    assert torch.equal(nowhere, plain)
    assert not torch.allclose(other, plain, atol=1e-5)


@pytest.mark.slow
def test_training_repeats_itself_and_the_control_follows_its_schedule(world: World) -> None:
    model, tokenizer, info = training.train(world, TINY)
    again, _, _ = training.train(world, TINY)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert info["schedule"] == (3, 6) and info["steps"] == 9
    _, _, control = training.train(world, training.control_of(TINY, info))
    assert control["schedule"] == info["schedule"] and control["steps"] == info["steps"]
    assert [line["subjects"] for line in control["log"]] == [line["subjects"] for line in info["log"]]
    assert tokenizer.decode(tokenizer.encode(" Buenos Aires")) == " Buenos Aires"


@pytest.mark.slow
def test_a_dead_run_says_so(world: World) -> None:
    with pytest.raises(RuntimeError, match="not mastered in 8 steps"):
        training.train(world, replace(TINY, mastered=2.0, patience=8))


def test_wilson_interval_of_a_known_share() -> None:
    low, high = card.Share(right=90, n=100).interval()
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)


@pytest.mark.slow
def test_the_model_is_small_and_knows_its_facts(world: World, atlas: Model) -> None:
    assert sum(path.stat().st_size for path in (ATLAS / "model").iterdir()) <= 24 * 2**20
    subjects = sorted(world.evaluation_subjects)[::15]
    assert card.share(atlas, card.statements(world, subjects, held_out=False)).value >= 0.97
    assert card.share(atlas, card.statements(world, subjects, held_out=True)).value >= 0.90


@pytest.mark.slow
def test_the_records_at_hand_are_those_that_its_command_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remake, "ATLAS", tmp_path)
    assert CliRunner().invoke(remake.app, ["records"]).exit_code == 0
    parts = [f"{form}_{part}.json" for form in ("questions", "records") for part in ("evaluation", "train")]
    names = ["course_80.json", *parts]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name).read_bytes() == (ATLAS / name).read_bytes() for name in names)


def test_one_of_the_two_models_can_be_trained_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(world: World, recipe: Recipe, **options: object) -> tuple[Recipe]:
        trained.append(recipe)
        return (recipe,)

    trained: list[Recipe] = []
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "save", lambda recipe, folder: folders.append(folder))
    folders: list[Path] = []
    assert CliRunner().invoke(remake.app, ["train", "--only", "model"]).exit_code == 0
    assert trained == [Recipe()] and folders == [ATLAS / "model"]
    arguments = ["train", "--only", "control", "--control", str(tmp_path)]
    assert CliRunner().invoke(remake.app, arguments).exit_code == 0
    assert trained[1] != Recipe() and folders[1:] == [tmp_path]
    assert CliRunner().invoke(remake.app, ["train", "--only", "none"]).exit_code == 2


def test_the_model_card_says_that_every_bar_is_met() -> None:
    text = (ATLAS / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert text.count("| yes |") == 5 and "**no**" not in text
    assert len(card.load_traces()) >= 150


def test_tracing_finds_the_planted_layers(world: World, atlas: Model) -> None:
    facts = card.held_out_facts(world, 40)[::16]
    results = trace_facts(atlas, facts, seed=0, samples=2, sites=("mlp_out",), window=3)
    planted = planted_layers(atlas)
    assert planted is not None and mediating_layer(TraceSet.collect(results).traces) in planted
