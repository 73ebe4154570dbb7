"""Two runs of one command with one seed leave the same bytes behind, but for times."""

import re
from pathlib import Path

import pytest
from command import TINY, run

pytestmark = pytest.mark.usefixtures("cache", "quick_presets", "no_figures")

_TIMES = re.compile(
    rb'"(?:seconds\w*|date|changed|process|resumed|sha256)": (?:"[^"]*"|[-+.\de]+|null)|'
    rb"\d{4}-\d\d-\d\dT[\d:+]+|\d{4}-\d\d-\d\d \d\d:\d\d(?: UTC)?"
)
"""Times, and checksums of what holds times."""


def files(folder: Path) -> dict[str, bytes]:
    """What a run has left, without the times in it."""
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {str(name): data if name.suffix == ".safetensors" else _TIMES.sub(b"", data) for name, data in found.items()}


@pytest.mark.slow
def test_two_studies(records: Path, text: Path, tmp_path: Path) -> None:
    kept = []
    for name in ("one", "two"):
        folder = tmp_path / name / "run"
        result = run("study", "--model", TINY, "--records", records, "--text", text, "--limit", 2, "--traces", 1,
                     "--samples", 2, "--window", 3, "--layer", 2, "--method", "rome", "--fluency", 1, "--seed", 3,
                     "--out", folder)  # fmt: skip
        assert result.exit_code == 0, result.output
        kept.append(files(folder))
    one, two = kept
    assert one.keys() == two.keys() and {Path(name).suffix for name in one} >= {".safetensors", ".jsonl", ".csv"}
    assert [name for name in one if one[name] != two[name]] == []
