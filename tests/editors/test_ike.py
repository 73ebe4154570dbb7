"""IKE: the published code's prompts and perplexities, what it tells a model, and what it does with bad input."""

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from known_edits import random_edit, same
from known_scores import scored
from safetensors.torch import load_file

from workbench.editors import ike
from workbench.editors.ike import IKE, InContextEdit
from workbench.editors.shared.demonstrations import mention, shuffled_kinds, usable
from workbench.editors.shared.retrieval import nearest, similarities
from workbench.edits.edit import Edit
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.measuring.evaluate import evaluate
from workbench.models.generation import generate
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record
from workbench.records.reading import read_records
from workbench.studies.defaults import RECORDS as RECORDS_OF
from workbench.studies.defaults import records_path
from workbench.studies.edit import make_editor

REFERENCE = json.loads((GOLDEN / "survey" / "ike.json").read_text(encoding="utf-8"))
PUBLISHED_ORDER = [2, 1, 2, 0, 1, 2, 2, 0, 2, 2, 1, 0, 2, 1, 2, 0] + [1, 2] * 8
"""Kinds of icl.py's demonstrations before they are shuffled: 0 copy, 1 update, 2 retain."""
CAPITAL, LANGUAGE, SPOKEN = "The capital of {} is", "The language spoken in {} is", "In {}, most people speak"
REQUESTS = [
    EditRequest(template=template, subject=subject, target_new=new, target_true=true)
    for template, subject, new, true in (
        (CAPITAL, "Portugal", "Moscow", "Lisbon"),
        (LANGUAGE, "Iceland", "Thai", "Icelandic"),
        (SPOKEN, "Argentina", "Polish", "Spanish"),
    )
]


def record(case_id: int, entry: dict[str, Any]) -> Record:
    rewrite = entry["requested_rewrite"]
    request = EditRequest(
        template=rewrite["prompt"],
        subject=rewrite["subject"],
        target_new=rewrite["target_new"]["str"],
        target_true=rewrite["target_true"]["str"],
    )
    return Record(
        case_id=case_id,
        request=request,
        paraphrase_prompts=tuple(entry["paraphrase_prompts"]),
        neighborhood_prompts=tuple(entry["neighborhood_prompts"]),
    )


RECORDS = [record(number, entry) for number, entry in enumerate(REFERENCE["demos"])]


@pytest.fixture
def roomy(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The golden model, if its context were long; it can be asked what is put to it, but cannot answer that."""
    monkeypatch.setattr(tiny_gpt2, "n_ctx", 100_000)
    return tiny_gpt2


def put(edit: InContextEdit, model: Model, prompt: str) -> str:
    return edit.asked(model, prompt)[1]


def answering(model: Model) -> list[tuple[Model, str]]:
    """Who answers one prompt, and what is put to them."""
    return [(voice.model, voice.prompt) for voice in model.voices("In Rome")]


def ranked(places: Sequence[int]) -> Callable[[Sequence[str]], Any]:
    """Embeddings by which the golden records are nearest to every request in this order."""
    copies = [f"New Fact: {fact}\nPrompt: {fact}\n\n" for fact in map(said, RECORDS)]
    angles = {copies[place]: 0.02 * (rank + 1) for rank, place in enumerate(places)}

    def embed(texts: Sequence[str]) -> list[list[float]]:
        # What is no copy is the query; a record that was not retrieved is far away.
        angle = [angles.get(text, 3.0 if text in copies else 0.0) for text in texts]
        return [[float(np.cos(each)), float(np.sin(each))] for each in angle]

    return embed


def said(one: Record) -> str:
    return f"{one.request.prompt} {one.request.target_new}"


# The published code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(3))
def test_golden_prompt(roomy: Model, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    golden, request = REFERENCE["zce"][number], REQUESTS[number]
    drawn: list[list[int]] = []

    def as_published(count: int, chance: Random) -> list[str]:
        order = PUBLISHED_ORDER[:count]
        chance.shuffle(order)
        drawn.append(order)
        return [("copy", "update", "retain")[kind] for kind in order]

    monkeypatch.setattr(ike, "shuffled_kinds", as_published)
    retrieval = ranked([index - 2000 for index in REFERENCE["corpus_idx"][number]])
    edit = IKE(records=RECORDS, retrieval=retrieval, seed=golden["seed"])(roomy, [request])
    assert put(edit, roomy, request.prompt) == golden["full_prompt"]
    assert drawn == [golden["kinds"]]


@pytest.mark.parametrize("number", range(3))
def test_golden_perplexities_without_demonstrations(tiny_gpt2: Model, number: int) -> None:
    golden, request = REFERENCE["zce"][number]["ppl_without_demonstrations"], REQUESTS[number]
    edit = IKE(records=(), demonstrations=0, variant="easyedit")(tiny_gpt2, [request])  # without a last copy
    assert put(edit, tiny_gpt2, request.prompt) == golden["prompt"]
    with edit.applied(tiny_gpt2):
        found = scored(tiny_gpt2, [request.prompt] * 2, [request.target_new, str(request.target_true)])
    assert [len(log_probs) for log_probs in found] == golden["target_tokens"]
    perplexities = [torch.exp(-log_probs.mean()).item() for log_probs in found]
    assert perplexities == pytest.approx([golden["new"], golden["true"]], rel=1e-5)


@pytest.mark.parametrize("number", range(3))
def test_golden_prompt_of_easyedit(roomy: Model, number: int) -> None:
    golden, request = REFERENCE["easyedit"][number], REQUESTS[number]
    arrays = load_file(GOLDEN / "survey" / "ike.safetensors")
    sentences = REFERENCE["easyedit_sentences"]
    rows = dict(zip(sentences, arrays["easyedit.sentence_embeddings"].numpy(), strict=True))
    rows[golden["query"]] = arrays[f"easyedit.{number}.query_embedding"].numpy()

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.stack([rows[text] for text in texts])

    expected = arrays[f"easyedit.{number}.similarity"].numpy()
    np.testing.assert_allclose(similarities(sentences, golden["query"], embed), expected, atol=1e-6)
    assert nearest(sentences, golden["query"], embed, count=16) == golden["sentence_indices"]
    edit = IKE(records=RECORDS, retrieval=embed, demonstrations=16, variant="easyedit")(roomy, [request])
    assert list(edit.demonstrations[0][::-1]) == golden["examples"]
    assert put(edit, roomy, request.prompt) == golden["full_prompt"]


# Which demonstrations ------------------------------------------------------------------------------------------


def test_kinds_are_one_to_three_to_four() -> None:
    def counts(count: int) -> tuple[int, ...]:
        kinds = shuffled_kinds(count, Random(count))
        return tuple(kinds.count(kind) for kind in ("copy", "update", "retain"))

    assert (counts(32), counts(16), counts(8)) == ((4, 12, 16), (2, 6, 8), (1, 3, 4))
    assert [sum(counts(count)) for count in range(40)] == list(range(40))
    assert shuffled_kinds(32, Random(0)) != shuffled_kinds(32, Random(1))


def test_as_many_as_there_are_and_by_seed(roomy: Model) -> None:
    made = [IKE(records=RECORDS, demonstrations=40, seed=seed)(roomy, REQUESTS[:1]) for seed in (0, 0, 1)]
    texts = [edit.demonstrations[0] for edit in made]
    assert len(texts[0]) == len(RECORDS) and texts[0] == texts[1] != texts[2]
    together = IKE(records=RECORDS, demonstrations=40, seed=0)(roomy, REQUESTS[::-1])
    assert together.demonstrations[2] == texts[0], "a request's demonstrations do not depend on the others"


def test_by_tfidf_records_of_the_same_words_come_last(roomy: Model) -> None:
    edit = IKE(records=RECORDS, demonstrations=5)(roomy, REQUESTS[:2])
    for texts, words in zip(edit.demonstrations, ("The capital of", "The language spoken in"), strict=True):
        assert all(text.startswith(f"New Fact: {words}") for text in texts)
    texts = ["a red cat", "the blue dog", "the dog runs", "the bird"]
    assert nearest(texts, "a dog that runs", "tfidf", count=3) == [2, 1, 0]
    assert similarities(texts, "the blue dog", "tfidf")[1] == pytest.approx(1)


def test_none_mentions_a_subject_that_is_edited(roomy: Model) -> None:
    greece = EditRequest(template=CAPITAL, subject="greece", target_new="Rome", target_true="Athens")
    assert any("Greece" in prompt for one in RECORDS for prompt in one.neighborhood_prompts)
    for variant in ("paper", "easyedit"):
        edit = IKE(records=RECORDS, demonstrations=100, variant=variant)(roomy, [greece])
        assert len(edit.demonstrations[0]) > 30
        assert not mention(edit.demonstrations[0], ["Greece"])
    assert not mention(["Niger is"], ["Nigeria"]) and not mention(["Nigeria is"], ["Niger"])


def test_records_that_cannot_demonstrate_are_left_out() -> None:
    one = RECORDS[0]
    assert usable(one, ["Portugal"]) == one
    assert usable(one, ["France"]) is None
    assert usable(one, ["Athens"]) is None
    assert usable(replace(one, paraphrase_prompts=()), []) is None
    assert usable(replace(one, neighborhood_prompts=()), []) is None
    assert usable(replace(one, request=replace(one.request, target_true=None)), []) is None
    near = usable(one, ["Italy"])
    assert near is not None and near.neighborhood_prompts == ("The capital of Spain is",)


def test_sentences_before_a_paraphrase_are_left_out() -> None:
    prompts = ("He sat. It rained.\n\nIn the book, France's capital is", "Of France. France has", "No mention. Of it")
    found = usable(replace(RECORDS[0], paraphrase_prompts=prompts), [])
    assert found is not None
    assert found.paraphrase_prompts == (
        "In the book, France's capital is",
        "Of France. France has",
        "No mention. Of it",
    )


@pytest.mark.slow
def test_training_records_from_the_command_line(tiny_gpt2: Model) -> None:
    """Those of the facts that the study edits unless told; their subjects are others."""
    editor: Any = make_editor(tiny_gpt2, "ike", layer=2, preset_of="atlas", seed=3)
    assert editor.layers == () and editor.seed == 3 and editor.demonstrations == 32
    asked = {one.request.subject for one in read_records(records_path("smollm2"))}
    assert len(editor.records) > 200 and not asked & {one.request.subject for one in editor.records}


# What is put to the model --------------------------------------------------------------------------------------


def test_another_form_of_questions(roomy: Model) -> None:
    edit = IKE(records=RECORDS, demonstrations=0, question="Q: {} A:")(roomy, REQUESTS[:1])
    assert put(edit, roomy, "In {}, x") == (
        "New Fact: The capital of Portugal is Moscow\nQ: The capital of Portugal is A: Moscow\n\n"
        "New Fact: The capital of Portugal is Moscow\nQ: In {}, x A:"
    )


def test_targets_follow_as_their_record_has_it(roomy: Model) -> None:
    request = EditRequest(template="{}の首都は", subject="日本", target_new="ローマ")
    edit = IKE(records=(), demonstrations=0)(roomy, [request])
    assert put(edit, roomy, request.prompt) == "New Fact: 日本の首都はローマ\nPrompt: 日本の首都はローマ\n\n" + (
        "New Fact: 日本の首都はローマ\nPrompt: 日本の首都は"
    )


def test_several_requests_take_turns(roomy: Model) -> None:
    edit = IKE(records=RECORDS, demonstrations=3)(roomy, REQUESTS[:2])
    one, other = edit.demonstrations
    copies = [f"New Fact: {text}\nPrompt: {text}\n\n" for text in (f"{r.prompt} {r.target_new}" for r in REQUESTS[:2])]
    shown = [one[0], other[0], one[1], other[1], one[2], other[2], *copies]
    facts = "New Fact: The capital of Portugal is Moscow\nNew Fact: The language spoken in Iceland is Thai\n"
    assert put(edit, roomy, "In Rome") == "".join(shown) + facts + "Prompt: In Rome"


def test_stacked_edits_put_what_one_of_all_would(roomy: Model) -> None:
    together = IKE(records=RECORDS, demonstrations=4)(roomy, REQUESTS)
    edits = [IKE(records=RECORDS, demonstrations=4)(roomy, [request]) for request in REQUESTS]
    alone, expected = [put(edit, roomy, "In Rome") for edit in edits], put(together, roomy, "In Rome")
    for edit in edits:
        edit.apply_(roomy)
    assert answering(roomy) == [(roomy, expected)]
    for number in (1, 0):
        edits[number].revert_(roomy)
    assert answering(roomy) == [(roomy, alone[2])]
    edits[2].revert_(roomy)
    assert answering(roomy) == [(roomy, "In Rome")]


def test_stacked_edits_show_nothing_about_each_others_subjects(roomy: Model) -> None:
    italy = EditRequest(template=LANGUAGE, subject="Italy", target_new="Thai")
    editor = IKE(records=RECORDS, demonstrations=100)
    first = editor(roomy, REQUESTS[:1])
    assert mention(first.demonstrations[0], ["Italy"])
    with first.applied(roomy):
        second = editor(roomy, [italy])
        with second.applied(roomy):
            ((_, text),) = answering(roomy)
    own = "New Fact: The language spoken in Italy is Thai\n"
    assert (
        text.replace(own + "Prompt: The language spoken in Italy is Thai\n\n", "").replace(own, "").count("Italy") == 0
    )
    assert first.requests[0].subject not in "".join(second.demonstrations[0])


# Room in the context -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", pytest.param("easyedit", marks=pytest.mark.slow)])
def test_the_farthest_are_left_out_where_there_is_no_room(
    tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch, variant: Any
) -> None:
    edit = IKE(records=RECORDS, demonstrations=8, variant=variant, answer_tokens=10)(tiny_gpt2, REQUESTS[:1])
    model = load_model(str(GOLDEN / "tiny-gpt2"), device="cpu")
    monkeypatch.setattr(model, "n_ctx", 100_000)
    whole = put(edit, model, "In Rome")
    blocks, end = whole.split("\n\n")[:-1], whole.split("\n\n")[-1]
    blocks = blocks if variant == "paper" else blocks[::-1]  # the nearest last
    told, lengths = list[int](), range(2000, 20, -23)

    def tokens(text: str) -> int:
        return len(model.tokenizer(text)["input_ids"])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n_ctx in lengths:
            monkeypatch.setattr(model, "n_ctx", n_ctx)
            text = put(edit, model, "In Rome")
            kept = text.split("\n\n")[:-1]
            kept = kept if variant == "paper" else kept[::-1]
            assert text.split("\n\n")[-1] == end
            assert kept == blocks[len(blocks) - len(kept) :]
            room = n_ctx - min(10, n_ctx // 4)
            longer = blocks[len(blocks) - len(kept) - 1 :]
            assert tokens(text) <= room or not kept
            assert len(kept) == len(blocks) or tokens("\n\n".join([*longer, end])) > room
            told.append(len(kept))
    assert told == sorted(told, reverse=True) and told[0] == len(blocks) and told[-1] == 0
    first = lengths[next(place for place, count in enumerate(told) if count < len(blocks))]
    assert [str(each.message) for each in caught] == [
        f"not all demonstrations of IKE fit into the context of {first} of {model.name} with the "
        "prompt and its answer: the farthest are left out"
    ]


def test_the_oldest_facts_are_left_out_at_last(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(str(GOLDEN / "tiny-gpt2"), device="cpu")
    edit = IKE(records=RECORDS, demonstrations=8)(model, REQUESTS)
    monkeypatch.setattr(model, "n_ctx", 60)
    with pytest.warns(UserWarning, match="not all facts that IKE tells fit into the context of 60"):
        text = put(edit, model, "In Rome")
    assert text.endswith("New Fact: In Argentina, most people speak Polish\nPrompt: In Rome")
    assert "Portugal" not in text


# An edit like others -------------------------------------------------------------------------------------------


def test_saved_and_loaded(tiny_gpt2: Model, tmp_path: Path) -> None:
    edit = IKE(records=RECORDS, demonstrations=3, question="Q: {} A:")(tiny_gpt2, REQUESTS[:2])
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors", model=tiny_gpt2)
    assert isinstance(loaded, InContextEdit) and loaded.digest == edit.digest
    assert (loaded.requests, loaded.provenance, loaded.settings()) == (edit.requests, edit.provenance, edit.settings())
    assert loaded.asked(tiny_gpt2, "In Rome") == edit.asked(tiny_gpt2, "In Rome")
    hyperparameters = {
        "demonstrations": 3,
        "question": "Q: {} A:",
        "variant": "paper",
        "answer_tokens": 100,
        "seed": 42,
    }
    assert edit.provenance["hyperparameters"] == {**hyperparameters, "retrieval": "tfidf"}
    assert edit.provenance["records"] == len(RECORDS)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_weights_stay_and_scores_follow(checkpoints: dict[str, Path], family: str, dtype: torch.dtype) -> None:
    """The scores are those of the prompts as they are put, asked of the model without an edit."""
    model = load_model(str(checkpoints[family]), device="cpu", dtype=dtype)
    request = EditRequest(template="{} is in", subject="Rome", target_new="Asia", target_true="Italy")
    one = Record(case_id=0, request=request, paraphrase_prompts=("See Rome in",), neighborhood_prompts=("Milan is in",))
    before, untouched = model.snapshot(), state_fingerprint(model)
    edit = IKE(records=(), demonstrations=0)(model, [request])
    found = evaluate(model, edit, one, fluency_tokens=None)
    assert same(before, model.snapshot())
    check_restored(model, untouched, after="a test")
    for kind, prompts in (("rewrite", [request.prompt]), ("neighborhood", ["Milan is in"])):
        (log_probs,) = scored(model, [put(edit, model, prompts[0])], ["Asia"])
        assert found.post.prompts[kind][0].p_new == pytest.approx(log_probs.mean().exp().item(), rel=1e-3)
        assert found.post.prompts[kind][0].p_new != found.pre.prompts[kind][0].p_new
    assert found.relative_norms == {}


def test_beside_an_edit_of_weights(tiny_gpt2: Model) -> None:
    others, edit = random_edit(tiny_gpt2, 0, (1, "W_out")), IKE(records=(), demonstrations=0)(tiny_gpt2, REQUESTS[:1])
    prompt, text = REQUESTS[0].prompt, put(edit, tiny_gpt2, REQUESTS[0].prompt)
    with others.applied(tiny_gpt2):
        expected = generate(tiny_gpt2, [text], max_new_tokens=4)
        with edit.applied(tiny_gpt2):
            assert generate(tiny_gpt2, [prompt], max_new_tokens=4) == expected


# Bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"demonstrations": -1}, "demonstrations must be at least 0 and answer_tokens at least 1, got -1 and 100"),
        ({"answer_tokens": 0}, "answer_tokens at least 1, got 32 and 0"),
        ({"question": "Prompt:"}, "question needs exactly one {}, got 'Prompt:'"),
        ({"variant": "easy"}, "variant"),
    ],
)
def test_fields_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        IKE(records=(), **fields)


def test_no_record_that_can_demonstrate(tiny_gpt2: Model) -> None:
    france = [EditRequest(template=CAPITAL, subject="France", target_new="Rome")]
    for records in ([], RECORDS[:1]):
        with pytest.raises(ValueError, match=f"none of {len(records)} training records can demonstrate .* 'France'"):
            IKE(records=records)(tiny_gpt2, france)


def test_requests_that_cannot_be(tiny_gpt2: Model) -> None:
    with pytest.raises(ValueError, match="at least one request"):
        IKE(records=RECORDS)(tiny_gpt2, [])
    with pytest.raises(ValueError, match="contradictory requests about 'Portugal'"):
        IKE(records=RECORDS)(tiny_gpt2, [REQUESTS[0], replace(REQUESTS[0], target_new="Rome")])


def test_sentence_embeddings_that_are_not_installed(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match="'all-MiniLM-L6-v2' needs the package sentence-transformers: pip install"):
        IKE(records=RECORDS, retrieval="all-MiniLM-L6-v2")(tiny_gpt2, REQUESTS[:1])


def test_sentence_embeddings_by_name(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the package is asked for its embeddings by its method `encode`."""

    class Known:
        def __init__(self, name: str) -> None:
            assert name == "all-MiniLM-L6-v2"

        def encode(self, texts: Sequence[str]) -> Any:
            return ranked([7, 3, 5])(texts)

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Known))
    edit = IKE(records=RECORDS, retrieval="all-MiniLM-L6-v2", demonstrations=3)(tiny_gpt2, REQUESTS[:1])
    nearest_last = [said(RECORDS[place]) for place in (5, 3, 7)]
    assert [text.split("\n")[0] for text in edit.demonstrations[0]] == [f"New Fact: {fact}" for fact in nearest_last]
    assert edit.provenance["hyperparameters"]["retrieval"] == "all-MiniLM-L6-v2"


def test_a_fact_that_does_not_fit_says_so(tiny_gpt2: Model) -> None:
    long = EditRequest(template=CAPITAL, subject="Portugal", target_new="Moscow " * 30)
    edit = IKE(records=(), demonstrations=0)(tiny_gpt2, [long])
    with edit.applied(tiny_gpt2), pytest.raises(ValueError, match="more than the context of 64"):
        generate(tiny_gpt2, ["In Rome"], max_new_tokens=2)


# What is asked is not told -------------------------------------------------------------------------------------


def test_demonstrations_that_tell_of_what_is_asked_are_left_out_before_it(roomy: Model) -> None:
    edit = InContextEdit(
        method="IKE", requests=(REQUESTS[0],), provenance={}, question="Prompt: {}", variant="paper", answer_tokens=8,
        demonstrations=((
            "New Fact: The capital of Peru is Cairo\nPrompt: The capital of Chile is Santiago\n\n",
            "New Fact: In New Zealand, the people speak Thai\nPrompt: In New Zealand, most speak Thai\n\n",
            "New Fact: The capital of Egypt is Rome\nPrompt: People in Chile live in Santiago\n\n",
            "New Fact: THE CITY WE MEAN is Rome\nPrompt: the city we mean is Rome\n\n",
        ),),
    )  # fmt: skip

    def shown(prompt: str) -> list[int]:
        said = put(edit, roomy, prompt)
        return [place for place, text in enumerate(edit.demonstrations[0]) if text in said]

    assert shown("The capital of Portugal is") == [0, 1, 2, 3]
    assert shown("In Chile, most people speak") == [1, 3], "the neighbor's name in other words"
    assert shown("The capital of Peru is") == [1, 2, 3], "the subject of a new fact"
    assert shown("The airport of New York is in") == [0, 1, 2, 3], "'New' heads every demonstration"
    assert shown("the city we mean is") == [0, 1, 2], "the prompt itself, without a name"


@pytest.mark.slow
def test_no_evaluated_neighbor_is_told_of(roomy: Model) -> None:
    """Of the records that come with the workbench, many neighbors are in training and evaluation records."""
    training, evaluated = (
        read_records(RECORDS_OF["smollm2"] / f"records_{split}.json") for split in ("train", "evaluation")
    )
    told, kept = 0, []
    for each in evaluated[:3]:
        edit = IKE(records=training)(roomy, [each.request])
        for prompt in each.neighborhood_prompts:
            shown = put(edit, roomy, prompt).rsplit("\n\n", 1)[0]
            assert prompt not in shown
            told += any(prompt in text for text in edit.demonstrations[0])
            kept.append(shown.count("Prompt: ") - 1)
    assert told > 0 and sum(kept) > 0.8 * 32 * len(kept)
