"""What may fail for one record without ending a run, and how a run tells of it."""

from collections.abc import Mapping, Sequence
from typing import Any

FAILURES = (ValueError, LookupError, ArithmeticError, MemoryError, RuntimeError)
"""What an editor, a tokenizer or a model raises for a record that they cannot take; torch's errors are among them."""

_NAMED = 5
"""Failures that are told one by one."""


def reason(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    said = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many failed, to stand in a caption: " 2 of 100 records failed and are left out."; empty if none did."""
    parts = []
    for what, method in dict.fromkeys((row["what"], row["method"]) for row in rows):
        some = [row for row in rows if (row["what"], row["method"]) == (what, method)]
        cases, most = {row["case_id"] for row in some}, max(row["of"] for row in some)
        parts.append(f"{len(cases):,} of {most:,} {what}s failed{f' with {method}' if method else ''}")
    return f" {', '.join(parts)} and {'is' if len(rows) == 1 else 'are'} left out." if parts else ""


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many failed, then the first of them with their reasons; empty if none did."""
    if not rows:
        return []
    named = [f"  {row['what']} {row['case_id']}: {row['reason']}" for row in rows[:_NAMED]]
    more = [f"  and {len(rows) - _NAMED:,} more, in failures.jsonl"] if len(rows) > _NAMED else []
    return [f"{sentence(rows).strip()} --retry tries again.", *named, *more]


def told_in_a_line(error: Exception) -> str:
    """What went wrong, and the way out, on one line."""
    from workbench.machine.allocator import out_of_memory

    if out_of_memory(error):
        return f"not enough memory ({reason(error)}): try --dtype bfloat16, fewer --samples, or a smaller model"
    if isinstance(error, ValueError | OSError | IndexError) and str(error).strip():
        return " ".join(str(error).split())
    return f"{reason(error)} (unexpected: set WORKBENCH_TRACEBACK=1 to see where)"
