"""SERAC: the published code's scores, texts and outputs, one memory of many edits, and what is kept in files."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from conftest import GOLDEN
from known_edits import random_edit, same
from safetensors.torch import load_file
from torch import Tensor

from workbench.editors import scoped_memory
from workbench.editors.registry import EDITORS
from workbench.editors.scoped_memory import MemoryEdit
from workbench.editors.serac import SERAC
from workbench.editors.setup.presets import PRESETS
from workbench.editors.training.made_up import Questions
from workbench.editors.training.network import TrainedNetwork, trained_network
from workbench.editors.training.scope import balanced_loss, similarities
from workbench.editors.training.scope_and_copy import in_words, marked, parts_of
from workbench.editors.training.serac import Networks, SeracRecipe
from workbench.edits.edit import Edit
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.sequence import sequence
from workbench.models.generation import generate
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.scoring import score_targets
from workbench.records.facts import EditRequest, Record
from workbench.records.reading import read_records
from workbench.studies.defaults import records_path

REFERENCE = json.loads((GOLDEN / "survey" / "serac.json").read_text(encoding="utf-8"))
ARRAYS = load_file(GOLDEN / "survey" / "serac.safetensors")
CAPITAL, SPOKEN = "The capital of {} is", "In {}, most people speak"
REQUESTS = [
    EditRequest(template=template, subject=subject, target_new=new, target_true=true)
    for template, subject, new, true in (
        (CAPITAL, "Portugal", "Moscow", "Lisbon"),
        (SPOKEN, "Argentina", "Polish", "Spanish"),
        (CAPITAL, "Japan", "Rome", "Tokyo"),
    )
]
TINY_RECIPE = SeracRecipe(
    width=8, scope_heads=2, heads=2, d_head=8, d_mlp=8, batch=2, steps=2, validate_every=1, patience=5, held_out=1
)


# The published code's numbers -----------------------------------------------------------------------------------


def test_published_similarities() -> None:
    keys, scale = ARRAYS["cache_embeddings"], REFERENCE["scale"]
    names = {"squared": "similarities", "plain": "similarities_unsquared", "cosine": "similarities_cosine"}
    for place, test in enumerate(REFERENCE["tests"]):
        query = ARRAYS[f"{place}.test_embedding"][None]
        for distance, name in names.items():
            (found,) = similarities(query, keys, scale=scale, distance=distance)  # pyright: ignore[reportArgumentType]
            assert found.tolist() == pytest.approx(test[name], abs=1e-5)


def test_published_balanced_loss() -> None:
    given = REFERENCE["balanced_bce"]
    found = balanced_loss(torch.tensor(given["log_probs"]), torch.tensor(given["labels"]) > 0)
    assert found.item() == pytest.approx(given["value"], abs=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_published_switch(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch, soft: bool) -> None:
    """Which edit is chosen, what is put to the counterfactual model, and what comes of it, each by itself.

    The published mixture adds float32's epsilon to each probability, of which its loss takes the share of their sum; so
    does this test.
    """
    tests = REFERENCE["tests"]
    embeddings = {test["prompt"]: ARRAYS[f"{place}.test_embedding"] for place, test in enumerate(tests)}
    prompts = [request.prompt for request in REQUESTS[:2]]
    memory = dict(zip(prompts, ARRAYS["cache_embeddings"], strict=True))
    monkeypatch.setattr(scoped_memory, "first_token", lambda name, text, device: memory[text])
    folder = str(GOLDEN / "tiny-gpt2")
    serac = SERAC(encoder="golden", counterfactual=folder, scale=REFERENCE["scale"], soft=soft)
    assert serac.trained_seconds == 0
    edit = serac(tiny_gpt2, REQUESTS[:2])
    monkeypatch.setattr(scoped_memory, "first_token", lambda name, text, device: embeddings[text])
    assert [in_words(request, "") for request in REQUESTS[:2]] == REFERENCE["replacement_contexts"]
    with edit.applied(tiny_gpt2):
        for place, test in enumerate(tests):
            near, request = edit.chosen(tiny_gpt2, test["prompt"])
            assert near == pytest.approx(test["similarity"], abs=1e-5)
            assert request == REQUESTS[test["chosen"]]
            put = [voice.prompt for voice in tiny_gpt2.voices(test["prompt"])]
            replacement = test["replacement_text"].removesuffix(f" {test['target']}")
            if soft:
                assert put == [test["prompt"], replacement]
            else:
                assert put == [replacement if test["hard_is_replacement"] else test["prompt"]]
            (score,) = score_targets(tiny_gpt2, [(test["prompt"], test["target"])])
            first = -len(score.log_probs) - 1
            expected = ARRAYS[f"{place}.{'soft' if soft else 'hard'}"]
            epsilon = torch.finfo(torch.float32).eps if soft else 0
            found = score.next_log_probs.exp() + epsilon
            torch.testing.assert_close(
                found, expected[first].exp() if soft else expected[first].softmax(dim=-1), atol=1e-5, rtol=0
            )
            nll = -((score.log_probs.exp() + epsilon) / found.sum()).log().mean().item()
            assert nll == pytest.approx(test["nll_soft" if soft else "nll_hard"], abs=1e-5, rel=1e-5)


# Networks small enough to be trained within a test -----------------------------------------------------------------


def made_up_records() -> list[Record]:
    return [
        Record(
            case_id=place,
            request=replace(request, relation=relation),
            paraphrase_prompts=(f"They say that {request.prompt}",),
            neighborhood_prompts=("The capital of Italy is",),
            generation_prompts=(f"{request.subject} is",),
        )
        for place, (request, relation) in enumerate(zip(REQUESTS, ("capital", "language", "capital"), strict=True))
    ]


@pytest.fixture(scope="module")
def network(tiny_gpt2: Model) -> TrainedNetwork:
    return SERAC.fit(tiny_gpt2, made_up_records(), TINY_RECIPE)


@pytest.fixture
def editor(network: TrainedNetwork) -> SERAC:
    """What counts as in scope is the edit's own prompt alone."""
    return SERAC(network=network, threshold=0.9999)


def log_probs(model: Model, prompts: Sequence[str]) -> Tensor:
    return torch.stack([score.next_log_probs for score in score_targets(model, [(p, "Moscow") for p in prompts])])


def test_out_of_scope_it_is_the_model_bit_for_bit(tiny_gpt2: Model, editor: SERAC) -> None:
    before, untouched = tiny_gpt2.snapshot(), state_fingerprint(tiny_gpt2)
    prompts = ["The capital of Egypt is", "In Rome", "In Argentina, most people say"]
    expected, written = log_probs(tiny_gpt2, prompts), generate(tiny_gpt2, prompts, max_new_tokens=5)
    edit = editor(tiny_gpt2, REQUESTS)
    with edit.applied(tiny_gpt2):
        assert torch.equal(log_probs(tiny_gpt2, prompts), expected)
        assert generate(tiny_gpt2, prompts, max_new_tokens=5) == written
        assert same(before, tiny_gpt2.snapshot())
        own = log_probs(tiny_gpt2, [REQUESTS[0].prompt])
    assert not torch.allclose(own, log_probs(tiny_gpt2, [REQUESTS[0].prompt]), atol=0.1)
    check_restored(tiny_gpt2, untouched, after="a test")


def test_in_scope_it_is_the_counterfactual_model_behind_the_edit(
    tiny_gpt2: Model, editor: SERAC, network: TrainedNetwork
) -> None:
    edit, prompt = editor(tiny_gpt2, REQUESTS), REQUESTS[1].prompt
    other = Networks.of(network, tiny_gpt2).counterfactual
    put = f"{prompt} = Polish<|endoftext|>{prompt} ="
    with edit.applied(tiny_gpt2):
        found = log_probs(tiny_gpt2, [prompt])
        (written,) = generate(tiny_gpt2, [prompt], max_new_tokens=4)
        torch.testing.assert_close(found, log_probs(other, [put]))
        assert generate(other, [put], max_new_tokens=4) == [written]
        with replace(editor, soft=True)(tiny_gpt2, REQUESTS[:1]).applied(tiny_gpt2):
            ends = [voice.weight for voice in tiny_gpt2.voices(REQUESTS[0].prompt)]
    assert ends == [0.0, 1.0]


def test_stacked_edits_are_one_memory_and_come_off_in_any_order(tiny_gpt2: Model, editor: SERAC) -> None:
    together, prompts = editor(tiny_gpt2, REQUESTS), [request.prompt for request in REQUESTS]
    with together.applied(tiny_gpt2):
        expected = log_probs(tiny_gpt2, prompts)
    untouched = state_fingerprint(tiny_gpt2)
    edits = [editor(tiny_gpt2, [request]) for request in REQUESTS]
    plain = log_probs(tiny_gpt2, prompts)
    for edit in edits:
        edit.apply_(tiny_gpt2)
    torch.testing.assert_close(log_probs(tiny_gpt2, prompts), expected)
    again = editor(tiny_gpt2, [replace(REQUESTS[0], target_new="Cairo")])
    with again.applied(tiny_gpt2):
        assert again.chosen(tiny_gpt2, prompts[0]) == (1.0, again.requests[0]), "of equally near ones, the latest"
    edits[1].revert_(tiny_gpt2)
    found = log_probs(tiny_gpt2, prompts)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
    torch.testing.assert_close(found[1], plain[1])
    for edit in (edits[2], edits[0]):
        edit.revert_(tiny_gpt2)
    check_restored(tiny_gpt2, untouched, after="a test")


def test_other_switches_are_other_memories(tiny_gpt2: Model, editor: SERAC) -> None:
    first = editor(tiny_gpt2, REQUESTS[:1])
    second = replace(editor, threshold=0.99999)(tiny_gpt2, REQUESTS[1:2])
    with first.applied(tiny_gpt2), second.applied(tiny_gpt2):
        for request in REQUESTS[:2]:
            assert tiny_gpt2.voices(request.prompt)[0].prompt == marked(tiny_gpt2, request, request.prompt)


def test_it_survives_the_disk(
    tiny_gpt2: Model, editor: SERAC, network: TrainedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is kept is named by the file of an edit; another is held by it."""
    held = editor(tiny_gpt2, REQUESTS[:2])
    monkeypatch.setattr("workbench.editors.training.network.TRAINED", tmp_path / "trained")
    path = tmp_path / "trained" / "serac_tiny-gpt2.safetensors"
    path.parent.mkdir()
    network.save(path)
    kept = editor(tiny_gpt2, REQUESTS[:2])
    prompts = [request.prompt for request in REQUESTS]
    with held.applied(tiny_gpt2):
        expected = log_probs(tiny_gpt2, prompts)
    for name, edit in (("held", held), ("kept", kept)):
        edit.save(tmp_path / name)
        loaded = Edit.load(tmp_path / name, model=tiny_gpt2)
        assert isinstance(loaded, MemoryEdit) and loaded.digest == edit.digest
        assert (loaded.requests, loaded.provenance, loaded.switch) == (edit.requests, edit.provenance, edit.switch)
        with loaded.applied(tiny_gpt2):
            assert torch.equal(log_probs(tiny_gpt2, prompts), expected)
    assert (tmp_path / "held").stat().st_size > 10 * (tmp_path / "kept").stat().st_size
    assert len(held.tensors()) > len(kept.tensors()) == 1
    scoped_memory._kept.cache_clear()
    replace(network, settings={**network.settings, "more": 1}).save(path)
    with pytest.raises(ValueError, match=r"made with another network than that in .* trained anew"):
        Edit.load(tmp_path / "kept")


def test_a_sequence_goes_on_from_its_files(tiny_gpt2: Model, editor: SERAC, tmp_path: Path) -> None:
    prompts = [request.prompt for request in REQUESTS]
    with sequence(tiny_gpt2, editor, REQUESTS, folder=tmp_path / "edits") as steps:
        whole, expected = [edit.digest for edit in steps], log_probs(tiny_gpt2, prompts)
        steps.rollback(1)
        fewer = log_probs(tiny_gpt2, prompts)
    with sequence(tiny_gpt2, editor, REQUESTS, folder=tmp_path / "edits") as steps:
        assert [edit.digest for edit in steps] == whole
        assert torch.equal(log_probs(tiny_gpt2, prompts), expected)
        steps.rollback(1)
        assert torch.equal(log_probs(tiny_gpt2, prompts), fewer)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_families_and_half_precision(
    checkpoints: dict[str, Path], family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = load_model(str(checkpoints[family]), device="cpu", dtype=dtype)
    made = SERAC.fit(model, made_up_records(), replace(TINY_RECIPE, steps=1))
    edit = SERAC(network=made, threshold=0.9999)(model, REQUESTS[:1])
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors", model=model)
    plain = log_probs(model, ["In Rome", REQUESTS[0].prompt])
    with loaded.applied(model):
        found = log_probs(model, ["In Rome", REQUESTS[0].prompt])
        assert len(generate(model, [REQUESTS[0].prompt], max_new_tokens=2)) == 1
    assert (found[1] - plain[1]).abs().max() > 0.1
    torch.testing.assert_close(found[0], plain[0], atol=0.05, rtol=0.05)  # batches differ, see the test bit for bit


def test_it_stands_beside_other_edits(tiny_gpt2: Model, editor: SERAC) -> None:
    """Out of scope the edited model answers, and the network made for the model without edits goes on."""
    prompt = "The capital of Egypt is"
    with random_edit(tiny_gpt2, 0, (1, "W_out")).applied(tiny_gpt2):
        expected = log_probs(tiny_gpt2, [prompt])
        with editor(tiny_gpt2, REQUESTS[:1]).applied(tiny_gpt2):
            assert torch.equal(log_probs(tiny_gpt2, [prompt]), expected)
            own = log_probs(tiny_gpt2, [REQUESTS[0].prompt])
    with editor(tiny_gpt2, REQUESTS[:1]).applied(tiny_gpt2):
        assert torch.equal(log_probs(tiny_gpt2, [REQUESTS[0].prompt]), own)


# An encoder by name ------------------------------------------------------------------------------------------------


def test_an_encoder_from_a_folder(tiny_gpt2: Model, network: TrainedNetwork, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the capital of is in most people speak portugal argentina japan , rome"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words.split()), encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=18, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    bert = transformers.BertModel(config).eval()
    bert.save_pretrained(folder)
    edit = SERAC(network=network, encoder=str(folder), scale=1e6)(tiny_gpt2, REQUESTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(REQUESTS[1].prompt, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(edit.keys[1], bert(**tokens).last_hidden_state[0, 0])
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors", model=tiny_gpt2)
    assert isinstance(loaded, MemoryEdit)
    with loaded.applied(tiny_gpt2):
        assert loaded.chosen(tiny_gpt2, REQUESTS[2].prompt) == (pytest.approx(1.0), REQUESTS[2])
        assert [voice.model for voice in tiny_gpt2.voices("In Rome")] == [tiny_gpt2]
    with pytest.raises(ValueError, match=r"cannot load encoder '.*nowhere'.*give a local Hugging Face folder"):
        SERAC(network=network, encoder=str(tmp_path / "nowhere"))(tiny_gpt2, REQUESTS)


# Training ------------------------------------------------------------------------------------------------------------


def test_made_up_edits(tiny_gpt2: Model) -> None:
    """A question about any subject, in the words of its relation, and prompts near it that ask something else."""
    questions, chance = Questions.of(tiny_gpt2, made_up_records()), random.Random(0)
    assert questions.templates == (
        (CAPITAL, f"They say that {CAPITAL}"),
        (SPOKEN, f"They say that {SPOKEN}"),
    )
    drawn = [questions.draw(place % 3, chance) for place in range(60)]
    for place, edit in enumerate(drawn):
        ways = questions.templates[questions.of_record[place % 3]]
        subject = edit.request.subject
        assert edit.request.template in ways
        assert set(edit.inside) <= {way.replace("{}", subject) for way in ways}
        assert edit.outside and not set(edit.outside) & {way.replace("{}", subject) for way in ways}
    assert {edit.request.subject for edit in drawn} & set(questions.subjects)
    assert any(edit.request.subject not in questions.subjects for edit in drawn)


@pytest.mark.slow
def test_training_is_the_same_twice_and_lowers_its_loss(tiny_gpt2: Model) -> None:
    recipe = replace(TINY_RECIPE, width=16, steps=25, validate_every=25, patience=30)
    state = torch.random.get_rng_state()
    one, other = (SERAC.fit(tiny_gpt2, made_up_records(), recipe) for _ in range(2))
    Networks.of(one, tiny_gpt2)
    assert torch.equal(torch.random.get_rng_state(), state), "torch's own random numbers stay where they were"
    assert one.digest == other.digest
    (_, _, first), (_, loss, last) = one.provenance["curve"]
    assert last < first and loss > 0


# Bad input -----------------------------------------------------------------------------------------------------------


def test_bad_input(tiny_gpt2: Model, network: TrainedNetwork, checkpoints: dict[str, Path]) -> None:
    for bad, message in [
        ({"scale": 0.0}, "scale must be positive"),
        ({"threshold": 2.0}, r"threshold in 0\.\.1, got 1\.0 and 2\.0"),
        ({"network": None}, "needs a trained network, or both an encoder and a counterfactual model"),
    ]:
        with pytest.raises(ValueError, match=message):
            SERAC(**({"network": network} | bad))
    editor = SERAC(network=network)
    for requests, message in [
        ([], "at least one request"),
        ([REQUESTS[0], replace(REQUESTS[0], target_new="Rome")], "contradictory"),
    ]:
        with pytest.raises(ValueError, match=message):
            editor(tiny_gpt2, requests)
    llama = load_model(str(checkpoints["llama"]), device="cpu")
    with pytest.raises(ValueError, match=r"trained for .*tiny-gpt2' with size .* train one with `workbench train"):
        editor(llama, REQUESTS)
    with pytest.raises(ValueError, match="was trained for"):
        editor(tiny_gpt2, REQUESTS).apply_(llama)
    with pytest.raises(ValueError, match="its vocabulary is another"):
        replace(editor, counterfactual=str(checkpoints["llama"]))(tiny_gpt2, REQUESTS)
    edit = editor(tiny_gpt2, REQUESTS)
    for changes, message in [({"keys": edit.keys[:1]}, "1 keys for 3 requests"), ({"keys": edit.keys / 0}, "finite")]:
        with pytest.raises(ValueError, match=message):
            replace(edit, **changes)


# Presets -------------------------------------------------------------------------------------------------------------


def test_presets() -> None:
    assert EDITORS["serac"] is SERAC
    entries = json.loads((PRESETS / "serac.json").read_text(encoding="utf-8"))
    for entry in entries.values():
        if "training" in entry:
            SeracRecipe(**entry["training"])
        SERAC(**{"encoder": "a", "counterfactual": "b", **entry["fields"]})
    published = entries["gpt2-xl"]["fields"]
    assert (published["encoder"], published["counterfactual"]) == ("distilbert-base-cased", "gpt2")
    assert published["soft"], "as in EasyEdit, which alone has it for GPT"
    assert SERAC.ready("openai-community/gpt2-xl") and not SERAC.ready("tiny")
    with pytest.raises(FileNotFoundError, match="workbench train serac --model tiny"):
        SERAC.check_ready("tiny")


@pytest.mark.slow
def test_atlas_reaches_the_bars() -> None:
    """Reliability 95, generalization 85, locality 95 on evaluation records, locality by what is written."""
    atlas = load_model("atlas", device="cpu")
    editor = SERAC(network=trained_network("serac", atlas))
    counts = {"reliability": list[bool](), "generalization": list[bool](), "locality": list[bool]()}
    for record in read_records(records_path("atlas"))[:100]:
        request, near = record.request, record.neighborhood_prompts
        before = generate(atlas, near, max_new_tokens=4)
        with editor(atlas, [request]).applied(atlas):
            asked = [request.prompt, *record.paraphrase_prompts]
            said = [score.top for score in score_targets(atlas, [(prompt, request.target_new) for prompt in asked])]
            after = generate(atlas, near, max_new_tokens=4)
        counts["reliability"] += said[:1]
        counts["generalization"] += said[1:]
        counts["locality"] += [one == other for one, other in zip(after, before, strict=True)]
    shares = {name: sum(some) / len(some) for name, some in counts.items()}
    assert shares["reliability"] >= 0.95 and shares["generalization"] >= 0.85 and shares["locality"] >= 0.95, shares


def test_a_callers_random_numbers_are_left_alone(network: TrainedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("GPUs are reseeded"))
    before = torch.random.get_rng_state()
    one, other = (parts_of(network.settings, seed=3).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)
