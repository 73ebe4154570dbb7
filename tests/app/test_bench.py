"""What the page does, without the page."""

import math
from pathlib import Path

import pytest
import torch
from known_records import CAPITALS
from known_traces import trace_of

from workbench.app import bench
from workbench.app.bench import SCORES, Standing, Text
from workbench.app.shown import comparison_html, line_html, stack_html
from workbench.edits.edit import Edit
from workbench.edits.sequence import applied_files
from workbench.models.generation import generate
from workbench.models.model import Model
from workbench.records.facts import EditRequest
from workbench.studies import calls, defaults

pytestmark = pytest.mark.usefixtures("cache", "quick_presets")
SUBJECT, TRUE, NEW = CAPITALS[0]
PROMPT = f"The capital of {SUBJECT} is"


@pytest.fixture(autouse=True)
def at_hand(records: Path, tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(defaults.RECORDS, "smollm2", records.parent)
    monkeypatch.setattr(calls, "records_path", lambda name: records)
    monkeypatch.setattr(bench, "records_path", lambda name: records)
    monkeypatch.setattr(tiny_gpt2, "_found", {})


def request(new: str = NEW) -> EditRequest:
    return bench.asked_request(PROMPT, SUBJECT, old=TRUE, new=new)


def made(model: Model, *edits: Edit, new: str = NEW) -> Edit:
    return bench.new_edit(model, request(new), method="ft", layer=2, edits=edits)


def test_rows_come_one_by_one_and_end_as_the_whole_trace(tiny_gpt2: Model) -> None:
    grown = list(bench.trace_rows(tiny_gpt2, PROMPT, SUBJECT, samples=2))
    first, count = grown[0].subject[0], len(grown[0].tokens)
    assert [len(each.positions) for each in grown] == [1, *range(first + 1, count + 1)]
    whole = calls.trace(tiny_gpt2, grown[-1].fact, samples=2)
    assert grown[-1].positions == whole.positions
    for site, values in whole.restored.items():
        torch.testing.assert_close(grown[-1].restored[site], values)


def test_what_a_trace_says_of_recall_is_as_much_as_it_shows() -> None:
    effect = torch.full((4, 5), 0.4)
    effect[2, 1:3] = torch.tensor([0.2, 0.16])  # at the subject's last token
    effect[2, [0, 3, 4]] = 0.0
    said = (
        "Restored at the subject's last token, the MLPs around layer 1 bring 25 % of the effect back, more than those"
    )
    assert bench.recall(trace_of(effect)) == f"{said} of other layers."
    unclear = trace_of(effect, clean=0.1004)
    assert "which says little: the noise hardly takes" in bench.recall(unclear)
    ends = trace_of(effect[:3])
    assert bench.recalling_layer(ends) is None and "ends with its subject" in bench.recall(ends)


def test_edits_stack_and_the_model_is_as_it_was_between_calls(tiny_gpt2: Model, tmp_path: Path) -> None:
    untouched = tiny_gpt2.fingerprint()
    one = made(tiny_gpt2)
    other = made(tiny_gpt2, one, new=CAPITALS[1][2])
    assert tiny_gpt2.fingerprint() == untouched and not tiny_gpt2.edits
    assert one.places == {(2, "W_out")}  # where it was clicked
    with bench.standing(tiny_gpt2, [one]):
        other.check_made_for(tiny_gpt2)
    paths = bench.save_edits([one, other], tmp_path)
    assert [path.name for path in paths] == [
        f"01-ft-{SUBJECT.lower()}.safetensors",
        f"02-ft-{SUBJECT.lower()}.safetensors",
    ]
    with applied_files(tiny_gpt2, paths) as read:
        assert [each.digest for each in read] == [one.digest, other.digest]


@pytest.mark.slow
def test_texts_and_scores_are_those_without_and_with_the_edits(tiny_gpt2: Model) -> None:
    record = bench.asked_record(
        request(), paraphrases=f"In the book, {SUBJECT}'s capital city is\n\n", neighbors="The capital of France is",
        consequences=f"{NEW} is the capital of → {SUBJECT}",
    )  # fmt: skip
    edit = calls.edit(tiny_gpt2, request(), method="ft", layer=2, steps=20)
    found = bench.compare(tiny_gpt2, [edit], record)
    kinds = ["rewrite", "paraphrase", "neighborhood", "portability"]
    assert [text.kind for text in found.texts] == kinds
    before = generate(tiny_gpt2, [text.prompt for text in found.texts], max_new_tokens=bench.TOKENS)
    assert [text.before for text in found.texts] == before
    with edit.applied(tiny_gpt2):
        after = generate(tiny_gpt2, [text.prompt for text in found.texts], max_new_tokens=bench.TOKENS)
    assert [text.after for text in found.texts] == after != before
    evaluation = calls.evaluate(tiny_gpt2, edit, record)
    for name in set(SCORES) - {"S"}:
        assert found.scores[name] == tuple(values[name] for values in evaluation.metrics())
    assert found.scores["ES"] == (0.0, 1.0)
    nothing = bench.compare(tiny_gpt2, [], record)
    assert all(text.before == text.after for text in nothing.texts)
    assert all(pre == post for pre, post in nothing.scores.values())


def test_the_answer_is_the_word_that_its_first_token_begins(tiny_gpt2: Model) -> None:
    (said,) = generate(tiny_gpt2, [PROMPT], max_new_tokens=5)
    assert said.strip().startswith(TRUE)
    assert bench.first_word(tiny_gpt2, PROMPT, f" {TRUE[:3]}", edits=[]) == TRUE
    assert bench.first_word(tiny_gpt2, PROMPT, "\n", edits=[]) == ""


def test_what_is_missing_is_said_by_its_name() -> None:
    for prompt, subject, new, said in (
        ("", "France", "Rome", "the prompt is empty"),
        (PROMPT, " ", "Rome", "the subject is empty"),
        (PROMPT, "Atlantis", "Rome", "'Atlantis' does not stand in the prompt"),
        (PROMPT, SUBJECT, "", "the new answer is empty"),
    ):
        with pytest.raises(ValueError, match=said):
            bench.asked_request(prompt, subject, old="", new=new)
    with pytest.raises(ValueError, match="prompt → answer"):
        bench.asked_record(request(), paraphrases="", neighbors="", consequences="The river there is the")
    for nothing in (lambda: bench.save_edits([], Path()), lambda: bench.save_map(None, Path())):
        with pytest.raises(ValueError, match="there is no"):
            nothing()


def test_texts_that_look_like_markup_are_shown_as_they_are(tiny_gpt2: Model) -> None:
    scores = {name: (0.0, math.nan if name == "S" else 1.0) for name in SCORES}
    text = Text(kind="rewrite", prompt="<b>a", before="<script>", after="")
    shown = comparison_html(bench.Comparison(scores=scores, texts=[text]))
    assert "<script>" not in shown and "&lt;b&gt;a" in shown and "(nothing)" in shown and "needs the three" in shown
    assert line_html("<i>", wrong=True) == '<p class="line wrong" role="alert">&lt;i&gt;</p>' and line_html("") == ""
    record = bench.asked_record(request("<u>"), paraphrases="", neighbors="", consequences="")
    assert "&lt;u&gt;" in stack_html([Standing(edit=made(tiny_gpt2), record=record)]) and stack_html([]) == ""
