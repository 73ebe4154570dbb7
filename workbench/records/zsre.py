"""zsRE (Levy et al. 2017) as editors use it: MEND's JSON, De Cao et al.'s JSON Lines, and the survey's additions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.machine.files import write_whole
from workbench.machine.jsonl import dumps
from workbench.records.facts import EditRequest, Record
from workbench.records.fields import Node, NothingToEdit, RecordError, names, probe
from workbench.records.files import Source, each, nodes
from workbench.records.questions import one_hop, own_answer, subject_template

_ASKED = {"alias": "alter_subject_question", "reversed": "inverse question"}
"""Fields of the survey's questions by the kind of portability that they test."""


def read_zsre(source: Source) -> list[Record]:
    """Records of MEND's files (`src`, `alt`, ...) or of those that they are made from (`input`, `alternatives`, ...).

    The target is `alt`, or the first of `alternatives`; the true one the first of `answers` or `output`. (MEND edits
    to what its model is likely to say instead, De Cao et al. to what theirs predicts.) A locality question stands as it
    is in the file; ROME's code adds "?" to it. Of the survey (Yao et al. 2023) there may be `portability` (one hop),
    `alter_subject_question` (alias) and `inverse question` (reversed). Records have no number: they are counted.

    A record whose question lacks its subject, or that has no answer to edit to, is refused by itself, in a warning.
    FileNotFoundError, or RecordError naming file, record and field.
    """
    return each(nodes(source), lambda node: _original(node) if node.has("input") else _mend(node))


def write_zsre(records: Sequence[Record], path: str | Path) -> None:
    """Write records in the schema of MEND's files; what that has no place for is left out."""
    write_whole(Path(path), f"{dumps([_written(record) for record in records], indent=1)}\n".encode())


def _mend(node: Node) -> Record:
    answers = node.at("answers").answers()
    new = node.at("alt").wanted()
    template, subject = subject_template(node.at("src"), [node.at("subject").text()])
    probes = one_hop(node)
    for kind, field in _ASKED.items():
        if node.says(field):
            alias = kind == "alias"
            right = new if alias else node.at("subject").text()
            probes.append(probe(node.at(field), (right,), answers if alias else (), kind=kind))
    return Record(
        case_id=node.record,
        request=EditRequest(template=template, subject=subject, target_new=new, target_true=answers[0]),
        paraphrase_prompts=(node.at("rephrase").text(),) if node.says("rephrase") else (),
        portability_prompts=tuple(probes),
        locality_prompts=(own_answer(node.at("loc"), node.at("loc_ans").text()),) if node.says("loc") else (),
    )


def _original(node: Node) -> Record:
    """De Cao et al.'s records name no subject: it is what their metadata or their sources are about."""
    outputs = node.at("output").items()
    answers = [output.at("answer").text() for output in outputs if output.has("answer")]
    if not answers:
        node.at("output").fail("one or more objects with an 'answer'")
    alternatives = node.at("alternatives").items()
    if not alternatives:
        raise NothingToEdit(str(node.at("alternatives").fault("one or more answers to edit to")))
    template, subject = subject_template(node.at("input"), _names(node, outputs))
    request = EditRequest(
        template=template,
        subject=subject,
        target_new=alternatives[0].wanted(),
        target_true=answers[0],
    )
    rephrased = node.at("filtered_rephrases" if node.has("filtered_rephrases") else "rephrases", optional=True).texts()
    others = tuple(dict.fromkeys(text for text in rephrased if text != request.prompt))
    return Record(case_id=node.record, request=request, paraphrase_prompts=others)


def _names(node: Node, outputs: Sequence[Node]) -> list[str]:
    found = [node.at("subject").text()] if node.has("subject") else []
    if node.has("meta") and node.value["meta"]:
        for field in ("sub_surface", "subj_aliases"):
            found += [name.text() for name in node.at("meta").listed(field) if name.value]
    sources = [source for output in outputs for source in output.listed("provenance")]
    found += [source.at("title").text() for source in sources if source.has("title")]
    if not found:
        raise RecordError(
            f"{node.file}: record {node.record}: expected the subject in 'subject', 'meta.sub_surface' or "
            f"'output[].provenance[].title', got only {', '.join(names(node.value))}"
        )
    return list(dict.fromkeys(found))


def _written(record: Record) -> dict[str, Any]:
    request = record.request
    item: dict[str, Any] = {
        "subject": request.subject,
        "src": request.prompt,
        "pred": request.fact.object,
        "alt": request.target_new,
        "answers": [request.fact.object],
        "cond": f"{request.fact.object} >> {request.target_new} || {request.prompt}",
    }
    if record.paraphrase_prompts:
        item["rephrase"] = record.paraphrase_prompts[0]
    if record.locality_prompts:
        item |= {"loc": record.locality_prompts[0].prompt, "loc_ans": record.locality_prompts[0].answers_before[0]}
    for one in record.portability_prompts:
        if one.kind == "one hop":
            item["portability"] = {"New Question": one.prompt, "New Answer": one.targets_new[0]}
        elif field := _ASKED.get(one.kind):
            item[field] = one.prompt
    return item
