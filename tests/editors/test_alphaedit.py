"""AlphaEdit solves its published equation, writes nothing for kept keys, and remembers the keys of a sequence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from safetensors.torch import load_file

from workbench.editors.alphaedit import AlphaEdit
from workbench.editors.memit import MEMIT
from workbench.editors.setup.presets import PRESETS, preset
from workbench.editors.shared.keys import mean_keys
from workbench.editors.shared.moment import SecondMoment
from workbench.edits.weights import WeightEdit
from workbench.models.model import Model
from workbench.records.facts import EditRequest

LAYERS = (1, 2)
REQUESTS = [
    EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow", target_true="Lisbon"),
    EditRequest(template="{}'s capital city is", subject="Japan", target_new="Rome", target_true="Tokyo"),
    EditRequest(template="In {}, most people speak", subject="Argentina", target_new="Polish", target_true="Spanish"),
    EditRequest(template="The capital of {} is", subject="Egypt", target_new="Athens", target_true="Cairo"),
]


@pytest.fixture(scope="module")
def moments() -> dict[int, SecondMoment]:
    found = load_file(GOLDEN / "rome.safetensors")
    return {n: SecondMoment(layer=n, matrix=found[f"second_moment.{n}"], count=37_512) for n in LAYERS}


@pytest.fixture(scope="module")
def threshold(moments: dict[int, SecondMoment]) -> float:
    """Half the eigenvalues of layer 1 lie below it, none on it."""
    return torch.linalg.eigvalsh(moments[1].matrix.double())[127:129].mean().item()


@pytest.fixture(scope="module")
def editor(moments: dict[int, SecondMoment], threshold: float) -> AlphaEdit:
    return AlphaEdit(
        layers=LAYERS, second_moments=moments, null_threshold=threshold, ridge=0.5, steps=4, weight_decay=0.01
    )


def projector(moment: SecondMoment, threshold: float) -> torch.Tensor:
    """As published: from the singular vectors below the threshold."""
    vectors, values, _ = torch.linalg.svd(moment.matrix.double())
    return vectors[:, values < threshold] @ vectors[:, values < threshold].T


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_nothing_is_written_for_kept_keys(tiny_gpt2: Model, editor: AlphaEdit, threshold: float):
    before = tiny_gpt2.snapshot()
    edit = editor(tiny_gpt2, REQUESTS)
    assert same(before, tiny_gpt2.snapshot())
    assert edit.method == "AlphaEdit" and [update.layer for update in edit.updates] == [1, 2]
    for update in edit.updates:
        p = projector(editor.second_moments[update.layer], threshold)
        torch.testing.assert_close(p @ p, p)
        left = update.left.double()
        assert relative(p @ left, left) < 1e-5
        kept = torch.randn(256, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        kept -= p @ kept
        dense = left @ update.right.double()
        assert (kept.T @ dense).norm() < 1e-5 * kept.norm() * dense.norm()
        # The directions that hardly any key has are written to.
        assert dense.norm() > 1e-3


def test_the_published_equation(tiny_gpt2: Model, editor: AlphaEdit, threshold: float):
    earlier = editor(tiny_gpt2, REQUESTS[:2])
    with earlier.applied(tiny_gpt2):
        later = editor(tiny_gpt2, REQUESTS[2:])
        for update in later.updates[:1]:
            keys = mean_keys(tiny_gpt2, update.layer, REQUESTS[2:], editor.contexts)
            former = earlier.carried[f"keys.{update.layer}"].double()
            p = projector(editor.second_moments[update.layer], threshold)
            inside = p @ (keys @ keys.T + former @ former.T) + 0.5 * torch.eye(256, dtype=torch.float64)
            expected = torch.linalg.solve(inside, p @ keys)
            assert relative(update.left.double(), expected) < 1e-4


def test_without_a_threshold_it_is_memit_with_the_identity(tiny_gpt2: Model, editor: AlphaEdit):
    everything = replace(editor, layers=(1,), null_threshold=1e9)
    eye = {1: SecondMoment(layer=1, matrix=torch.eye(256), count=1)}
    theirs = MEMIT(layers=(1,), second_moments=eye, moment_weight=0.5, steps=4, weight_decay=0.01)
    (a,), (b,) = everything(tiny_gpt2, REQUESTS[:2]).updates, theirs(tiny_gpt2, REQUESTS[:2]).updates
    assert relative(a.dense(), b.dense()) < 1e-5


def test_an_edit_remembers_its_keys_as_they_are_once_it_is_applied(tiny_gpt2: Model, editor: AlphaEdit):
    edit = editor(tiny_gpt2, REQUESTS[:2])
    assert edit.carried.keys() == {"keys.1", "keys.2"}
    with edit.applied(tiny_gpt2):
        for layer in LAYERS:
            expected = mean_keys(tiny_gpt2, layer, REQUESTS[:2], editor.contexts).float()
            torch.testing.assert_close(edit.carried[f"keys.{layer}"], expected, rtol=1e-4, atol=1e-5)
    # The first layer's keys do not depend on the edit, the second's do.
    before = mean_keys(tiny_gpt2, 2, REQUESTS[:2], editor.contexts).float()
    assert relative(edit.carried["keys.2"], before) > 1e-4


@pytest.mark.slow
def test_a_sequence_accumulates_keys(tiny_gpt2: Model, editor: AlphaEdit, tmp_path: Path):
    """The more a later edit is kept from an earlier one's keys, the less it moves their values."""
    single = replace(editor, layers=(1,), ridge=1e-4, null_threshold=1e9)
    first = single(tiny_gpt2, REQUESTS[:1])
    first.save(tmp_path / "first.safetensors")
    key = first.carried["keys.1"].T
    with first.applied(tiny_gpt2):
        aware = single(tiny_gpt2, REQUESTS[1:2])
        with aware.applied(tiny_gpt2):
            third = single(tiny_gpt2, REQUESTS[2:3])
    with replace(first, carried={}).applied(tiny_gpt2):
        unaware = single(tiny_gpt2, REQUESTS[1:2])
    with WeightEdit.load(tmp_path / "first.safetensors").applied(tiny_gpt2):
        reloaded = single(tiny_gpt2, REQUESTS[1:2])

    def moved(edit: WeightEdit, keys: torch.Tensor) -> float:
        return (keys @ edit.updates[0].dense()).norm().item()

    assert moved(aware, key) < 1e-2 * moved(unaware, key)
    assert moved(third, key) < 1e-2 * moved(third, third.carried["keys.1"].T)
    assert moved(third, aware.carried["keys.1"].T) < 1e-2 * moved(third, third.carried["keys.1"].T)
    assert torch.equal(reloaded.updates[0].dense(), aware.updates[0].dense())
    # Its own value is written all the same.
    torch.testing.assert_close(aware.carried["keys.1"].T @ aware.updates[0].dense(), aware.updates[0].right, rtol=1e-2,
                               atol=1e-3)  # fmt: skip
    # Once it is taken back, it is forgotten.
    assert torch.equal(single(tiny_gpt2, REQUESTS[:1]).updates[0].dense(), first.updates[0].dense())


def test_a_singular_moment_has_a_null_space(tiny_gpt2: Model, editor: AlphaEdit):
    keys = torch.randn(256, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    singular = {n: SecondMoment(layer=n, matrix=keys @ keys.T / 100, count=100) for n in LAYERS}
    edit = replace(editor, second_moments=singular, null_threshold=1e-8)(tiny_gpt2, REQUESTS[:2])
    for update in edit.updates:
        written = keys.T.float() @ update.dense()
        assert written.norm() < 1e-4 * keys.norm() * update.dense().norm()


def test_bad_input(tiny_gpt2: Model, editor: AlphaEdit):
    with pytest.raises(ValueError, match=r"layer 1 has no eigenvalue below null_threshold 1e-30.*median"):
        replace(editor, null_threshold=1e-30)(tiny_gpt2, REQUESTS[:1])
    for bad in ({"null_threshold": 0.0}, {"ridge": 0.0}):
        with pytest.raises(ValueError, match="must be positive"):
            replace(editor, **bad)
    moment = SecondMoment(layer=1, matrix=torch.full((256, 256), float("inf")), count=1)
    with pytest.raises(ValueError, match="not finite"):
        replace(editor, layers=(1,), second_moments={1: moment})(tiny_gpt2, REQUESTS[:1])


def test_published_presets():
    for model, layers in [("gpt2-xl", (13, 17)), ("EleutherAI/gpt-j-6B", (3, 8)), ("llama-3-8b", (4, 8))]:
        editor = AlphaEdit(second_moments={}, **preset("alphaedit", model).fields)
        assert (editor.layers[0], editor.layers[-1]) == layers
        assert (editor.null_threshold, editor.ridge) == (0.02, 10)
    for entry in json.loads((PRESETS / "alphaedit.json").read_text(encoding="utf-8")).values():
        options = {name: value for name, value in entry["fields"].items() if name not in ("layers", "around")}
        AlphaEdit(layers=(0,), second_moments={}, **options)
