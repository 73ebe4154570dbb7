"""Loading, tracing and editing a model of a local folder: no network, no process, no question, no code of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from command import TINY

SCRIPT = """
import os, sys
seen = []
ALONE = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "builtins.input",
         "urllib.", "http.", "webbrowser.", "pty.", "ftplib.", "smtplib.")
def hook(event, details):
    if event.startswith(ALONE):
        seen.append((event, str(details)[:200]))
import torch, workbench
from workbench.models.loading import load_model
from workbench.tracing import fact, noise
from workbench.editors import ft
from workbench.edits import weights
from workbench.models import scoring
sys.addaudithook(hook)
sys.stdin.close()
model = workbench.load_model(sys.argv[1], device="cpu")
known = workbench.Fact(subject="Portugal", template="The capital of {} is", object="Lisbon")
fitted = noise.NoiseRule().fit(model, [known])
first, end = noise.subject_span(model, known)
drawn = fitted.draw(2, end - first, generator=torch.Generator().manual_seed(0))
fact.trace_fact(model, known, noise=drawn, window=3)
request = workbench.EditRequest(template=known.template, subject=known.subject, target_new="Moscow")
edit = ft.FT(layers=(2,), steps=2)(model, [request])
with edit.applied(model):
    workbench.generate(model, ["The capital of Portugal is"], max_new_tokens=2)
edit.save(sys.argv[2])
workbench.Edit.load(sys.argv[2], model=model)
quiet = list(seen)
import socket
socket.socket()
print(quiet, seen[:1])
"""


@pytest.mark.slow
def test_nothing_is_opened_started_or_asked(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(TINY), str(tmp_path / "edit.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] [('socket.__new__'"), done.stdout
