"""EasyEdit's own files (Wang et al. 2308.07269): flat CounterFact and zsRE; and KnowEdit (Zhang et al. 2401.01286)."""

import warnings
from collections.abc import Callable, Iterator

from workbench.records.facts import EditRequest, Probe, Record
from workbench.records.fields import Node, probe
from workbench.records.files import Source, each, nodes
from workbench.records.questions import is_natural, one_hop, own_answer, subject_template

REPHRASE = "EasyEdit's rephrase_prompt"
"""What stands for a paraphrase in EasyEdit's CounterFact; mostly it is a question about something that follows."""

_PORTABILITY = {"reasoning": "one hop", "subject_aliasing": "alias", "logical_generalization": "logic"}
_KINDS = ("portability", "locality")
"""Fields of questions by kind."""
_UNKNOWN = "<|endoftext|>"
"""What KnowEdit has for a true answer that it does not know."""


def read_easyedit(source: Source) -> list[Record]:
    """Records of EasyEdit's CounterFact and zsRE, with `rephrase_prompt` and `locality_prompt`.

    A locality prompt whose answer is the edit's own true one counts as a neighborhood prompt, as in CounterFact. Its
    CounterFact is the data set whose locality prompts are no natural questions.

    FileNotFoundError, or RecordError naming file, record and field; see `read_zsre` for what is refused by itself.
    """
    return _each(source, _flat)


def read_knowedit(source: Source) -> list[Record]:
    """Records of KnowEdit, with portability and locality by kind, in either of the forms in which they go round.

    Of its portability "reasoning" is one hop, "Subject_Aliasing" alias, and "Logical_Generalization" reversed where the
    subject is the answer, else logic. Kinds of locality keep their names. Questions without a right answer are left
    out, and a warning says how many. Its Sanitation set is not read.

    FileNotFoundError, or RecordError naming file, record and field; see `read_zsre` for what is refused by itself.
    """
    return _each(source, _knowedit)


def _each(source: Source, read: Callable[[Node], Record]) -> list[Record]:
    found, unanswered = nodes(source), 0

    def counted(node: Node) -> Record:
        nonlocal unanswered
        record = read(node)
        unanswered += sum(not answers for field in _KINDS for *_, answers in _questions(node, field))
        unanswered += node.says("portability_prompt") and not _answers(node.at("portability_ground_truth"))
        return record

    records = each(found, counted)
    if unanswered:
        said = "question has" if unanswered == 1 else "questions have"
        warnings.warn(f"{found[0].file}: {unanswered:,} {said} no right answer: left out", stacklevel=4)
    return records


def _flat(node: Node) -> Record:
    true, new = node.at("ground_truth").text(), node.at("target_new").wanted()
    template, subject = subject_template(node.at("prompt"), [node.at("subject").text()])
    local = own_answer(node.at("locality_prompt"), node.at("locality_ground_truth").text())
    near = true in local.targets_true and not is_natural(local.prompt)
    return Record(
        case_id=_case(node),
        request=EditRequest(template=template, subject=subject, target_new=new, target_true=true),
        paraphrase_prompts=(node.at("rephrase_prompt").text(),),
        neighborhood_prompts=(local.prompt,) if near else (),
        portability_prompts=_portability(node, node.at("subject").text()),
        locality_prompts=(*(() if near else (local,)), *_locality(node)),
        rephrased_by="" if is_natural(local.prompt) else REPHRASE,
    )


def _knowedit(node: Node) -> Record:
    names = {"prompt": "text", "target_new": "labels", "subject": "concept"}  # WikiBio's
    prompt, new, about = (node.at(name if node.has(name) else other) for name, other in names.items())
    template, subject = subject_template(prompt, [about.text()])
    known = _answers(node.at("ground_truth", optional=True))
    request = EditRequest(
        template=template,
        subject=subject,
        target_new=new.wanted(),
        target_true=known[0] if known and known[0] != _UNKNOWN else None,
    )
    return Record(
        case_id=_case(node),
        request=request,
        paraphrase_prompts=_rephrased(node),
        portability_prompts=_portability(node, about.text()),
        locality_prompts=_locality(node),
    )


def _portability(node: Node, subject: str) -> tuple[Probe, ...]:
    """By kind, or the survey's one question, or what EasyEdit makes of one."""
    found: list[Probe] = []
    if node.says("portability_prompt") and (answers := _answers(node.at("portability_ground_truth"))):
        found.append(probe(node.at("portability_prompt"), answers, (), kind="one hop"))
    if _surveyed(node):
        found += one_hop(node)
    for name, prompt, answers in _questions(node, "portability"):
        kind = _PORTABILITY[name.lower()]
        if answers:
            backwards = kind == "logic" and subject in answers
            found.append(probe(prompt, answers, (), kind="reversed" if backwards else kind))
    return tuple(found)


def _surveyed(node: Node) -> bool:
    return isinstance(node.value.get("portability"), dict) and "New Question" in node.value["portability"]


def _locality(node: Node) -> tuple[Probe, ...]:
    return tuple(
        probe(prompt, answers, answers, kind=name.replace("_", " ").lower())
        for name, prompt, answers in _questions(node, "locality")
        if answers
    )


def _questions(node: Node, field: str) -> Iterator[tuple[str, Node, tuple[str, ...]]]:
    """Kinds, prompts and right answers, of which there may be none, of an optional object by kind."""
    if not node.value.get(field) or (field == "portability" and _surveyed(node)):
        return
    for name, asked in node.at(field).members():
        if field == "portability" and name.lower() not in _PORTABILITY:
            asked.fail(f"a kind that is one of {', '.join(_PORTABILITY)}")
        for prompt, answers in _asked(asked) if asked.value else ():
            yield name, prompt, answers


def _asked(node: Node) -> list[tuple[Node, tuple[str, ...]]]:
    """Prompts with their right answers, of a list of objects or of an object of lists."""
    if isinstance(node.value, list):
        return [(item.at("prompt"), _answers(item.at("ground_truth"))) for item in node.items()]
    prompts, truths = node.at("prompt").items(), node.at("ground_truth").items()
    if len(prompts) != len(truths):
        node.at("ground_truth").fail(f"as many as there are prompts ({len(prompts)})")
    return [(prompt, _answers(truth)) for prompt, truth in zip(prompts, truths, strict=True)]


def _rephrased(node: Node) -> tuple[str, ...]:
    """What stands under either of the names in use, a text or a list of them."""
    values = [node.at(name) for name in ("rephrase_prompt", "rephrase") if node.value.get(name)]
    return next((each.texts() if isinstance(each.value, list) else (each.text(),) for each in values), ())


def _answers(node: Node) -> tuple[str, ...]:
    """A text, a list of texts, or a list of lists of names for one answer; what is empty there is passed over."""
    if node.value is None or (isinstance(node.value, str) and not node.value.strip()):
        return ()
    if isinstance(node.value, str):
        return (node.text(),)
    return tuple(answer for item in node.items() for answer in _answers(item))


def _case(node: Node) -> int:
    return node.at("case_id").integer() if node.has("case_id") else node.record
