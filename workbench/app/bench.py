"""What the page does, as functions of a model and plain values: trace row by row, edit, stack, compare, save.

Between calls a model is as it was loaded: the edits that stand are applied for as long as a call takes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from workbench.editors.make import ask, ready
from workbench.edits.edit import Edit
from workbench.edits.ledger import undone
from workbench.figures.effects import trace_heatmap
from workbench.measuring.evaluate import score_state
from workbench.measuring.layer_choice import comparable, last_subject_effect
from workbench.measuring.metrics import harmonic_mean
from workbench.measuring.scores import RecordScores
from workbench.models.generation import generate
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Fact, Probe, Record
from workbench.records.joining import UNSPACED
from workbench.records.questions import find_subject
from workbench.records.reading import read_records
from workbench.runs.artifacts import save_figure
from workbench.studies import calls
from workbench.studies.defaults import default_records, records_path
from workbench.tracing.averages import mediating_layer
from workbench.tracing.trace import CausalTrace

TOKENS = 20
"""Tokens that are generated to be read."""
SCORES: Mapping[str, str] = {
    "ES": "Efficacy: the new answer is likelier than the old one on the prompt",
    "PS": "Paraphrase: the same in other words",
    "NS": "Neighborhood: the old answer is likelier on prompts about others",
    "S": "Overall: the harmonic mean of these three",
    "generated.portability.new": "Portability: what follows from the fact is written",
}
"""The scores shown, as `RecordScores.metrics` and `Summary` name them, and what each asks."""
_ARROW = re.compile(r"\s*(?:→|->)\s*")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """An edit that stands, and the record that tests it."""

    edit: Edit
    record: Record


@dataclass(frozen=True, kw_only=True)
class Text:
    """A prompt and how the model goes on from it, before and after edits."""

    kind: str
    """As in `KINDS`."""
    prompt: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The model without edits and with all that stand, on the prompts of one record."""

    scores: Mapping[str, tuple[float, float]]
    """Before and after by the names of `SCORES`, NaN where the record has not the prompts."""
    texts: Sequence[Text]


# What is asked -----------------------------------------------------------------------------------------------


def asked_request(prompt: str, subject: str, *, old: str, new: str) -> EditRequest:
    """The request that the fields of the page make; ValueError naming the one that is missing or does not fit."""
    template, subject = _template(prompt, subject)
    if not new.strip():
        raise ValueError("the new answer is empty: write what the model is to say")
    return EditRequest(template=template, subject=subject, target_new=new.strip(), target_true=old.strip() or None)


def asked_record(request: EditRequest, *, paraphrases: str, neighbors: str, consequences: str) -> Record:
    """What tests a request: a prompt a line, of consequences `prompt → answer`; ValueError for one without answer."""
    probes = []
    for line in _lines(consequences):
        prompt, *answer = _ARROW.split(line)
        if len(answer) != 1 or not prompt or not answer[0]:
            raise ValueError(f"a consequence is written as prompt → answer (or ->), got {line!r}")
        probes.append(Probe(prompt=prompt, targets_new=(answer[0],)))
    return Record(
        case_id=0,
        request=request,
        paraphrase_prompts=_lines(paraphrases),
        neighborhood_prompts=_lines(neighbors),
        portability_prompts=tuple(probes),
    )


def examples(model: Model, count: int = 3) -> list[Record]:
    """Records to begin with: the first of the model's own that have all kinds of prompts."""
    records = read_records(records_path(default_records(model.name)))
    return [each for each in records if each.paraphrase_prompts and each.neighborhood_prompts][:count]


def methods(model: Model) -> list[str]:
    """Those that can edit this model as it is; others must be trained first."""
    return ready(model.name)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def _template(prompt: str, subject: str) -> tuple[str, str]:
    if not prompt.strip():
        raise ValueError("the prompt is empty: write a text that the model is to go on from")
    if not subject.strip():
        raise ValueError("the subject is empty: write the words of the prompt that the fact is about")
    found = find_subject(prompt.strip(), [subject.strip()])
    if found is None:
        raise ValueError(f"the subject {subject.strip()!r} does not stand in the prompt: write it as it stands there")
    return found


# Locating ----------------------------------------------------------------------------------------------------


def trace_rows(
    model: Model, prompt: str, subject: str, *, edits: Sequence[Edit] = (), samples: int = 10
) -> Iterator[CausalTrace]:
    """The causal trace of a prompt under the edits that stand, growing by a token at a time from the subject on."""
    template, subject = _template(prompt, subject)
    with standing(model, edits):
        (answer,) = generate(model, [template.replace("{}", subject)], max_new_tokens=1)
        fact = Fact(template=template, subject=subject, object=answer.strip() or "?")
        grown = calls.trace(model, fact, samples=samples, positions=(0,))
    yield grown
    first, count = grown.subject[0], len(grown.tokens)
    for rows in [range(1, first + 1), *([row] for row in range(first + 1, count))]:
        if rows:
            with standing(model, edits):  # taken anew, since the rows of one trace may be computed by several threads
                more = calls.trace(model, fact, samples=samples, positions=tuple(rows))
            restored = {site: torch.cat([values, more.restored[site]]) for site, values in grown.restored.items()}
            grown = replace(grown, positions=(*grown.positions, *more.positions), restored=restored)
            yield grown


def recalling_layer(trace: CausalTrace) -> int | None:
    """The layer whose MLPs, restored at the subject's last token, bring more of the answer back than others do.

    None where the prompt ends with its subject, for there recall cannot be told from read-out.
    """
    return mediating_layer([trace]) if trace.subject[1] < len(trace.tokens) else None


def recall(trace: CausalTrace) -> str:
    """What a trace says of where its answer is recalled, and how clearly, in a sentence."""
    layer, at = recalling_layer(trace), "Restored at the subject's last token, the MLPs around layer"
    if layer is None:
        return "The prompt ends with its subject, where recall is not told from read-out: let it go on to find a layer."
    if not comparable(trace):
        return f"{at} {layer} bring most back, which says little: the noise hardly takes the answer away."
    share = 100 * last_subject_effect(trace)[layer]
    return f"{at} {layer} bring {share:.0f} % of the effect back, more than those of other layers."


# Editing and comparing ---------------------------------------------------------------------------------------


@contextmanager
def standing(model: Model, edits: Sequence[Edit]) -> Iterator[Model]:
    """The model with these edits applied in turn, within the block."""
    with undone(model):
        for edit in edits:
            edit.apply_(model)
        yield model


def new_edit(model: Model, request: EditRequest, *, method: str, layer: int, edits: Sequence[Edit] = ()) -> Edit:
    """An edit on top of those that stand, at or around a layer where the method edits one of choice."""
    with standing(model, edits):
        return calls.edit(model, request, method=method, layer=layer if ask(model, method).located else None)


def compare(model: Model, edits: Sequence[Edit], record: Record) -> Comparison:
    """Scores and texts of a record's prompts, without any edit and with all that stand."""
    prompts = {
        "rewrite": (record.request.prompt,),
        "paraphrase": record.paraphrase_prompts,
        "neighborhood": record.neighborhood_prompts,
        "portability": tuple(probe.prompt for probe in record.portability_prompts),
    }
    asked = [(kind, prompt) for kind, some in prompts.items() for prompt in some]

    def look() -> tuple[RecordScores, list[str]]:
        said = generate(model, [prompt for _, prompt in asked], max_new_tokens=TOKENS)
        return score_state(model, record, fluency_tokens=None), said

    before, said_before = look()
    with standing(model, edits):
        after, said_after = look()
    texts = [
        Text(kind=kind, prompt=prompt, before=one, after=other)
        for (kind, prompt), one, other in zip(asked, said_before, said_after, strict=True)
    ]
    values = [_scores(each) for each in (before, after)]
    return Comparison(scores={name: (values[0][name], values[1][name]) for name in SCORES}, texts=texts)


def _scores(scores: RecordScores) -> dict[str, float]:
    found = scores.metrics()
    found["S"] = float(harmonic_mean(np.array([found[name] for name in ("ES", "PS", "NS")])))
    return {name: found[name] for name in SCORES}


def first_word(model: Model, prompt: str, token: str, *, edits: Sequence[Edit]) -> str:
    """The word that the first token of an answer begins, as the model writes it; empty where it is white space."""
    with standing(model, edits):
        (said,) = generate(model, [prompt], max_new_tokens=5)
    begun = token.strip()
    found = re.match(rf"{re.escape(begun)}[^\W{UNSPACED}]*", said.strip())
    return found[0] if begun and found else begun


# Kept --------------------------------------------------------------------------------------------------------


def save_edits(edits: Sequence[Edit], folder: Path) -> list[Path]:
    """Write the edits into a folder, to be applied in the order of their names; ValueError for none."""
    if not edits:
        raise ValueError("there is no edit to save: make one first")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, edit in enumerate(edits, start=1):
        words = "-".join(re.findall(r"\w+", f"{edit.method} {edit.requests[0].subject}")).lower()[:60]
        paths.append(folder / f"{number:02d}-{words}.safetensors")
        edit.save(paths[-1])
    return paths


def save_map(trace: CausalTrace | None, folder: Path) -> list[Path]:
    """Write the heat map as PNG and PDF; ValueError where nothing was traced."""
    if trace is None:
        raise ValueError("there is no heat map to save: trace a prompt first")
    folder.mkdir(parents=True, exist_ok=True)
    png = save_figure(trace_heatmap(trace), folder / "trace")
    return [png, png.with_suffix(".pdf")]
