"""Files of records: JSON, JSON Lines or YAML, read once, and everything that is wrong with them told together."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from workbench.records.facts import Record
from workbench.records.fields import Node, NothingToEdit, RecordError, brief

T = TypeVar("T")
Source = str | Path | Sequence[Node]
"""A file of records, or what `nodes` has read of one."""
_NAMED = 5
"""Malformed records that are told one by one."""
_DEEPEST = 50
"""Values within values, in YAML, whose parser takes long over many more."""
_DIGITS = 19
"""Of whole numbers; longer ones are read as floats, which are no `case_id`."""


def nodes(source: Source) -> list[Node]:
    """The records of a file: a list in JSON, or one alone; one a line in JSON Lines; or a list in YAML (by its suffix).

    FileNotFoundError, or RecordError for a file that holds no records.
    """
    if not isinstance(source, str | Path):
        return list(source)
    path = Path(source)
    found = load(path, lines=True)
    if isinstance(found, dict) and found:
        found = [found]
    if not isinstance(found, list):
        raise RecordError(f"{path}: expected a list of records, got {brief(found)}")
    if not found:
        raise RecordError(f"{path}: expected one or more records, got an empty list")
    return [Node(file=path, record=index, field="", value=value) for index, value in enumerate(found)]


def each(found: Sequence[Node], read: Callable[[Node], T]) -> list[T]:
    """What `read` makes of each record; one RecordError for all that are malformed.

    Those by which there is nothing to edit are left out, with one warning for all; RecordError where none is left.
    """
    made: list[T] = []
    problems: list[RecordError] = []
    refusals: list[NothingToEdit] = []
    seen: dict[int, int] = {}
    for node in found:
        try:
            one = read(node)
            if isinstance(one, Record) and seen.setdefault(one.case_id, node.record) != node.record:
                node.at("case_id").fail(f"a number of its own (record {seen[one.case_id]} has the same)")
            made.append(one)
        except NothingToEdit as refusal:
            refusals.append(refusal)
        except RecordError as error:
            problems.append(error)
        except ValueError as error:  # of the record itself, not of one of its fields
            problems.append(RecordError(f"{node.file}: record {node.record}: {error}"))
    if problems:
        raise together(problems, found)
    if len(refusals) == len(found):
        raise refusals[0]
    if refusals:
        named = "; ".join(map(str, refusals[:3])) + (f"; and {len(refusals) - 3} more" if len(refusals) > 3 else "")
        warnings.warn(f"{len(refusals)} of {len(found)} records are refused and left out: {named}", stacklevel=4)
    return made


def together(problems: Sequence[RecordError], found: Sequence[Node]) -> RecordError:
    """One error for several of the records of one file."""
    if len(problems) == 1:
        return problems[0]
    file = found[0].file
    said = [str(problem).removeprefix(f"{file}: ") for problem in problems[:_NAMED]]
    said += [f"and {len(problems) - _NAMED:,} more"] * (len(problems) > _NAMED)
    return RecordError(f"{file}: {len(problems):,} of {len(found):,} records are malformed: {'; '.join(said)}")


def load(path: Path, *, lines: bool = False) -> Any:
    """What a file in JSON or YAML holds; JSON Lines, where they are allowed, as a list."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give a JSON file in the schema of CounterFact, known_1000, zsRE, EasyEdit, "
            "KnowEdit or the course (which may be in YAML)"
        )
    kind = "YAML" if path.suffix in (".yaml", ".yml") else "JSON"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if kind == "YAML":
            return yaml.load(text, _Bounded)
        if lines and path.suffix == ".jsonl":
            return _lines(path, text)
        try:
            return _json(text)
        except json.JSONDecodeError as error:
            if lines and error.msg == "Extra data" and text.lstrip().startswith("{"):
                return _lines(path, text)
            raise
    except RecordError:
        raise
    except RecursionError:
        raise RecordError(f"{path}: expected {kind} in UTF-8: it is nested too deeply") from None
    except (ValueError, yaml.YAMLError) as error:
        raise RecordError(f"{path}: expected {kind} in UTF-8: {' '.join(str(error).split())}") from error


class _Bounded(yaml.SafeLoader):
    """YAML as deep as records are, and without aliases, with which half a kilobyte can stand for billions of values."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self._depth > _DEEPEST:
            raise RecursionError
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"*{event.anchor} is an alias, and aliases are not read: write out what it stands for",
                problem_mark=event.start_mark,
            )
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def whole_number(self, node: Any) -> int | float:
        try:
            value = self.construct_yaml_int(node)
        except ValueError:  # more digits than Python reads
            return math.inf
        return value if value.bit_length() < 64 else math.inf


_Bounded.add_constructor("tag:yaml.org,2002:int", _Bounded.whole_number)


def _json(text: str) -> Any:
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else float(digits))


def _lines(path: Path, text: str) -> list[Any]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):  # strings may hold further characters that end lines
        if line.strip():
            try:
                found.append(_json(line))
            except (ValueError, RecursionError) as error:
                why = "it is nested too deeply" if isinstance(error, RecursionError) else error
                raise RecordError(
                    f"{path}: line {number}: expected one record in JSON, got {brief(line)}: {why}"
                ) from None
    return found
