"""Causal traces whose numbers are known without a model."""

from typing import Any

import torch

from workbench.records.facts import Fact
from workbench.runs.run import Run
from workbench.tracing.trace import CausalTrace

EVIL = "</script ><script>window.evil = 1</script><!-- <script \"'&amp; $x$ \u2028 \\u003c"
TOKENS = ("The", " Eiff", "el", " Tower", " is", "\n", " in")
N_LAYERS = 8
FACT = Fact(subject="Eiffel Tower", template="The {} is\n in", object="Paris")


def make_trace(**changes: Any) -> CausalTrace:
    """Restored: 0.1 corrupted, 0.1 more a token, 0.01 more a layer; half and a quarter of that for MLP, attention."""
    effect = 0.1 * torch.arange(float(len(TOKENS)))[:, None] + 0.01 * torch.arange(float(N_LAYERS))
    restored = {"resid_post": 0.1 + effect, "mlp_out": 0.1 + effect / 2, "attn_out": 0.1 + effect / 4}
    fields: dict[str, Any] = {
        "fact": FACT,
        "tokens": TOKENS,
        "subject": (1, 4),
        "answer": " Paris",
        "answer_id": 1,
        "clean": 0.9,
        "corrupted": 0.1,
        "restored": restored,
        "window": 3,
    }
    return CausalTrace(**(fields | changes))


def trace_of(
    effect: torch.Tensor, *, corrupted: float = 0.1, subject: tuple[int, int] = (1, 3), **changes: Any
) -> CausalTrace:
    """A trace in which restoring the MLPs has the effect given, [pos, layer]."""
    known = {"tokens": tuple(f" t{pos}" for pos in range(len(effect))), "restored": {"mlp_out": corrupted + effect}}
    return make_trace(corrupted=corrupted, subject=subject, **(known | changes))


def make_after() -> CausalTrace:
    """After an edit: another answer, corrupted 0.05, and half of the effect."""
    restored = {site: 0.05 + (values - 0.1) / 2 for site, values in make_trace().restored.items()}
    return make_trace(answer=" Rome", clean=0.95, corrupted=0.05, restored=restored)


def save_traces(run: Run, before: int, after: tuple[int, ...] = ()) -> None:
    """What a run that was traced holds, and the traces after an edit at the indices `after`."""
    for index in range(before):
        make_trace().save(run.folder / "traces" / f"{index:05d}.safetensors")
        run.append("traces", {"index": index, "known": True, "prompt": FACT.prompt})
    for index in after:
        make_after().save(run.folder / "traces_after" / f"{index:05d}.safetensors")
