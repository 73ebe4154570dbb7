"""Files of zsRE, EasyEdit, KnowEdit and the survey, by small made-up ones: recognised, read whole, refused by name."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from known_schemas import COUNTERFACT, FLAT, IN_LISTS, KNOWEDIT, MEND, ORIGINAL

from workbench.records.counterfact import write_counterfact
from workbench.records.course import write_requests
from workbench.records.easyedit import REPHRASE
from workbench.records.facts import EditRequest, Probe, Record
from workbench.records.fields import RecordError
from workbench.records.joining import join
from workbench.records.reading import read_facts, read_records, schema
from workbench.records.zsre import read_zsre, write_zsre


def write(folder: Path, records: list[Any], name: str = "records.json") -> Path:
    path = folder / name
    lines = "\n".join(json.dumps(record) for record in records)
    path.write_text(lines if name.endswith("l") else json.dumps(records), encoding="utf-8")
    return path


def read(path: Path) -> tuple[list[Record], str]:
    """The records, and what was said of them."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        records = read_records(path)
    return records, "; ".join(str(one.message) for one in said)


def test_mends_zsre(tmp_path: Path) -> None:
    surveyed = MEND | {
        "portability": {
            "Recalled Relation": "-",
            "New Question": "Who flies what Unimill makes?",
            "New Answer": "Eole",
        },
        "alter_subject_question": "What is made by the Universal Mill?",
        "inverse question": "Who makes paper kites?",
    }
    (record, other), said = read(write(tmp_path, [MEND, surveyed]))
    request = EditRequest(
        template="What is made by {}?", subject="Unimill", target_new="paper kites", target_true="flour"
    )
    nearby = Probe(prompt=MEND["loc"], targets_new=("Rumi",), targets_true=("Rumi",), kind="natural questions")
    assert record == Record(
        case_id=0, request=request, paraphrase_prompts=(MEND["rephrase"],), locality_prompts=(nearby,)
    )
    assert join(request.prompt, request.target_new) == "What is made by Unimill? paper kites"
    assert other.portability_prompts == (
        Probe(prompt="Who flies what Unimill makes?", targets_new=("Eole",), kind="one hop"),
        Probe(
            prompt="What is made by the Universal Mill?",
            targets_new=("paper kites",),
            targets_true=("flour", "bran"),
            kind="alias",
        ),
        Probe(prompt="Who makes paper kites?", targets_new=("Unimill",), kind="reversed"),
    )
    assert "the schema of MEND's zsRE, 2 records; they have no neighborhood prompts, no generation" in said
    assert read_facts(tmp_path / "records.json") == [request.fact] * 2
    write_zsre([record], tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == [MEND | {"answers": ["flour"]}]


@pytest.mark.parametrize("name", ["records.jsonl", "records.json", "records.txtl"])
def test_the_original_zsre_in_lines(tmp_path: Path, name: str) -> None:
    (record, _), said = read(write(tmp_path, [ORIGINAL, ORIGINAL | {"subject": "Tolk"}], name))
    assert record.request == EditRequest(
        template="In which river lies {}?", subject="Tolk Island", target_new="Bela", target_true="Ara"
    )
    assert record.paraphrase_prompts == ("Tolk Island is in which river?",)
    assert read_zsre(tmp_path / name)[1].request.template == "In which river lies {} Island?"
    assert "the schema of the original zsRE, 2 records; they have no" in said


@pytest.mark.parametrize("name", ["records.jsonl", "records.json", "records.yaml"])
def test_a_record_alone_needs_no_list(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(ORIGINAL))
    (record,), said = read(path)
    assert record.request.subject == "Tolk Island" and "1 record; they have no" in said


def test_easyedits_counterfact_and_zsre(tmp_path: Path) -> None:
    (record,), said = read(write(tmp_path, [FLAT]))
    assert record == Record(
        case_id=4,
        request=EditRequest(
            template="The mother tongue of {} is", subject="Ada Rill", target_new="Basque", target_true="Welsh"
        ),
        paraphrase_prompts=(FLAT["rephrase_prompt"],),
        neighborhood_prompts=(FLAT["locality_prompt"],),
        rephrased_by=REPHRASE,
    )
    assert "EasyEdit's CounterFact, 1 record;" in said and f"{REPHRASE}, mostly other questions" in said
    local = {"locality_prompt": MEND["loc"], "locality_ground_truth": "Rumi"}
    (question,), said = read(write(tmp_path, [FLAT | local]))
    assert not question.rephrased_by and not question.neighborhood_prompts
    assert question.locality_prompts[0].kind == "natural questions" and "EasyEdit's zsRE" in said


def test_knowedit_in_both_its_forms(tmp_path: Path) -> None:
    (record,), said = read(write(tmp_path, [KNOWEDIT]))
    assert record.request.target_true is None and record.request.template == "Who is the father of {}?"
    assert [(one.kind, one.targets_new) for one in record.portability_prompts] == [
        ("reversed", ("Jun Abe",)),
        ("one hop", ("Nara",)),
    ]
    assert record.locality_prompts == (
        Probe(
            prompt="Jun Abe's title is", targets_new=("count",), targets_true=("count",), kind="relation specificity"
        ),
    )
    assert "no true answers" in said
    with pytest.raises(RecordError, match="none of 1 records has a true answer"):
        read_facts(tmp_path / "records.json")
    (listed,), _ = read(write(tmp_path, [IN_LISTS]))
    assert listed.request.target_true == "Kiel" and listed.paraphrase_prompts == ("Leo Tarn died in",)
    named = {name: value for name, value in IN_LISTS.items() if name != "rephrase_prompt"}
    for rephrased in ("Leo Tarn died in", ["Leo Tarn died in"]):  # the other name that EasyEdit reads
        ((other,), _) = read(write(tmp_path, [named | {"rephrase": rephrased}]))
        assert other == listed
    assert [(one.kind, one.targets_new) for one in listed.portability_prompts] == [
        ("logic", ("no", "false")),
        ("alias", ("Bonn",)),
    ]
    assert listed.locality_prompts[0].targets_true == ("Kiel", "Kiel, Germany")
    biography = {"text": "Of john moss.", "labels": "He taught.", "concept": "John Moss", "locality": {}}
    (written,), said = read(write(tmp_path, [biography]))
    assert (written.request.template, written.request.subject) == ("Of {}.", "john moss")
    assert "KnowEdit's WikiBio" in said


def test_the_courses_and_the_surveys_counterfact(tmp_path: Path) -> None:
    request = EditRequest(template="{} lies in", subject="Angola", target_new="Asia", target_true="Africa")
    record = Record(case_id=3, request=request, neighborhood_prompts=("Ghana is in",))
    write_requests([record], tmp_path / "course.json")
    assert schema(tmp_path / "course.json") == "the course" and read(tmp_path / "course.json")[0] == [record]
    write_counterfact([record], tmp_path / "records.json")
    (written,) = json.loads((tmp_path / "records.json").read_text())
    added = {
        "portability": {"New Question": "Whose is it?", "New Answer": "Asia's"},
        "alternative_subject": "Ngola",
    }
    said = read(write(tmp_path, [written]))[1]
    assert "the schema of CounterFact, 1 record; they have no paraphrase prompts" in said, "so that there is no S"
    written["paraphrase_prompts"] = ["In Angola one is in"]
    (read_back,), said = read(write(tmp_path, [written | added]))
    assert [(one.kind, one.prompt) for one in read_back.portability_prompts] == [
        ("one hop", "Whose is it?"),
        ("alias", "Ngola lies in"),
    ]
    assert not said, "of CounterFact's own schema there is nothing to say"
    empty = {"portability": {"Recalled Relation": "", "New Question": "", "New Answer": ""}}
    assert read(write(tmp_path, [written | empty]))[0][0].portability_prompts == ()


@pytest.mark.parametrize(
    ("subject", "question", "template", "written"),
    [
        ("IUCN", "How does the iucn see it?", "How does the {} see it?", "iucn"),
        ("Ann", "Is Anna with Ann?", "Is Anna with {}?", "Ann"),
        ("Ann", "Is ann with Anna?", "Is {} with Anna?", "ann"),
        ("C++ (language)", "Who made C++ (language)?", "Who made {}?", "C++ (language)"),
    ],
)
def test_where_a_question_has_its_subject(
    tmp_path: Path, subject: str, question: str, template: str, written: str
) -> None:
    ((record,), _) = read(write(tmp_path, [MEND | {"subject": subject, "src": question}]))
    assert (record.request.template, record.request.subject) == (template, written)
    assert record.request.prompt == question


@pytest.mark.parametrize(
    ("record", "changes", "message"),
    [
        (MEND, {"alt": ""}, "field 'alt': expected an answer to edit to, got ''"),
        (ORIGINAL, {"alternatives": []}, "field 'alternatives': expected one or more answers to edit to, got []"),
        (FLAT, {"target_new": " "}, "field 'target_new': expected an answer to edit to, got ' '"),
        (IN_LISTS, {"target_new": ""}, "field 'target_new': expected an answer to edit to, got ''"),
    ],
)
def test_a_record_without_an_answer_to_edit_to_is_refused_by_itself(
    tmp_path: Path, record: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    first = record | ({"case_id": 99} if "case_id" in record else {})
    records, said = read(write(tmp_path, [first, record | changes]))
    assert len(records) == 1 and "1 of 2 records are refused and left out" in said and message in said


@pytest.mark.parametrize("empty", [None, "", [], [[]], [[""]], [None]])
def test_a_question_without_a_right_answer_is_left_out(tmp_path: Path, empty: Any) -> None:
    asked = [{"prompt": "Is Leo Tarn alive?", "ground_truth": empty}, {"prompt": "Leo Tarn is", "ground_truth": "dead"}]
    (record,), said = read(write(tmp_path, [IN_LISTS | {"portability": {"Reasoning": asked}}]))
    assert [(one.prompt, one.targets_new) for one in record.portability_prompts] == [("Leo Tarn is", ("dead",))]
    assert "records.json: 1 question has no right answer: left out" in said


@pytest.mark.parametrize("empty", [None, "", []])
def test_knowedit_may_have_nothing_where_something_is_optional(tmp_path: Path, empty: Any) -> None:
    fields = ("ground_truth", "rephrase_prompt", "portability", "locality")
    (record,), _ = read(write(tmp_path, [IN_LISTS | dict.fromkeys(fields, empty)]))
    assert record.request.target_true is None
    assert not (record.paraphrase_prompts or record.portability_prompts or record.locality_prompts)
    (kinds,), _ = read(write(tmp_path, [IN_LISTS | {"portability": {"Reasoning": empty}}]))
    assert not kinds.portability_prompts
    (nested,), _ = read(write(tmp_path, [IN_LISTS | {"ground_truth": [["Kiel", "Kiel, Germany"]]}]))
    assert nested.request.target_true == "Kiel"


def test_easyedits_flat_records_keep_what_else_they_ask(tmp_path: Path) -> None:
    more = {name: IN_LISTS[name] for name in ("portability", "locality")}
    (record,), _ = read(write(tmp_path, [FLAT | more]))
    assert [one.kind for one in record.portability_prompts] == ["logic", "alias"]
    assert [one.kind for one in record.locality_prompts] == ["forgetfulness"] and record.neighborhood_prompts
    one = Probe(prompt="Who rules it?", targets_new=("Ann",), kind="one hop")
    surveyed = {"portability": {"New Question": "Who rules it?", "New Answer": "Ann"}}
    paired = {"portability_prompt": "Who rules it?", "portability_ground_truth": "Ann"}
    for form in (surveyed, paired):
        (record,), _ = read(write(tmp_path, [FLAT | form]))
        assert record.portability_prompts == (one,)
    (record,), _ = read(write(tmp_path, [FLAT | more | paired]))
    assert [each.kind for each in record.portability_prompts] == ["one hop", "logic", "alias"]
    (record,), said = read(write(tmp_path, [FLAT | paired | {"portability_ground_truth": ""}]))
    assert not record.portability_prompts and "1 question has no right answer: left out" in said


def test_a_natural_question_is_no_neighbor_whatever_its_answer(tmp_path: Path) -> None:
    same = {"locality_prompt": MEND["loc"], "locality_ground_truth": FLAT["ground_truth"]}
    (record,), _ = read(write(tmp_path, [FLAT | same]))
    assert not record.neighborhood_prompts and record.locality_prompts[0].kind == "natural questions"


def test_a_reversed_question_is_answered_as_the_file_writes_the_subject(tmp_path: Path) -> None:
    lower = {"subject": "UNIMILL", "inverse question": "Who makes kites?"}
    (mend,), _ = read(write(tmp_path, [MEND | lower]))
    assert mend.request.subject == "Unimill" and mend.portability_prompts[0].targets_new == ("UNIMILL",)
    (record,), _ = read(write(tmp_path, [KNOWEDIT | {"prompt": "who is the father of jun abe?"}]))
    assert record.portability_prompts[0].kind == "reversed"


@pytest.mark.parametrize("record", [MEND, COUNTERFACT])
def test_an_empty_portability_is_none(tmp_path: Path, record: dict[str, Any]) -> None:
    (read_back,), _ = read(write(tmp_path, [record | {"portability": {}}]))
    assert not read_back.portability_prompts


def test_several_edits_a_record_are_refused_with_the_way_out(tmp_path: Path) -> None:
    several = COUNTERFACT | {"requested_rewrite": [COUNTERFACT["requested_rewrite"]] * 2}
    with pytest.raises(RecordError, match="as MQuAKE has them, are not read: give each edit a record"):
        read_records(write(tmp_path, [several, several]))


def test_a_question_without_its_subject_is_refused_by_itself(tmp_path: Path) -> None:
    inside = MEND | {"subject": "Ra", "src": "Who is the narrator of Walden?"}
    assert "the subject 'Ra' in it" in read(write(tmp_path, [MEND, inside]))[1], "no part of another word is a subject"
    lost = MEND | {"subject": "Bimill"}
    records, said = read(write(tmp_path, [MEND, lost, MEND]))
    assert [record.case_id for record in records] == [0, 2]
    assert "1 of 3 records are refused and left out" in said
    assert "record 1: field 'src': expected a prompt with the subject 'Bimill' in it, got 'What is made by Unim" in said
    with pytest.raises(RecordError, match=r"record 0: field 'src': .*'Bimill' in it, got 'What is made by Unimill"):
        read_records(write(tmp_path, [lost]))


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (MEND, {"portability": ["q?"]}, "field 'portability': expected an object, got ['q?']"),
    (MEND, {"answers": []}, "field 'answers': expected one or more right answers, got []"),
    (MEND, {"src": "What {} is Unimill?"}, "field 'src': expected a prompt without {}, got"),
    (MEND, {"loc_ans": None}, "field 'loc_ans': expected a non-empty string, got None"),
    (MEND, {"portability": {"New Question": "?"}}, "field 'portability.New Answer': expected it to be there"),
    (ORIGINAL, {"output": [{}]}, "field 'output': expected one or more objects with an 'answer', got [{}]"),
    (ORIGINAL, {"output": [{"answer": "Ara"}]}, "expected the subject in 'subject', 'meta.sub_surface' or"),
    (FLAT, {"ground_truth": 3}, "field 'ground_truth': expected a non-empty string, got 3"),
    (FLAT, {"case_id": 99}, "field 'case_id': expected a number of its own (record 0 has the same), got 99"),
    (KNOWEDIT, {"portability": {"Luck": []}}, "field 'portability.Luck': expected a kind that is one of reasoning,"),
    (
        KNOWEDIT,
        {"locality": {"Forgetfulness": {"prompt": ["a", "b"], "ground_truth": ["c"]}}},
        "field 'locality.Forgetfulness.ground_truth': expected as many as there are prompts (2), got ['c']",
    ),
]


@pytest.mark.parametrize(("record", "changes", "message"), BAD)
def test_a_malformed_record_is_named(
    tmp_path: Path, record: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    first = record | ({"case_id": 99} if "case_id" in record else {})
    path = write(tmp_path, [first, record | changes])
    with pytest.raises(RecordError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}: record 1: ") and message in str(caught.value)


def test_a_malformed_line_and_a_value_that_is_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(MEND) + "\n\n{oops\n")
    with pytest.raises(RecordError, match=r"records\.jsonl: line 3: expected one record in JSON, got '\{oops'"):
        read_records(path)
    for record, reader in ((MEND, read_zsre), (KNOWEDIT, read_records), (FLAT, read_records)):
        with pytest.raises(RecordError, match="record 1: expected an object, got 3"):
            reader(write(tmp_path, [record, 3]))
