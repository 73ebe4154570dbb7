"""How long edits and scores of many records take, all at once and one at a time."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch

from workbench.edits.weights import WeightEdit
from workbench.measuring.evaluate import SLACK, evaluate, score_states, scored_pairs
from workbench.measuring.scores import FLUENCY_TOKENS, FLUENCY_TOP_K
from workbench.models.generation import generate
from workbench.models.model import Model
from workbench.models.scoring import score_targets
from workbench.records.facts import Record
from workbench.runs.run import Run
from workbench.studies.benchmarking import seconds


def measure_each(
    run: Run, model: Model, name: str, editor: Any, records: Sequence[Record], alone: int
) -> list[WeightEdit]:
    """Time edits of all these records searched at once, and of the first `alone` one at a time, a row; the former."""
    requests, edits, single = [record.request for record in records], [], []
    editor(model, requests[:1])  # factors of C and first kernels
    one_by_one = seconds(lambda: single.extend(editor(model, [one]) for one in requests[:alone]), model.device)
    together = seconds(lambda: edits.extend(editor.each(model, requests)), model.device)
    difference = max(_apart(one, other) for one, other in zip(single, edits, strict=False))
    row = {"model": name, "together": together / len(edits), "records": len(edits), "difference": difference}
    run.append("each", row | {"alone": one_by_one / len(single), "timed_alone": len(single)})
    return edits


def _apart(one: WeightEdit, other: WeightEdit) -> float:
    """||dW - dW'|| / ||dW|| of two edits of the same matrices, the largest."""
    pairs = zip(one.updates, other.updates, strict=True)
    dense = [(a.left @ a.right, b.left @ b.right) for a, b in pairs]
    return max(((a - b).norm() / a.norm()).item() for a, b in dense)


def measure_scoring(run: Run, model: Model, name: str, records: Sequence[Record], edits: Sequence[WeightEdit]) -> None:
    """Time scoring records before and after their edits, generation included, and prompt by prompt, a row.

    Prompt by prompt: the first of them alone, each prompt with each answer a pass, each text written for itself.
    """
    found: list[Any] = []

    def many() -> None:
        before = score_states(model, records)
        pairs = zip(records, edits, before, strict=True)
        found.extend(evaluate(model, edit, record, pre=pre) for record, edit, pre in pairs)

    fast = seconds(many, model.device) / len(records)
    plain = 0.0
    ours, theirs = [], []
    for state in (None, edits[0]):
        work = partial(_prompt_by_prompt, model, records[0], theirs)
        if state is None:
            plain += seconds(work, model.device)
        else:
            with state.applied(model):
                plain += seconds(work, model.device)
        scores = found[0].pre if state is None else found[0].post
        ours += [one.p_new for one in scores.prompts["rewrite"]]
    difference = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    row = {"model": name, "records": len(records), "fast": fast, "plain": plain, "difference": difference}
    run.append("scoring", row | {"prompts": len(scored_pairs(records[0])), "texts": len(records[0].generation_prompts)})


def _prompt_by_prompt(model: Model, record: Record, found: list[float]) -> None:
    """All that `score_state` asks, each for itself; the new answer's probability after the request is kept."""
    longest = 0
    for pair in scored_pairs(record):
        (score,) = score_targets(model, [pair], separator=record.request.separator)
        longest = max(longest, len(score.log_probs))
        if pair == (record.request.prompt, record.request.target_new):
            found.append(score.log_probs.mean().exp().item())
    for prompt in dict.fromkeys(prompt for prompt, _ in scored_pairs(record)):
        generate(model, [prompt], max_new_tokens=longest + SLACK)
    generator = torch.Generator(device=model.device).manual_seed(0)
    for prompt in record.generation_prompts:
        new = min(FLUENCY_TOKENS, model.n_ctx) - model.tokenize([prompt]).ids.shape[1]
        how = {"temperature": 1.0, "top_k": FLUENCY_TOP_K, "generator": generator, "past_ends": True}
        generate(model, [prompt], max_new_tokens=new, **how)


def many_table(run: Run) -> pd.DataFrame:
    """A line a model and what is done with many records."""
    lines = []
    for row in {row["model"]: row for row in run.rows("each")}.values():  # again where scoring was stopped
        lines.append(_line(row, "ROME edits", row["timed_alone"], row["alone"], row["together"]))
    for row in run.rows("scoring"):
        lines.append(_line(row, "Scores before and after", 1, row["plain"], row["fast"]))
    return pd.DataFrame(lines)


def _line(row: dict[str, Any], what: str, timed: int, alone: float, together: float) -> dict[str, str]:
    return {
        "Model": row["model"],
        "What": what,
        "Records (alone, together)": f"{timed}, {row['records']}",
        "Alone s a record": f"{alone:.3f}",
        "Together s a record": f"{together:.3f}",
        "Ratio": f"{alone / together:.1f}",
        "Largest difference": f"{row['difference']:.1e}",
    }
