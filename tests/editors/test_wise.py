"""WISE: the published code's numbers, one memory of stacked edits, and what it does with bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_edits import random_edit, same
from known_scores import scored
from safetensors.torch import load_file
from torch import Tensor

from workbench.editors.registry import EDITORS
from workbench.editors.setup.presets import PRESETS, preset
from workbench.editors.wise import WISE
from workbench.edits.edit import Edit
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.sequence import sequence
from workbench.edits.side_memory import Memory, Rules, Shard, memories_of, ties
from workbench.edits.side_memory_edit import SideMemoryEdit, shards_of
from workbench.models.generation import generate
from workbench.models.hooks import ForwardPass
from workbench.models.hooks_check import hook_faults
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.facts import EditRequest

REFERENCE = json.loads((GOLDEN / "survey" / "wise.json").read_text(encoding="utf-8"))
PUBLISHED = REFERENCE["hparams"]
PORTUGAL = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow")
ICELAND = EditRequest(template="The language spoken in {} is", subject="Iceland", target_new="Thai")
JAPAN = EditRequest(template="The capital of {} is", subject="Japan", target_new="Rome")
EGYPT = EditRequest(template="The capital of {} is", subject="Egypt", target_new="Athens")
FAR = "In the old book, people"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "survey" / "wise.safetensors")


def editor(**changes: Any) -> WISE:
    return WISE(
        layer=3,
        site="mlp_pre",
        unrelated=[entry["locality"] for entry in REFERENCE["edits"]],
        contexts=REFERENCE["context_templates"],
        steps=PUBLISHED["n_iter"],
        learning_rate=PUBLISHED["edit_lr"],
        norm_constraint=PUBLISHED["norm_constraint"],
        mask_ratio=PUBLISHED["mask_ratio"],
        **{name: PUBLISHED[name] for name in ("alpha", "beta", "gamma", "act_ratio")},
        **changes,
    )


@pytest.fixture
def plain() -> WISE:
    """Quick, two requests a shard and four a merged memory."""
    return WISE(
        layer=3, unrelated=["People in Kenya speak Swahili"], steps=3, learning_rate=0.5, alpha=0.5, beta=3.0,
        gamma=1.5, act_ratio=0.8, save_every=2, merge_every=4,
    )  # fmt: skip


def losses(edit: SideMemoryEdit) -> list[list[float]]:
    return [each["losses"]["edit"] for each in edit.provenance["optimisation"]]


def logits(model: Model) -> Tensor:
    texts = [f"{each.prompt} {each.target_new}" for each in (PORTUGAL, ICELAND, JAPAN, EGYPT)]
    prompts = [len(each.prompt) for each in (PORTUGAL, ICELAND, JAPAN, EGYPT)]
    return model.logits(model.tokenize(texts).with_prompts(prompts))


# The published code


@pytest.fixture
def positions_count_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published code gives GPT-2 no positions, so that padding on the left shifts those of the text."""
    run = Model._run

    def shifted(self: Model, tokens: Any, hooks: Any, keep_last: int | None, **options: Any) -> Any:
        positions = torch.arange(tokens.ids.shape[1]).expand(len(tokens.ids), -1)
        return run(self, tokens, hooks, keep_last, position_ids=positions, **options)

    monkeypatch.setattr(Model, "_run", shifted)


def test_golden_edits_in_sequence(
    tiny_gpt2: Model, golden: dict[str, Tensor], positions_count_padding: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two edits of one side memory: losses, the memory, its distances; and the router on prompts near and far."""
    monkeypatch.setattr(WISE, "_mask", lambda self, index, shape: golden["mask"].bool())
    texts = {entry["prompt"]: entry["locality"] for entry in REFERENCE["edits"]}
    monkeypatch.setattr(WISE, "_text", lambda self, request: texts[request.prompt])
    wise, before = editor(form="published"), tiny_gpt2.snapshot()
    weight = tiny_gpt2.weight(3, "W_in").clone()
    edits: list[SideMemoryEdit] = []
    recorded: list[float] = []
    for place, (request, entry) in enumerate(zip([PORTUGAL, ICELAND], REFERENCE["edits"], strict=True)):
        assert (request.prompt, request.target_new) == (entry["prompt"], entry["target"])
        edit = wise(tiny_gpt2, [request])
        (note,) = edit.provenance["optimisation"]
        assert note["losses"]["edit"] == pytest.approx(entry["ft_loss"], abs=1e-4)
        assert note["losses"]["activation"] == pytest.approx(entry["act_loss"], abs=1e-4)
        edit.apply_(tiny_gpt2)
        edits.append(edit)
        (shard,) = shards_of(tiny_gpt2, wise.rules).values()
        recorded.append(note["everywhere"])
        assert min(recorded) == pytest.approx(entry["in_scope_activation_min"], abs=1e-5)
        torch.testing.assert_close(weight + shard.change, golden[f"{place}.new_weight"], atol=1e-4, rtol=0)
    for place, probe in enumerate(REFERENCE["probes"]):
        logits = tiny_gpt2.logits(tiny_gpt2.tokenize([probe["prompt"]]))[0, -1]
        torch.testing.assert_close(logits, golden[f"probe.{place}.logits"], atol=1e-3, rtol=1e-4)
    (shard,) = shards_of(tiny_gpt2, wise.rules).values()
    (memory,) = memories_of({0: shard}, wise.rules)
    for edit in edits:
        edit.revert_(tiny_gpt2)
    assert same(before, tiny_gpt2.snapshot())
    for probe in REFERENCE["probes"]:
        found = distance(tiny_gpt2, wise.rules, memory, probe["prompt"])
        assert found == pytest.approx(probe["distance"], abs=1e-4)
        assert wise.act_ratio * min(recorded) == pytest.approx(probe["threshold"], abs=1e-5)
        assert (found >= memory.threshold) == probe["side_memory_used"]


def distance(model: Model, rules: Rules, memory: Memory, prompt: str) -> float:
    """How far a memory moves a prompt, in a model without it."""
    tokens, names = model.tokenize([prompt]), rules.sites(model)
    read, output = (model.activations(tokens, names)[name] for name in names)
    return rules.mean(rules.distances(model, output, read @ memory.change), tokens.mask > 0).item()


def test_published_choice_is_among_memories_that_are_far_enough_and_further_than_the_one_being_written() -> None:
    distances = torch.tensor([[11.0, 11.0, 2.0, 11.0], [10.0, 10.0, 4.0, 10.0], [3.0, 10.5, 3.0, 9.5]])
    thresholds = torch.tensor([15.0, 8.0, 9.0])
    published, paper = (Rules(layer=0, form=form).chosen(distances, thresholds) for form in ("published", "paper"))
    assert published.tolist() == [1, 2, -1, 1] and paper.tolist() == [-1, -1, -1, -1]
    assert Rules(layer=0).chosen(distances, torch.tensor([9.0, 1.0, 9.0])).tolist() == [0, 0, 1, 0]


def test_published_means_are_over_what_is_positive_and_long_texts_take_the_largest() -> None:
    published, paper = (Rules(layer=0, form=form) for form in ("published", "paper"))
    distances = torch.arange(101.0)[None]
    counted = distances < 100
    assert published.mean(distances, counted).item() == 99 and paper.mean(distances, counted).item() == 49.5
    assert published.mean(distances[:, :100], counted[:, :100]).item() == 49.5


# The paper's rules


def test_only_what_the_mask_lets_move_is_changed(tiny_gpt2: Model, plain: WISE) -> None:
    """Weight decay moves the rest under the published rule alone."""
    mask = plain._mask(0, tiny_gpt2.weight(3).shape)
    assert mask.float().mean().item() == pytest.approx(plain.mask_ratio, abs=0.01)
    for form, still in {"paper": True, "published": False}.items():
        (shard,) = replace(plain, form=form, weight_decay=1e-2)(tiny_gpt2, [PORTUGAL]).shards
        assert bool((shard.change[~mask] == 0).all()) == still
        assert (shard.change[mask] != 0).float().mean() > 0.9


def test_the_first_step_is_that_of_the_loss_written_out(tiny_gpt2: Model, plain: WISE) -> None:
    """Equation 5 and the log-likelihood, through a copy of the matrix put into the model's place by hand."""
    wise = replace(plain, steps=1, weight_decay=0.1, norm_constraint=None)
    start = 0.05 * torch.randn(tiny_gpt2.weight(3).shape, generator=torch.Generator().manual_seed(0))
    shard = Shard(index=0, requests=1, change=start, distance=1.0)
    first = SideMemoryEdit(rules=wise.rules, shards=(shard,), method="", requests=(), provenance={})
    with first.applied(tiny_gpt2):
        edit = wise(tiny_gpt2, [PORTUGAL])
    hf, weight = tiny_gpt2.hf, tiny_gpt2.parameters["transformer.h.3.mlp.c_proj.weight"]
    copy = (weight + start).requires_grad_(True)
    with torch.enable_grad():
        tokens = tiny_gpt2.tokenize([f"{PORTUGAL.prompt} {PORTUGAL.target_new}"]).with_prompts([len(PORTUGAL.prompt)])
        key = tiny_gpt2.hook_name("mlp_key", 3)
        read = [
            tiny_gpt2.activations(tiny_gpt2.tokenize([text]), [key])[key][0]
            for text in (PORTUGAL.prompt, *wise.unrelated)
        ]
        near, far = ((states @ (copy - weight)).norm(dim=-1).mean() for states in read)
        said = torch.func.functional_call(hf, {MATRIX: copy}, (tokens.ids,)).logits[0].log_softmax(dim=-1)
        end = int(tokens.prompt_ends[0])
        nll = -said[end:-1].gather(1, tokens.ids[0, end + 1 :, None]).mean()
        hinges = [far - near + wise.gamma, far - wise.alpha, wise.beta - near]
        loss = nll + sum(hinge.clamp(min=0) for hinge in hinges)
        (gradient,) = torch.autograd.grad(loss, copy)
    step = wise.learning_rate * (gradient + 0.1 * copy.detach()) * wise._mask(0, copy.shape)
    torch.testing.assert_close(edit.shards[0].change, -step, atol=1e-5, rtol=1e-3)


MATRIX = "transformer.h.3.mlp.c_proj._original_component.weight"


@pytest.mark.parametrize("form", ["paper", "published"])
def test_a_request_is_as_far_as_its_memory_is_asked_for(tiny_gpt2: Model, plain: WISE, form: str) -> None:
    """Whatever its answer's length: by another distance it might not reach its own threshold."""
    for target in ("Moscow", "a place that nobody who lives in the south has ever heard of"):
        (shard,) = replace(plain, form=form)(tiny_gpt2, [replace(PORTUGAL, target_new=target)]).shards
        rules = replace(plain, form=form).rules
        asked = distance(tiny_gpt2, rules, Memory(change=shard.change, threshold=0.0), PORTUGAL.prompt)
        assert shard.distance == pytest.approx(asked, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_the_nonlinearity_is_found_whatever_the_configuration_calls_it(
    checkpoints: Any, plain: WISE, family: str
) -> None:
    model = load_model(str(checkpoints[family]), device="cpu")
    wise = replace(plain, layer=1, form="published", site="mlp_pre", steps=1)
    (shard,) = wise(model, [PORTUGAL]).shards
    assert shard.distance > 0


def test_ties_by_hand() -> None:
    one, two = torch.tensor([[3.0, -2.0, 0.1, 0.0]]), torch.tensor([[1.0, 4.0, -0.2, 0.0]])
    assert ties([one, two], 0.5).tolist() == [[2.0, 4.0, 0.0, 0.0]]
    assert ties([one, two], 1.0).tolist() == [[2.0, 4.0, pytest.approx(-0.2), 0.0]]


def test_shards_are_merged_when_their_group_is_full() -> None:
    rules = Rules(layer=0, save_every=2, merge_every=4, act_ratio=0.5, density=1.0)
    changes = torch.eye(3)

    def made(*counts: int) -> list[Memory]:
        shards = {
            index: Shard(index=index, requests=count, change=changes[index][None], distance=4.0 - index)
            for index, count in enumerate(counts)
        }
        return memories_of(shards, rules)

    assert [memory.threshold for memory in made(2, 1)] == [2.0, 1.5]
    (merged,) = made(2, 2)
    assert merged.threshold == 1.5 and merged.change.tolist() == [[1.0, 1.0, 0.0]]
    assert [memory.threshold for memory in made(2, 2, 1)] == [1.5, 1.0]
    assert [memory.threshold for memory in made(2, 1, 1)] == [1.5, 1.0], "a group that another follows is closed"


# What the edit does


def test_a_side_memory_holds_an_edit_once(tiny_gpt2: Model, plain: WISE) -> None:
    edit = plain(tiny_gpt2, [PORTUGAL])
    with edit.applied(tiny_gpt2):
        with pytest.raises(ValueError, match="is applied already, and a side memory holds each once"):
            edit.apply_(tiny_gpt2)
        assert tiny_gpt2.edits == [edit]


def test_the_edited_model_says_the_target_and_far_prompts_are_untouched(tiny_gpt2: Model, plain: WISE) -> None:
    before = tiny_gpt2.snapshot()
    wise = replace(plain, steps=12, learning_rate=1.0, unrelated=[FAR, "People in Kenya speak Swahili"])
    edit = wise(tiny_gpt2, [PORTUGAL])
    assert same(before, tiny_gpt2.snapshot())
    elsewhere = tiny_gpt2.tokenize([FAR, "People in Kenya speak"])
    unedited, prompts = tiny_gpt2.logits(elsewhere), [PORTUGAL.prompt, FAR]
    (plainly,) = generate(tiny_gpt2, [FAR], max_new_tokens=5)
    with edit.applied(tiny_gpt2):
        assert torch.equal(tiny_gpt2.logits(elsewhere), unedited), "bit for bit"
        assert generate(tiny_gpt2, prompts, max_new_tokens=5) == [
            generate(tiny_gpt2, [PORTUGAL.prompt], max_new_tokens=5)[0], plainly
        ]  # fmt: skip
        assert generate(tiny_gpt2, prompts, max_new_tokens=5)[0].startswith(" Moscow")
        assert edit.norms(tiny_gpt2) == {}
    assert same(before, tiny_gpt2.snapshot())


def test_a_memory_stays_chosen_while_an_answer_is_generated(tiny_gpt2: Model, plain: WISE) -> None:
    """Token by token with a cache is what the whole text gives; a pass without its prompt is refused."""
    with plain(tiny_gpt2, [PORTUGAL]).applied(tiny_gpt2):
        tokens = tiny_gpt2.tokenize([f"{PORTUGAL.prompt} {PORTUGAL.target_new}"]).with_prompts([len(PORTUGAL.prompt)])
        whole, end = tiny_gpt2.logits(tokens), int(tokens.prompt_ends[0]) + 1
        cache = None
        for first, last in [(0, end), *((at, at + 1) for at in range(end, tokens.ids.shape[1]))]:
            which = ForwardPass(mask=tokens.mask[:, :last], offset=first, prompt_ends=tokens.prompt_ends)
            found, cache = tiny_gpt2.step(tokens.ids[:, first:last], which, cache)
            torch.testing.assert_close(found[:, -1], whole[:, last - 1], atol=1e-4, rtol=1e-4)
        stranger = ForwardPass(mask=tokens.mask, offset=end, prompt_ends=tokens.prompt_ends.clone())
        with pytest.raises(RuntimeError, match="needs each prompt whole"):
            tiny_gpt2.step(tokens.ids[:, end:], stranger, cache)


@pytest.mark.parametrize("site", ["mlp_write", "mlp_pre"])
def test_every_family_scores_as_it_was_optimised(family_model: Model, plain: WISE, site: Any) -> None:
    wise = replace(plain, layer=1, site=site, learning_rate=0.05, act_ratio=0.01, unrelated=["People say"])
    before = family_model.snapshot()
    edit, longer = wise(family_model, [PORTUGAL]), replace(wise, steps=4)(family_model, [PORTUGAL])
    assert same(before, family_model.snapshot())
    assert all(parameter.grad is None for parameter in family_model.parameters.values())
    (plainly,) = scored(family_model, [PORTUGAL.prompt], ["Moscow"])
    assert losses(longer)[0][0] == pytest.approx(-plainly.mean().item(), rel=1e-4)
    with edit.applied(family_model):
        # The loss before the fourth step is that of the edit after three; rows of other lengths pad it.
        (said, _) = scored(family_model, [PORTUGAL.prompt, "In a very old book, people"], ["Moscow", "say"])
    assert losses(longer)[0][3] == pytest.approx(-said.mean().item(), rel=1e-4)
    assert losses(longer)[0][3] < losses(longer)[0][0]


def test_half_precision(checkpoints: dict[str, Path], plain: WISE, tmp_path: Path) -> None:
    for family in ("gpt2", "llama"):
        model = load_model(str(checkpoints[family]), device="cpu", dtype=torch.bfloat16)
        edit = replace(plain, layer=1, learning_rate=0.05, act_ratio=0.5)(model, [PORTUGAL])
        assert edit.shards[0].change.dtype == torch.float32
        edit.save(tmp_path / "edit.safetensors")
        loaded = Edit.load(tmp_path / "edit.safetensors", model=model)
        with loaded.applied(model):
            (said,) = scored(model, [PORTUGAL.prompt], ["Moscow"])
        assert -said.mean().item() < losses(edit)[0][0] - 0.1


# One memory of many edits


def test_stacked_edits_are_one_memory_and_come_off_in_any_order(tiny_gpt2: Model, plain: WISE, tmp_path: Path) -> None:
    """Shards, a merged group and taking one back, which gives what the others make without it, bit for bit."""
    untouched, edits = state_fingerprint(tiny_gpt2), []
    for request in (PORTUGAL, ICELAND, JAPAN, EGYPT):
        edits.append(plain(tiny_gpt2, [request]))
        edits[-1].apply_(tiny_gpt2)
        assert sum(bool(edit.hooks(tiny_gpt2)) for edit in edits) == 1
    assert [edit.shards[0].index for edit in edits] == [0, 0, 1, 1]
    assert len(memories_of(shards_of(tiny_gpt2, plain.rules), plain.rules)) == 1, "merged"
    all_of_them = logits(tiny_gpt2)
    edits[1].revert_(tiny_gpt2)
    assert len(memories_of(shards_of(tiny_gpt2, plain.rules), plain.rules)) == 2
    without = logits(tiny_gpt2)
    for edit in list(tiny_gpt2.edits):
        edit.revert_(tiny_gpt2)
    check_restored(tiny_gpt2, untouched, after="a test")
    for edit in (edits[0], edits[2], edits[3]):
        edit.save(tmp_path / "edit.safetensors")
        Edit.load(tmp_path / "edit.safetensors").apply_(tiny_gpt2)
    assert torch.equal(logits(tiny_gpt2), without) and not torch.equal(without, all_of_them)
    for edit in list(tiny_gpt2.edits):
        edit.revert_(tiny_gpt2)
    for edit in edits:
        edit.apply_(tiny_gpt2)
    assert torch.equal(logits(tiny_gpt2), all_of_them)
    for edit in edits:
        edit.revert_(tiny_gpt2)
    check_restored(tiny_gpt2, untouched, after="a test")


def test_together_is_one_after_another(tiny_gpt2: Model, plain: WISE) -> None:
    requests = [PORTUGAL, ICELAND, JAPAN]
    together = plain(tiny_gpt2, requests)
    assert [shard.requests for shard in together.shards] == [2, 1]
    with sequence(tiny_gpt2, plain, requests) as steps:
        assert len(list(steps)) == 3
        apart = logits(tiny_gpt2)
    with together.applied(tiny_gpt2):
        torch.testing.assert_close(logits(tiny_gpt2), apart, atol=1e-4, rtol=0)


def test_other_rules_are_another_memory_and_it_stands_on_other_edits(tiny_gpt2: Model, plain: WISE) -> None:
    before = tiny_gpt2.snapshot()
    first = plain(tiny_gpt2, [PORTUGAL])
    with random_edit(tiny_gpt2, 0, (1, "W_out")).applied(tiny_gpt2), first.applied(tiny_gpt2):
        second = replace(plain, act_ratio=0.9)(tiny_gpt2, [ICELAND])
        assert tiny_gpt2.edits[-1] is first, "set aside for as long as the memory is trained"
        with second.applied(tiny_gpt2):
            assert first.hooks(tiny_gpt2) and second.hooks(tiny_gpt2)
    assert same(before, tiny_gpt2.snapshot())


def test_a_model_is_asked_what_its_hooks_mean_without_the_edits(tiny_gpt2: Model, plain: WISE) -> None:
    """Else the first editor that asks under a memory would refuse the model for good."""
    edit = replace(plain, act_ratio=0.01)(tiny_gpt2, [PORTUGAL])
    with edit.applied(tiny_gpt2), random_edit(tiny_gpt2, 0, (3, "W_out")).applied(tiny_gpt2):
        assert hook_faults(tiny_gpt2) == {} and tiny_gpt2.edits[0] is edit


# Bad input


def test_bad_hyperparameters(plain: WISE) -> None:
    for bad, message in [
        ({"unrelated": ()}, "WISE needs unrelated texts, .* got none"),
        ({"contexts": ("Yes. {}",)}, "first context must be the bare"),
        ({"mask_ratio": 0.0}, "mask_ratio is above 0 and at most 1, got 0.0"),
        ({"merge_every": 3}, "multiple of save_every, got 3 and 2"),
        ({"density": 0.0}, "density is above 0 and at most 1, got 0.0"),
        ({"act_ratio": 0.0}, "act_ratio must be positive"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"norm_constraint": 0.0}, "norm_constraint must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(plain, **bad)


def test_bad_requests_leave_the_model_alone(tiny_gpt2: Model, plain: WISE, checkpoints: dict[str, Path]) -> None:
    before = tiny_gpt2.snapshot()
    for changes, requests, error, message in [
        ({"layer": 6}, [PORTUGAL], IndexError, "layer 6 is out of range"),
        ({}, [], ValueError, "at least one request"),
        ({"unrelated": ["Portugal is far"]}, [PORTUGAL], ValueError, "every unrelated text names 'Portugal'"),
        ({"learning_rate": 3e37, "norm_constraint": None}, [PORTUGAL], ValueError, r"'Moscow' is not finite"),
    ]:
        with pytest.raises(error, match=message):
            replace(plain, **changes)(tiny_gpt2, requests)
    assert same(before, tiny_gpt2.snapshot()) and tiny_gpt2.edits == []
    edit = replace(plain, layer=1, steps=1)(tiny_gpt2, [PORTUGAL])
    other = load_model(str(checkpoints["gpt2"]), device="cpu")
    with pytest.raises(ValueError, match=r"is 256 x 64, but the matrix .* is 96 x 32; was the edit made"):
        edit.apply_(other)


def test_presets() -> None:
    assert EDITORS["wise"] is WISE
    assert preset("wise", "EleutherAI/gpt-j-6B").fields["layers"] == [21]
    for entry in json.loads((PRESETS / "wise.json").read_text(encoding="utf-8")).values():
        fields = {name: value for name, value in entry["fields"].items() if name != "layers"}
        WISE(layer=entry["fields"]["layers"][0], unrelated=("A text",), **fields)
