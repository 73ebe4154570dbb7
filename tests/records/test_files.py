"""Files of records are read once; whatever is wrong with them is told together, in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from known_schemas import COUNTERFACT, KNOWEDIT, MEND, ORIGINAL

from workbench.records import files
from workbench.records.fields import RecordError
from workbench.records.reading import read_facts, read_records


def refused(folder: Path, text: str, name: str = "records.json") -> str:
    """What is said of a file, but for where it lies."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecordError) as caught:
        read_records(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and "\n" not in said
    return said.removeprefix(f"{path}: ")


def test_all_that_is_malformed_is_told_together(tmp_path: Path) -> None:
    bad = [COUNTERFACT | {"case_id": index, "paraphrase_prompts": [index]} for index in range(8)]
    said = refused(tmp_path, json.dumps([COUNTERFACT | {"case_id": 90}, *bad, COUNTERFACT | {"case_id": 90}]))
    assert said.startswith("9 of 10 records are malformed: record 1: field 'paraphrase_prompts[0]': expected a non-")
    assert "record 5" in said and "record 6" not in said and said.endswith("; and 4 more")
    twice = refused(tmp_path, json.dumps([COUNTERFACT, COUNTERFACT]))
    assert twice == "record 1: field 'case_id': expected a number of its own (record 0 has the same), got 7"


def test_records_without_true_answers_are_no_facts(tmp_path: Path) -> None:
    rewrite = COUNTERFACT["requested_rewrite"] | {"target_true": None}
    some = [COUNTERFACT | {"case_id": case, "requested_rewrite": rewrite} for case in (5, 3)]
    path = tmp_path / "records.json"
    path.write_text(json.dumps([COUNTERFACT, *some]))
    with pytest.warns(UserWarning, match=r"2 of 3 records have no true answer"):
        assert [fact.object for fact in read_facts(path)] == ["Africa"]
    path.write_text(json.dumps(some))
    with pytest.raises(RecordError, match=r"records\.json: none of 2 records has a true answer"):
        read_facts(path)


def test_records_that_ask_for_what_is_true_are_told(tmp_path: Path) -> None:
    rewrite = COUNTERFACT["requested_rewrite"]
    same = COUNTERFACT | {"case_id": 1, "requested_rewrite": rewrite | {"target_new": rewrite["target_true"]}}
    (tmp_path / "records.json").write_text(json.dumps([COUNTERFACT, same]))
    with pytest.warns(UserWarning, match="1 of 2 records ask for the answer that is true already"):
        assert len(read_records(tmp_path / "records.json")) == 2


@pytest.mark.parametrize("name", ["records.json", "records.jsonl"])
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, name: str) -> None:
    text = json.dumps(MEND) if name.endswith("l") else json.dumps([MEND])
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_records(tmp_path / name)[0].request.subject == "Unimill"


def test_a_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], files.load
    monkeypatch.setattr(files, "load", lambda path, **options: (loaded.append(path), load(path, **options))[1])
    (tmp_path / "records.json").write_text(json.dumps([MEND]))
    read_records(tmp_path / "records.json")
    read_facts(tmp_path / "records.json")
    assert len(loaded) == 2


@pytest.mark.parametrize("case", ["7", "../../x", 1.0, None, True, -1, 2**63, 10**30, [7], {"a": 7}, "x" * 10_000])
def test_what_is_no_number_of_a_record(tmp_path: Path, case: Any) -> None:
    said = refused(tmp_path, json.dumps([COUNTERFACT, COUNTERFACT | {"case_id": case}]))
    assert said.startswith("record 1: field 'case_id': expected a whole number") and len(said) < 200


def test_a_number_of_more_digits_than_python_reads(tmp_path: Path) -> None:
    text = json.dumps([COUNTERFACT]).replace('"case_id": 7', '"case_id": ' + "9" * 5000)
    assert refused(tmp_path, text) == "record 0: field 'case_id': expected a whole number, got inf"


@pytest.mark.parametrize("name", ["records.json", "records.jsonl"])
def test_deep_json(tmp_path: Path, name: str) -> None:
    assert "it is nested too deeply" in refused(tmp_path, '{"a":' * 100_000, name)


def test_lone_surrogates(tmp_path: Path) -> None:
    text = json.dumps([COUNTERFACT]).replace("Ghana is in", "\\ud83d is in")
    said = "record 0: field 'neighborhood_prompts[0]': expected a string without lone surrogates, which UTF-8"
    assert refused(tmp_path, text).startswith(said)


def test_an_alias_is_named_with_its_line(tmp_path: Path) -> None:
    said = refused(tmp_path, "- &a {case_id: 1}\n- *a\n", "records.yaml")
    assert "*a is an alias, and aliases are not read: write out what it stands for" in said and "line 2" in said


def test_names_that_are_dates_and_numbers(tmp_path: Path) -> None:
    said = refused(tmp_path, "- {2020-01-01: x, 7: y, requested_rewrite: {3: z}, case_id: 1}\n", "records.yaml")
    assert said == "record 0: field 'requested_rewrite.target_true': expected it to be there, got only 3"
    portability = f"- {json.dumps(KNOWEDIT)}".replace('"reasoning"', "2020-01-01")
    said = refused(tmp_path, portability, "records.yaml")
    assert said.startswith("record 0: field 'portability': expected an object whose names are strings, not datetime")


@pytest.mark.parametrize("field", ["meta", "output"])
def test_other_things_than_objects_where_the_original_zsre_names_its_subject(tmp_path: Path, field: str) -> None:
    wrong = {"meta": [3], "output": [{"answer": "Ara", "provenance": [{"title": 3}]}]}
    said = refused(tmp_path, json.dumps([ORIGINAL | {field: wrong[field]}]))
    assert said.startswith(f"record 0: field '{field}") and "expected" in said


def test_lines_end_where_json_lines_do(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(MEND | {"alt": "paper\u2028kites"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_records(path)[0].request.target_new == "paper\u2028kites"
