"""Demonstrations of edits: a new fact of a training record, and what it means for a prompt (Zheng et al. 2023)."""

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from random import Random
from typing import Literal

from workbench.records.facts import EditRequest, Record, fill
from workbench.records.joining import join, whole_word

Kind = Literal["copy", "update", "retain"]
"""Its prompt and new target; a paraphrase and the new target; a prompt about another subject and the true target."""

_HEADS = frozenset({"New", "Fact", "Prompt"})


def demonstration(request: EditRequest, kind: Kind, prompt: str, question: str) -> str:
    """The request's new fact, then the prompt, put as the question has it, with its target and an empty line."""
    target = request.target_true if kind == "retain" else request.target_new
    assert target is not None
    return f"{stated(request)}{join(fill(question, prompt), target, request.separator)}\n\n"


def stated(request: EditRequest) -> str:
    """The line that tells a request's new fact."""
    return f"New Fact: {join(request.prompt, request.target_new, request.separator)}\n"


def prompts_by_kind(record: Record) -> dict[Kind, tuple[str, ...]]:
    """The prompts of a record that a demonstration of each kind can show."""
    return {
        "copy": (record.request.prompt,),
        "update": record.paraphrase_prompts,
        "retain": record.neighborhood_prompts,
    }


def shuffled_kinds(count: int, chance: Random) -> list[Kind]:
    """Kinds of so many demonstrations, copy : update : retain = 1 : 3 : 4, in a random order."""
    copies, updates = round(count / 8), round(3 * count / 8)
    numbers: dict[Kind, int] = {"copy": copies, "update": updates, "retain": count - copies - updates}
    kinds: list[Kind] = [kind for kind, number in numbers.items() for _ in range(number)]
    chance.shuffle(kinds)
    return kinds


def usable(record: Record, subjects: Sequence[str]) -> Record | None:
    """The record with the prompts that mention none of the subjects, and paraphrases without the sentences that
    CounterFact puts before them (clean_paraphrase.py of IKE); None if it cannot demonstrate every kind."""
    request = record.request
    if request.target_true is None or mention([stated(request), request.target_true], subjects):
        return None
    paraphrases = [_plain(prompt, request.subject) for prompt in record.paraphrase_prompts]
    kept = [
        tuple(prompt for prompt in prompts if not mention([prompt], subjects))
        for prompts in (paraphrases, record.neighborhood_prompts)
    ]
    return replace(record, paraphrase_prompts=kept[0], neighborhood_prompts=kept[1]) if all(kept) else None


def mention(texts: Iterable[str], subjects: Iterable[str]) -> bool:
    """Whether any of the texts mentions any of the subjects as a whole word, whatever its case."""
    return any(re.search(whole_word(subject), text, re.IGNORECASE) for text in texts for subject in subjects)


def names(prompt: str, texts: Sequence[str]) -> frozenset[str]:
    """The words of a prompt that are names, or parts of them: those with a capital that demonstrations have in no small
    letters, but for words without meaning of their own ("The"), and the "New" that heads every demonstration."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    known = _words(texts) | ENGLISH_STOP_WORDS
    return frozenset(word for word in _words([prompt]) - _HEADS if word[0].isupper() and word.lower() not in known)


def tells_of(text: str, prompt: str, named: Set[str]) -> bool:
    """Whether a demonstration shows the prompt itself, or has any of these names."""
    return prompt in text or not named.isdisjoint(_words([text]))


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"\w+", text)}


def _plain(paraphrase: str, subject: str) -> str:
    before, found, after = paraphrase.partition(subject)
    return (re.sub(r".*[.\n]", "", before, flags=re.DOTALL) + found + after).strip() if found else paraphrase
