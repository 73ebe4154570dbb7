"""One value of a record file, and where it lies, so that what is malformed can be named."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any, NoReturn

from workbench.records.facts import Probe, encodable

_REPR = Repr()  # in which nothing is walked through to its end
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 100


class RecordError(ValueError):
    """A malformed record file; the message names the file, the record, the field and what was expected."""


class NothingToEdit(RecordError):
    """A record as public files hold some: without its subject in its prompt, or without an answer to edit to."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A value inside a record, and where it lies."""

    file: Path
    record: int
    field: str
    value: Any

    def fault(self, expected: str) -> RecordError:
        """What says that something else was expected here."""
        place = f"field {self.field!r}: " if self.field else ""
        return RecordError(f"{self.file}: record {self.record}: {place}expected {expected}, got {brief(self.value)}")

    def fail(self, expected: str) -> NoReturn:
        raise self.fault(expected)

    def at(self, name: str, *, optional: bool = False) -> "Node":
        field = f"{self.field}.{name}" if self.field else name
        if not isinstance(self.value, dict):
            self.fail("an object")
        if name not in self.value and not optional:
            raise RecordError(
                f"{self.file}: record {self.record}: field {field!r}: expected it to be there, "
                f"got only {', '.join(names(self.value)) or 'an empty object'}"
            )
        return Node(file=self.file, record=self.record, field=field, value=self.value.get(name, []))

    def has(self, name: str) -> bool:
        return isinstance(self.value, dict) and name in self.value

    def says(self, name: str) -> bool:
        """Whether something stands there: public files leave fields empty."""
        value = self.value.get(name) if self.has(name) else None
        return bool(value.strip() if isinstance(value, str) else value)

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            self.fail("a non-empty string")
        return self.string()

    def wanted(self) -> str:
        """The answer to edit to; `NothingToEdit` for an empty one."""
        if isinstance(self.value, str) and not self.value.strip():
            raise NothingToEdit(str(self.fault("an answer to edit to")))
        return self.text()

    def string(self) -> str:
        if not isinstance(self.value, str):
            self.fail("a string")
        if not encodable(self.value):
            self.fail("a string without lone surrogates, which UTF-8 cannot hold")
        return self.value

    def label(self) -> str:
        """An optional string; empty where there is none."""
        return self.string() if self.value else ""

    def separator(self) -> str | None:
        """The optional field "separator": what stands between prompt and answer."""
        if not isinstance(self.value, dict) or self.value.get("separator") is None:
            return None
        node = self.at("separator")
        if node.string().strip():
            node.fail('whitespace or "", which stands between prompt and answer')
        return node.string()

    def integer(self) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self.fail("a whole number")
        if not 0 <= self.value < 2**63:  # it seeds, and names files
            self.fail("a whole number from 0 to 2^63 - 1")
        return self.value

    def items(self) -> list["Node"]:
        if not isinstance(self.value, list):
            self.fail("a list")
        return [
            Node(file=self.file, record=self.record, field=f"{self.field}[{index}]", value=value)
            for index, value in enumerate(self.value)
        ]

    def members(self) -> list[tuple[str, "Node"]]:
        """Names and values of an object."""
        if not isinstance(self.value, dict):
            self.fail("an object")
        for name in self.value:
            if not isinstance(name, str):
                self.fail(f"an object whose names are strings, not {brief(name)}")
        return [(name, self.at(name)) for name in self.value]

    def listed(self, name: str) -> list["Node"]:
        """The items of an optional list that may be null."""
        node = self.at(name, optional=True)
        return node.items() if node.value else []

    def texts(self) -> tuple[str, ...]:
        return tuple(item.text() for item in self.items())

    def answers(self, expected: str = "one or more right answers") -> tuple[str, ...]:
        """A list of one or more texts."""
        if not self.texts():
            self.fail(expected)
        return self.texts()

    def template(self, expected: str = "a template with exactly one {} for the subject") -> str:
        if self.text().count("{}") != 1:
            self.fail(expected)
        return self.value


def probe(prompt: Node, new: Sequence[str], true: Sequence[str], kind: str = "") -> Probe:
    """A prompt with its right answers after and before an edit."""
    return Probe(prompt=prompt.text(), targets_new=tuple(new), targets_true=tuple(true), kind=kind)


def names(found: Iterable[Any]) -> list[str]:
    """Names of fields, each in one short line; in YAML they may be numbers and dates."""
    return [name if isinstance(name, str) and name.isprintable() and len(name) <= 80 else brief(name) for name in found]


def brief(value: Any) -> str:
    """A value in one short line, however large it is."""
    text = _REPR.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
