"""EMMET: equality for every key, and what it is for one request (ROME) and with its ridge (MEMIT)."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from safetensors.torch import load_file

from workbench.editors.emmet import EMMET
from workbench.editors.memit import MEMIT
from workbench.editors.rome import ROME, RROME
from workbench.editors.setup.presets import PRESETS, preset
from workbench.editors.shared.keys import mean_keys, subject_states
from workbench.editors.shared.moment import SecondMoment
from workbench.models.model import Model
from workbench.records.facts import EditRequest

REQUESTS = [
    EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow", target_true="Lisbon"),
    EditRequest(template="{}'s capital city is", subject="Japan", target_new="Rome", target_true="Tokyo"),
    EditRequest(template="In {}, most people speak", subject="Argentina", target_new="Polish", target_true="Spanish"),
]
CONTEXTS = ("{}", "In the book, {}", "Therefore, {}")
QUICK = {"steps": 5, "weight_decay": 0.01}


@pytest.fixture(scope="module")
def moments() -> dict[int, SecondMoment]:
    found = load_file(GOLDEN / "rome.safetensors")
    return {n: SecondMoment(layer=n, matrix=found[f"second_moment.{n}"], count=37_512) for n in (1, 2)}


@pytest.fixture(scope="module")
def editor(moments: dict[int, SecondMoment]) -> EMMET:
    return EMMET(layers=(2,), second_moments=moments, contexts=CONTEXTS, ridge=0.0, **QUICK)


def states(model: Model, layer: int, requests: Sequence[EditRequest]) -> torch.Tensor:
    name = model.hook_name("resid_post", layer)
    return subject_states(model, name, [r.template for r in requests], [r.subject for r in requests])


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_every_key_is_mapped_to_its_value(tiny_gpt2: Model, editor: EMMET):
    keys = mean_keys(tiny_gpt2, 2, REQUESTS, CONTEXTS)
    before = tiny_gpt2.snapshot()
    edit = editor(tiny_gpt2, REQUESTS)
    assert same(before, tiny_gpt2.snapshot())
    (update,) = edit.updates
    assert edit.method == "EMMET" and update.left.shape == (256, 3)
    written = keys.T.float() @ update.dense()
    torch.testing.assert_close(written, update.right, rtol=1e-4, atol=1e-5)


def test_with_the_bare_context_the_residual_stream_reaches_its_target(tiny_gpt2: Model, editor: EMMET):
    start = states(tiny_gpt2, 2, REQUESTS)
    edit = replace(editor, contexts=("{}",))(tiny_gpt2, REQUESTS)
    z = start + edit.updates[0].right.double()
    with edit.applied(tiny_gpt2):
        assert relative(states(tiny_gpt2, 2, REQUESTS), z) < 1e-5


def test_it_changes_what_the_moment_holds_least(tiny_gpt2: Model, editor: EMMET, moments: dict[int, SecondMoment]):
    keys = mean_keys(tiny_gpt2, 2, REQUESTS, CONTEXTS)
    (update,) = editor(tiny_gpt2, REQUESTS).updates
    matrix, dense = moments[2].matrix.double(), update.left.double() @ update.right.double()

    def cost(change: torch.Tensor) -> float:
        return (change.T @ matrix @ change).trace().item()

    # Any other update with the same values differs by one that no key sees, and costs more.
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = torch.randn(256, 64, dtype=torch.float64, generator=generator) * dense.std()
        other -= keys @ torch.linalg.solve(keys.T @ keys, keys.T @ other)
        assert cost(dense + other) == pytest.approx(cost(dense) + cost(other), rel=1e-3)
        assert cost(dense + other) > cost(dense)


@pytest.mark.slow
def test_one_request_is_the_update_of_r_rome(tiny_gpt2: Model, moments: dict[int, SecondMoment]):
    # Without decay and clamp, ROME's delta of the MLP's output is also that of the residual stream.
    shared = {"steps": 5, "weight_decay": 0.0, "clamp": 1e3, "contexts": ("{}",)}
    rome = RROME(layer=2, second_moment=moments[2], **shared)
    emmet = EMMET(layers=(2,), second_moments=moments, **shared)
    for request in REQUESTS:
        theirs, ours = rome(tiny_gpt2, [request]), emmet(tiny_gpt2, [request])
        assert theirs.method == "r-ROME" and theirs.provenance["hyperparameters"]["key_denominator"] == "mean"
        assert relative(ours.updates[0].dense(), theirs.updates[0].dense()) < 1e-3


def test_one_request_is_the_rank_one_formula(tiny_gpt2: Model, editor: EMMET, moments: dict[int, SecondMoment]):
    """u r^T / <k, u> with k the mean key, whatever ridge and weight."""
    (update,) = replace(editor, ridge=0.1, moment_weight=1000.0)(tiny_gpt2, REQUESTS[:1]).updates
    key = mean_keys(tiny_gpt2, 2, REQUESTS[:1], CONTEXTS)
    u = torch.linalg.solve(moments[2].matrix.double(), key)
    assert relative(update.left.double(), u / (key.T @ u)) < 1e-5


def test_the_ridge_makes_it_memit(tiny_gpt2: Model, moments: dict[int, SecondMoment]):
    shared = {"layers": (1, 2), "second_moments": moments, "contexts": CONTEXTS, **QUICK}
    ours = EMMET(moment_weight=30.0, ridge=0.1, **shared)(tiny_gpt2, REQUESTS)
    theirs = MEMIT(moment_weight=3.0, **shared)(tiny_gpt2, REQUESTS)
    for a, b in zip(ours.updates, theirs.updates, strict=True):
        assert a.layer == b.layer and relative(a.dense(), b.dense()) < 1e-5
    # As published: in the dual form, with the weighted C.
    keys = mean_keys(tiny_gpt2, 1, REQUESTS, CONTEXTS)
    inverse = torch.linalg.solve(30.0 * moments[1].matrix.double(), keys)
    published = inverse @ torch.linalg.inv(keys.T @ inverse + 0.1 * torch.eye(3, dtype=torch.float64))
    assert relative(ours.updates[0].left.double(), published) < 1e-5


def test_one_key_cannot_have_two_values(tiny_gpt2: Model, editor: EMMET):
    # Both prompts begin with the subject: the keys at its last token are the same.
    both = [REQUESTS[1], EditRequest(template="{}'s language is", subject="Japan", target_new="Thai")]
    bare = replace(editor, contexts=("{}",))
    with pytest.raises(ValueError, match="linearly dependent"):
        bare(tiny_gpt2, both)
    (update,) = replace(bare, ridge=0.1)(tiny_gpt2, both).updates
    assert update.left.isfinite().all()


def test_bad_hyperparameters(editor: EMMET):
    with pytest.raises(ValueError, match="ridge not negative"):
        replace(editor, ridge=-1.0)
    with pytest.raises(ValueError, match="moment_weight must be positive"):
        replace(editor, moment_weight=0.0)


def test_r_rome_is_rome_with_means_throughout(tiny_gpt2: Model, moments: dict[int, SecondMoment]):
    settings = {"layer": 2, "second_moment": moments[2], "contexts": CONTEXTS, **QUICK}
    ours = RROME(**settings)(tiny_gpt2, REQUESTS[:1])
    theirs = ROME(key_denominator="mean", **settings)(tiny_gpt2, REQUESTS[:1])
    assert torch.equal(ours.updates[0].dense(), theirs.updates[0].dense()) and theirs.method == "ROME"
    for entry in json.loads((PRESETS / "r_rome.json").read_text(encoding="utf-8")).values():
        RROME(second_moment=None, **(entry["fields"] | {"layer": 0}))


def test_published_presets():
    for model, layer, weight in [("gpt2-xl", 17, 1000), ("EleutherAI/gpt-j-6B", 5, 10_000), ("llama-2-7b", 5, 1)]:
        editor = EMMET(second_moments={}, **preset("emmet", model).fields)
        assert (editor.layers, editor.moment_weight, editor.ridge) == ((layer,), weight, 0.1)
    for entry in json.loads((PRESETS / "emmet.json").read_text(encoding="utf-8")).values():
        options = {name: value for name, value in entry["fields"].items() if name not in ("layers", "around")}
        EMMET(layers=(0,), second_moments={}, **options)
