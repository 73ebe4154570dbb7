"""Scores before edits are found together, and one that cannot be scored spoils no other's."""

from dataclasses import replace
from typing import Any

import pytest
from known_records import RECORDS

from workbench.measuring.evaluate import score_state
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.studies import before
from workbench.studies.before import Before

OPTIONS: dict[str, Any] = {"generate": False, "fluency_tokens": None}


def test_records_are_scored_in_one_go(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, whole = [], before.score_states

    def score_states(model: Model, records: list[Record], **options: Any) -> Any:
        calls.append([record.case_id for record in records])
        return whole(model, records, **options)

    monkeypatch.setattr(before, "score_states", score_states)
    scores = Before(model=tiny_gpt2, records=RECORDS, options=lambda _: OPTIONS)
    found = [scores(record) for record in (*RECORDS, RECORDS[0])]
    assert calls == [[1, 2, 3]] and found[3] is found[0]
    scores.drop(RECORDS[0])
    other = replace(RECORDS[0], neighborhood_prompts=())  # of the same case, but asked less
    assert not scores(other).prompts["neighborhood"] and calls == [[1, 2, 3]]


def test_one_that_fails_is_scored_alone(tiny_gpt2: Model) -> None:
    bad = replace(RECORDS[1], paraphrase_prompts=("Paris " * 400,))
    scores = Before(model=tiny_gpt2, records=[RECORDS[0], bad], options=lambda _: OPTIONS)
    alone = score_state(tiny_gpt2, RECORDS[0], **OPTIONS)
    assert scores(RECORDS[0]).metrics()["ES"] == alone.metrics()["ES"]
    with pytest.raises(ValueError, match="context"):
        scores(bad)
