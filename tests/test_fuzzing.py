"""Files that anybody may hand over are read or refused in one line, whatever is in them; `make torture` tries more."""

import random
from pathlib import Path

import pytest
from fuzzing import READERS, YAML, check_reader, record_file
from harming import check_edit, check_run, edit_file, run_folder, sound_edits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.models.model import Model

BUDGET = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
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


@BUDGET
@draws
def test_files_of_edits(tmp_path_factory: pytest.TempPathFactory, tiny_gpt2: Model, draw: random.Random) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    edit_file(path, draw, draw.choice(sound_edits(tiny_gpt2)))
    check_edit(path, tiny_gpt2)


def test_sound_edits_are_applied(tmp_path: Path, tiny_gpt2: Model) -> None:
    for edit in sound_edits(tiny_gpt2):
        edit.save(tmp_path / "edit.safetensors")
        assert check_edit(tmp_path / "edit.safetensors", tiny_gpt2) == "applied"


@BUDGET
@draws
def test_folders_of_runs(tmp_path_factory: pytest.TempPathFactory, draw: random.Random) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    run_folder(folder, draw)
    check_run(folder)
