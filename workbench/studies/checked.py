"""All that a run will put to its model, checked against tokenizer and context before any work."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from workbench.machine.failures import lines, reason
from workbench.measuring.evaluate import scored_pairs
from workbench.models.model import Model
from workbench.models.tokens import answer_start
from workbench.records.facts import Fact, Record
from workbench.records.joining import join
from workbench.runs.run import Run
from workbench.tracing.noise import subject_span

Asks = Callable[[Record], Iterable[tuple[str, str | None]]]
"""The prompts of a record, each with an answer that is scored after it, or None where it is only continued."""


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What must hold of each of some records or facts for a run to take it."""

    each: Mapping[int, Callable[[Model], object]]
    """By `case_id`; raises ValueError where it does not hold."""
    what: str = "record"
    """What they are, as failures call it."""
    method: str = ""
    """With what they fail then (`Run.fail`); empty for all that is done with them."""


def traced(facts: Mapping[int, Fact]) -> Checks:
    """Facts that are traced."""
    return Checks(each={case: partial(_traced, fact=fact) for case, fact in facts.items()}, what="fact")


def edited(records: Sequence[Record]) -> Checks:
    """Records whose requests are edited, and of which nothing else is asked."""
    return Checks(each={record.case_id: partial(_edited, record=record) for record in records})


def scored(
    records: Sequence[Record], asks: Asks = scored_pairs, *, fluency: int | None = 0, method: str = ""
) -> Checks:
    """Records that are edited and then asked; of the first `fluency` (None: all) texts are sampled too."""
    sampled = {record.case_id for record in records[:fluency]}
    each = {
        record.case_id: partial(_scored, record=record, asks=asks, sampled=record.case_id in sampled)
        for record in records
    }
    return Checks(each=each, method=method)


def check_for_s(records: Sequence[Record], path: str) -> None:
    """ValueError if no record has the prompts that S is made of."""
    kinds = ("paraphrase", "neighborhood")
    lacking = [kind for kind in kinds if not any(getattr(record, f"{kind}_prompts") for record in records)]
    if lacking:
        raise ValueError(
            f"{path}: the {len(records):,} records have no {' and no '.join(lacking)} prompts, so there is no S to "
            "compare layers by: give records in CounterFact's schema"
        )


def check(run: Run, model: Model, checks: Sequence[Checks]) -> None:
    """Keep as failed, and tell together in one warning, all that the model cannot take; ValueError if nothing is left.

    What has failed before is not looked at again.
    """
    found, left = [], False
    for some in checks:
        failed = run.failed(what=some.what) | run.failed(what=some.what, method=some.method)
        for case, holds in some.each.items():
            if case in failed:
                continue
            try:
                holds(model)
                left = True
            except ValueError as error:
                row = {"what": some.what, "method": some.method, "of": len(some.each), "reason": reason(error)}
                found.append({"case_id": case, **row})
    for row in found:
        run.fail(row["case_id"], row["reason"], of=row["of"], what=row["what"], method=row["method"])
    if found:
        told = "\n".join(lines(found))
        if not left:
            raise ValueError(f"nothing is left that {model.name} can take: {told}")
        warnings.warn(f"checked before any work: {told}", stacklevel=2)


def _traced(model: Model, fact: Fact) -> None:
    subject_span(model, fact)
    model.encode([join(fact.prompt, fact.object, fact.separator)])


def _edited(model: Model, record: Record) -> None:
    request = record.request
    subject_span(model, request)
    _put(model, [(request.prompt, request.target_new)], request.separator)


def _scored(model: Model, record: Record, asks: Asks, *, sampled: bool) -> None:
    _edited(model, record)
    openings = [(prompt, None) for prompt in record.generation_prompts] if sampled else []
    _put(model, [*asks(record), *openings], record.request.separator)


def _put(model: Model, texts: Sequence[tuple[str, str | None]], separator: str | None) -> None:
    rows = model.encode([prompt if answer is None else join(prompt, answer, separator) for prompt, answer in texts])
    for row, (prompt, answer) in zip(rows, texts, strict=True):
        if answer is not None:
            answer_start(row.offsets, prompt)
