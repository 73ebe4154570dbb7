"""One value of a record file, and where it lies, so that what is malformed can be named; and the files themselves."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from workbench.records.facts import Probe


class RecordError(ValueError):
    """A malformed record file; the message names the file, the record, the field and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A value inside a record, and where it lies."""

    file: Path
    record: int
    field: str
    value: Any

    def fail(self, expected: str) -> NoReturn:
        place = f"field {self.field!r}: " if self.field else ""
        raise RecordError(f"{self.file}: record {self.record}: {place}expected {expected}, got {brief(self.value)}")

    def at(self, name: str, *, optional: bool = False) -> "Node":
        field = f"{self.field}.{name}" if self.field else name
        if not isinstance(self.value, dict):
            self.fail("an object")
        if name not in self.value and not optional:
            raise RecordError(
                f"{self.file}: record {self.record}: field {field!r}: expected it to be there, "
                f"got only {', '.join(self.value) or 'an empty object'}"
            )
        return Node(file=self.file, record=self.record, field=field, value=self.value.get(name, []))

    def has(self, name: str) -> bool:
        return isinstance(self.value, dict) and name in self.value

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            self.fail("a non-empty string")
        return self.value

    def string(self) -> str:
        if not isinstance(self.value, str):
            self.fail("a string")
        return self.value

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
        return [(name, self.at(name)) for name in self.value]

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


def unique(cases: Iterable[Node]) -> None:
    """RecordError for a `case_id` that an earlier record has."""
    seen: dict[int, int] = {}
    for case in cases:
        if case.integer() in seen:
            case.fail(f"a number of its own (record {seen[case.integer()]} has the same)")
        seen[case.integer()] = case.record


# Files -------------------------------------------------------------------------------------------------


def nodes(path: str | Path) -> list[Node]:
    """The records of a file: a list in JSON, one a line in JSON Lines, or a list in YAML (by its suffix).

    FileNotFoundError, or RecordError for a file that holds no records.
    """
    path = Path(path)
    found = load(path, lines=True)
    if not isinstance(found, list):
        raise RecordError(f"{path}: expected a list of records, got {brief(found)}")
    if not found:
        raise RecordError(f"{path}: expected one or more records, got an empty list")
    return [Node(file=path, record=index, field="", value=value) for index, value in enumerate(found)]


def load(path: Path, *, lines: bool = False) -> Any:
    """What a file in JSON or YAML holds; JSON Lines, where they are allowed, as a list."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give a JSON file in the schema of CounterFact, known_1000, zsRE, EasyEdit, "
            "KnowEdit or the course (which may be in YAML)"
        )
    kind = "YAML" if path.suffix in (".yaml", ".yml") else "JSON"
    try:
        text = path.read_text(encoding="utf-8")
        if kind == "YAML":
            return yaml.safe_load(text)
        if lines and path.suffix == ".jsonl":
            return _lines(path, text)
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            if lines and error.msg == "Extra data" and text.lstrip().startswith("{"):
                return _lines(path, text)
            raise
    except (json.JSONDecodeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecordError(f"{path}: expected {kind} in UTF-8: {error}") from error


def brief(value: Any) -> str:
    """A value in one short line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _lines(path: Path, text: str) -> list[Any]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise RecordError(
                    f"{path}: line {number}: expected one record in JSON, got {brief(line)}: {error}"
                ) from error
    return found
