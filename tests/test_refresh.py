"""How reports are made: side by side, each put in place when it ends, whatever becomes of the others."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

WRITES = """
import os, pathlib, sys
out = pathlib.Path(sys.argv[-1])
out.mkdir(parents=True)
(out / "report.html").write_text(os.environ["OMP_NUM_THREADS"])
print("something")
sys.exit(CODE)
"""


@pytest.fixture
def refresh(tmp_path: Path) -> dict[str, Any]:
    """What the script defines, with its folders elsewhere."""
    script = Path(__file__).resolve().parents[1] / "reports" / "refresh.py"
    names = runpy.run_path(str(script))["put"].__globals__
    names |= {"ROOT": tmp_path, "RUNS": tmp_path / "runs"}
    return names


def test_what_fails_keeps_no_other_from_ending(refresh: dict[str, Any], tmp_path: Path) -> None:
    codes = {"good": 0, "smollm2/some": 3, "bad": 2}
    every = {name: (sys.executable, "-c", WRITES.replace("CODE", str(code))) for name, code in codes.items()}
    with pytest.raises(ValueError, match="bad failed; the same command"):
        refresh["at_once"](list(every), every, 2)
    for name in ("good", "smollm2/some"):
        assert (tmp_path / "reports" / name / "report.html").read_text() == "1"
        assert not (tmp_path / "runs" / name).exists() and not (tmp_path / "runs" / f"{name}.log").exists()
    assert not (tmp_path / "reports" / "bad").exists()
    assert (tmp_path / "runs" / "bad.log").read_text() == "something\n"
    assert (tmp_path / "runs" / "bad" / "report.html").exists()  # where it goes on
