"""Reads a file of records or facts in whichever public schema it is in, and says what it saw."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.machine.failures import reason
from workbench.machine.plugins import Added
from workbench.records.counterfact import read_counterfact
from workbench.records.course import read_requests
from workbench.records.easyedit import read_easyedit, read_knowedit
from workbench.records.facts import Fact, Record
from workbench.records.fields import Node, RecordError, brief, names
from workbench.records.files import Source, nodes
from workbench.records.known_1000 import read_known_1000
from workbench.records.questions import is_natural
from workbench.records.zsre import read_zsre

_KNOWN_1000 = "known_1000"
_SCHEMAS: dict[str, tuple[tuple[str, ...], Callable[[Source], list[Record]]]] = {
    "CounterFact": (("requested_rewrite",), read_counterfact),
    "MEND's zsRE": (("src", "alt"), read_zsre),
    "the original zsRE": (("input", "output", "alternatives"), read_zsre),
    "EasyEdit's zsRE": (("prompt", "rephrase_prompt", "locality_prompt"), read_easyedit),
    "EasyEdit's CounterFact": (("prompt", "rephrase_prompt", "locality_prompt"), read_easyedit),
    "KnowEdit": (("prompt", "target_new", "locality"), read_knowedit),
    "KnowEdit's WikiBio": (("text", "labels", "concept"), read_knowedit),
    "the course": (("prompt", "target_new", "paraphrase_prompts"), read_requests),
}
"""Name -> fields by which it is recognised, in this order, and its reader; `known_1000` holds no records."""
_TESTED = ("paraphrase", "neighborhood", "portability", "locality", "generation")
"""Kinds of prompts whose lack is told."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A schema of one's own, and what reads it: in a plugin, a value of its module."""

    name: str
    """What the schema is called."""
    fields: tuple[str, ...] = ()
    """Fields of the first record by which a file of JSON is recognised, before all other schemas."""
    suffix: str = ""
    """Ending of the files that it reads, such as ".csv", instead of fields."""
    read: Callable[[Path], list[Record]]
    """From a file to its records; RecordError, or ValueError, where it cannot be read."""


def _wrong(reader: Any) -> str:
    """Why something that was added is no reader; empty if it is one."""
    if not isinstance(reader, Reader):
        return "is no workbench.records.reading.Reader"
    return "" if reader.fields or reader.suffix else "names neither fields nor a suffix, so it would take every file"


READERS: Added[Reader] = Added("workbench.readers", taken=[*_SCHEMAS, _KNOWN_1000], check=_wrong)
"""Readers of plugins: files given by --plugin, and packages with entry points in the group `workbench.readers`."""


def schema(source: Source) -> str:
    """The name of a file's schema, by its ending or the fields of its first record; RecordError naming the schemas
    otherwise, or for several edits a record."""
    if isinstance(source, str | Path) and (name := _by_suffix(source)):
        return name
    first = nodes(source)[0]
    fields = first.value.keys() if isinstance(first.value, dict) else set()
    for name, reader in READERS.items():
        if reader.fields and set(reader.fields) <= fields:
            return name
    if "requested_rewrite" in fields and isinstance(first.value["requested_rewrite"], list):
        raise RecordError(
            f"{first.file}: record 0: 'requested_rewrite' is a list, but several edits a record, as MQuAKE has them, "
            "are not read: give each edit a record, whose 'requested_rewrite' is an object"
        )
    for name, (needed, _) in _SCHEMAS.items():
        if set(needed) <= fields and (name != "EasyEdit's zsRE" or is_natural(first.value["locality_prompt"])):
            return name
    if {"subject", "attribute", "prompt"} <= fields:
        return _KNOWN_1000
    needed_by = {name: reader.fields or (reader.suffix,) for name, reader in READERS.items()}
    needed_by |= {name: needed for name, (needed, _) in _SCHEMAS.items()}
    known = [f"{name} ({', '.join(map(repr, needed))})" for name, needed in needed_by.items()]
    raise RecordError(
        f"{first.file}: record 0: expected the fields of a schema that is known, {'; '.join(known)} or known_1000 "
        f"('subject', 'attribute', 'prompt'), got {_found(first)}"
    )


def _by_suffix(path: str | Path) -> str:
    """The name of the added reader that takes files with this ending; empty if there is none."""
    suffix = Path(path).suffix.lower()
    return next((name for name, reader in READERS.items() if reader.suffix and reader.suffix.lower() == suffix), "")


def read_records(path: str | Path) -> list[Record]:
    """Records of a file in any schema that is known, which is recognised by its first record.

    Of files that are not in CounterFact's schema, or lack prompts that its scores need, a warning says once what was
    seen, and which prompts there are none of: what these would score is left out. FileNotFoundError, or RecordError
    naming file, record and field, or the schemas.
    """
    if name := _by_suffix(path):
        return _told(path, name, _read(READERS[name], Path(path)))
    return _records(nodes(path))


def _records(found: Sequence[Node]) -> list[Record]:
    name, path = schema(found), found[0].file
    if name == _KNOWN_1000:
        raise RecordError(
            f"{path}: known_1000 holds facts without new targets, so there is nothing to edit; "
            f"give a file in the schema of {', '.join(_SCHEMAS)}"
        )
    records = _read(READERS[name], path) if name in READERS else _SCHEMAS[name][1](found)
    return _told(path, name, records)


def _told(path: str | Path, name: str, records: list[Record]) -> list[Record]:
    same = sum(record.request.target_new == record.request.target_true for record in records)
    if same:
        warnings.warn(
            f"{path}: {same:,} of {len(records):,} records ask for the answer that is true already: of them the scores "
            "that compare the two are 0",
            stacklevel=4,
        )
    asked = [any(getattr(one, f"{kind}_prompts") for one in records) for kind in ("paraphrase", "neighborhood")]
    if name != "CounterFact" or not all(asked):  # CounterFact's own has all that its scores need
        warnings.warn(seen(path, name, records), stacklevel=4)
    return records


def _read(reader: Reader, path: Path) -> list[Record]:
    """The records that an added reader finds; RecordError, which names it, whatever it raises."""
    try:
        records = reader.read(path)
    except RecordError:
        raise
    except Exception as error:  # it is not the workbench's code
        raise RecordError(f"{path}: the reader {reader.name!r} failed: {reason(error)}") from error
    if not records or not all(isinstance(record, Record) for record in records):
        raise RecordError(f"{path}: the reader {reader.name!r} gives records (workbench.Record), got {brief(records)}")
    return list(records)


def seen(path: str | Path, name: str, records: Sequence[Record]) -> str:
    """What a file of that schema holds, in one sentence: how many records, and what these lack."""
    lacking = [
        f"{kind} prompts" for kind in _TESTED if not any(getattr(record, f"{kind}_prompts") for record in records)
    ]
    if not any(record.request.target_true for record in records):
        lacking.append("true answers")
    said = f"{path}: the schema of {name}, {len(records):,} record{'s' if len(records) > 1 else ''}"
    if lacking:
        said += f"; they have no {', no '.join(lacking)}: what these would score is left out"
    if sources := sorted({record.rephrased_by for record in records} - {""}):
        said += f"; their paraphrases are {', '.join(sources)}, mostly other questions: scores on them are those of it"
    return said


def read_facts(path: str | Path) -> list[Fact]:
    """Facts of a file in a schema that is known; of records the request with its true target, see `stating_facts`."""
    return list(read_cases(path).values())


def read_cases(path: str | Path) -> dict[int, Fact]:
    """`read_facts` by the `case_id` of their records; those of known_1000, which has none, by their place in it."""
    if _by_suffix(path):
        return {record.case_id: record.request.fact for record in stating_facts(read_records(path), path)}
    found = nodes(path)
    if schema(found) == _KNOWN_1000:
        return dict(enumerate(read_known_1000(found)))
    return {record.case_id: record.request.fact for record in stating_facts(_records(found), found[0].file)}


def stating_facts(records: Sequence[Record], path: str | Path) -> list[Record]:
    """Those that have a true answer; the others are left out, with one warning. RecordError where none is left."""
    kept = [record for record in records if record.request.target_true is not None]
    if not kept:
        raise RecordError(
            f"{path}: none of {len(records):,} records has a true answer, so there is no fact to trace or compare with"
        )
    if len(kept) < len(records):
        lacking = f"{len(records) - len(kept):,} of {len(records):,} records have no true answer"
        warnings.warn(f"{path}: {lacking}, so they state no fact: left out", stacklevel=3)
    return kept


def _found(first: Node) -> Any:
    return f"only {', '.join(map(repr, names(first.value)))}" if isinstance(first.value, dict) else brief(first.value)
