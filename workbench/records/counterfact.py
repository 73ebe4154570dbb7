"""Readers of public record files: CounterFact in its original form and known_1000 (Meng et al. 2022)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.records.facts import EditRequest, Fact, Probe, Record

_PROMPT_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
_PROBE_LISTS = ("portability_prompts", "reversion_prompts")


class RecordError(ValueError):
    """A malformed record file; the message names the file, the record, the field and what was expected."""


def read_counterfact(path: str | Path) -> list[Record]:
    """Records in CounterFact's original schema.

    `requested_rewrite` may have a "separator", which stands between prompt and answer (`joining.join`).
    `portability_prompts` and `reversion_prompts` may be there too, and hold
    {"prompt", "targets_new": [...], "targets_true": [...]}.
    FileNotFoundError, or RecordError naming file, record and field.
    """
    records: list[Record] = []
    seen: dict[int, int] = {}
    for index, value in enumerate(_read_list(Path(path))):
        node = Node(file=Path(path), record=index, field="", value=value)
        record = _counterfact_record(node)
        if record.case_id in seen:
            node.at("case_id").fail(f"a number of its own (record {seen[record.case_id]} has the same)")
        seen[record.case_id] = index
        records.append(record)
    return records


def read_known_1000(path: str | Path) -> list[Fact]:
    """Facts in the schema of known_1000; a template is a prompt with the first mention of its subject as {}.

    (The file's own `template` is cut short.) FileNotFoundError, or RecordError naming file, record and field.
    """
    facts = []
    for index, value in enumerate(_read_list(Path(path))):
        node = Node(file=Path(path), record=index, field="", value=value)
        subject, prompt = node.at("subject").text(), node.at("prompt")
        if subject not in prompt.text():
            prompt.fail(f"a prompt with the subject {subject!r} in it")
        if "{}" in prompt.text():
            prompt.fail("a prompt without {}")
        facts.append(
            Fact(
                subject=subject,
                template=prompt.text().replace(subject, "{}", 1),
                object=node.at("attribute").text(),
                relation=node.at("relation_id").text(),
                separator=node.separator(),
            )
        )
    return facts


def read_records(path: str | Path) -> list[Record]:
    """Records of a file in a schema that is known; RecordError naming the schemas otherwise."""
    if _schema(Path(path)) == "known_1000":
        raise RecordError(
            f"{path}: known_1000 holds facts without new targets, so there is nothing to edit; "
            "give a file in CounterFact's schema"
        )
    return read_counterfact(path)


def read_facts(path: str | Path) -> list[Fact]:
    """Facts of a file in a schema that is known; of CounterFact the request with its true target."""
    return list(read_cases(path).values())


def read_cases(path: str | Path) -> dict[int, Fact]:
    """`read_facts` by the `case_id` of their records; those of known_1000, which has none, by their place in it."""
    if _schema(Path(path)) == "known_1000":
        return dict(enumerate(read_known_1000(path)))
    facts = {}
    for index, record in enumerate(read_counterfact(path)):
        if record.request.target_true is None:
            field = Node(file=Path(path), record=index, field="requested_rewrite.target_true", value=None)
            field.fail("the true target")
        facts[record.case_id] = record.request.fact
    return facts


def write_counterfact(records: Sequence[Record], path: str | Path) -> None:
    """Write records in CounterFact's schema, to be read by `read_counterfact`."""
    items = []
    for record in records:
        request = record.request
        true = None if request.target_true is None else {"str": request.target_true}
        item: dict[str, Any] = {
            "case_id": record.case_id,
            "requested_rewrite": {
                "prompt": request.template,
                "relation_id": request.relation,
                "target_new": {"str": request.target_new},
                "target_true": true,
                "subject": request.subject,
            }
            | ({} if request.separator is None else {"separator": request.separator}),
        }
        item |= {name: list(getattr(record, name)) for name in _PROMPT_LISTS}
        for name in _PROBE_LISTS:
            item[name] = [
                {
                    "prompt": probe.prompt,
                    "targets_new": list(probe.targets_new),
                    "targets_true": list(probe.targets_true),
                }
                for probe in getattr(record, name)
            ]
        items.append(item)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A value inside a record, and where it lies."""

    file: Path
    record: int
    field: str
    value: Any

    def fail(self, expected: str) -> None:
        place = f"field {self.field!r}: " if self.field else ""
        raise RecordError(f"{self.file}: record {self.record}: {place}expected {expected}, got {_brief(self.value)}")

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

    def texts(self) -> tuple[str, ...]:
        return tuple(item.text() for item in self.items())


def _counterfact_record(node: Node) -> Record:
    rewrite = node.at("requested_rewrite")
    template, true = rewrite.at("prompt"), rewrite.at("target_true")
    if template.text().count("{}") != 1:
        template.fail("a template with exactly one {} for the subject")
    request = EditRequest(
        template=template.text(),
        subject=rewrite.at("subject").text(),
        target_new=rewrite.at("target_new").at("str").text(),
        target_true=None if true.value is None else true.at("str").text(),
        relation=rewrite.at("relation_id").string(),
        separator=rewrite.separator(),
    )
    texts = {name: node.at(name).texts() for name in _PROMPT_LISTS}
    probes = {name: _probes(node.at(name, optional=True)) for name in _PROBE_LISTS}
    return Record(
        case_id=node.at("case_id").integer(),
        request=request,
        **texts,  # pyright: ignore[reportArgumentType]
        **probes,  # pyright: ignore[reportArgumentType]
    )


def _probes(node: Node) -> tuple[Probe, ...]:
    probes = []
    for item in node.items():
        new = item.at("targets_new")
        if not new.texts():
            new.fail("one or more right answers")
        true = item.at("targets_true", optional=True).texts()
        probes.append(Probe(prompt=item.at("prompt").text(), targets_new=new.texts(), targets_true=true))
    return tuple(probes)


def _schema(path: Path) -> str:
    first = _read_list(path)[0]
    keys = first.keys() if isinstance(first, dict) else set()
    if "requested_rewrite" in keys:
        return "counterfact"
    if {"subject", "attribute", "prompt"} <= keys:
        return "known_1000"
    raise RecordError(
        f"{path}: record 0: expected CounterFact's schema (a field 'requested_rewrite') or known_1000's "
        f"(fields 'subject', 'attribute', 'prompt'), got {_brief(first)}"
    )


def _read_list(path: Path) -> list[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a JSON file in the schema of CounterFact or known_1000")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: expected JSON in UTF-8: {error}") from error
    if not isinstance(found, list):
        raise RecordError(f"{path}: expected a list of records, got {_brief(found)}")
    if not found:
        raise RecordError(f"{path}: expected one or more records, got an empty list")
    return found


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
