"""MEND transforms the factors of a gradient; what it makes of them, and a step of its training, are the authors'."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from safetensors.torch import load_file

from workbench.editors.make import make_editor
from workbench.editors.mend import MEND, MENDRecipe, built, losses
from workbench.editors.shared.factors import gradient_factors, negative_log_likelihoods, pooled_factors
from workbench.editors.shared.passes import Scored, UpperPasses, WholePasses, added, scored
from workbench.editors.training.examples import Batch, Examples, answer_positions, whole_texts
from workbench.editors.training.network import TrainedNetwork, description
from workbench.edits.edit import Edit
from workbench.edits.weights import WeightEdit
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record

REFERENCE = json.loads((GOLDEN / "survey" / "mend.json").read_text(encoding="utf-8"))
REQUESTS = (
    EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow", target_true="Lisbon"),
    EditRequest(template="The language spoken in {} is", subject="Iceland", target_new="Thai"),
)
PLACES = [(layer, matrix) for layer in (3, 4, 5) for matrix in ("W_out", "W_in")]
PUBLISHED = {"W_out": "c_proj", "W_in": "c_fc"}
SHAPES = {"256x64": "(256, 64)", "64x256": "(64, 256)"}
PARAMETERS = {"u": "u", "v": "v", "bias": "bias", "scale": "mode_scale.weight", "shift": "mode_shift.weight"}
STATISTICS = {"count": "k", "u_mean": "u_mean", "u_squares": "u_s", "delta_mean": "v_mean", "delta_squares": "v_s"}
RECORDS = [
    Record(
        case_id=index,
        request=EditRequest(
            template="The capital of {} is", subject=subject, target_new=new, target_true=true, relation="capital"
        ),
        paraphrase_prompts=(f"{subject}'s capital city is",),
        neighborhood_prompts=("The capital of France is", f"People in {subject} speak"),
    )
    for index, (subject, true, new) in enumerate(
        [("Portugal", "Lisbon", "Moscow"), ("Japan", "Tokyo", "Rome"), ("Egypt", "Cairo", "Athens")]
    )
]
QUICK = MENDRecipe(
    rank=4, steps=4, validate_every=2, patience=100, held_out=1, edits=2, learning_rate=1e-3, vary_targets=True,
    itself=0.5, kept=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "survey" / "mend.safetensors")


def published(golden: dict[str, torch.Tensor], model: Model) -> TrainedNetwork:
    """The transforms of the golden file, whose rates are those of a change that is added."""
    tensors = {"rates": golden["edit_lrs"]}
    for own, theirs in SHAPES.items():
        for layer in range(2):
            for name, other in PARAMETERS.items():
                tensors[f"transforms.{own}.layers.{layer}.{name}"] = golden[
                    f"transform.{theirs}.mlp.layers.{layer}.{other}"
                ]
        for name, other in STATISTICS.items():
            tensors[f"transforms.{own}.{name}"] = golden[f"transform.{theirs}.{other}"].squeeze()
    return TrainedNetwork(
        method="mend",
        model=model.name,
        made_for=description(model),
        settings={"places": [list(place) for place in PLACES], "rank": 24, "descent": False},
        tensors=tensors,
        provenance={},
    )


def close(found: torch.Tensor, expected: torch.Tensor, bound: float = 1e-5) -> bool:
    return bool((found - expected).norm() <= bound * expected.norm())


def whole(model: Model, requests: tuple[EditRequest, ...]) -> Scored:
    return scored(model, [(each.prompt, each.target_new, each.separator) for each in requests])


def logits(model: Model, texts: Scored) -> torch.Tensor:
    return model.logits(texts.tokens)


# The published code ------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_golden_factors(tiny_gpt2: Model, golden: dict[str, torch.Tensor], which: int) -> None:
    edit = whole(tiny_gpt2, (REQUESTS[which],))
    assert edit.tokens.ids.tolist() == REFERENCE[f"edit.{which}"]["input_ids"]
    loss, factors = gradient_factors(WholePasses(model=tiny_gpt2, places=PLACES), edit)
    assert loss.item() == pytest.approx(REFERENCE[f"edit.{which}"]["loss_before"], rel=1e-5)
    transforms = built(published(golden, tiny_gpt2), tiny_gpt2)
    seen: dict[str, int] = {}
    for (layer, matrix), found in factors.items():
        name = f"{layer}.{PUBLISHED[matrix]}"
        assert close(found.u[0], golden[f"edit.{which}.u.{name}"][0])
        assert close(found.delta[0], golden[f"edit.{which}.delta.{name}"][0])
        shape = f"{found.u.shape[2]}x{found.delta.shape[2]}"
        number = seen[shape] = seen.get(shape, -1) + 1
        kept = found.pooled()
        facts = REFERENCE[f"edit.{which}"]["matrices"][name]
        assert kept.u.shape[1] == facts["kept_rows"] and number == facts["index"]
        u, delta = transforms.transforms[shape](kept.u[0], kept.delta[0], number)
        assert close(u, golden[f"edit.{which}.u_out.{name}"])
        assert close(delta, golden[f"edit.{which}.delta_out.{name}"])


def test_golden_edits(tiny_gpt2: Model, golden: dict[str, torch.Tensor]) -> None:
    editor = MEND(network=published(golden, tiny_gpt2))
    assert editor.layers == (3, 4, 5)
    for which, request in enumerate(REQUESTS):
        edit = editor(tiny_gpt2, [request])
        for update in edit.updates:
            facts = REFERENCE[f"edit.{which}"]["matrices"][f"{update.layer}.{PUBLISHED[update.matrix]}"]
            assert update.dense().norm().item() == pytest.approx(facts["dW_norm"], rel=1e-5)
            if which == 0:
                assert close(update.dense(), golden[f"edit.0.dW.{update.layer}.{PUBLISHED[update.matrix]}"])
        with edit.applied(tiny_gpt2):
            assert close(logits(tiny_gpt2, whole(tiny_gpt2, (request,))), golden[f"edit.{which}.logits"])


def test_golden_batch(tiny_gpt2: Model, golden: dict[str, torch.Tensor]) -> None:
    text = tiny_gpt2.text.decode(REFERENCE["edit.2"]["input_ids"][0])
    target = tiny_gpt2.text.decode([each for each in REFERENCE["edit.2"]["labels"][0] if each >= 0])
    template = text.removesuffix(target)
    subject = template.split()[-1]
    third = EditRequest(template=template.replace(subject, "{}"), subject=subject, target_new=target.strip())
    edit = MEND(network=published(golden, tiny_gpt2))(tiny_gpt2, [*REQUESTS, third])
    for update in edit.updates:
        facts = REFERENCE["batch"]["matrices"][f"{update.layer}.{PUBLISHED[update.matrix]}"]
        assert update.dense().norm().item() == pytest.approx(facts["dW_norm"], rel=2e-5)
        assert update.left.shape[1] == facts["kept_rows"]
    with edit.applied(tiny_gpt2):
        texts = whole(tiny_gpt2, (*REQUESTS, third))
        found, real = logits(tiny_gpt2, texts), texts.tokens.mask.bool()
        assert close(found[real], golden["batch.logits"][real], 2e-5)


def golden_example(model: Model) -> Batch:
    told = REFERENCE["train"]
    outer = [each for each in told["outer_labels"][0] if each >= 0]
    prompt = model.text.decode(told["outer"][0][: -len(outer)])
    texts = [
        model.text.decode([id for id, real in zip(ids, mask, strict=True) if real])
        for ids, mask in zip(told["loc"], told["loc_mask"], strict=True)
    ]
    example = Batch(
        requests=REQUESTS[:1],
        edit=whole(model, REQUESTS[:1]),
        outer=scored(model, [(prompt, "Moscow", None)]),
        kept=whole_texts(model, [texts]),
    )
    assert example.outer.tokens.ids.tolist() == told["outer"]
    assert example.kept.tokens.mask.tolist() == told["loc_mask"]
    return example


@pytest.mark.parametrize("passes", [WholePasses, UpperPasses])
def test_golden_training_step(tiny_gpt2: Model, golden: dict[str, torch.Tensor], passes: Any) -> None:
    """Losses, gradients and statistics; the rates after Adam's step of 1e-6, which is what they get as published."""
    network = built(published(golden, tiny_gpt2), tiny_gpt2).train()
    running: Any = passes(model=tiny_gpt2, places=PLACES)
    edit, kept = losses(network, running, golden_example(tiny_gpt2), descent=False, observe=True)
    assert edit.item() == pytest.approx(REFERENCE["train"]["loss/edit"], rel=1e-4)
    assert kept.item() == pytest.approx(REFERENCE["train"]["loss/loc"], rel=1e-4)
    (0.1 * edit + kept).backward()
    assert network.rates.grad is not None
    assert close(network.rates.grad, golden["train.grad.edit_lrs"], 1e-4)
    for own, theirs in SHAPES.items():
        transform: Any = network.transforms[own]
        for layer in range(2):
            for name, other in PARAMETERS.items():
                expected = golden[f"train.grad.{theirs}.mlp.layers.{layer}.{other}"]
                assert close(getattr(transform.layers[layer], name).grad, expected, 1e-4)
        for name, other in STATISTICS.items():
            assert close(transform.get_buffer(name), golden[f"train.stats.{theirs}.{other}"].squeeze(), 1e-4)
    torch.nn.utils.clip_grad_norm_(network.parameters(), 100.0)
    torch.optim.Adam(network.parameters(), lr=1e-6).step()
    assert close(network.rates.detach(), golden["train.edit_lrs_after_train_step"], 1e-4)


def test_golden_easyedit(tiny_gpt2: Model, golden: dict[str, torch.Tensor]) -> None:
    """The edit itself is scored, its target's first token without its space; KL is taken where the answer stands."""
    told = REFERENCE["easyedit"]
    edit = whole(tiny_gpt2, REQUESTS[:1])
    labels = replace(edit, targets=torch.tensor(told["inner_labels"][0]))
    kept = answer_positions(tiny_gpt2, [("The capital of France is", "Paris", None)])
    assert kept.tokens.ids.tolist() == told["loc_ids"]
    example = Batch(requests=REQUESTS[:1], edit=labels, outer=labels, kept=kept)
    for mode, observe in (("eval_mode", False), ("train_mode", True)):
        network = built(published(golden, tiny_gpt2), tiny_gpt2)
        passes = WholePasses(model=tiny_gpt2, places=PLACES)
        found, kl = losses(network, passes, example, descent=False, observe=observe)
        assert found.item() == pytest.approx(told[mode]["l_edit"], rel=1e-4)
        assert kl.item() == pytest.approx(told[mode]["l_loc"], rel=1e-4)


# Identities --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def random_model(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Model:
    return load_model(str(checkpoints[request.param]), device="cpu")


def test_factors_multiply_to_the_gradient(random_model: Model) -> None:
    """Of the weights themselves, by autograd; W_gate too, where there is one."""
    model = random_model
    gated = hasattr(model.bridge.blocks[0].mlp, "gate")
    matrices = ("W_out", "W_in", "W_gate") if gated else ("W_out", "W_in")
    places = [(layer, matrix) for layer in range(model.n_layers - 1, model.n_layers) for matrix in matrices]
    texts = whole(model, REQUESTS)
    _, factors = gradient_factors(WholePasses(model=model, places=places), texts, pooled=True)
    names = {"W_in": "in", "W_gate": "gate", "W_out": "out"}
    for (layer, matrix), found in factors.items():
        mlp: Any = model.bridge.blocks[layer].mlp
        weight = getattr(mlp, names[matrix]).original_component.weight
        weight.requires_grad_(True)
        try:
            loss = negative_log_likelihoods(model.logits(texts.tokens)[texts.rows, texts.positions], texts).mean()
            (gradient,) = torch.autograd.grad(loss, weight)
        finally:
            weight.requires_grad_(False)
        expected = gradient if gradient.shape == model.weight(layer, matrix).shape else gradient.T
        if gradient.shape[0] == gradient.shape[1]:
            pytest.skip("a square matrix does not tell its orientation")
        assert close(found.dense().sum(dim=0), expected)
        assert close(found.pooled().dense()[0], expected)


def test_untrained_it_is_a_step_of_gradient_descent(random_model: Model) -> None:
    recipe = replace(QUICK, last=1, rate=0.25)
    edit = MEND(network=MEND.untrained(random_model, recipe))(random_model, list(REQUESTS))
    factors = pooled_factors(random_model, recipe.places(random_model), REQUESTS)
    for update in edit.updates:
        assert close(update.dense(), -0.25 * factors[update.layer, update.matrix].dense()[0])


def test_parts_of_a_batch_add_up(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_batch = pooled_factors(tiny_gpt2, PLACES, REQUESTS)
    monkeypatch.setattr(type(tiny_gpt2), "batches", lambda self, rows, *_, **__: [[i] for i in range(len(rows))])
    parts = pooled_factors(tiny_gpt2, PLACES, REQUESTS)
    assert all(close(parts[place].dense(), whole_batch[place].dense()) for place in PLACES)


def test_upper_passes_are_the_whole_models(random_model: Model) -> None:
    matrices = ("W_out", "W_in", "W_gate") if hasattr(random_model.bridge.blocks[0].mlp, "gate") else ("W_out", "W_in")
    places = [(random_model.n_layers - 1, matrix) for matrix in matrices]
    texts, generator = whole(random_model, REQUESTS), torch.Generator().manual_seed(0)
    change = added(
        {
            place: tuple(
                torch.randn(2, *shape, generator=generator)
                for shape in ((random_model.weight(*place).shape[0], 3), (3, random_model.weight(*place).shape[1]))
            )  # pyright: ignore[reportArgumentType]
            for place in places
        },
        texts,
    )
    slow, fast = WholePasses(model=random_model, places=places), UpperPasses(random_model, places)
    for given in (None, change):
        assert close(fast.logits(texts, given), slow.logits(texts, given))
    assert not close(slow.logits(texts, change), slow.logits(texts), 1e-2)


def test_upper_passes_run_what_lies_below_once(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same texts, before and after an edit; never for others."""
    texts, alone = whole(tiny_gpt2, REQUESTS), whole(tiny_gpt2, REQUESTS[:1])
    passes, places = UpperPasses(tiny_gpt2, [(tiny_gpt2.n_layers - 1, "W_out")]), []
    leaving = passes.blocks.leaving
    monkeypatch.setattr(passes.blocks, "leaving", lambda layer, *more: places.append(layer) or leaving(layer, *more))
    first, again, other = (passes.logits(each) for each in (texts, texts, alone))
    assert first.equal(again) and close(other, WholePasses(model=tiny_gpt2, places=[]).logits(alone))
    below, last = list(range(tiny_gpt2.n_layers - 1)), tiny_gpt2.n_layers - 1
    assert places == [*below, last, last, *below, last]


def test_texts_that_are_read_together_are_run_once_each(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that several have in common too; those that stay are not run again."""
    many, alone, longer = (whole(tiny_gpt2, some) for some in (REQUESTS, REQUESTS[:1], REQUESTS[::-1]))
    passes, rows = UpperPasses(tiny_gpt2, [(tiny_gpt2.n_layers - 1, "W_out")]), []
    leaving = passes.blocks.leaving
    monkeypatch.setattr(
        passes.blocks, "leaving", lambda layer, x, *more: rows.append((layer, len(x))) or leaving(layer, x, *more)
    )
    passes.read(many, alone, longer, stay=True)
    below, last = range(tiny_gpt2.n_layers - 1), tiny_gpt2.n_layers - 1
    assert rows == [(layer, len(REQUESTS)) for layer in below]
    other = whole(tiny_gpt2, REQUESTS[-1:])
    passes.read(other)
    rows.clear()
    for each in (many, alone, longer, other):
        assert close(passes.logits(each), WholePasses(model=tiny_gpt2, places=[]).logits(each))
    assert rows == [(last, len(REQUESTS)), (last, 1), (last, len(REQUESTS)), (last, 1)]


# Training ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_trains_and_goes_on_to_the_same_bits(tiny_gpt2: Model, tmp_path: Path, cache: None) -> None:
    before = tiny_gpt2.fingerprint()
    path = tmp_path / "training.pt"
    through = MEND.fit(tiny_gpt2, RECORDS, QUICK)
    calls, batch = 0, Examples.batch

    def stopping(self: Examples, indices: Sequence[int], draw: random.Random) -> Batch:
        nonlocal calls
        calls += 1
        if calls == 1 + 4:
            raise KeyboardInterrupt
        return batch(self, indices, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Examples, "batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            MEND.fit(tiny_gpt2, RECORDS, QUICK, checkpoint=path)
    went_on = MEND.fit(tiny_gpt2, RECORDS, QUICK, checkpoint=path)
    assert went_on.digest == through.digest
    assert went_on.provenance["curve"] == through.provenance["curve"]
    assert [point[0] for point in through.provenance["curve"]] == [0, 2, 4]
    assert tiny_gpt2.fingerprint() == before


@pytest.mark.slow
def test_it_learns(tiny_gpt2: Model) -> None:
    recipe = replace(QUICK, steps=12, validate_every=6, learning_rate=1e-2, edit_weight=1.0, rate_learning_rate=1e-3)
    network = MEND.fit(tiny_gpt2, RECORDS, recipe)
    curve = network.provenance["curve"]
    assert curve[-1][2] < 0.8 * curve[0][2]
    # An identity has a gradient: the transforms learn, and not the rates alone.
    assert all(tensor.any() for name, tensor in network.tensors.items() if name.endswith(".u"))


# An editor as others ------------------------------------------------------------------------------------


def test_saved_stacked_and_rolled_back(random_model: Model, tmp_path: Path) -> None:
    editor = MEND(network=MEND.untrained(random_model, replace(QUICK, rate=1.0)))
    before = random_model.snapshot()
    first = editor(random_model, [REQUESTS[0]])
    with first.applied(random_model):
        second = editor(random_model, [REQUESTS[1]])
        second.apply_(random_model)
        both = random_model.snapshot()
        first.revert_(random_model)
        second.revert_(random_model)
        first.apply_(random_model)
        second.apply_(random_model)
        assert same(random_model.snapshot(), both) and not same(both, before)
        second.revert_(random_model)
    assert same(random_model.snapshot(), before)
    first.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors", model=random_model)
    assert isinstance(loaded, WeightEdit) and loaded.digest == first.digest and loaded.method == "MEND"


def test_half_precision(checkpoints: dict[str, Path]) -> None:
    full = load_model(str(checkpoints["llama"]), device="cpu")
    half = load_model(str(checkpoints["llama"]), device="cpu", dtype=torch.bfloat16)
    network = MEND.untrained(full, replace(QUICK, rate=0.5))
    one, other = (MEND(network=network)(model, [REQUESTS[0]]) for model in (full, half))
    for a, b in zip(one.updates, other.updates, strict=True):
        assert torch.cosine_similarity(a.dense().flatten(), b.dense().flatten(), dim=0) > 0.98


def test_bad_input_is_named_in_one_line(tiny_gpt2: Model, random_model: Model, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"mend must be trained before it edits .*`workbench train mend --model"
    ):
        make_editor(
            tiny_gpt2, "mend", layer=2, texts=tuple, seed=0, cache=tmp_path, preset_of="gpt2-xl",
            records=lambda: RECORDS,
        )  # fmt: skip
    network = MEND.untrained(tiny_gpt2, QUICK)
    with pytest.raises(ValueError, match=r"network was trained for .* with size 6 layers x 64"):
        MEND(network=network)(random_model, [REQUESTS[0]])
    with pytest.raises(ValueError, match=r"at least one request"):
        MEND(network=network)(tiny_gpt2, [])
    with (
        MEND(network=network)(tiny_gpt2, [REQUESTS[0]]).applied(tiny_gpt2),
        pytest.raises(ValueError, match=r"1 edits are applied to .*: take them back before training"),
    ):
        MEND.fit(tiny_gpt2, RECORDS, QUICK)
    with pytest.raises(IndexError, match=r"layer 7 is out of range"):
        MEND.untrained(tiny_gpt2, replace(QUICK, edited=(7,)))
