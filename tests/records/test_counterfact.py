"""What files in the public schemas hold is read whole; what is malformed is named by file, index and field."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from known_schemas import COUNTERFACT, KNOWN

from workbench.records.counterfact import read_counterfact, write_counterfact
from workbench.records.facts import EditRequest, Fact, Probe, Record
from workbench.records.fields import RecordError
from workbench.records.known_1000 import read_known_1000
from workbench.records.reading import read_facts, read_records


def write(folder: Path, value: Any) -> Path:
    path = folder / "records.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def changed(record: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A copy with the field of that dotted name set, or left out if the value is `...`."""
    record = copy.deepcopy(record)
    *parents, name = field.split(".")
    place = record
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[name]
    else:
        place[name] = value
    return record


def test_counterfact(tmp_path: Path) -> None:
    second = changed(COUNTERFACT, "case_id", 8) | {
        "portability_prompts": [
            {
                "prompt": "The pole in Angola is the",
                "targets_new": ["South"],
                "targets_true": ["none", "no pole"],
            }
        ],
        "reversion_prompts": [{"prompt": "A land in Antarctica is", "targets_new": ["Angola"]}],
    }
    first_record, second_record = read_counterfact(write(tmp_path, [COUNTERFACT, second]))
    assert first_record == Record(
        case_id=7,
        request=EditRequest(
            template="{} is located in",
            subject="Angola",
            target_new="Antarctica",
            target_true="Africa",
            relation="P30",
        ),
        paraphrase_prompts=("Angola belongs to the continent of", "Angola is a part of"),
        neighborhood_prompts=("Ghana is in",),
        attribute_prompts=("Vostok Station, in",),
    )
    assert second_record.portability_prompts == (
        Probe(prompt="The pole in Angola is the", targets_new=("South",), targets_true=("none", "no pole")),
    )
    assert second_record.reversion_prompts == (Probe(prompt="A land in Antarctica is", targets_new=("Angola",)),)
    assert read_records(tmp_path / "records.json") == [first_record, second_record]
    assert read_facts(tmp_path / "records.json") == [first_record.request.fact, second_record.request.fact]


def test_known_1000(tmp_path: Path) -> None:
    twice = KNOWN | {
        "subject": "Paris",
        "prompt": "Paris Hilton, not Paris, was born in",
        "attribute": "New York",
    }
    path = write(tmp_path, [KNOWN, twice])
    facts = read_known_1000(path)
    assert facts[0] == Fact(
        subject="Vinson Massif",
        template="{} is located in the continent of",
        object="Antarctica",
        relation="P30",
    )
    assert facts[1].template == "{} Hilton, not Paris, was born in"
    assert [fact.prompt for fact in facts] == [KNOWN["prompt"], twice["prompt"]]
    assert read_facts(path) == facts
    with pytest.raises(RecordError, match="known_1000 holds facts without new targets"):
        read_records(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    request = EditRequest(template="{}は{日本}の", subject="東京", target_new="首都 “x”", relation="capital")
    probe = Probe(prompt="القاهرة", targets_new=("a", "b"), targets_true=("c",))
    records = [
        Record(case_id=3, request=request),
        Record(
            case_id=4,
            request=dataclasses.replace(request, target_true="市", relation=""),
            paraphrase_prompts=("p", "q"),
            neighborhood_prompts=("n",),
            attribute_prompts=("a",),
            generation_prompts=("g",),
            portability_prompts=(probe,),
            reversion_prompts=(probe, probe),
            locality_prompts=(dataclasses.replace(probe, kind="natural questions"),),
            rephrased_by="another question",
        ),
    ]
    path = tmp_path / "made" / "records.json"
    write_counterfact(records, path)
    assert read_counterfact(path) == records
    assert "東京" in path.read_text(encoding="utf-8")
    with pytest.warns(UserWarning, match=r"1 of 2 records have no true answer, so they state no fact: left out"):
        assert read_facts(path) == [records[1].request.fact]


REWRITE = "requested_rewrite"
BAD_FIELDS = [
    ("case_id", ..., "field 'case_id': expected it to be there, got only pararel_idx, requested_rewrite"),
    ("case_id", "7", "field 'case_id': expected a whole number, got '7'"),
    ("case_id", True, "field 'case_id': expected a whole number, got True"),
    ("case_id", 1, r"field 'case_id': expected a number of its own (record 0 has the same), got 1"),
    (REWRITE, [], f"field '{REWRITE}': expected an object, got []"),
    (f"{REWRITE}.subject", None, f"field '{REWRITE}.subject': expected a non-empty string, got None"),
    (f"{REWRITE}.subject", "  ", f"field '{REWRITE}.subject': expected a non-empty string, got '  '"),
    (f"{REWRITE}.subject", ..., f"field '{REWRITE}.subject': expected it to be there, got only prompt"),
    (f"{REWRITE}.prompt", 5, f"field '{REWRITE}.prompt': expected a non-empty string, got 5"),
    (
        f"{REWRITE}.prompt",
        "Angola is in",
        "expected a template with exactly one {} for the subject, got 'Angola",
    ),
    (
        f"{REWRITE}.prompt",
        "{} and {}",
        "expected a template with exactly one {} for the subject, got '{} and",
    ),
    (f"{REWRITE}.target_new", "Rome", f"field '{REWRITE}.target_new': expected an object, got 'Rome'"),
    (
        f"{REWRITE}.target_new.str",
        "",
        f"field '{REWRITE}.target_new.str': expected a non-empty string, got ''",
    ),
    (
        f"{REWRITE}.target_new",
        {},
        f"'{REWRITE}.target_new.str': expected it to be there, got only an empty object",
    ),
    (f"{REWRITE}.target_true", ..., f"field '{REWRITE}.target_true': expected it to be there"),
    (f"{REWRITE}.relation_id", 30, f"field '{REWRITE}.relation_id': expected a string, got 30"),
    ("paraphrase_prompts", ..., "field 'paraphrase_prompts': expected it to be there"),
    ("paraphrase_prompts", "a", "field 'paraphrase_prompts': expected a list, got 'a'"),
    ("neighborhood_prompts", ["a", 3], "field 'neighborhood_prompts[1]': expected a non-empty string, got 3"),
    ("portability_prompts", {}, "field 'portability_prompts': expected a list, got {}"),
    ("portability_prompts", ["a"], "field 'portability_prompts[0]': expected an object, got 'a'"),
    (
        "portability_prompts",
        [{"prompt": "a"}],
        "'portability_prompts[0].targets_new': expected it to be there",
    ),
    (
        "reversion_prompts",
        [{"prompt": "a", "targets_new": []}],
        "field 'reversion_prompts[0].targets_new': expected one or more right answers, got []",
    ),
    (
        "reversion_prompts",
        [{"prompt": "a", "targets_new": ["b", None]}],
        "field 'reversion_prompts[0].targets_new[1]': expected a non-empty string, got None",
    ),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_FIELDS)
def test_a_malformed_record_names_file_index_and_field(tmp_path: Path, field: str, value: Any, message: str) -> None:
    first = changed(COUNTERFACT, "case_id", 1)
    path = write(tmp_path, [first, changed(COUNTERFACT, field, value)])
    with pytest.raises(RecordError) as caught:
        read_counterfact(path)
    assert str(caught.value).startswith(f"{path}: record 1: ")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "subject",
            "Mont Blanc",
            "field 'prompt': expected a prompt with the subject 'Mont Blanc' in it, got 'Vinson",
        ),
        ("prompt", "Vinson Massif {} is", "field 'prompt': expected a prompt without {}, got 'Vinson"),
        ("attribute", "", "field 'attribute': expected a non-empty string, got ''"),
        ("relation_id", ..., "field 'relation_id': expected it to be there"),
    ],
)
def test_a_malformed_fact_names_file_index_and_field(tmp_path: Path, field: str, value: Any, message: str) -> None:
    path = write(tmp_path, [KNOWN, KNOWN, changed(KNOWN, field, value)])
    with pytest.raises(RecordError) as caught:
        read_known_1000(path)
    assert str(caught.value).startswith(f"{path}: record 2: ") and message in str(caught.value)


@pytest.mark.parametrize("reader", [read_counterfact, read_known_1000, read_records, read_facts])
def test_files_that_are_no_list_of_records(tmp_path: Path, reader) -> None:
    bad = {
        "": "expected JSON in UTF-8: Expecting value: line 1 column 1",
        '[{"case_id": 1},': "expected JSON in UTF-8: ",
        "3": "expected a list of records, got 3",
        '{"a": 1}': "record 0: ",
        "{}": "expected a list of records, got {}",
        "[]": "expected one or more records, got an empty list",
        "[3]": "record 0: expected ",
        "[null]": "record 0: expected ",
    }
    for content, message in bad.items():
        path = write(tmp_path, content)
        with pytest.raises(RecordError) as caught:
            reader(path)
        assert str(caught.value).startswith(f"{path}: {message}")
    path.write_bytes(b'["\xff"]')
    with pytest.raises(RecordError, match="expected JSON in UTF-8"):
        reader(path)
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file; give a JSON file in the schema of CounterFact"):
            reader(missing)


def test_an_unknown_schema_is_told_what_is_known(tmp_path: Path) -> None:
    path = write(tmp_path, [{"question": "What is made by Unimill?", "subject": "Unimill"}])
    for reader in (read_records, read_facts):
        with pytest.raises(
            RecordError, match=r"CounterFact \('requested_rewrite'\); MEND's.* or known_1000 .* got only 'question', "
        ):
            reader(path)
