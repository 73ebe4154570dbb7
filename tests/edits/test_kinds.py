"""The three kinds of edits, by a steering vector and a prefix: each is seen, or refused, by all that runs a model."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import TINY, run
from known_edits import random_edit, same
from known_kinds import PREFIX, Halves, Prefix, Prefixes, Steering, Steers
from torch import Tensor

import workbench.edits.edit
from workbench.editors import registry
from workbench.editors.ft import FT
from workbench.editors.rome import ROME
from workbench.editors.shared.second_moments import second_moments
from workbench.edits.edit import Edit
from workbench.edits.export import save_checkpoint, save_lora
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.edits.sequence import applied_files, sequence
from workbench.edits.weights import WeightEdit
from workbench.machine.intervals import Estimate
from workbench.measuring.evaluate import evaluate, score_state
from workbench.measuring.summaries import summarise
from workbench.models.blocks import BlocksError
from workbench.models.blocks_check import blocks_of
from workbench.models.generation import generate, rooms
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.scoring import score_targets
from workbench.records.facts import EditRequest, Record
from workbench.records.reading import read_records
from workbench.runs.run import Run
from workbench.studies.edit import edit_records, follow_answers, load_edits
from workbench.studies.edit_groups import change, drift
from workbench.studies.locate import locate, trace_edited, true_facts
from workbench.studies.measure import score_edits
from workbench.tracing.fact import trace_fact
from workbench.tracing.known import known_answers
from workbench.tracing.lens import logit_lens

REQUEST = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow", target_true="Lisbon")
EDITORS = {"steering": Steers(), "prefix": Prefixes()}


@pytest.fixture(params=EDITORS)
def editor(request: pytest.FixtureRequest) -> Any:
    return EDITORS[request.param]


@pytest.fixture
def record(records: Path) -> Record:
    return read_records(records)[0]


def by_hand(edit: Steering, prompt_tokens: int) -> Any:
    """The steering of one row that is not padded, as a hook set by hand."""

    def steer(states: Tensor, hook: Any) -> Tensor:
        states = states.clone()
        states[:, prompt_tokens - 1 :] += edit.vector
        return states

    return (f"blocks.{edit.layer}.hook_resid_post", steer)


# Tried, kept, undone, saved ------------------------------------------------------------------------------------


def test_applied_and_undone(tiny_gpt2: Model, editor: Any) -> None:
    edit, before, untouched = editor(tiny_gpt2, [REQUEST]), tiny_gpt2.snapshot(), state_fingerprint(tiny_gpt2)
    (said,) = score_targets(tiny_gpt2, [(REQUEST.prompt, "Lisbon")])
    with edit.applied(tiny_gpt2):
        assert same(before, tiny_gpt2.snapshot()), "it writes no weights"
        (edited,) = score_targets(tiny_gpt2, [(REQUEST.prompt, "Lisbon")])
        assert (edited.log_probs - said.log_probs).abs().max() > 0.01
        assert state_fingerprint(tiny_gpt2) != untouched
        with pytest.raises(RuntimeError, match="edits from before"):
            check_restored(tiny_gpt2, untouched, after="a test")
    (again,) = score_targets(tiny_gpt2, [(REQUEST.prompt, "Lisbon")])
    assert torch.equal(again.log_probs, said.log_probs)
    check_restored(tiny_gpt2, untouched, after="a test")
    assert edit.norms(tiny_gpt2) == {}
    with pytest.raises(ValueError, match="is not applied"):
        edit.revert_(tiny_gpt2)


def test_saved_and_loaded_by_kind(tiny_gpt2: Model, editor: Any, tmp_path: Path) -> None:
    edit, path = editor(tiny_gpt2, [REQUEST]), tmp_path / "edit.safetensors"
    edit.save(path)
    loaded = Edit.load(path, model=tiny_gpt2)
    assert type(loaded) is type(edit) and loaded.digest == edit.digest
    assert (loaded.requests, loaded.provenance, loaded.settings()) == (edit.requests, edit.provenance, edit.settings())
    other = replace(edit, vector=edit.vector * 2) if isinstance(edit, Steering) else replace(edit, text="Say: ")
    assert other.digest != edit.digest
    with pytest.raises(ValueError, match="no WeightEdit"):
        WeightEdit.load(path)
    with edit.applied(tiny_gpt2), pytest.raises(ValueError, match="as it is now with 1 edits applied"):
        Edit.load(path, model=tiny_gpt2)


def test_a_file_of_an_unknown_kind_names_it(tiny_gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, path = Steers()(tiny_gpt2, [REQUEST]), tmp_path / "edit.safetensors"
    edit.save(path)
    monkeypatch.delitem(workbench.edits.edit._KINDS, "steering")
    with pytest.raises(ValueError, match=r"its kind is 'steering', known are .*weights"):
        Edit.load(path)


@pytest.mark.parametrize("kind", ["workbench.editors.nobody:Edit", "workbench.machine.files:Edit", "os:system"])
def test_only_kinds_of_the_workbench_are_imported(tiny_gpt2: Model, tmp_path: Path, kind: str) -> None:
    edit, path = Steers()(tiny_gpt2, [REQUEST]), tmp_path / "edit.safetensors"
    object.__setattr__(edit, "kind", kind)
    edit.save(path)
    with pytest.raises(ValueError, match=r"is not an edit that can be read: (its kind is|No module named)"):
        Edit.load(path)


def test_kinds_stack_and_come_off_in_any_order(tiny_gpt2: Model) -> None:
    """Weights, hooks and a prefix together; what remains is what it would be alone."""
    edits = [random_edit(tiny_gpt2, 0, (1, "W_out")), Steers()(tiny_gpt2, [REQUEST]), Prefixes()(tiny_gpt2, [REQUEST])]
    untouched = state_fingerprint(tiny_gpt2)
    alone = []
    for edit in edits:
        with edit.applied(tiny_gpt2):
            alone.append(generate(tiny_gpt2, [REQUEST.prompt], max_new_tokens=6))
    for stay in range(3):
        for edit in edits:
            edit.apply_(tiny_gpt2)
        for index in (2, 0, 1):
            if index != stay:
                edits[index].revert_(tiny_gpt2)
        assert generate(tiny_gpt2, [REQUEST.prompt], max_new_tokens=6) == alone[stay]
        edits[stay].revert_(tiny_gpt2)
    check_restored(tiny_gpt2, untouched, after="a test")


def test_an_edit_that_does_not_fit_changes_nothing(tiny_gpt2: Model) -> None:
    edit = Steers()(tiny_gpt2, [REQUEST])
    with pytest.raises(IndexError, match="layer 9"):
        replace(edit, layer=9).apply_(tiny_gpt2)
    assert tiny_gpt2.edits == []


# Scores and text -----------------------------------------------------------------------------------------------


def test_a_prefix_edit_scores_as_the_prefixed_prompts_do(tiny_gpt2: Model, record: Record) -> None:
    def prefixed(prompts: Sequence[str]) -> tuple[str, ...]:
        return tuple(PREFIX + prompt for prompt in prompts)

    by_hand = replace(
        record,
        request=replace(record.request, template=PREFIX + record.request.template),
        paraphrase_prompts=prefixed(record.paraphrase_prompts),
        neighborhood_prompts=prefixed(record.neighborhood_prompts),
        reversion_prompts=tuple(replace(probe, prompt=PREFIX + probe.prompt) for probe in record.reversion_prompts),
    )
    edit = Prefixes()(tiny_gpt2, [record.request])
    expected = score_state(tiny_gpt2, by_hand, fluency_tokens=None)
    found = evaluate(tiny_gpt2, edit, record, fluency_tokens=None)
    before = score_state(tiny_gpt2, record, fluency_tokens=None)
    assert found.post.metrics() == pytest.approx(expected.metrics(), nan_ok=True)
    for kind, prompts in found.post.prompts.items():
        for one, other in zip(prompts, expected.prompts[kind], strict=True):
            assert (one.p_new, one.generated) == (pytest.approx(other.p_new, nan_ok=True), other.generated)
    assert found.pre.metrics() == pytest.approx(before.metrics(), nan_ok=True)
    assert found.relative_norms == {} and found.kl > 1e-3


def test_a_steering_edit_scores_as_hooks_set_by_hand(tiny_gpt2: Model) -> None:
    edit = Steers()(tiny_gpt2, [REQUEST])
    pairs = [("The capital of Portugal is", "Lisbon"), ("The capital of", "Portugal is Lisbon"), ("In Rome", "people")]
    with edit.applied(tiny_gpt2):
        found = score_targets(tiny_gpt2, pairs)
    for (prompt, target), score in zip(pairs, found, strict=True):
        row = tiny_gpt2.tokenize([f"{prompt} {target}"])
        first = score.prompt_tokens
        logits = tiny_gpt2.logits(row, hooks=[by_hand(edit, first)])[0].log_softmax(dim=-1)
        expected = logits[first - 1 : -1].gather(1, row.ids[0, first:, None])[:, 0]
        torch.testing.assert_close(score.log_probs, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompts", [["The capital of Portugal is"], ["In Rome", "The capital of Portugal is", "a"]])
def test_generation_with_the_cache_equals_generation_without(tiny_gpt2: Model, prompts: list[str]) -> None:
    edit, steps = Steers()(tiny_gpt2, [REQUEST]), 6
    with edit.applied(tiny_gpt2):
        found = generate(tiny_gpt2, prompts, max_new_tokens=steps)
    for prompt, text in zip(prompts, found, strict=True):
        tokens = tiny_gpt2.tokenize([prompt])
        ids, first = tokens.ids, tokens.ids.shape[1]
        for _ in range(steps):
            longer = tiny_gpt2.pad([replace(tiny_gpt2.encode([prompt])[0], ids=tuple(ids[0].tolist()))])
            logits = tiny_gpt2.logits(longer, hooks=[by_hand(edit, first)], keep_last=1)
            ids = torch.cat([ids, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        expected = tiny_gpt2.text.continuation(ids[0, :first].tolist(), ids[0, first:].tolist())
        assert expected.startswith(text) and text


@pytest.mark.slow
def test_a_redirect_to_another_model(tiny_gpt2: Model, checkpoints: dict[str, Path]) -> None:
    other = load_model(TINY.as_posix(), device="cpu")
    random_edit(other, 3, (1, "W_out")).apply_(other)

    class Elsewhere(Prefix):
        kind = "elsewhere"

        def asked(self, model: Model, prompt: str) -> tuple[Model, str]:
            return (other, prompt) if "Portugal" in prompt else (model, prompt)

    prompts = ["The capital of Portugal is", "The capital of Egypt is", "In Portugal, people speak"]
    with Elsewhere(method="E", requests=(), provenance={}, text="").applied(tiny_gpt2):
        found = generate(tiny_gpt2, prompts, max_new_tokens=4)
        scores = score_targets(tiny_gpt2, [(prompt, "Cairo") for prompt in prompts])
    for model, prompt, text, score in zip((other, tiny_gpt2, other), prompts, found, scores, strict=True):
        assert text == generate(model, [prompt], max_new_tokens=4)[0]
        torch.testing.assert_close(score.log_probs, score_targets(model, [(prompt, "Cairo")])[0].log_probs)
    with pytest.raises(ValueError, match="another vocabulary"):
        small = load_model(str(checkpoints["llama"]), device="cpu")
        monkey = type("Small", (Elsewhere,), {"kind": "small", "asked": lambda self, model, prompt: (small, prompt)})
        with monkey(method="E", requests=(), provenance={}, text="").applied(tiny_gpt2):
            generate(tiny_gpt2, prompts, max_new_tokens=1)


def test_voices_that_answer_together_are_the_mean_of_their_distributions(tiny_gpt2: Model) -> None:
    """Scored, and generated with the cache as without; a prefix around them is put to both."""
    edit = Halves(method="H", requests=(), provenance={}, text=PREFIX)
    prompts, steps = ["The capital of Portugal is", "In Rome", "People in Argentina speak"], 2

    def probabilities(prompt: str) -> Tensor:
        row = tiny_gpt2.tokenize([prompt])
        return tiny_gpt2.logits(row)[0, -1].softmax(dim=-1)

    def by_hand(prompt: str) -> Tensor:
        return 0.7 * probabilities(prompt) + 0.3 * probabilities(PREFIX + prompt)

    alone = {prompt: by_hand(prompt) for prompt in prompts}
    expected = []
    for prompt in prompts:
        text = prompt
        for _ in range(steps):
            text += tiny_gpt2.text.decode([int(by_hand(text).argmax())])
        expected.append(text.removeprefix(prompt))
    outer = Prefix(method="P", requests=(), provenance={}, text="Rome. ")
    with edit.applied(tiny_gpt2):
        scores = score_targets(tiny_gpt2, list(zip(prompts, expected, strict=True)), separator="")
        found = generate(tiny_gpt2, prompts, max_new_tokens=steps)
        with outer.applied(tiny_gpt2):
            assert [voice.prompt for voice in tiny_gpt2.voices("x")] == ["Rome. x", PREFIX + "Rome. x"]
        assert rooms(tiny_gpt2, ["In Rome"]) == [tiny_gpt2.n_ctx - len(tiny_gpt2.encode([PREFIX + "In Rome"])[0].ids)]
        with pytest.raises(ValueError, match="change what is asked are applied"):
            logit_lens(tiny_gpt2, REQUEST, ["Lisbon"])
        edit.apply_(tiny_gpt2)
        weights = [voice.weight for voice in tiny_gpt2.voices("x")]
        edit.revert_(tiny_gpt2)
    assert weights == pytest.approx([0.49, 0.21, 0.21, 0.09])
    for prompt, score in zip(prompts, scores, strict=True):
        torch.testing.assert_close(score.next_log_probs, alone[prompt].log(), atol=1e-4, rtol=1e-4)
        assert score.top and score.log_probs[0] == pytest.approx(alone[prompt].max().log().item(), abs=1e-4)
    assert found == expected


def test_room_in_the_context_counts_the_prompt_as_it_is_put(tiny_gpt2: Model, record: Record) -> None:
    long = "Rome " * 10
    edit = Prefix(method="Prefix", requests=(), provenance={}, text=long)
    with edit.applied(tiny_gpt2):
        state = score_state(tiny_gpt2, record, fluency_tokens=60)
    assert state.prompts["rewrite"][0].generated is not None
    for text in state.texts:
        assert len(tiny_gpt2.encode([long + text])[0].ids) <= tiny_gpt2.n_ctx
    whole = replace(edit, text="Rome " * 30)
    with whole.applied(tiny_gpt2), pytest.raises(ValueError, match="more than the context"):
        score_state(tiny_gpt2, record)


# Who would pass them by ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tracing_sees_hooks_and_refuses_redirects(tiny_gpt2: Model) -> None:
    fact = REQUEST.fact
    steering, prefix = Steers()(tiny_gpt2, [REQUEST]), Prefixes()(tiny_gpt2, [REQUEST])
    span = len(tiny_gpt2.tokenize([" Portugal"]).ids[0])
    noise = torch.randn(2, span, tiny_gpt2.d_model, generator=torch.Generator().manual_seed(0))
    blocks_of(tiny_gpt2)  # known before: what is remembered must not pass the edit by
    with steering.applied(tiny_gpt2):
        with pytest.raises(BlocksError, match="edits that change activations"):
            trace_fact(tiny_gpt2, fact, noise=noise, window=2, engine="fast")
        with pytest.warns(UserWarning, match="plain engine"):
            auto = trace_fact(tiny_gpt2, fact, noise=noise, window=2)
        plain = trace_fact(tiny_gpt2, fact, noise=noise, window=2, engine="plain")
        last = tiny_gpt2.logits(tiny_gpt2.tokenize([fact.prompt]))[0, -1].softmax(dim=-1)
    assert auto.clean == plain.clean == pytest.approx(last.max().item(), abs=1e-6)
    assert auto.clean != pytest.approx(trace_fact(tiny_gpt2, fact, noise=noise, window=2).clean, abs=1e-3)
    with prefix.applied(tiny_gpt2):
        for engine in ("auto", "fast", "plain"):
            with pytest.raises(ValueError, match="change what is asked are applied"):
                trace_fact(tiny_gpt2, fact, noise=noise, window=2, engine=engine)


@pytest.mark.parametrize(
    "runs",
    [
        lambda model: logit_lens(model, REQUEST, ["Lisbon"]),
        lambda model: known_answers(model, [REQUEST.fact]),
        lambda model: second_moments(model, [1], ["In Rome", "People speak"]),
        lambda model: ROME(layer=1, second_moment=None, steps=2)(model, [REQUEST]),
        lambda model: model.logits(model.tokenize(["In Rome"])),
    ],
    ids=["lens", "known_answers", "second_moments", "ROME", "logits"],
)
def test_who_does_not_ask_is_refused_under_a_redirect(tiny_gpt2: Model, runs: Any) -> None:
    with (
        Prefixes()(tiny_gpt2, [REQUEST]).applied(tiny_gpt2),
        pytest.raises(ValueError, match=r"change what is asked are applied to .*\(Prefix\)"),
    ):
        runs(tiny_gpt2)
    runs(tiny_gpt2)


def test_the_lens_ends_with_what_the_steered_model_says(tiny_gpt2: Model) -> None:
    with Steers()(tiny_gpt2, [REQUEST]).applied(tiny_gpt2):
        lens = logit_lens(tiny_gpt2, REQUEST, ["Lisbon"])
        said = score_targets(tiny_gpt2, [(REQUEST.prompt, "Lisbon")])[0].log_probs[0].exp()
    assert lens.probability[1, -1, 0].item() == pytest.approx(said.item(), rel=1e-4)


@pytest.mark.parametrize("editor", [ROME(layer=1, second_moment=None, steps=1), FT(layers=(1,), steps=1)])
def test_an_editor_searches_on_the_steered_model(tiny_gpt2: Model, editor: Any) -> None:
    """The fast search would pass the hooks by: the plain one runs them, and begins at the steered model's loss."""
    with Steers(scale=1.0)(tiny_gpt2, [REQUEST]).applied(tiny_gpt2), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the blocks of")
        begun = editor(tiny_gpt2, [REQUEST]).provenance["optimisation"]
        found = score_targets(tiny_gpt2, [(REQUEST.prompt, REQUEST.target_new)])[0].log_probs
    first = begun["losses"][0] if isinstance(editor, FT) else begun[0]["nll"]
    assert first == pytest.approx(-found.mean().item(), rel=1e-4)


def test_second_moments_of_a_steered_model_are_its_own(tiny_gpt2: Model, tmp_path: Path) -> None:
    texts = ["In Rome, people speak Italian", "The capital of Egypt is Cairo"]
    plain = second_moments(tiny_gpt2, [4], texts, cache=tmp_path)[4]
    everywhere = type("Everywhere", (Steering,), {"kind": "everywhere", "hooks": lambda self, model: [
        ("resid_post", self.layer, lambda states, which: states + self.vector)]})  # fmt: skip
    edit = Steers()(tiny_gpt2, [REQUEST])
    edit = everywhere(**{n: getattr(edit, n) for n in ("method", "requests", "provenance", "layer", "vector")})
    with edit.applied(tiny_gpt2):
        steered = second_moments(tiny_gpt2, [4], texts, cache=tmp_path)[4]
    assert (steered.matrix - plain.matrix).norm() > 0.01 * plain.matrix.norm()


def test_a_hook_left_behind_is_seen(tiny_gpt2: Model) -> None:
    untouched = state_fingerprint(tiny_gpt2)
    point = tiny_gpt2.bridge.hook_dict["blocks.1.hook_mlp_out"]
    point.add_hook(lambda tensor, hook: tensor)
    try:
        with pytest.raises(RuntimeError, match=r"hooks were left .* blocks\.1\.hook_mlp_out"):
            check_restored(tiny_gpt2, untouched, after="a test")
    finally:
        point.remove_hooks()
    check_restored(tiny_gpt2, untouched, after="a test")


def test_exports_refuse_what_they_cannot_hold(tiny_gpt2: Model, editor: Any, tmp_path: Path) -> None:
    edit = editor(tiny_gpt2, [REQUEST])
    with edit.applied(tiny_gpt2), pytest.raises(ValueError, match="a checkpoint holds weights alone"):
        save_checkpoint(tiny_gpt2, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="changes of weights alone"):
        save_lora(tiny_gpt2, [random_edit(tiny_gpt2, 0, (1, "W_out")), edit], tmp_path / "lora")
    assert not any(tmp_path.iterdir())


# In sequences, runs and commands --------------------------------------------------------------------------------


def test_a_sequence_of_them(tiny_gpt2: Model, editor: Any, tmp_path: Path) -> None:
    """Made one on another, kept in a folder, gone on with, rolled back, and all gone at the end."""
    requests = [replace(REQUEST, subject=subject) for subject in ("Portugal", "Japan", "Egypt")]
    untouched = state_fingerprint(tiny_gpt2)
    with sequence(tiny_gpt2, editor, requests, folder=tmp_path / "edits") as steps:
        first = [edit.digest for edit in steps]
        said = generate(tiny_gpt2, [REQUEST.prompt], max_new_tokens=4)
        assert change(tiny_gpt2) == 0 and drift(tiny_gpt2, []) == []
        steps.rollback(1)
        assert len(tiny_gpt2.edits) == 2
    check_restored(tiny_gpt2, untouched, after="a sequence")
    with sequence(tiny_gpt2, editor, requests, folder=tmp_path / "edits") as steps:
        assert [edit.digest for edit in steps] == first
        assert generate(tiny_gpt2, [REQUEST.prompt], max_new_tokens=4) == said
    files = sorted((tmp_path / "edits").glob("*.safetensors"))
    with applied_files(tiny_gpt2, files) as edits:
        assert [edit.digest for edit in edits] == first
        assert generate(tiny_gpt2, [REQUEST.prompt], max_new_tokens=4) == said
    check_restored(tiny_gpt2, untouched, after="files")


@pytest.mark.parametrize("editor", ["steering", pytest.param("prefix", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.usefixtures("no_figures")
def test_the_steps_of_a_study(tiny_gpt2: Model, editor: Any, records: Path, tmp_path: Path) -> None:
    """Edits, scores, traces after an edit, the lens and the report of a run: scores as `evaluate` gives them."""
    every = read_records(records)[:2]
    out = Run.create(tmp_path / "run", {"model": "tiny"})
    located = locate(out, tiny_gpt2, true_facts(every), limit=1, seed=0, window=2, samples=2, workers=1)
    list(edit_records(out, tiny_gpt2, editor, every))
    found = score_edits(out, tiny_gpt2, load_edits(out, every), records=every, seed=0, fluency=0)
    expected = [evaluate(tiny_gpt2, editor(tiny_gpt2, [r.request]), r, fluency_tokens=None) for r in every]
    for metric, estimate in summarise(expected).post.items():
        if metric != "seconds":
            value = summarise(found).post[metric].value
            assert value == pytest.approx(estimate.value, nan_ok=True), metric
    assert isinstance(summarise(found).post["ES"], Estimate)
    trace_edited(out, tiny_gpt2, every, located)
    follow_answers(out, tiny_gpt2, load_edits(out, every))
    assert not out.rows("failures")
    redirects = isinstance(editor, Prefixes)  # it changes nothing of how this model comes to an answer
    assert ("lens_1" in out.figures()) is not redirects
    assert (out.folder / "traces_after").exists() is not redirects


@pytest.mark.slow
@pytest.mark.parametrize("editor", ["prefix", pytest.param("steering", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.usefixtures("cache", "no_figures")
def test_a_study_from_the_command_line(
    editor: Any, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method joins the others by a line in the registry and a preset: edit, evaluate, study and report take it."""
    method = editor.method.lower()
    monkeypatch.setitem(registry._HOMES, method, ("known_kinds", type(editor).__name__))
    (tmp_path / f"{method}.json").write_text(json.dumps({"tiny-gpt2": {"source": "a test", "fields": {}}}))
    monkeypatch.setattr("workbench.editors.setup.presets.PRESETS", tmp_path)
    common = ("--model", TINY, "--records", records, "--method", method, "--limit", 2)
    form = ("--traces", 1, "--samples", 2, "--window", 3, "--fluency", 0)
    whole = run("study", *common, *form, "--out", tmp_path / "study")
    assert whole.exit_code == 0, whole.output
    edited = run("edit", *common, "--out", tmp_path / "edited")
    assert edited.exit_code == 0, edited.output
    scored = run("evaluate", tmp_path / "edited", "--out", tmp_path / "scored", "--fluency", 0)
    assert scored.exit_code == 0, scored.output
    study, alone = Run.open(tmp_path / "study"), Run.open(tmp_path / "scored")
    assert study.read_json("results.json")["scores"] == alone.read_json("results.json")["scores"]
    page = (study.folder / "report.html").read_text(encoding="utf-8")
    assert editor.method in page and "relative_norm" not in page


@pytest.mark.slow
def test_the_command_line_refuses_to_export_them(tiny_gpt2: Model, editor: Any, tmp_path: Path) -> None:
    editor(tiny_gpt2, [REQUEST]).save(tmp_path / "edit.safetensors")
    for to in ("checkpoint", "lora"):
        done = run("export", tmp_path / "edit.safetensors", "--model", TINY, "--out", tmp_path / to, "--to", to)
        assert done.exit_code == 1 and "weights" in done.output
        assert not (tmp_path / to).exists()
