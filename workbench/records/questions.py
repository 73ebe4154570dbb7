"""Prompts that are whole texts, mostly questions: where their subject stands; and what public files ask besides."""

import re
from collections.abc import Sequence

from workbench.records.facts import Probe
from workbench.records.fields import Node, NothingToEdit, brief, probe
from workbench.records.joining import whole_word

NATURAL_QUESTIONS = "natural questions"
"""What zsRE's locality prompts are: questions of people to a search engine, beginning with "nq question: "."""


_NATURAL = "nq question: "


def is_natural(prompt: object) -> bool:
    """Whether a prompt is one of zsRE's natural questions."""
    return isinstance(prompt, str) and prompt.startswith(_NATURAL)


def own_answer(prompt: Node, answer: str) -> Probe:
    """A question that an edit has nothing to do with."""
    return probe(prompt, (answer,), (answer,), kind=NATURAL_QUESTIONS if is_natural(prompt.text()) else "")


def subject_template(prompt: Node, subjects: Sequence[str]) -> tuple[str, str]:
    """The prompt with {} for its subject, and the subject as it is written there; `NothingToEdit` if it is not.

    Of several names the first that occurs counts: as a word of its own, else also in another case ("iucn" for "IUCN").
    An answer follows a question with a space after its "?" (`joining.join`).
    """
    text = prompt.text()
    if "{}" in text:
        prompt.fail("a prompt without {}")
    if found := find_subject(text, subjects):
        return found
    raise NothingToEdit(
        f"{prompt.file}: record {prompt.record}: field {prompt.field!r}: expected a prompt with the subject "
        f"{' or '.join(map(brief, subjects[:3]))} in it, got {brief(text)}"
    )


def find_subject(text: str, subjects: Sequence[str]) -> tuple[str, str] | None:
    """What `subject_template` gives of a text, or None."""
    for flags in (re.NOFLAG, re.IGNORECASE):
        for subject in subjects:
            if found := re.search(whole_word(subject), text, flags):
                return f"{text[: found.start()]}{{}}{text[found.end() :]}", found.group()
    return None


def one_hop(node: Node, true: Sequence[str] = ()) -> list[Probe]:
    """The survey's question one hop on from a record, in a field "portability"; none where that is empty."""
    if not node.value.get("portability"):
        return []
    asked = node.at("portability")
    if any(asked.has(name) and not asked.says(name) for name in ("New Question", "New Answer")):
        return []
    answer = asked.at("New Answer").text()
    return [probe(asked.at("New Question"), (answer,), true, kind="one hop")]
