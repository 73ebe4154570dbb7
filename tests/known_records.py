"""Records about capitals, shared by tests of what a model writes."""

from typing import Any

from workbench.records.facts import EditRequest, Probe, Record


def capital(case_id: int, subject: str, true: str, new: str, *, relation: str = "capital", **prompts: Any) -> Record:
    """A record that moves the capital of a subject, with the prompts given."""
    request = EditRequest(
        template="The capital of {} is", subject=subject, target_new=new, target_true=true, relation=relation
    )
    return Record(case_id=case_id, request=request, **prompts)


CAPITALS = (("Portugal", "Lisbon", "Moscow"), ("Japan", "Tokyo", "Rome"), ("Egypt", "Cairo", "Athens"))
"""Countries that the tiny GPT-2 knows, their capitals, and others."""

RECORDS = [
    capital(
        number,
        subject,
        true,
        new,
        relation="",
        paraphrase_prompts=(f"In the book, {subject}'s capital city is",),
        neighborhood_prompts=("The capital of France is", "The capital of Spain is"),
        portability_prompts=(Probe(prompt=f"One pays a visit to {subject} in", targets_new=(new,)),),
    )
    for number, (subject, true, new) in enumerate(CAPITALS, start=1)
]
