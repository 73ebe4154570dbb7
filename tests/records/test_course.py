"""Request files of the course are read whole, malformed ones named; the committed ones do not disturb each other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from known_schemas import COURSE, SINGLE

from workbench.atlas.records import atlas_records, course_records
from workbench.atlas.world import World
from workbench.machine.paths import ATLAS, ROOT
from workbench.records.course import GenerationPrompt, read_requests, read_single_edit, write_requests
from workbench.records.facts import EditRequest, Probe, Record
from workbench.records.fields import RecordError


def written(folder: Path, value: Any, name: str = "requests.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_the_courses_schema_is_read(tmp_path: Path) -> None:
    (record,) = read_requests(written(tmp_path, [COURSE]))
    assert record == Record(
        case_id=19456,
        request=EditRequest(
            template="The mother tongue of {} is",
            subject="Aleksandr Kaleri",
            target_new="French",
            target_true="Russian",
        ),
        paraphrase_prompts=("Aleksandr Kaleri is a native speaker of",),
        neighborhood_prompts=("Vladimir Smirnov is a native speaker of",),
        portability_prompts=(
            Probe(
                prompt="The language spoken by cosmonaut Aleksandr Kaleri is",
                targets_new=("French",),
                targets_true=("Russian",),
            ),
        ),
    )
    write_requests([record], tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text(encoding="utf-8")) == [COURSE]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "The mother tongue is"}, r"record 1: field 'prompt': expected a prompt with exactly one \{\}"),
        ({"target_true": None}, "record 1: field 'target_true': expected a non-empty string, got None"),
        ({"target_new": {"str": " "}}, r"record 1: field 'target_new.str': expected a non-empty string"),
        ({"paraphrase_prompts": ["text"]}, r"record 1: field 'paraphrase_prompts\[0\]': expected an object"),
        ({"portable_prompts": [{"prompt": "p", "portable_target_new": []}]}, "expected one or more right answers"),
        ({"case_id": 19456}, r"record 1: field 'case_id': expected a number of its own \(record 0 has the same\)"),
    ],
)
def test_a_malformed_request_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, [COURSE, COURSE | {"case_id": 2} | changes])
    with pytest.raises(RecordError, match=message) as error:
        read_requests(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        read_requests(tmp_path / "none.json")
    for content, expected in (({}, "a list of records"), ([], "one or more records")):
        with pytest.raises(RecordError, match=rf"requests\.json: expected {expected}"):
            read_requests(written(tmp_path, content))
    with pytest.raises(RecordError, match=r"requests\.json: expected JSON"):
        read_requests(written(tmp_path, "[{"))
    with pytest.raises(RecordError, match=r"edit\.yaml: expected YAML"):
        read_single_edit(written(tmp_path, "prompt: {} plays the\nsubject: x", "edit.yaml"))


def test_a_single_edit_is_read_from_json_and_yaml(tmp_path: Path) -> None:
    single = read_single_edit(written(tmp_path, SINGLE))
    assert single.request == EditRequest(template="{} plays the", subject="Miles Davis", target_new="piano")
    assert single.prompts == (
        GenerationPrompt(prompt="Miles Davis plays the", rule="begins_with", texts=("piano",)),
        GenerationPrompt(prompt="Miles Davis is", rule="contains", texts=("piano", "pianist")),
        GenerationPrompt(prompt="Miles Davis was"),
    )
    as_yaml = written(tmp_path, json.dumps(SINGLE), "edit.yaml")  # JSON is YAML
    assert read_single_edit(as_yaml) == single
    in_the_courses_way = written(tmp_path, SINGLE | {"target_new": {"str": "piano"}})
    assert read_single_edit(in_the_courses_way) == single
    begins, contains, none = single.prompts
    assert begins.succeeded(" piano.") is True and begins.succeeded(" a piano") is False
    assert contains.succeeded(" a pianist") is True and contains.succeeded("Piano") is False
    assert none.succeeded("piano") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": ""}, "field 'subject': expected a non-empty string"),
        ({"generation_prompts": []}, "field 'generation_prompts': expected one or more prompts"),
        (
            {"generation_prompts": [{"prompt": "p", "begin_with": "x"}]},
            r"field 'generation_prompts\[0\]': expected a 'p",
        ),
        ({"generation_prompts": [{"prompt": "p", "begins_with": "x", "contains": "y"}]}, "either 'begins_with' or"),
        ({"generation_prompts": [{"prompt": "p", "contains": []}]}, r"\[0\].contains': expected one or more texts"),
        ({"generation_prompts": [{"prompt": "p", "begins_with": 7}]}, r"\.begins_with': expected a non-empty string"),
        ({"target_new": 7}, "field 'target_new': expected a non-empty string, got 7"),
    ],
)
def test_a_malformed_single_edit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, SINGLE | changes)
    with pytest.raises(RecordError, match=message) as error:
        read_single_edit(path)
    assert str(path) in str(error.value)


def test_the_committed_example_has_five_prompts_to_judge() -> None:
    single = read_single_edit(ROOT / "data" / "examples" / "single_edit.yaml")
    assert len(single.prompts) == 5 and all(asked.rule for asked in single.prompts)


@pytest.mark.slow
def test_the_committed_requests_are_those_of_the_tables_and_do_not_disturb_each_other() -> None:
    world = World.load()
    records = read_requests(ATLAS / "course_80.json")
    made = course_records(world, atlas_records(world)[1])
    kept = ("case_id", "paraphrase_prompts", "neighborhood_prompts", "portability_prompts")
    assert [[getattr(r, name) for name in kept] for r in records] == [[getattr(r, name) for name in kept] for r in made]
    assert [r.request for r in records] == [replace(r.request, relation="") for r in made]
    subjects = {record.request.subject for record in records}
    assert len(records) == len(subjects) == 80
    assert subjects <= world.evaluation_subjects
    for record in records:
        assert record.neighborhood_prompts
        assert not any(subject in prompt for prompt in record.neighborhood_prompts for subject in subjects)
    bridged = {(hop.subject, world.facts[hop.subject][hop.bridge.relation]) for hop in world.two_hops[1]}
    assert not subjects & {middle for _, middle in bridged}
    assert sum(bool(record.portability_prompts) for record in records) > 40
    assert any(record.portability_prompts for record in records[:10])
