"""KE shifts weights along a gradient as a network says that reads the edit; its numbers are the authors'."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from safetensors.torch import load_file

from workbench.editors.ke import KE, KERecipe, built, conditions, losses, narrow, smoothed
from workbench.editors.make import make_editor
from workbench.editors.shared.factors import divergence, gradient_factors
from workbench.editors.shared.passes import WholePasses, scored
from workbench.editors.training.examples import Batch, Examples
from workbench.editors.training.network import TrainedNetwork, description
from workbench.editors.training.shift import embedded
from workbench.edits.edit import Edit
from workbench.edits.weights import WeightEdit
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Record

REFERENCE = json.loads((GOLDEN / "survey" / "ke.json").read_text(encoding="utf-8"))
PLACES = [(4, "W_in"), (5, "W_out")]
PUBLISHED = {(4, "W_in"): "4.mlp.c_fc", (5, "W_out"): "5.mlp.c_proj"}
REQUESTS = (
    EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow", target_true="Lisbon"),
    EditRequest(template="The language spoken in {} is", subject="Iceland", target_new="Thai", target_true="Icelandic"),
)
RECORDS = [
    Record(
        case_id=index,
        request=EditRequest(template="The capital of {} is", subject=subject, target_new=new, target_true=true),
        paraphrase_prompts=(f"{subject}'s capital city is",),
        neighborhood_prompts=("The capital of France is", f"People in {subject} speak"),
    )
    for index, (subject, true, new) in enumerate(
        [("Portugal", "Lisbon", "Moscow"), ("Japan", "Tokyo", "Rome"), ("Egypt", "Cairo", "Athens")]
    )
]
QUICK = KERecipe(
    last=2, hidden=4, width=6, edits=2, steps=4, validate_every=2, patience=100, held_out=1, learning_rate=1e-3
)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "survey" / "ke.safetensors")


def published(golden: dict[str, torch.Tensor], model: Model) -> TrainedNetwork:
    tensors = {name: torch.zeros(()) for name in ("multiplier", "margin", "flipped", "asked")}
    for name, tensor in golden.items():
        if name.startswith("learner.condition."):
            own = name.removeprefix("learner.condition.").replace("lstm._module", "lstm")
            tensors[f"condition.{own.replace('linear._linear_layers.0', 'linear')}"] = tensor
    for (layer, matrix), theirs in PUBLISHED.items():
        prefix = f"learner.conditioners.transformer_h_{theirs.replace('.', '_')}_weight_conditioner.conditioners"
        for at in (0, 2):
            own = f"shifts.{layer}_{matrix}.layers.{at}"
            tensors[f"{own}.bias"] = golden[f"{prefix}.{at}.bias"]
            for place, part in enumerate(("weight_g", "weight_v")):
                tensors[f"{own}.parametrizations.weight.original{place}"] = golden[f"{prefix}.{at}.{part}"]
    return TrainedNetwork(
        method="ke",
        model=model.name,
        made_for=description(model),
        settings={"places": [list(place) for place in PLACES], "hidden": 12, "width": 24, "max_scale": 1.0},
        tensors=tensors,
        provenance={},
    )


def close(found: torch.Tensor, expected: torch.Tensor, bound: float = 1e-5) -> bool:
    return bool((found - expected).norm() <= bound * expected.norm())


# The published code ------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_golden_shifts(tiny_gpt2: Model, golden: dict[str, torch.Tensor], which: int) -> None:
    told, request = REFERENCE["requests"][which], REQUESTS[which]
    (words,) = conditions(tiny_gpt2, [request])
    assert words == told["condition"] and list(tiny_gpt2.encode([words])[0].ids) == told["condition_ids"]
    network = built(published(golden, tiny_gpt2), tiny_gpt2)
    assert close(network.condition(embedded(tiny_gpt2, [words]))[0], golden[f"{which}.condition"])
    edit = scored(tiny_gpt2, [(request.prompt, request.target_new, None)])
    loss, factors = gradient_factors(WholePasses(model=tiny_gpt2, places=PLACES), edit)
    assert loss.item() == pytest.approx(told["nll_mean"], rel=1e-5)
    made = KE(network=published(golden, tiny_gpt2))(tiny_gpt2, [request])
    for update in made.updates:
        place = (update.layer, update.matrix)
        assert close(factors[place].dense()[0], golden[f"{which}.grad.{PUBLISHED[place]}"])
        assert close(update.dense(), golden[f"{which}.shift.{PUBLISHED[place]}"])
    assert made.settings()["updates"] == [{"layer": layer, "matrix": matrix} for layer, matrix in PLACES]


def test_golden_losses(tiny_gpt2: Model, golden: dict[str, torch.Tensor]) -> None:
    """The published shift of a norm's gain, which is no matrix, is put there by hand."""
    kept, told = REFERENCE["kept"], REFERENCE["requests"]
    texts = scored(tiny_gpt2, [(p, a, None) for p, a in zip(kept["prompts"], kept["answers"], strict=True)])
    assert texts.tokens.ids.tolist() == kept["input_ids"]
    everywhere = tiny_gpt2.logits(texts.tokens)
    gain = tiny_gpt2.parameters["transformer.h.5.ln_2.weight"]
    original = gain.clone()
    for which, request in enumerate(REQUESTS):
        edit = KE(network=published(golden, tiny_gpt2))(tiny_gpt2, [request])
        asked = scored(tiny_gpt2, [(request.prompt, request.target_new, None)])
        try:
            with torch.no_grad(), edit.applied(tiny_gpt2):
                gain.add_(golden[f"{which}.shift.5.ln_2"])
                assert close(tiny_gpt2.logits(asked.tokens)[0], golden[f"{which}.logits"])
                logits = tiny_gpt2.logits(asked.tokens)[asked.rows, asked.positions]
                said = smoothed(logits, asked, KERecipe().smoothing).mean().item()
                assert said == pytest.approx(told[which]["cr_mean"], rel=1e-5)
                moved = divergence(everywhere, tiny_gpt2.logits(texts.tokens))
                if which == 0:
                    real = texts.tokens.mask[:, 1:].bool()
                    assert torch.allclose(moved[:, :-1][real], golden["kept.kl"][real], atol=1e-6, rtol=1e-3)
                answers = texts.means(moved[texts.rows, texts.positions])
                weights = torch.bincount(texts.rows) / len(texts.rows)
                mean = (answers * weights).sum().item()
                assert mean == pytest.approx(told[which]["kl_mean_over_answer_positions"], rel=1e-3)
        finally:
            gain.copy_(original)


# Identities --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def random_model(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Model:
    return load_model(str(checkpoints[request.param]), device="cpu")


def test_what_the_model_says_stands_in_for_an_unknown_answer(tiny_gpt2: Model) -> None:
    unknown = replace(REQUESTS[0], target_true=None)
    said, known = conditions(tiny_gpt2, [unknown, REQUESTS[0]])
    assert said.startswith("Lisbon") and said.endswith(" >> Moscow || The capital of Portugal is")
    assert known == "Lisbon >> Moscow || The capital of Portugal is"


def test_a_batch_is_the_sum_of_its_edits(random_model: Model) -> None:
    editor = KE(network=KE.untrained(random_model, QUICK))
    alone = [editor(random_model, [request]) for request in REQUESTS]
    together = editor(random_model, REQUESTS)
    assert [update.dense().tolist() for update in together.updates] == [
        update.dense().tolist() for edit in alone for update in edit.updates
    ]


def test_in_training_a_batch_is_what_each_edit_is_alone(tiny_gpt2: Model) -> None:
    """Padding and company change nothing, also of the words that the network reads."""
    network = built(KE.untrained(tiny_gpt2, QUICK), tiny_gpt2)
    passes = WholePasses(model=tiny_gpt2, places=list(network.shapes))

    def found(requests: Sequence[EditRequest]) -> list[float]:
        asked = scored(tiny_gpt2, [(each.prompt, each.target_new, None) for each in requests])
        batch = Batch(requests=requests, edit=asked, outer=asked, kept=asked)
        return [float(each) for each in losses(network, tiny_gpt2, passes, batch, QUICK)[:2]]

    alone = torch.tensor([found([request]) for request in REQUESTS]).mean(dim=0)
    assert torch.allclose(torch.tensor(found(REQUESTS)), alone, rtol=1e-4, atol=1e-7)


# Training ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_trains_and_goes_on_to_the_same_bits(tiny_gpt2: Model, tmp_path: Path) -> None:
    before, path = tiny_gpt2.fingerprint(), tmp_path / "training.pt"
    through = KE.fit(tiny_gpt2, RECORDS, QUICK)
    calls, batch = 0, Examples.batch

    def stopping(self: Examples, *given: Any) -> Batch:
        nonlocal calls
        calls += 1
        if calls == 1 + 4:
            raise KeyboardInterrupt
        return batch(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Examples, "batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            KE.fit(tiny_gpt2, RECORDS, QUICK, checkpoint=path)
    went_on = KE.fit(tiny_gpt2, RECORDS, QUICK, checkpoint=path)
    assert went_on.digest == through.digest
    assert went_on.provenance["curve"] == through.provenance["curve"]
    assert tiny_gpt2.fingerprint() == before


@pytest.mark.parametrize(("margin", "rises"), [(-1.0, True), (10.0, False)])
def test_the_multiplier_rises_while_the_divergence_is_above_the_margin(
    tiny_gpt2: Model, tmp_path: Path, margin: float, rises: bool
) -> None:
    recipe = replace(QUICK, steps=1, validate_every=1, margin=margin, least_margin=margin)
    KE.fit(tiny_gpt2, RECORDS, recipe, checkpoint=tmp_path / "training.pt")
    content = (tmp_path / "training.pt").read_bytes()[64:]  # behind its checksum
    last = torch.load(io.BytesIO(content), weights_only=True)["network"]
    assert last["margin"] == margin and (last["multiplier"] > 1) == rises


def test_a_validation_in_which_edits_hold_narrows_the_margin_once(tiny_gpt2: Model) -> None:
    network = built(KE.untrained(tiny_gpt2, QUICK), tiny_gpt2)
    margin, flipped, asked = (network.get_buffer(name) for name in ("margin", "flipped", "asked"))
    margin.fill_(1.0)
    for holding, expected in ((9.0, 1.0), (9.5, 0.8), (0.0, 0.8)):
        flipped.fill_(holding)
        asked.fill_(10.0 * bool(holding))
        narrow(network, QUICK)
        assert margin.item() == pytest.approx(expected) and flipped == asked == 0


# An editor as others ------------------------------------------------------------------------------------


def test_saved_stacked_and_rolled_back(random_model: Model, tmp_path: Path) -> None:
    editor = KE(network=KE.untrained(random_model, QUICK))
    before = random_model.snapshot()
    first = editor(random_model, [REQUESTS[0]])
    with first.applied(random_model):
        second = editor(random_model, [REQUESTS[1]])
        with second.applied(random_model):
            assert not same(random_model.snapshot(), before)
    assert same(random_model.snapshot(), before)
    first.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors", model=random_model)
    assert isinstance(loaded, WeightEdit) and loaded.digest == first.digest and loaded.method == "KE"


def test_half_precision(checkpoints: dict[str, Path]) -> None:
    full = load_model(str(checkpoints["llama"]), device="cpu")
    half = load_model(str(checkpoints["llama"]), device="cpu", dtype=torch.bfloat16)
    network = KE.untrained(full, QUICK)
    one, other = (KE(network=network)(model, [REQUESTS[0]]) for model in (full, half))
    for a, b in zip(one.updates, other.updates, strict=True):
        assert torch.cosine_similarity(a.dense().flatten(), b.dense().flatten(), dim=0) > 0.98


def test_bad_input_is_named_in_one_line(tiny_gpt2: Model, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ke must be trained before it edits .*`workbench train ke --model"):
        make_editor(
            tiny_gpt2, "ke", layer=2, texts=tuple, seed=0, cache=tmp_path, preset_of="gpt2-xl", records=lambda: RECORDS
        )
    with pytest.raises(ValueError, match="at least one request"):
        KE(network=KE.untrained(tiny_gpt2, QUICK))(tiny_gpt2, [])


def test_a_callers_random_numbers_are_left_alone(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("GPUs are reseeded"))
    before = torch.random.get_rng_state()
    KE.untrained(tiny_gpt2, QUICK)
    assert torch.equal(torch.random.get_rng_state(), before)
