"""Facts, requests to edit them, records that test an edit; where a subject's characters and tokens lie."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from workbench.machine.shown import Shown, html_table


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A subject, a template that asks something of it, and the object that is the answer."""

    subject: str
    """What the fact is about: "Eiffel Tower"."""
    template: str
    """A prompt with one {} where the subject goes: "The {} stands in"."""
    object: str
    """The answer: "Paris"."""
    relation: str = ""
    """Name of the relation, or empty."""
    separator: str | None = None
    """What stands between prompt and answer; None for what their writing asks (`joining.join`)."""

    def __post_init__(self) -> None:
        _check_template(self.template)
        _check_text("subject", self.subject)
        _check_text("object", self.object)
        _check_separator(self.separator)

    @property
    def prompt(self) -> str:
        """The template filled with the subject."""
        return fill(self.template, self.subject)


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """What is to be said of a subject after an edit."""

    template: str
    """A prompt with one {} where the subject goes."""
    subject: str
    """What the fact is about."""
    target_new: str
    """The answer that the edit is to give."""
    target_true: str | None = None
    """The answer before the edit, if it is known."""
    relation: str = ""
    """Name of the relation, or empty."""
    separator: str | None = None
    """What stands between a prompt and either target; None for what their writing asks (`joining.join`)."""

    def __post_init__(self) -> None:
        _check_template(self.template)
        _check_text("subject", self.subject)
        _check_text("target_new", self.target_new)
        if self.target_true is not None:
            _check_text("target_true", self.target_true)
        _check_separator(self.separator)

    @property
    def prompt(self) -> str:
        """The template filled with the subject."""
        return fill(self.template, self.subject)

    @property
    def fact(self) -> Fact:
        """The fact as it is before the edit; ValueError if the true target is not known."""
        if self.target_true is None:
            raise ValueError(f"the request about {self.subject!r} has no target_true, so it states no fact")
        return Fact(
            subject=self.subject,
            template=self.template,
            object=self.target_true,
            relation=self.relation,
            separator=self.separator,
        )


PORTABILITY = ("one hop", "alias", "reversed", "logic")
"""Kinds of questions that follow from an edited fact: by another fact, of the subject by another name, of the subject
by the object, or by logic alone."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A prompt with its right answers before and after an edit."""

    prompt: str
    """The text to continue."""
    targets_new: tuple[str, ...]
    """Right answers after the edit."""
    targets_true: tuple[str, ...] = ()
    """Right answers before the edit."""
    kind: str = ""
    """What it tests: of portability one of `PORTABILITY` (empty: one hop), of locality what its data set calls it."""

    @property
    def answers_before(self) -> tuple[str, ...]:
        """The right answers before the edit; those after it where no others are known, as where both are the same."""
        return self.targets_true or self.targets_new

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        if not self.targets_new:
            raise ValueError(f"targets_new needs at least one answer, got none for {self.prompt!r}")
        for target in self.targets_new + self.targets_true:
            _check_text("target", target)


@dataclass(frozen=True, kw_only=True)
class Record(Shown):
    """A request with the prompts that test it (CounterFact: Meng et al. 2022, section 3.3)."""

    case_id: int
    """Number of the record in its data set."""
    request: EditRequest
    """The edit."""
    paraphrase_prompts: tuple[str, ...] = ()
    """The same question in other words."""
    neighborhood_prompts: tuple[str, ...] = ()
    """The question about other subjects that have the same true answer."""
    attribute_prompts: tuple[str, ...] = ()
    """The question about other subjects of which the new answer is true."""
    generation_prompts: tuple[str, ...] = ()
    """Openings for free text about the subject."""
    portability_prompts: tuple[Probe, ...] = ()
    """Questions whose answer follows from the edited fact."""
    reversion_prompts: tuple[Probe, ...] = ()
    """Questions that ask for the subject by the object."""
    locality_prompts: tuple[Probe, ...] = ()
    """Questions that the edit has nothing to do with, with answers of their own, which are right before and after."""
    rephrased_by: str = ""
    """Where the paraphrase prompts are from, if most of them ask something else than a paraphrase would; scores on
    them are labelled with it."""

    def __post_init__(self) -> None:
        for kind, prompts in self._prompts():
            check_listed(f"{kind}_prompts", prompts)

    def __repr__(self) -> str:
        counts = [f"{len(prompts)} {kind}" for kind, prompts in self._prompts() if prompts]
        asked = f"{self.request.prompt!r} -> {self.request.target_new!r}"
        return f"Record({self.case_id}: {asked}; {', '.join(counts) or 'no other'} prompts)"

    def _repr_html_(self) -> str:
        """The request and the prompts that test it, for notebooks."""
        request = self.request
        rows = [("request", request.prompt, f"{request.target_new} (was {request.target_true or 'unknown'})")]
        for kind, prompts in self._prompts():
            for one in prompts:
                probe = isinstance(one, Probe)
                rows.append((kind, one.prompt if probe else one, " / ".join(one.targets_new) if probe else ""))
        return html_table(f"Record {self.case_id}", rows, head=("", "prompt", "answer"))

    def _prompts(self) -> list[tuple[str, tuple[Any, ...]]]:
        """By kind."""
        names = [each.name for each in fields(self) if each.name.endswith("_prompts")]
        return [(name.removesuffix("_prompts"), getattr(self, name)) for name in names]


def fill(template: str, subject: str) -> str:
    """The template with the subject in place of its {}; other braces stay as they are."""
    return template.replace("{}", subject)


def ends_with_subject(template: str) -> bool:
    """Whether a prompt's last token is its subject's."""
    return template.rstrip().endswith("{}")


def opened(prompt: str) -> str:
    """What is read of a prompt that is to be gone on with: without spaces at its end, for with them most tokenizers
    begin no word."""
    return prompt.rstrip(" ") or prompt


def subject_characters(template: str, subject: str) -> tuple[int, int]:
    """First and one past the last character of the subject in the filled template."""
    _check_template(template)
    _check_text("subject", subject)
    start = template.index("{}")
    return start, start + len(subject)


def token_span(offsets: Sequence[tuple[int, int]], characters: tuple[int, int]) -> tuple[int, int]:
    """First and one past the last token that overlaps the characters.

    `offsets` are one row of `Tokens.offsets`; the indices count real tokens, a BOS among them, no padding.
    """
    first, end = characters
    inside = [index for index, (a, b) in enumerate(offsets) if a < end and b > first]
    if not inside:
        raise ValueError(f"no token overlaps characters {first} to {end}; the text has tokens {list(offsets)}")
    return inside[0], inside[-1] + 1


def _check_template(template: str) -> None:
    if template.count("{}") != 1:
        raise ValueError(f"template needs exactly one {{}}, got {template!r}")
    _check_text("template", template)


def _check_separator(separator: str | None) -> None:
    if separator is not None and separator.strip():
        raise ValueError(f"separator is whitespace or empty, or None for what the writing asks, got {separator!r}")


def check_listed(name: str, texts: object) -> None:
    """ValueError for one text where several are expected, which would be taken letter by letter."""
    if isinstance(texts, str):
        raise ValueError(f"{name}: expected a list of texts, got {texts[:60]!r}: put it in [ ]")


def encodable(text: str) -> bool:
    """Whether UTF-8 can hold it: whether it is without lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise ValueError(f"{name} needs a non-empty text, got {text!r}")
    if not encodable(text):
        raise ValueError(f"{name} needs a text without lone surrogates, which UTF-8 cannot hold, got {text!r}")
