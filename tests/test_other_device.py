"""Nothing mixes tensors of two devices, seen without a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from workbench.editors.registry import EDITORS


@pytest.mark.slow
def test_everything_runs_on_another_device() -> None:
    command = [sys.executable, str(Path(__file__).with_name("other_device.py"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [*EDITORS, *EDITORS]  # also where only some of the weights are there
