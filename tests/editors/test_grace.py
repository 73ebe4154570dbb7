"""GRACE: the published code's numbers, one codebook of stacked edits, and what it does with bad input."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_edits import random_edit, same
from known_scores import all_top, scored
from safetensors.torch import load_file
from torch import Tensor

from workbench.editors.grace import GRACE
from workbench.editors.registry import EDITORS
from workbench.editors.setup.presets import PRESETS, preset
from workbench.edits.codebook import Codebook, Rules
from workbench.edits.codebook_edit import CodebookEdit, codebook
from workbench.edits.edit import Edit
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.sequence import sequence
from workbench.models.generation import generate
from workbench.models.hooks import ForwardPass
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.facts import EditRequest

REFERENCE = json.loads((GOLDEN / "survey" / "grace.json").read_text(encoding="utf-8"))
SETTINGS = REFERENCE["settings"]
PUBLISHED: dict[str, Any] = {"replace_last": "last", "replace_prompt": "prompt"}
PORTUGAL = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow")
ICELAND = EditRequest(template="The language spoken in {} is", subject="Iceland", target_new="Thai")
OFFICIAL = EditRequest(template="The official language of {} is", subject="Iceland", target_new="Thai")
SEAT = EditRequest(template="The seat of government in {} is", subject="Portugal", target_new="Moscow")
REQUESTS = [PORTUGAL, ICELAND, OFFICIAL, SEAT]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "survey" / "grace.safetensors")


@pytest.fixture(params=["prompt", "last"])
def plain(request: pytest.FixtureRequest) -> GRACE:
    """Quick, with both ways to replace."""
    return GRACE(layer=3, site="mlp_pre", replace=request.param, radius=0.8, steps=5, learning_rate=1.0)


def mostly(replacement: str) -> pytest.MarkDecorator:
    """For tests that take long: the other way to replace is not among the fast ones."""
    other = "last" if replacement == "prompt" else "prompt"
    return pytest.mark.parametrize("plain", [replacement, pytest.param(other, marks=pytest.mark.slow)], indirect=True)


def losses(edit: CodebookEdit) -> list[list[float]]:
    return [each["losses"] for each in edit.provenance["optimisation"]]


def small_book(form: Any, **changes: Any) -> Codebook:
    return Codebook.empty(Rules(layer=0, radius=1.0, form=form, **changes), 4, 3, torch.float32)


# The published code


@pytest.mark.parametrize(("form", "entry"), [("published", "codebook"), ("easyedit", "codebook_easyedit")])
def test_golden_codebook(golden: dict[str, Tensor], form: str, entry: str) -> None:
    """The rules on given queries; the values that the published codebook drew are put in as they came."""
    book = small_book(form)
    values: dict[int, Tensor] = {}
    for index, step in enumerate(REFERENCE[entry]):
        chosen = step["chosen"]
        # EasyEdit's values are the same draws, since both draw one at every step.
        drawn = golden[f"codebook.values.{index}"]
        value = drawn[chosen] if entry == "codebook" else torch.full((3,), float(index))
        values[chosen] = value
        answer = tuple(token for token in step["label_ids"] if token != -100)
        label = (step["label_ids"].count(-100), answer)
        book = book.written(torch.tensor(step["query"]), value, label)
        torch.testing.assert_close(book.keys, torch.tensor(step["keys"]))
        torch.testing.assert_close(book.radii, torch.tensor(step["eps"]), rtol=0, atol=1e-6)
        assert torch.equal(book.values[chosen], value)
        assert int(book.nearest(torch.tensor([step["query"]]))[1]) == chosen
    probes = REFERENCE["probes" if entry == "codebook" else "probes_easyedit"]
    queries = torch.tensor([probe["query"] for probe in probes], dtype=torch.float32)
    found, values_found = book.lookup(queries)
    assert found.tolist() == [probe["replaced"] for probe in probes]
    if entry == "codebook":
        outputs = queries @ golden["codebook.linear.weight"].T + golden["codebook.linear.bias"]
        expected = torch.where(found[:, None], values_found, outputs)
        torch.testing.assert_close(expected, golden["codebook.probe_out"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "replacement", [pytest.param(one, marks=[pytest.mark.slow] * (one != "replace_last")) for one in PUBLISHED]
)
def test_golden_edits_in_sequence(
    tiny_gpt2: Model, golden: dict[str, Tensor], replacement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New entries, a shared one and a split that takes one answer for two, since their prompts differ in length."""
    editor = GRACE(
        layer=3,
        site="mlp_pre",
        replace=PUBLISHED[replacement],
        radius=SETTINGS["eps"],
        steps=SETTINGS["n_iter"],
        learning_rate=SETTINGS["edit_lr"],
        start=SETTINGS["val_init"],
        form="published",
    )
    before, untouched = tiny_gpt2.snapshot(), state_fingerprint(tiny_gpt2)
    edits: list[CodebookEdit] = []
    entries = [entry for entry in REFERENCE["edits"] if entry["replacement"] == replacement]
    for index, (request, entry) in enumerate(zip(REQUESTS, entries, strict=True)):
        assert (request.prompt, request.target_new) == (entry["prompt"], entry["target"])
        drawn = golden[f"replace_last.{index}.initial_value"][0]
        monkeypatch.setattr(GRACE, "_drawn", lambda self, request, size, drawn=drawn: drawn)
        edit = editor(tiny_gpt2, [request])
        edit.apply_(tiny_gpt2)
        edits.append(edit)
        (found,) = losses(edit)
        assert found == pytest.approx(entry["losses"], abs=1e-4)
        book = codebook(tiny_gpt2, edit.rules)
        assert len(book) == entry["n_keys"]
        torch.testing.assert_close(book.keys, golden[f"replace_last.{index}.keys"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(book.radii, torch.tensor(entry["eps"]), atol=1e-5, rtol=1e-5)
        # As a whole: Adam's steps are large also where a gradient is rounding.
        expected = golden[f"{replacement}.{index}.values"]
        assert (book.values - expected).norm() / expected.norm() < 1e-4
        tokens = tiny_gpt2.tokenize([f"{request.prompt} {request.target_new}"])
        assert tokens.ids[0].tolist() == entry["input_ids"]
        tokens = tokens.with_prompts([len(request.prompt)])
        assert int(tokens.prompt_ends[0]) == entry["key_position"]
        logits = tiny_gpt2.logits(tokens)[0]
        torch.testing.assert_close(logits, golden[f"{replacement}.{index}.logits"], atol=1e-3, rtol=1e-4)
        (said,) = scored(tiny_gpt2, [request.prompt], [request.target_new])
        assert -said.mean().item() == pytest.approx(entry["nll_after"], abs=1e-4)
    for edit in edits:
        edit.revert_(tiny_gpt2)
    assert same(before, tiny_gpt2.snapshot())
    check_restored(tiny_gpt2, untouched, after="a test")


# The paper's rules


def test_labels_are_the_answers_tokens() -> None:
    """What the published code mistakes: other tokens of one mean, and one answer after prompts of two lengths."""
    origin, near, value = torch.zeros(4), torch.tensor([1.5, 0.0, 0.0, 0.0]), torch.ones(3)
    for form, shares in {"paper": [True, False], "published": [False, True]}.items():
        for label, share in zip([(2, (5, 7)), (1, (6, 6))], shares, strict=True):
            book = small_book(form).written(origin, value, (1, (5, 7)))
            assert (book.shared(near, label) == 0) == share
            assert len(book.written(near, value, label)) == (1 if share else 2)


def test_an_entry_grows_and_is_split_in_half() -> None:
    origin, value = torch.zeros(4), torch.ones(3)
    book = small_book("paper").written(origin, value, (1, (5,)))
    near, other, far = (torch.tensor([place, 0.0, 0.0, 0.0]) for place in (1.9, -2.5, 8.0))
    grown = book.written(near, 2 * value, (1, (5,)))
    assert grown.radii.tolist() == [pytest.approx(1.9)] and torch.equal(grown.values[0], 2 * value)
    split = grown.written(other, 3 * value, (1, (6,)))
    assert split.radii.tolist() == [1.25, 1.25]
    assert split.written(far, value, (1, (6,))).radii.tolist() == [1.25, 1.25, 1.0]
    inside = grown.written(torch.tensor([0.5, 0.0, 0.0, 0.0]), 3 * value, (1, (5,)))
    assert inside.radii.tolist() == [pytest.approx(1.9)], "it never shrinks to a nearer request"


def test_another_answer_at_the_same_place_takes_the_entry_over() -> None:
    origin, value = torch.zeros(4), torch.ones(3)
    again = origin + 1e-6
    paper = small_book("paper").written(origin, value, (1, (5,))).written(again, 2 * value, (1, (6,)))
    assert paper.labels == ((1, (6,)),) and paper.radii.tolist() == [1.0]
    found, values = paper.lookup(origin[None])
    assert found.all() and torch.equal(values[0], 2 * value)
    published = small_book("published").written(origin, value, (1, (5,))).written(again, 2 * value, (1, (6,)))
    assert published.radii[0] < 0, "the older one is never found again"


def test_distances_are_not_those_of_products() -> None:
    """Small distances between long keys, of so many that torch would multiply them."""
    keys = 1e3 + torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    book = replace(small_book("paper"), keys=keys, values=torch.zeros(40, 3), radii=torch.ones(40), labels=((1, (5,)),))
    distances, index = book.nearest(keys)
    assert torch.equal(distances, torch.zeros(40)) and index.tolist() == list(range(40))


# What the edit does


@pytest.mark.slow
@mostly("prompt")
def test_the_edited_model_says_the_targets_and_nothing_else_changes(tiny_gpt2: Model, plain: GRACE) -> None:
    editor = replace(plain, steps=40, learning_rate=0.5)
    before = tiny_gpt2.snapshot()
    requests = [ICELAND, replace(ICELAND, subject="Japan", target_new="Spanish")]
    edit = editor(tiny_gpt2, requests)
    assert same(before, tiny_gpt2.snapshot())
    prompts, targets = [each.prompt for each in requests], [each.target_new for each in requests]
    assert not any(all_top(tiny_gpt2, prompts, targets))
    elsewhere = tiny_gpt2.tokenize(["In the old book, people say", "Rome"])
    unedited = tiny_gpt2.logits(elsewhere)
    with edit.applied(tiny_gpt2):
        assert all(all_top(tiny_gpt2, prompts, targets))
        assert torch.equal(tiny_gpt2.logits(elsewhere), unedited), "far from every key, bit for bit"
        assert edit.norms(tiny_gpt2) == {}
    assert torch.equal(tiny_gpt2.logits(elsewhere), unedited)


def test_a_space_at_the_end_of_a_prompt_changes_no_key(tiny_gpt2: Model, plain: GRACE) -> None:
    spaced = replace(PORTUGAL, template=f"{PORTUGAL.template} ")
    one, other = (plain(tiny_gpt2, [request]) for request in (PORTUGAL, spaced))
    assert torch.equal(one.tensors()["keys"], other.tensors()["keys"])


def test_an_empty_codebook_is_the_model_itself(tiny_gpt2: Model, plain: GRACE) -> None:
    edit = plain(tiny_gpt2, [PORTUGAL])
    empty = replace(edit, keys=edit.keys[:0], values=edit.values[:0], labels=())
    tokens = tiny_gpt2.tokenize([PORTUGAL.prompt, "Rome"])
    unedited = tiny_gpt2.logits(tokens)
    with empty.applied(tiny_gpt2):
        assert tiny_gpt2.edit_hooks() == [] and torch.equal(tiny_gpt2.logits(tokens), unedited)
        with edit.applied(tiny_gpt2):
            assert not torch.equal(tiny_gpt2.logits(tokens), unedited)


@pytest.mark.parametrize("site", ["mlp_pre", "mlp_write"])
def test_every_family_scores_as_it_was_optimised(family_model: Model, plain: GRACE, site: Any) -> None:
    editor = replace(plain, layer=1, site=site, steps=4, learning_rate=0.1)
    before = family_model.snapshot()
    edit, longer = (replace(editor, steps=steps)(family_model, [PORTUGAL]) for steps in (3, 4))
    assert same(before, family_model.snapshot())
    assert all(parameter.grad is None for parameter in family_model.parameters.values())
    assert losses(longer)[0][:3] == pytest.approx(losses(edit)[0], rel=1e-5)
    with edit.applied(family_model):
        # The loss before the fourth step is that of the edit after three; rows of other lengths pad it.
        prompts = [PORTUGAL.prompt, "In a very old book about the towns of the coast, people"]
        said = scored(family_model, prompts, ["Moscow", "say"])[0]
        assert losses(longer)[0][3] == pytest.approx(-said.mean().item(), rel=1e-4)
    assert losses(longer)[0][3] < losses(longer)[0][0]
    warm = replace(editor, start="warm", replace="last", steps=1)(family_model, [PORTUGAL])
    (plainly,) = scored(family_model, [PORTUGAL.prompt], ["Moscow"])
    assert losses(warm)[0][0] == pytest.approx(-plainly.mean().item(), rel=1e-4), "it begins at what is there"


def test_half_precision(checkpoints: dict[str, Path], plain: GRACE, tmp_path: Path) -> None:
    for family in ("gpt2", "llama"):
        model = load_model(str(checkpoints[family]), device="cpu", dtype=torch.bfloat16)
        edit = replace(plain, layer=1, site="mlp_write", learning_rate=0.1)(model, [PORTUGAL])
        assert edit.keys.dtype == edit.values.dtype == torch.float32
        edit.save(tmp_path / "edit.safetensors")
        loaded = Edit.load(tmp_path / "edit.safetensors", model=model)
        with loaded.applied(model):
            (said,) = scored(model, [PORTUGAL.prompt], ["Moscow"])
        assert -said.mean().item() == pytest.approx(losses(edit)[0][-1], abs=0.2)


# One codebook of many edits


def logits(model: Model) -> Tensor:
    texts = [f"{request.prompt} {request.target_new}" for request in REQUESTS]
    return model.logits(model.tokenize(texts).with_prompts([len(request.prompt) for request in REQUESTS]))


@pytest.mark.slow
@mostly("last")
def test_stacked_edits_are_one_codebook_and_come_off_in_any_order(tiny_gpt2: Model, plain: GRACE) -> None:
    """Taking one back gives what the others make without it, bit for bit; also from a loaded file."""
    untouched = state_fingerprint(tiny_gpt2)
    edits: list[CodebookEdit] = []
    for request in REQUESTS:
        edits.append(plain(tiny_gpt2, [request]))
        edits[-1].apply_(tiny_gpt2)
    rules = edits[0].rules
    book, all_of_them = codebook(tiny_gpt2, rules), logits(tiny_gpt2)
    assert len(book) == 2, "under the paper's labels, each two requests of one answer share an entry"
    assert sum(bool(edit.hooks(tiny_gpt2)) for edit in edits) == 1
    for edit in reversed(edits):
        edit.revert_(tiny_gpt2)
    for gone in range(len(edits)):
        for edit in edits:
            edit.apply_(tiny_gpt2)
        assert torch.equal(logits(tiny_gpt2), all_of_them)
        edits[gone].revert_(tiny_gpt2)
        without = codebook(tiny_gpt2, rules), logits(tiny_gpt2)
        for edit in list(tiny_gpt2.edits):
            edit.revert_(tiny_gpt2)
        for edit in edits[:gone] + edits[gone + 1 :]:
            edit.apply_(tiny_gpt2)
        again = codebook(tiny_gpt2, rules), logits(tiny_gpt2)
        assert torch.equal(without[1], again[1]) and torch.equal(without[0].radii, again[0].radii)
        assert not torch.equal(without[1], all_of_them)
        for edit in list(tiny_gpt2.edits):
            edit.revert_(tiny_gpt2)
    check_restored(tiny_gpt2, untouched, after="a test")


@pytest.mark.slow
@mostly("prompt")
def test_together_is_one_after_another(tiny_gpt2: Model, plain: GRACE) -> None:
    together = plain(tiny_gpt2, REQUESTS)
    assert together.requests == tuple(REQUESTS)
    with sequence(tiny_gpt2, plain, REQUESTS) as steps:
        alone = list(steps)
        apart = logits(tiny_gpt2)
    # The later ones of a sequence are trained over the whole model, under the edits before them.
    values = torch.cat([each.values for each in alone if isinstance(each, CodebookEdit)])
    torch.testing.assert_close(together.values, values, rtol=1e-3, atol=1e-3)
    with together.applied(tiny_gpt2):
        torch.testing.assert_close(logits(tiny_gpt2), apart, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@mostly("prompt")
def test_a_sequence_goes_on_from_its_files(tiny_gpt2: Model, plain: GRACE, tmp_path: Path) -> None:
    with sequence(tiny_gpt2, plain, REQUESTS, folder=tmp_path / "edits") as steps:
        whole = [edit.digest for edit in steps]
        expected = logits(tiny_gpt2)
        steps.rollback(1)
        fewer = logits(tiny_gpt2)
    (tmp_path / "edits" / "00003-00003.safetensors").unlink()
    with sequence(tiny_gpt2, plain, REQUESTS, folder=tmp_path / "edits") as steps:
        assert [edit.digest for edit in steps] == whole
        assert torch.equal(logits(tiny_gpt2), expected)
        steps.rollback(1)
        assert torch.equal(logits(tiny_gpt2), fewer)


def test_other_rules_are_another_codebook(tiny_gpt2: Model, plain: GRACE) -> None:
    first = plain(tiny_gpt2, [PORTUGAL])
    with first.applied(tiny_gpt2):
        second = replace(plain, radius=0.7)(tiny_gpt2, [SEAT])
        with second.applied(tiny_gpt2):
            assert len(codebook(tiny_gpt2, first.rules)) == len(codebook(tiny_gpt2, second.rules)) == 1
            assert first.hooks(tiny_gpt2) and second.hooks(tiny_gpt2)


@pytest.mark.slow
def test_it_stands_on_other_edits(tiny_gpt2: Model, plain: GRACE) -> None:
    """Keys are those of the model as edited, and weights come back."""
    before = tiny_gpt2.snapshot()
    alone = plain(tiny_gpt2, [PORTUGAL])
    with random_edit(tiny_gpt2, 0, (1, "W_out")).applied(tiny_gpt2):
        edit = plain(tiny_gpt2, [PORTUGAL])
        assert (edit.keys - alone.keys).norm() > 0.01
        with edit.applied(tiny_gpt2):
            (said,) = scored(tiny_gpt2, [PORTUGAL.prompt], ["Moscow"])
        assert -said.mean().item() < losses(edit)[0][0]
    assert same(before, tiny_gpt2.snapshot())


def test_it_survives_the_disk(tiny_gpt2: Model, plain: GRACE, tmp_path: Path) -> None:
    edit, path = plain(tiny_gpt2, REQUESTS[:2]), tmp_path / "edit.safetensors"
    edit.save(path)
    loaded = Edit.load(path, model=tiny_gpt2)
    assert isinstance(loaded, CodebookEdit) and loaded.digest == edit.digest
    assert (loaded.rules, loaded.labels, loaded.provenance) == (edit.rules, edit.labels, edit.provenance)
    with edit.applied(tiny_gpt2):
        expected = logits(tiny_gpt2)
    with loaded.applied(tiny_gpt2):
        assert torch.equal(logits(tiny_gpt2), expected)
    assert replace(edit, labels=tuple((prompt + 1, answer) for prompt, answer in edit.labels)).digest != edit.digest


# Generation


def by_hand(model: Model, edit: CodebookEdit, ids: Tensor, prompt: int) -> Tensor:
    """The last logits of a text without padding or cache, its prompt's states replaced by hand where they should be."""
    book = codebook(model, edit.rules)
    key_name, name = edit.rules.sites(model)
    at = slice(prompt - 1, prompt) if edit.rules.replace == "last" else slice(0, prompt - 1)
    found: list[Tensor | None] = []

    def look(states: Tensor, hook: Any) -> None:
        (hit,), values = book.lookup(states[0, prompt - 1 : prompt])
        found.append(values[0] if hit else None)

    def put(states: Tensor, hook: Any) -> Tensor:
        states = states.clone()
        if found[-1] is not None:
            states[0, at] = found[-1]
        return states

    row = replace(model.encode(["x"])[0], ids=tuple(ids.tolist()))
    others, model.edits[:] = list(model.edits), []
    try:
        return model.logits(model.pad([row]), hooks=[(key_name, look), (name, put)], keep_last=1)[0, -1]
    finally:
        model.edits[:] = others


@pytest.mark.slow
@mostly("last")
def test_generation_with_the_cache_equals_generation_without(tiny_gpt2: Model, plain: GRACE) -> None:
    """Prompts of several lengths side by side, one of which no key is near."""
    edit, steps = replace(plain, steps=30)(tiny_gpt2, REQUESTS[:2]), 5
    prompts = [PORTUGAL.prompt, "In the old book, people say", ICELAND.prompt]
    unedited = generate(tiny_gpt2, prompts, max_new_tokens=steps)
    with edit.applied(tiny_gpt2):
        found = generate(tiny_gpt2, prompts, max_new_tokens=steps)
        for prompt, text in zip(prompts, found, strict=True):
            ids = tiny_gpt2.tokenize([prompt]).ids[0]
            first = len(ids)
            for _ in range(steps):
                ids = torch.cat([ids, by_hand(tiny_gpt2, edit, ids, first).argmax()[None]])
            expected = tiny_gpt2.text.continuation(ids[:first].tolist(), ids[first:].tolist())
            assert expected.startswith(text) and text
    assert [one == other for one, other in zip(found, unedited, strict=True)] == [False, True, False]


def test_a_prompt_in_pieces(tiny_gpt2: Model, plain: GRACE) -> None:
    """The last token may come in a later pass, unless what is before it is to be replaced."""
    edit = plain(tiny_gpt2, [PORTUGAL])
    tokens = tiny_gpt2.tokenize([PORTUGAL.prompt])

    def step(start: int, end: int, cache: Any) -> Any:
        which = ForwardPass(mask=tokens.mask[:, :end], offset=start, prompt_ends=tokens.prompt_ends)
        return tiny_gpt2.step(tokens.ids[:, start:end], which, cache)

    end = tokens.ids.shape[1]
    with edit.applied(tiny_gpt2), torch.no_grad():
        if plain.replace == "prompt":
            with pytest.raises(RuntimeError, match="needs each prompt whole"):
                step(0, 3, None)
            return
        _, cache = step(0, 3, None)
        said, _ = step(3, end, cache)
        torch.testing.assert_close(said[0, -1], tiny_gpt2.logits(tokens)[0, -1], atol=1e-4, rtol=1e-4)


# Bad input


def test_bad_hyperparameters() -> None:
    for bad, message in [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"radius": -1.0}, r"radius must be positive, got -1\.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            GRACE(**({"layer": 1} | bad))


def test_bad_requests_leave_the_model_alone(tiny_gpt2: Model, plain: GRACE) -> None:
    before = tiny_gpt2.snapshot()
    short = EditRequest(template="{}", subject="The", target_new="Rome")
    cases: Sequence[tuple[dict[str, Any], list[EditRequest], type[Exception], str]] = [
        ({"layer": 6}, REQUESTS, IndexError, "layer 6 is out of range"),
        ({}, [], ValueError, "at least one request"),
        ({}, [PORTUGAL, replace(PORTUGAL, target_new="Rome")], ValueError, "contradictory"),
        ({"replace": "prompt"}, [short], ValueError, "'The' is one token, and replace='prompt'"),
    ]
    for changes, requests, error, message in cases:
        with pytest.raises(error, match=message):
            replace(plain, **changes)(tiny_gpt2, requests)
    assert same(before, tiny_gpt2.snapshot()) and tiny_gpt2.edits == []


def test_weights_that_are_not_numbers(tiny_gpt2: Model, plain: GRACE) -> None:
    before = tiny_gpt2.snapshot()
    try:
        tiny_gpt2.weight(4).fill_(float("nan"))
        with pytest.raises(ValueError, match="is' -> 'Moscow' is not finite: check the model's weights"):
            plain(tiny_gpt2, [PORTUGAL])
    finally:
        tiny_gpt2.restore_(before)


def test_an_edit_of_another_model(tiny_gpt2: Model, plain: GRACE, checkpoints: dict[str, Path]) -> None:
    other = load_model(str(checkpoints["gpt2"]), device="cpu")
    edit = replace(plain, layer=1)(tiny_gpt2, [PORTUGAL])
    with pytest.raises(ValueError, match=r"of sizes \(64, 256\), but those of layer 1 .* of \(32, 96\)"):
        edit.apply_(other)
    with pytest.raises(IndexError, match="layer 9"):
        replace(edit, rules=replace(edit.rules, layer=9)).apply_(tiny_gpt2)
    assert other.edits == [] == tiny_gpt2.edits
    for changes, message in [
        ({"labels": ()}, "1 keys, 1 values and 0 labels"),
        ({"values": edit.values / 0}, "the keys or values of layer 1 are not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(edit, **changes)


# Presets


def test_published_presets() -> None:
    assert EDITORS["grace"] is GRACE
    for entry in json.loads((PRESETS / "grace.json").read_text(encoding="utf-8")).values():
        (layer,) = entry["fields"].pop("layers")
        GRACE(layer=layer, **entry["fields"])
    published = preset("grace", "openai-community/gpt2-xl").fields
    assert published["layers"] == [35] and published["site"] == "mlp_pre" and published["replace"] == "prompt"
    assert preset("grace", "EleutherAI/gpt-j-6B").fields["site"] == "mlp_write"
