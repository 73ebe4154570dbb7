"""One call each: trace a fact, edit it, score the edit, with what the long forms need settled as the commands do."""

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from workbench.editors.make import ask
from workbench.edits.edit import Edit
from workbench.measuring.evaluate import evaluate as evaluate_record
from workbench.measuring.scores import Evaluation
from workbench.models.model import Model
from workbench.models.tokens import visible
from workbench.records.facts import EditRequest, Fact, Record, check_listed, fill, opened
from workbench.records.questions import find_subject
from workbench.records.reading import read_records
from workbench.studies.defaults import default_records, default_window, records_path
from workbench.studies.edit import make_editor
from workbench.studies.locate import find_layer, fitted, true_facts
from workbench.tracing.fact import trace_fact
from workbench.tracing.known import top_tokens
from workbench.tracing.noise import Noise, NoiseRule, fact_generator, subject_span
from workbench.tracing.trace import CausalTrace
from workbench.tracing.until_sure import Samples, trace_sampled


def trace(
    model: Model,
    prompt: str | Fact | EditRequest | Record,
    subject: str = "",
    *,
    samples: Samples = 10,
    noise: str = "s3",
    seed: int = 0,
    **form: Any,
) -> CausalTrace:
    """Causal trace of what a model answers to a prompt, with a heat map in notebooks.

    Noise is fitted to the subjects of the model's default records, as by `workbench trace`.

    Args:
        prompt: a text in which the subject stands, or has its place as {}; or a fact, whose subject is known.
        subject: whose tokens are corrupted.
        samples, noise, seed: of the corrupted runs; `noise` is the short form of a rule (`NoiseRule.parse`),
            and samples="auto" takes as many as the lead of the fact's layer needs (`trace_sampled`).
        form: further arguments of `trace_fact`: sites, positions, window, span, severed, metric, engine, ...

    ValueError for a prompt without its subject.
    """
    fact = _fact(model, prompt, subject)
    published = noise == str(NoiseRule())
    drawn_from = model.once(_published_noise) if published else fitted(model, model.once(_facts_at_hand), noise)
    first, end = subject_span(model, fact)
    form = {"window": default_window(model), "replace": drawn_from.replace, **form}
    return trace_sampled(
        samples,
        lambda count: drawn_from.draw(count, end - first, generator=fact_generator(seed, 0)),
        lambda drawn: trace_fact(model, fact, noise=drawn, **form),
    )


def edit(
    model: Model,
    request: str | Fact | EditRequest | Record | Sequence[EditRequest | Record],
    subject: str = "",
    to: str = "",
    *,
    method: str = "rome",
    layer: int | None = None,
    **options: Any,
) -> Edit:
    """An edit that makes a model answer otherwise; the model is left as it was.

    The editor is made anew in each call, so many requests are best given together, or to one `make_editor`.

    Args:
        request: a text with the subject in it, or {} in its place; or a fact, or requests or records.
        subject, to: of a text, the subject and its new answer; of a fact the new answer.
        method: one of `EDITORS`.
        layer: the layer edited, or around which layers are; located unless given, over the model's default records,
            once a model, or over the facts of the requests where it knows none of those.
        options: further arguments of `make_editor` (text, seed, preset_of, alone) and fields of the editor, `layers`
            among them.

    ValueError for an unknown method, a prompt without its subject, a layer that the method would not edit, and where
    no layer can be located.
    """
    requests, layers = _requests(request, subject, to), options.pop("layers", None)
    wanted = ask(model, method, preset_of=options.get("preset_of"), layer=layer, layers=layers)
    if wanted.located:
        layer = _located(model, requests)
    settled = {"alone": wanted.alone, **wanted.fields, **options}
    return make_editor(model, method, layer=layer if wanted.layer is None else wanted.layer, **settled)(model, requests)


def evaluate(
    model: Model,
    edit: Edit | None,
    record: Record | EditRequest | None = None,
    *,
    paraphrases: Sequence[str] = (),
    neighbors: Sequence[str] = (),
    **options: Any,
) -> Evaluation:
    """Score a model before and after an edit, which is applied for as long as that takes.

    Args:
        edit: None evaluates the model as it is.
        record: what tests the edit; unless given it is made of the edit's own request and the prompts given here.
        paraphrases: the same question in other words, beside those of the record.
        neighbors: the question about other subjects with the same true answer, beside those of the record.
        options: further arguments of `measuring.evaluate.evaluate`: pre, generate, fluency_tokens, seed, batch_size.

    ValueError for an edit of several requests without a record.
    """
    check_listed("paraphrases", paraphrases)
    check_listed("neighbors", neighbors)
    if record is None:
        if edit is None or len(edit.requests) != 1:
            count = 0 if edit is None else len(edit.requests)
            raise ValueError(f"an edit of one request says what tests it, this has {count}: give a record")
        record = edit.requests[0]
    tested = Record(case_id=0, request=record) if isinstance(record, EditRequest) else record
    tested = replace(
        tested,
        paraphrase_prompts=(*tested.paraphrase_prompts, *paraphrases),
        neighborhood_prompts=(*tested.neighborhood_prompts, *neighbors),
    )
    return evaluate_record(model, edit, tested, **options)


# What a call is given -----------------------------------------------------------------------------------------


def _template(prompt: str, subject: str) -> tuple[str, str]:
    if not subject.strip():
        raise ValueError(f"the subject of {prompt!r} is missing: give it after the prompt")
    found = (prompt, subject) if "{}" in prompt else find_subject(prompt, [subject])
    if found is None and unicodedata.normalize("NFC", subject) in unicodedata.normalize("NFC", prompt):
        raise ValueError(
            f"{subject!r} stands in {prompt!r} in other code points for the same letters: copy it from there"
        )
    if found is None:
        raise ValueError(f"{subject!r} does not stand in {prompt!r}: write the subject as there, or {{}} in its place")
    if "{}" not in prompt and find_subject(found[0], [subject]):
        warnings.warn(
            f"{subject!r} stands more than once in {prompt!r} and is taken where it does first; {{}} in its place says "
            "where else",
            stacklevel=2,
        )
    return found


def _fact(model: Model, prompt: str | Fact | EditRequest | Record, subject: str) -> Fact:
    """The fact that is traced; its object is the model's own answer unless another is known."""
    if isinstance(prompt, Record):
        prompt = prompt.request
    if isinstance(prompt, Fact):
        return prompt
    if isinstance(prompt, EditRequest) and prompt.target_true is not None:
        return prompt.fact
    asked = isinstance(prompt, EditRequest)
    template, subject = (prompt.template, prompt.subject) if asked else _template(prompt, subject)
    prompt = fill(template, subject)
    for read in (opened(prompt), prompt):  # a space at its end is the answer's, but where it is a token by itself
        (answer,) = model.token_strings(torch.tensor(top_tokens(model, [read])))
        if answer.strip():
            break
    return Fact(subject=subject, template=template, object=visible(answer))


def _requests(
    given: str | Fact | EditRequest | Record | Sequence[EditRequest | Record], subject: str, to: str
) -> list[EditRequest]:
    if isinstance(given, str | Fact):
        if not to.strip():
            raise ValueError('the new answer is missing: give it as to="..."')
        if isinstance(given, Fact):
            common = {"relation": given.relation, "separator": given.separator, "target_true": given.object}
            return [EditRequest(template=given.template, subject=given.subject, target_new=to, **common)]
        template, subject = _template(given, subject)
        return [EditRequest(template=template, subject=subject, target_new=to)]
    if subject or to:
        raise ValueError("a request says its subject and its new answer itself: leave both out")
    several = [given] if isinstance(given, EditRequest | Record) else given
    return [each.request if isinstance(each, Record) else each for each in several]


# What is located at hand --------------------------------------------------------------------------------------


def _facts_at_hand(model: Model) -> list[Fact]:
    """The facts of the model's default records."""
    return list(true_facts(read_records(records_path(default_records(model.name)))).values())


def _published_noise(model: Model) -> Noise:
    return fitted(model, model.once(_facts_at_hand), str(NoiseRule()))


def _recalling_layer(model: Model) -> int:
    return find_layer(model, model.once(_facts_at_hand))


def _located(model: Model, requests: Sequence[EditRequest]) -> int:
    try:
        return model.once(_recalling_layer)
    except ValueError:  # it knows none of these facts
        facts = [request.fact for request in requests if request.target_true is not None]
        if not facts:
            raise ValueError(
                f"{model.name} knows none of the facts at hand, so no layer is located: give layer=, or requests with "
                "the target_true that it knows"
            ) from None
        return find_layer(model, facts)
