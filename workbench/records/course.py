"""Request files of the course experiments (NTU Machine Learning 2025, homework 8): one edit to look at, or many.

Many, in JSON or YAML: a list of

    {"case_id": 7, "prompt": "The mother tongue of {} is", "subject": "Ann", "target_new": {"str": "French"},
     "target_true": {"str": "Russian"}, "paraphrase_prompts": [{"prompt": "Ann speaks"}],
     "neighborhood_prompts": [{"prompt": "Bob is a native speaker of"}],
     "portable_prompts": [{"prompt": "...", "portable_target_new": ["French"], "portable_target_true": ["Russian"]}]}

where a "separator" may say what stands between prompts and answers (`joining.join`).

One: an object with `prompt`, `subject`, `target_new` as above (a plain text will do as well), `target_true` if it is
known, and `generation_prompts`: a list of objects, each a `prompt` with either `begins_with` or `contains`, a text or
a list of texts of which one is enough; or plain texts, which are shown but not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.machine.files import write_whole
from workbench.machine.jsonl import dumps
from workbench.records.facts import EditRequest, Probe, Record
from workbench.records.fields import Node, probe
from workbench.records.files import Source, each, load, nodes
from workbench.records.joining import starts_with_target


@dataclass(frozen=True, kw_only=True)
class GenerationPrompt:
    """A prompt to continue, and what makes the continuation a success."""

    prompt: str
    """The text to continue."""
    rule: str | None = None
    """How the continuation is judged, "begins_with" or "contains"; None if it is only shown."""
    texts: tuple[str, ...] = ()
    """What it must begin with or contain; one of them is enough."""

    def succeeded(self, continuation: str) -> bool | None:
        """Whether a continuation is right, case sensitive; None where nothing is asked of it."""
        if self.rule is None:
            return None
        if self.rule == "begins_with":
            return any(starts_with_target(continuation, text) for text in self.texts)
        return any(text.strip() in continuation for text in self.texts)


@dataclass(frozen=True, kw_only=True)
class SingleEdit:
    """A request and the prompts that show what became of it."""

    request: EditRequest
    """The edit."""
    prompts: tuple[GenerationPrompt, ...]
    """What is generated before and after it."""


def read_single_edit(path: str | Path) -> SingleEdit:
    """One request with its generation prompts; FileNotFoundError, or RecordError naming file and field."""
    node = Node(file=Path(path), record=0, field="", value=load(Path(path)))
    request = _request(node)
    prompts = node.at("generation_prompts")
    if not prompts.items():
        prompts.fail("one or more prompts")
    return SingleEdit(request=request, prompts=tuple(map(_generation_prompt, prompts.items())))


def read_requests(source: Source) -> list[Record]:
    """Requests with their prompts as records; FileNotFoundError, or RecordError naming file, record and field."""
    return each(nodes(source), _record)


def write_requests(records: Sequence[Record], path: str | Path) -> None:
    """Write records as a JSON file that `read_requests` reads; prompts of other kinds are left out."""
    items = [
        {
            "case_id": record.case_id,
            "prompt": record.request.template,
            "subject": record.request.subject,
            "target_new": {"str": record.request.target_new},
            "target_true": {"str": record.request.fact.object},
            **({} if record.request.separator is None else {"separator": record.request.separator}),
            "paraphrase_prompts": [{"prompt": prompt} for prompt in record.paraphrase_prompts],
            "neighborhood_prompts": [{"prompt": prompt} for prompt in record.neighborhood_prompts],
            "portable_prompts": [
                {
                    "prompt": probe.prompt,
                    "portable_target_new": list(probe.targets_new),
                    "portable_target_true": list(probe.targets_true),
                }
                for probe in record.portability_prompts
            ],
        }
        for record in records
    ]
    write_whole(Path(path), f"{dumps(items, indent=1)}\n".encode())


def _record(node: Node) -> Record:
    _target(node.at("target_true"))  # needed: neighbors are to keep it
    return Record(
        case_id=node.at("case_id").integer(),
        request=_request(node),
        paraphrase_prompts=_prompts(node.at("paraphrase_prompts")),
        neighborhood_prompts=_prompts(node.at("neighborhood_prompts")),
        portability_prompts=tuple(map(_probe, node.at("portable_prompts", optional=True).items())),
    )


def _request(node: Node) -> EditRequest:
    true = node.at("target_true", optional=True)
    return EditRequest(
        template=node.at("prompt").template("a prompt with exactly one {} for the subject"),
        subject=node.at("subject").text(),
        target_new=_target(node.at("target_new")),
        target_true=_target(true) if true.value else None,
        separator=node.separator(),
    )


def _target(node: Node) -> str:
    return (node.at("str") if isinstance(node.value, dict) else node).text()


def _prompts(node: Node) -> tuple[str, ...]:
    return tuple(item.at("prompt").text() for item in node.items())


def _probe(node: Node) -> Probe:
    true = node.at("portable_target_true", optional=True).texts()
    return probe(node.at("prompt"), node.at("portable_target_new").answers(), true)


def _generation_prompt(node: Node) -> GenerationPrompt:
    if isinstance(node.value, str):
        return GenerationPrompt(prompt=node.text())
    prompt = node.at("prompt").text()
    given = [rule for rule in ("begins_with", "contains") if rule in node.value]
    if len(given) != 1 or set(node.value) != {"prompt", *given}:
        node.fail("a 'prompt' with either 'begins_with' or 'contains', and nothing else")
    texts = node.at(given[0])
    if not texts.value:
        texts.fail("one or more texts")
    wanted = texts.texts() if isinstance(texts.value, list) else (texts.text(),)
    return GenerationPrompt(prompt=prompt, rule=given[0], texts=wanted)
