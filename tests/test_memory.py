"""What is held at most, as measured: resident memory of a process of its own beyond that of the loaded model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from command import TINY
from transformers import GPT2Config, GPT2LMHeadModel

SCRIPT = """
import resource, sys, torch, workbench
from workbench.editors.shared.second_moments import second_moments
from workbench.records.texts import read_texts
from workbench.tracing import fact, noise
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
model = workbench.load_model(sys.argv[1], device="cpu")
def trace(text, engine, **options):
    known = workbench.Fact(subject="Portugal", template=text + "The capital of {} is", object="Lisbon")
    first, end = noise.subject_span(model, known)
    drawn = noise.NoiseRule().fit(model, [known]).draw(6, end - first, generator=torch.Generator().manual_seed(0))
    fact.trace_fact(model, known, noise=drawn, window=2, engine=engine, **options)
    return len(model.encode([known.prompt])[0].ids)
second_moments(model, [1], ["The capital of Portugal is"])
trace("", "fast"), trace("", "plain")
before = peak()
if sys.argv[2] == "texts":
    moment = second_moments(model, [1], read_texts(sys.argv[3]), max_tokens=5000)[1]
    print(moment.count, peak() - before)
else:
    model.budget = 0.1
    cells = {"plain": {"sites": ("resid_post",), "positions": [-1]}, "fast": {"positions": "last_subject"}}
    tokens = trace("The capital of France is Paris. " * 88, sys.argv[2], **cells[sys.argv[2]])
    print(tokens, peak() - before)
"""


def measured(*arguments: object) -> tuple[int, float]:
    """Tokens, and MiB beyond what small inputs took."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    count, more = done.stdout.split()
    return int(count), float(more)


@pytest.mark.slow
def test_a_line_of_megabytes(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("The capital of Portugal is Lisbon. " * 120_000)
    count, more = measured(TINY, "texts", tmp_path / "long.txt")
    assert count == 5000 and more < 300  # 1,060 where it is tokenised at once


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["plain", "fast"])
def test_a_prompt_of_a_thousand_tokens(tmp_path: Path, engine: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    config = GPT2Config(n_layer=4, n_head=4, n_embd=64, n_positions=1100, vocab_size=len(tokenizer))
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tokens, more = measured(tmp_path, engine)
    # Plain: 102 MiB a pass by its budget, and as much that the allocator keeps (1,096 with all samples in one pass).
    # Fast: the states of 7 runs, which it keeps, and its passes.
    assert 950 < tokens < 1050 and more < 250
