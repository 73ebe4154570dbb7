"""The loop learns, stops early, and goes on to the same bits; a network knows the model that it was trained for."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.cli.training import train as train_command
from workbench.editors.calinet import CaliNet
from workbench.editors.grace import GRACE
from workbench.editors.ke import KE
from workbench.editors.lora import LoRA
from workbench.editors.mend import MEND, MENDRecipe
from workbench.editors.setup.presets import preset
from workbench.editors.t_patcher import TPatcher
from workbench.editors.training.examples import Examples
from workbench.editors.training.loop import Fitted, Schedule, train
from workbench.editors.training.network import TrainedNetwork, description, network_path, own_path, trained_network
from workbench.editors.training.trained import parted
from workbench.machine import paths
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Probe, Record
from workbench.records.reading import read_records
from workbench.studies.defaults import RECORDS

TARGETS = torch.tensor([1.0, 2.0, 3.0, 6.0])


def fitted(
    steps: int, *, checkpoint: Path | None = None, stop: int | None = None, learning_rate: float = 0.1, **changes: float
) -> Fitted:
    """Adam finds the mean of noisy targets; `stop` breaks off at that loss."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    network.register_buffer("seen", torch.zeros(()))
    calls = 0

    def loss(index: int, draw: random.Random) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        network.get_buffer("seen").add_(1)
        return (network.weight.sum() - TARGETS[index] - draw.gauss(0, 0.1)) ** 2

    options = {"accumulate": 2, "validate_every": 10, "patience": 1000, "seed": 5, **changes}
    return train(
        network,
        torch.optim.Adam(network.parameters(), lr=learning_rate),
        loss,
        lambda: (network.weight.sum() - TARGETS.mean()).abs().item(),
        examples=len(TARGETS),
        schedule=Schedule(steps=steps, **options),  # pyright: ignore[reportArgumentType]
        checkpoint=checkpoint,
    )


def test_the_mean_is_found_and_the_curve_goes_down() -> None:
    found = fitted(200)
    assert abs(found.state["weight"].item() - TARGETS.mean().item()) < 0.2
    assert [point.step for point in found.curve] == list(range(0, 201, 10))
    assert found.curve[0].loss is None and found.curve[0].validation == TARGETS.mean().item()
    losses = [point.loss for point in found.curve if point.loss is not None]
    assert losses[0] > losses[-1]
    assert found.step == min(found.curve, key=lambda point: point.validation).step


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_what_is_stopped_goes_on_to_the_same_bits(tmp_path: Path, decay: float) -> None:
    path = tmp_path / "training.pt"
    with pytest.raises(KeyboardInterrupt):
        fitted(60, checkpoint=path, stop=95, decay=decay)
    went_on, through = fitted(60, checkpoint=path, decay=decay), fitted(60, decay=decay)
    assert went_on.curve == through.curve and went_on.step == through.step
    assert all(torch.equal(went_on.state[name], through.state[name]) for name in through.state)
    assert fitted(60, checkpoint=path, decay=decay).curve == through.curve  # it was at its end


def test_learning_rates_fall_to_0_at_the_end() -> None:
    paced = Schedule(steps=10, validate_every=1, patience=1, decay=0.4)
    assert [paced.pace(step) for step in (0, 6, 7, 8, 9)] == [1, 1, 0.75, 0.5, 0.25]
    even, decayed = (fitted(200, decay=decay).curve for decay in (0.0, 0.5))
    assert even[:11] == decayed[:11]  # the first half
    moved, less = (abs(curve[-1].validation - curve[-2].validation) for curve in (even, decayed))
    assert 0 < less < moved / 5


def test_a_checkpoint_of_a_gpu_goes_on_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "training.pt"
    with monkeypatch.context() as there, pytest.raises(KeyboardInterrupt):
        there.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")  # where its tensors say they were
        fitted(60, checkpoint=path, stop=75)
    assert b"cuda:0" in path.read_bytes()
    assert fitted(60, checkpoint=path).curve == fitted(60).curve


def test_a_damaged_checkpoint_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    whole = fitted(20, checkpoint=path)
    sound = path.read_bytes()
    for data in (sound[:-9], b"", b"\x80\x04K\x01.", sound[:700] + bytes([sound[700] ^ 1]) + sound[701:]):
        path.write_bytes(data)
        with pytest.warns(UserWarning, match="training.pt' is damaged; it begins anew"):
            again = fitted(20, checkpoint=path)
        assert again.curve == whole.curve and torch.equal(again.state["weight"], whole.state["weight"])


def test_it_stops_when_nothing_gets_better() -> None:
    found = fitted(1000, patience=30, learning_rate=3.0)
    assert found.curve[-1].step < 1000 and found.curve[-1].step - found.step >= 30


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        fitted(1, patience=0)
    with pytest.raises(ValueError, match="clip must be positive"):
        Schedule(steps=1, validate_every=1, patience=1, clip=0.0)
    with pytest.raises(ValueError, match=r"decay is a share of the steps from 0 to 1, got 1\.5"):
        Schedule(steps=1, validate_every=1, patience=1, decay=1.5)
    with pytest.raises(ValueError, match="the training loss at step 1 is inf: lower the learning rate"):
        fitted(20, learning_rate=1e30)
    path = tmp_path / "training.pt"
    fitted(10, checkpoint=path)
    network = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="is the checkpoint of another training: delete it"):
        train(
            network,
            torch.optim.Adam(network.parameters()),
            lambda index, draw: network.weight.sum(),
            lambda: 0.0,
            examples=1,
            schedule=Schedule(steps=1, validate_every=1, patience=1),
            checkpoint=path,
            identity="other",
        )


def test_no_subject_is_trained_on_and_validated_on() -> None:
    records = [
        Record(case_id=i, request=EditRequest(template="{} is", subject=f"s{i // 3}", target_new="t"))
        for i in range(30)
    ]
    training, validation = parted(records, held_out=8, seed=0)
    assert len(validation) == 9 and len(training) == 21
    assert not {r.request.subject for r in training} & {r.request.subject for r in validation}
    with pytest.raises(ValueError, match="30 records about 10 subjects cannot be parted into 40"):
        parted(records, held_out=40, seed=0)


def network(model: Model) -> TrainedNetwork:
    return TrainedNetwork(
        method="mend",
        model="tiny",
        made_for=description(model),
        settings={"rank": 2},
        tensors={"a": torch.arange(3.0)},
        provenance={"curve": [[0, None, 1.0]]},
    )


def test_what_should_stay_is_what_records_say_should(tiny_gpt2: Model) -> None:
    """Neighbors and locality prompts with their own answers; of another record only if it is of another subject."""

    def record(subject: str, **more: Any) -> Record:
        request = EditRequest(template="{} is in", subject=subject, target_new="Rome", target_true="Paris")
        return Record(case_id=0, request=request, **more)

    asked = Probe(prompt="Who made Discman?", targets_new=("Sony",), targets_true=("Sony",))
    every = [
        record("Oslo", neighborhood_prompts=("Lyon is in",), locality_prompts=(asked,)),
        record("Oslo", neighborhood_prompts=("Nice is in",)),
        record("Bern", paraphrase_prompts=("One finds Bern in",), generation_prompts=("Bern",)),
    ]
    drawn: set[str] = set()
    for seed in range(30):
        tokens = Examples(tiny_gpt2, every, kept=4).batch([0], random.Random(seed)).kept.tokens
        kept = zip(tokens.ids.tolist(), tokens.mask.tolist(), strict=True)
        drawn |= {tiny_gpt2.text.decode([id for id, real in zip(*row, strict=True) if real]) for row in kept}
    assert drawn == {"Lyon is in Paris", "Who made Discman? Sony", "One finds Bern in Paris"}
    answers = Examples(tiny_gpt2, every[:1], answers_only=True).batch([0], random.Random(0)).kept
    assert set(tiny_gpt2.text.decode(answers.tokens.ids[answers.rows, answers.positions].tolist()).split()) <= {
        "Paris",
        "Sony",
    }


def test_a_network_is_trained_on_what_is_named_or_its_preset_names(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: None
) -> None:
    """Training records, of several files together; a name never stands for evaluation records."""
    given: list[Sequence[Record]] = []

    def fit(model: Model, records: Sequence[Record], recipe: Any, **more: Any) -> TrainedNetwork:
        given.append(records)
        return replace(MEND.untrained(model, MENDRecipe(rank=4)), provenance={"curve": [], "seconds": 0.0})

    monkeypatch.setattr(MEND, "fit", fit)
    folders = {name: RECORDS[name.partition("_")[0]] for name in ("atlas", "atlas_questions", "smollm2")}
    files = {name: "questions" if name.endswith("questions") else "records" for name in folders}
    every = {name: read_records(folder / f"{files[name]}_train.json") for name, folder in folders.items()}
    cases = {
        None: list(preset("mend", "atlas").trained_on or ["smollm2"]),
        "atlas,smollm2": ["atlas", "smollm2"],
        str(folders["atlas"] / "records_train.json"): ["atlas"],
    }
    for records, names in cases.items():
        asked = records and records.split(",")
        train_command(
            "mend", model=str(checkpoints["gpt2"]), records=asked, preset="atlas", out=tmp_path / "n.safetensors"
        )
        assert given.pop() == [record for name in names for record in every[name]]


def test_an_edit_begins_with_numbers_of_its_own(tiny_gpt2: Model) -> None:
    """Edits made one after another would all begin alike, if the seed alone were what they are drawn from."""
    one, other = (EditRequest(template="{} is in", subject=name, target_new="Rome") for name in ("Oslo", "Bern"))

    def lora(request: EditRequest) -> Tensor:
        """A, which a first step leaves as it is."""
        return LoRA(layers=(1,), rank=2, dropout=0.0, steps=1)(tiny_gpt2, [request]).updates[0].left

    draws: dict[str, Callable[[EditRequest], Tensor]] = {
        "grace": lambda request: GRACE(layer=1, start="cold")._drawn(request, 8),
        "t_patcher": lambda request: TPatcher(layer=5, memories=None, memory_weight=0.0)._drawn(request, 1, 8),
        "calinet": lambda request: CaliNet(layer=5)._started([request], 8)["keys"],
        "lora": lora,
    }
    for name, drawn in draws.items():
        assert drawn(one).equal(drawn(one)) and not drawn(one).equal(drawn(other)), name


def test_a_network_is_saved_and_loaded(tiny_gpt2: Model, tmp_path: Path) -> None:
    made = network(tiny_gpt2)
    made.save(tmp_path / "one.safetensors")
    found = TrainedNetwork.load(tmp_path / "one.safetensors")
    assert found.digest == made.digest and found.provenance == made.provenance
    found.check_made_for(tiny_gpt2)
    (tmp_path / "two.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is not a network that can be read"):
        TrainedNetwork.load(tmp_path / "two.safetensors")


def test_a_network_of_ones_own_goes_before_the_one_that_comes_with_the_workbench(
    tiny_gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr("workbench.editors.training.network.TRAINED", tmp_path / "shipped")
    shipped, own = tmp_path / "shipped" / "mend_tiny-gpt2.safetensors", own_path("mend", tiny_gpt2.name)
    made = network(tiny_gpt2)
    shipped.parent.mkdir()
    made.save(shipped)
    assert network_path("mend", tiny_gpt2.name) == shipped
    own.parent.mkdir()
    replace(made, settings={"another": True}).save(own)
    assert trained_network("mend", tiny_gpt2).settings == {"another": True}


def test_another_models_network_is_refused(
    tiny_gpt2: Model, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.editors.training.network.TRAINED", tmp_path)
    other = load_model(str(checkpoints["gpt2"]), device="cpu")
    with pytest.raises(FileNotFoundError, match=r"mend must be trained before it edits .*workbench train mend --model"):
        trained_network("mend", other)
    network(tiny_gpt2).save(tmp_path / "mend_gpt2.safetensors")
    with pytest.raises(ValueError, match=r"trained for 'tiny' with size 6 layers x 64 .*but .* has "):
        trained_network("mend", other)
    with torch.no_grad():
        weight = tiny_gpt2.weight(0)
        before, made = weight.clone(), network(tiny_gpt2)
        weight.add_(1)
        with pytest.raises(ValueError, match="with fingerprint"):
            made.check_made_for(tiny_gpt2)
        weight.copy_(before)


@pytest.mark.parametrize("editor", [MEND, KE])
def test_scale_multiplies_what_the_network_makes(tiny_gpt2: Model, editor: Any) -> None:
    network = editor.untrained(tiny_gpt2, editor.recipes(last=1))
    asked = [EditRequest(template="The capital of {} is", subject="Sweden", target_new="Rome")]
    once = editor(network=network)(tiny_gpt2, asked)
    thrice = editor(network=network, scale=3.0)(tiny_gpt2, asked)
    for small, large in zip(once.updates, thrice.updates, strict=True):
        assert torch.allclose(large.dense(), 3 * small.dense(), rtol=1e-6)
    assert thrice.provenance["hyperparameters"]["scale"] == 3.0
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"scale must be positive and finite, got {wrong}"):
            editor(network=network, scale=wrong)
