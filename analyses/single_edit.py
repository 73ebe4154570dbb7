"""One edit, five prompts: what does the model write before and after, and which of the five came out right?

    python analyses/single_edit.py                       # a record of the embedded model
    python analyses/single_edit.py --case 14
    python analyses/single_edit.py --model gpt2-xl --records counterfact.json --text wikitext

The five: the original prompt and a paraphrase (right: the new answer), a neighborhood prompt (right: the old answer,
unchanged), a reversion (the subject, asked for by its new object) and a portability prompt (what follows from the
edit). A record that lacks one of them is shown without it. Generated greedily; right: it begins with the answer.
"""

import argparse

from rich.console import Console
from rich.table import Table

from workbench.datasets import read_records
from workbench.evaluation import evaluate
from workbench.facts import Record
from workbench.models import load_model
from workbench.scores import KINDS, Evaluation
from workbench.stages import find_layer, known_answers, make_editor, records_path, statistics_texts


def main() -> None:
    """Edit one record and print the five prompts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--records", default="atlas", help="a CounterFact file, or 'atlas'")
    parser.add_argument("--case", type=int, help="case_id of the record (default: the first with all five prompts)")
    parser.add_argument("--method", default="rome")
    parser.add_argument("--preset", help="model whose hyperparameters are used (default: --model's)")
    parser.add_argument("--layer", type=int, help="default: the one located by tracing the records' facts")
    parser.add_argument("--text", default="atlas", help="text for the second moment: a file, 'wikitext' or 'atlas'")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    records = read_records(records_path(arguments.records))
    record = choose(records, arguments.case)
    model = load_model(arguments.model)
    layer = arguments.layer
    if layer is None:
        layer = find_layer(model, known_answers(records), seed=arguments.seed)
    editor = make_editor(
        model,
        arguments.method,
        preset_of=arguments.preset,
        layer=layer,
        texts=statistics_texts(arguments.text),
        seed=arguments.seed,
    )
    edit = editor(model, [record.request])
    request = record.request
    console = Console()
    console.print(f"{request.prompt} … {request.target_true} → {request.target_new}  ({edit.method}, layer {layer})")
    console.print(shown(evaluate(model, edit, record, fluency_tokens=None, seed=arguments.seed)))


def choose(records: list[Record], case: int | None) -> Record:
    """The record of that number, or the first that has the most kinds of prompts; ValueError for an unknown number."""
    if case is None:
        return max(
            records,
            key=lambda r: sum(
                map(bool, (r.paraphrase_prompts, r.neighborhood_prompts, r.reversion_prompts, r.portability_prompts))
            ),
        )
    found = [record for record in records if record.case_id == case]
    if not found:
        numbers = [record.case_id for record in records]
        raise ValueError(f"no record has case_id {case}; the file has {len(numbers)}, such as {numbers[:5]}")
    return found[0]


def shown(evaluation: Evaluation) -> Table:
    """A row a kind of prompt: its text, what is right, what the model writes before and after."""
    table = Table("Prompt", "Right", "Pre-edit", "Post-edit", "")
    succeeded = 0
    kinds = [kind for kind in KINDS if evaluation.post.prompts[kind]]
    for kind in kinds:
        before, after = evaluation.pre.prompts[kind][0], evaluation.post.prompts[kind][0]
        answer = "true" if kind == "neighborhood" else "new"
        right = after.correct(answer, "generated") == 1.0
        succeeded += right
        wanted = after.targets_true if answer == "true" else after.targets_new
        texts = (text.strip().replace("\n", " ") for text in (before.generated or "", after.generated or ""))
        name = "original" if kind == "rewrite" else kind
        table.add_row(f"[b]{name}[/b]\n{after.prompt}", " / ".join(wanted), *texts, "yes" if right else "no")
    table.caption = f"{succeeded} of {len(kinds)} right after the edit"
    return table


if __name__ == "__main__":
    main()
