"""Records about capitals, shared by tests of what a model writes."""

from workbench.records.facts import EditRequest, Probe, Record


def capital(case_id: int, subject: str, true: str, new: str) -> Record:
    return Record(
        case_id=case_id,
        request=EditRequest(template="The capital of {} is", subject=subject, target_new=new, target_true=true),
        paraphrase_prompts=(f"In the book, {subject}'s capital city is",),
        neighborhood_prompts=("The capital of France is", "The capital of Spain is"),
        portability_prompts=(Probe(prompt=f"One pays a visit to {subject} in", targets_new=(new,)),),
    )


RECORDS = [
    capital(1, "Portugal", "Lisbon", "Moscow"),
    capital(2, "Japan", "Tokyo", "Rome"),
    capital(3, "Egypt", "Cairo", "Athens"),
]
