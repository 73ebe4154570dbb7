"""KN moves the rows of the neurons that attribution finds; both are those of the published code."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_edits import same
from safetensors.torch import load_file

from workbench.editors.kn import KN, easyedit_change
from workbench.editors.make import make_editor
from workbench.editors.setup.presets import PRESETS
from workbench.edits.weights import WeightEdit
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.unembedding import Unembedding
from workbench.records.facts import EditRequest
from workbench.tracing.neurons import answered

REFERENCE = json.loads((GOLDEN / "survey" / "kn.json").read_text(encoding="utf-8"))
EASYEDIT: dict[str, Any] = {
    "layers": range(6), "threshold": 0.2, "moving": False, "site": "mlp_pre", "points": "ends", "tokens": "mean",
    "rule": "easyedit",
}  # fmt: skip
REQUEST = EditRequest(
    template="People in {} speak", subject="Mexico", target_new="German", target_true="Spanish", relation="language"
)
OTHER = replace(REQUEST, subject="Argentina", target_new="Arabic")
FOUR = ("The language spoken in {} is", "The official language of {} is", "In {}, most people speak")
PLAIN = KN(layers=range(6), steps=4)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "survey" / "kn.safetensors")


def rows(edit: WeightEdit) -> dict[tuple[int, int], torch.Tensor]:
    """The rows of W_out that an edit changes."""
    found = {}
    for update in edit.updates:
        assert update.matrix == "W_out"
        dense = update.dense()
        found |= {(update.layer, int(row)): dense[int(row)] for row in dense.any(dim=1).nonzero()}
    return found


def close(found: torch.Tensor, expected: torch.Tensor, *, bound: float = 1e-5) -> bool:
    return bool((found - expected).norm() / expected.norm() < bound)


# The published code ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "subject"), [(1, "Iceland"), (2, "Argentina"), (3, "Mexico")])
def test_golden_easyedit(tiny_gpt2: Model, golden: dict[str, torch.Tensor], case: int, subject: str):
    entry = REFERENCE["easyedit"][case]
    request = EditRequest(
        template=entry["prompt"].replace(subject, "{}"),
        subject=subject,
        target_new=entry["target"],
        target_true=entry["ground_truth"],
    )
    edit = KN(**EASYEDIT)(tiny_gpt2, [request])
    changed = rows(edit)
    assert list(changed) == [tuple(place) for place in golden[f"easyedit.{case}.neurons"].tolist()]
    assert close(torch.stack(list(changed.values())), golden[f"easyedit.{case}.rows_delta"])
    with edit.applied(tiny_gpt2):
        logits = tiny_gpt2.logits(tiny_gpt2.tokenize([entry["prompt"]]))[0]
    torch.testing.assert_close(logits, golden[f"easyedit.{case}.logits"], atol=1e-4, rtol=1e-4)


def test_golden_easyedit_of_an_answer_without_its_space(tiny_gpt2: Model, golden: dict[str, torch.Tensor]):
    entry = REFERENCE["easyedit"][0]
    change = easyedit_change(tiny_gpt2, entry["prompt"], entry["target_ids"])
    expected = golden["easyedit.0.rows_delta"]
    assert close(change.expand_as(expected), expected)


@pytest.mark.parametrize(("case", "request_"), [(0, REQUEST), (1, OTHER)])
def test_golden_scaled_rule(tiny_gpt2: Model, golden: dict[str, torch.Tensor], case: int, request_: EditRequest):
    entry = REFERENCE["dai"][case]
    assert {t.replace("{}", request_.subject) for t in (*FOUR, request_.template)} == set(entry["prompts"])
    editor = KN(layers=range(6), points="left", moving=False, rule="scaled", paraphrases={"language": FOUR})
    edit = editor(tiny_gpt2, [request_])
    changed = rows(edit)
    assert list(changed) == [tuple(place) for place in golden[f"dai.{case}.neurons"].tolist()]
    assert close(torch.stack(list(changed.values())), golden[f"dai.{case}.rows_delta"])
    with edit.applied(tiny_gpt2):
        logits = tiny_gpt2.logits(tiny_gpt2.tokenize([request_.prompt]), keep_last=1)[0, -1]
    torch.testing.assert_close(logits, golden[f"dai.{case}.logits_last"], atol=1e-4, rtol=1e-4)


# What is added -----------------------------------------------------------------------------------------


def test_the_papers_rule_adds_embeddings(tiny_gpt2: Model):
    edit = replace(PLAIN, erase=0.5, write=3.0)(tiny_gpt2, [REQUEST])
    embeddings: Any = tiny_gpt2.hf.get_input_embeddings()  # tied
    old, new = (tiny_gpt2.encode([text])[0].ids[0] for text in (" Spanish", " German"))
    expected = 3.0 * embeddings.weight[new] - 0.5 * embeddings.weight[old]
    changed = rows(edit)
    (noted,) = edit.provenance["optimisation"]
    assert list(changed) == [tuple(place) for place in noted["neurons"]] and noted["answer"] == "Spanish"
    for row in changed.values():
        torch.testing.assert_close(row, expected)


def test_an_unknown_old_answer_is_the_models_own(tiny_gpt2: Model):
    known, unknown = (PLAIN(tiny_gpt2, [each]) for each in (REQUEST, replace(REQUEST, target_true=None)))
    assert unknown.provenance["optimisation"][0]["answer"] == " Spanish"
    assert all(torch.equal(one, rows(unknown)[place]) for place, one in rows(known).items())


@pytest.mark.parametrize("rule", ["paper", "easyedit"])
@pytest.mark.parametrize("known", [True, False])
def test_a_space_at_the_end_of_a_prompt_changes_nothing(tiny_gpt2: Model, rule: Any, known: bool):
    request = EditRequest(template="The capital of {} is", subject="Japan", target_new="Rome")
    request = replace(request, target_true="Tokyo") if known else request
    editor = KN(layers=range(6), rule=rule, signed=True, steps=4)
    one, other = (editor(tiny_gpt2, [replace(request, template=f"{request.template}{end}")]) for end in ("", " "))
    assert list(rows(one)) == list(rows(other)) and same(one.tensors(), other.tensors())


@pytest.mark.parametrize("signed", [False, True])
def test_each_family_writes_the_change_by_as_much_as_the_neurons_are_active(family_model: Model, signed: bool):
    """Where a neuron is negative, the published rule writes it the other way round; `signed` does not."""
    template = "In {}, most people speak"
    request = EditRequest(template=template, subject="Iceland", target_new="Japanese", target_true="Rome")
    before = family_model.snapshot()
    edit = KN(layers=(1,), steps=4, signed=signed)(family_model, [request])
    assert same(before, family_model.snapshot())
    assert not any(parameter.requires_grad for parameter in family_model.parameters.values())
    tokens = family_model.tokenize([request.prompt])
    key, write = (family_model.hook_name(site, 1) for site in ("mlp_key", "mlp_write"))
    plain = family_model.activations(tokens, [key, write])
    with edit.applied(family_model):
        written = family_model.activations(tokens, [write])[write]
    assert same(before, family_model.snapshot())
    unembedding: Any = family_model.hf.get_output_embeddings()
    ids = [
        row.ids[first]
        for text in ("Rome", "Japanese")
        for row, first in [answered(family_model, request.prompt, text, None)]
    ]
    active = [plain[key][0, -1, neuron] for _, neuron in edit.provenance["optimisation"][0]["neurons"]]
    active = sum(map(abs, active) if signed else active)
    expected = active * (8.0 * unembedding.weight[ids[1]] - unembedding.weight[ids[0]])
    torch.testing.assert_close(written[0, -1] - plain[write][0, -1], expected, atol=1e-5, rtol=1e-3)


def test_requests_add_up(tiny_gpt2: Model):
    fixed = replace(PLAIN, moving=False)
    one, other, both = (rows(fixed(tiny_gpt2, some)) for some in ([REQUEST], [OTHER], [REQUEST, OTHER]))
    assert both.keys() == one.keys() | other.keys() and one.keys() & other.keys()
    zero = torch.zeros(tiny_gpt2.d_model)
    for place, row in both.items():
        torch.testing.assert_close(row, one.get(place, zero) + other.get(place, zero))


# As an edit --------------------------------------------------------------------------------------------


def test_it_survives_the_disk_and_is_taken_back_from_below_another(tiny_gpt2: Model, tmp_path: Path):
    before = tiny_gpt2.snapshot()
    first = PLAIN(tiny_gpt2, [REQUEST])
    first.save(tmp_path / "edit.safetensors")
    loaded = WeightEdit.load(tmp_path / "edit.safetensors", model=tiny_gpt2)
    assert all(torch.equal(a.dense(), b.dense()) for a, b in zip(first.updates, loaded.updates, strict=True))
    assert loaded.method == "KN" and loaded.provenance == first.provenance
    with loaded.applied(tiny_gpt2):
        second = replace(PLAIN, rule="scaled")(tiny_gpt2, [OTHER])
        second.apply_(tiny_gpt2)
        with_both = tiny_gpt2.snapshot()
    assert not same(before, with_both)
    second.revert_(tiny_gpt2)
    assert same(before, tiny_gpt2.snapshot()) and tiny_gpt2.edits == []


@pytest.mark.slow
def test_it_works_in_bf16(tiny_gpt2: Model):
    half = load_model(str(GOLDEN / "tiny-gpt2"), device="cpu", dtype=torch.bfloat16)
    edit, exact = (rows(PLAIN(model, [REQUEST])) for model in (half, tiny_gpt2))
    assert len(edit.keys() & exact.keys()) >= 0.5 * len(exact)
    for place in edit.keys() & exact.keys():
        torch.testing.assert_close(edit[place], exact[place], atol=0.05, rtol=0.02)


@pytest.mark.parametrize("alone", [False, True])
def test_it_looks_at_all_layers_unless_told(tiny_gpt2: Model, tmp_path: Path, alone: bool):
    options: dict[str, Any] = {"texts": list, "seed": 0, "cache": tmp_path, "preset_of": "atlas", "steps": 2}
    editor = make_editor(tiny_gpt2, "kn", layer=4, alone=alone, **options)
    assert editor.layers == ((4,) if alone else tuple(range(6)))
    assert isinstance(editor, KN) and len(editor.contexts) == 3 and editor.contexts[0] == "{}"


# Bad input ---------------------------------------------------------------------------------------------


def test_bad_hyperparameters():
    for bad, message in [
        ({"layers": ()}, "one or more different layers"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"threshold": 1.0}, "threshold is a share from 0 to below 1, got 1.0"),
        ({"share": -0.1}, "share is a share from 0 to below 1, got -0.1"),
        ({"contexts": ("In {}",)}, "first context must be the bare"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(PLAIN, **bad)


def test_bad_requests_leave_the_model_alone(tiny_gpt2: Model):
    before = tiny_gpt2.snapshot()
    for changes, some, error, message in [
        ({"layers": (1, 6)}, [REQUEST], IndexError, "layer 6 is out of range"),
        ({}, [], ValueError, "at least one request"),
        ({"paraphrases": {"language": ("What?",)}}, [REQUEST], ValueError, "template needs exactly one {}"),
        ({"layers": (0,), "share": 0.99, "moving": False, "threshold": 0.95, "paraphrases": {"language": FOUR}},
         [REQUEST], ValueError, "no neuron is kept for 'Spanish' after 'People in Mexico speak'.*lower share"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            replace(PLAIN, **changes)(tiny_gpt2, some)
    assert same(before, tiny_gpt2.snapshot()) and tiny_gpt2.edits == []


# Presets -----------------------------------------------------------------------------------------------


def test_published_presets():
    entries = json.loads((PRESETS / "kn.json").read_text(encoding="utf-8"))
    assert entries["gpt2-xl"]["fields"]["threshold"] == 0.2 and entries["gpt-j-6b"]["fields"]["threshold"] == 0.1
    for name, entry in entries.items():
        editor = KN(layers=(0,), **entry["fields"])
        assert editor.steps == (1 if name.startswith(("llama", "mistral", "qwen")) else 20)
        assert ("training records" in entry["source"]) == (name in ("atlas", "smollm2"))
        assert editor.signed == (name == "smollm2")  # the only one that was tried on a gated MLP


def test_rows_of_the_unembedding_are_as_wide_as_the_states(checkpoints: dict[str, Path]):
    """OPT-350m, which has no last norm, projects its states to narrower embeddings."""
    model = load_model(str(checkpoints["opt_350m"]), device="cpu")
    resid = torch.randn(model.d_model, requires_grad=True)
    (gradient,) = torch.autograd.grad(Unembedding(model)(resid)[[5, 7]].sum(), resid)
    torch.testing.assert_close(Unembedding(model).rows([5, 7]).sum(dim=0), gradient)
    assert replace(PLAIN, layers=range(3))(model, [REQUEST]).updates
