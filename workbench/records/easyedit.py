"""EasyEdit's own files (Wang et al. 2308.07269): flat CounterFact and zsRE; and KnowEdit (Zhang et al. 2401.01286)."""

from workbench.records.facts import EditRequest, Probe, Record
from workbench.records.fields import Node, probe
from workbench.records.files import Source, each, nodes
from workbench.records.questions import is_natural, own_answer, subject_template

REPHRASE = "EasyEdit's rephrase_prompt"
"""What stands for a paraphrase in EasyEdit's CounterFact; mostly it is a question about something that follows."""

_PORTABILITY = {"reasoning": "one hop", "subject_aliasing": "alias", "logical_generalization": "logic"}
_UNKNOWN = "<|endoftext|>"
"""What KnowEdit has for a true answer that it does not know."""


def read_easyedit(source: Source) -> list[Record]:
    """Records of EasyEdit's CounterFact and zsRE, with `rephrase_prompt` and `locality_prompt`.

    A locality prompt whose answer is the edit's own true one counts as a neighborhood prompt, as in CounterFact. Its
    CounterFact is the data set whose locality prompts are no natural questions.

    FileNotFoundError, or RecordError naming file, record and field; see `read_zsre` for questions without subject.
    """
    return each(nodes(source), _flat)


def read_knowedit(source: Source) -> list[Record]:
    """Records of KnowEdit, with portability and locality by kind, in either of the forms in which they go round.

    Of its portability "reasoning" is one hop, "Subject_Aliasing" alias, and "Logical_Generalization" reversed where the
    subject is the answer, else logic. Kinds of locality keep their names. Its Sanitation set is not read.

    FileNotFoundError, or RecordError naming file, record and field; see `read_zsre` for questions without subject.
    """
    return each(nodes(source), _knowedit)


def _flat(node: Node) -> Record:
    true, new = node.at("ground_truth").text(), node.at("target_new").text()
    template, subject = subject_template(node.at("prompt"), [node.at("subject").text()])
    local = own_answer(node.at("locality_prompt"), node.at("locality_ground_truth").text())
    near = true in local.targets_true
    return Record(
        case_id=_case(node),
        request=EditRequest(template=template, subject=subject, target_new=new, target_true=true),
        paraphrase_prompts=(node.at("rephrase_prompt").text(),),
        neighborhood_prompts=(local.prompt,) if near else (),
        locality_prompts=() if near else (local,),
        rephrased_by="" if is_natural(local.prompt) else REPHRASE,
    )


def _knowedit(node: Node) -> Record:
    names = {"prompt": "text", "target_new": "labels", "subject": "concept"}  # WikiBio's
    prompt, new, about = (node.at(name if node.has(name) else other) for name, other in names.items())
    template, subject = subject_template(prompt, [about.text()])
    true = node.at("ground_truth", optional=True)
    known = _texts(true)
    request = EditRequest(
        template=template,
        subject=subject,
        target_new=new.text(),
        target_true=known[0] if known and known[0] != _UNKNOWN else None,
    )
    portability: list[Probe] = []
    for name, asked in _members(node, "portability"):
        kind = _PORTABILITY.get(name.lower()) or asked.fail(f"a kind that is one of {', '.join(_PORTABILITY)}")
        for one, answers in _asked(asked):
            backwards = kind == "logic" and subject in answers
            portability.append(probe(one, answers, (), kind="reversed" if backwards else kind))
    locality = [
        probe(one, answers, answers, kind=name.replace("_", " ").lower())
        for name, asked in _members(node, "locality")
        for one, answers in _asked(asked)
    ]
    return Record(
        case_id=_case(node),
        request=request,
        paraphrase_prompts=_rephrased(node),
        portability_prompts=tuple(portability),
        locality_prompts=tuple(locality),
    )


def _rephrased(node: Node) -> tuple[str, ...]:
    """What stands under either of the names in use."""
    return next((_texts(node.at(name)) for name in ("rephrase_prompt", "rephrase") if node.has(name)), ())


def _texts(node: Node) -> tuple[str, ...]:
    """A text, or a list of them."""
    return node.texts() if isinstance(node.value, list) else (node.text(),)


def _members(node: Node, field: str) -> list[tuple[str, Node]]:
    return node.at(field).members() if node.has(field) else []


def _asked(node: Node) -> list[tuple[Node, tuple[str, ...]]]:
    """Prompts with their right answers, of a list of objects or of an object of lists."""
    if isinstance(node.value, list):
        return [(item.at("prompt"), _answers(item.at("ground_truth"))) for item in node.items()]
    prompts, truths = node.at("prompt").items(), node.at("ground_truth").items()
    if len(prompts) != len(truths):
        node.at("ground_truth").fail(f"as many as there are prompts ({len(prompts)})")
    return [(prompt, _answers(truth)) for prompt, truth in zip(prompts, truths, strict=True)]


def _answers(node: Node) -> tuple[str, ...]:
    """A text, a list of texts, or a list of lists of names for one answer."""
    if isinstance(node.value, str):
        return (node.text(),)
    found = tuple(answer for item in node.items() if item.value for answer in _answers(item))
    return found or node.fail("one or more right answers")


def _case(node: Node) -> int:
    return node.at("case_id").integer() if node.has("case_id") else node.record
