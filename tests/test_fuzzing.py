"""Files that anybody may hand over are read or refused in one line, whatever is in them; `make torture` tries more."""

import random
from pathlib import Path

import pytest
from fuzzing import READERS, YAML, check_reader, record_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BUDGET = settings(
    max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
draws = given(draw=st.randoms(use_true_random=False))


@BUDGET
@draws
def test_files_of_records(tmp_path_factory: pytest.TempPathFactory, draw: random.Random) -> None:
    path = record_file(tmp_path_factory.getbasetemp(), draw)
    for read in READERS:
        check_reader(path, read)


@pytest.mark.parametrize("read", READERS)
def test_what_only_yaml_can_hold(tmp_path: Path, read) -> None:
    for number, text in enumerate(YAML):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        assert check_reader(path, read) == "refused"
