"""Does it matter over which text the keys' second moment is taken? ROME's direction u and its scores, text by text.

    python analyses/compare_texts.py --model smollm2 --texts self wikitext2_test.txt
    python analyses/compare_texts.py --model gpt2-xl --records counterfact.json --texts wikitext my_corpus.jsonl

The first text is what the others are compared with: the angle between the directions u = C^-1 k of each record
(Meng et al. 2022, section 3.1), and the scores of the records edited one at a time with either. All texts are cut to
the tokens of the shortest, so that the text is compared and not its length.

A run that is stopped goes on after the last record, when the same command is given again.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from rich.progress import track

from workbench.editors.rome import ROME
from workbench.editors.shared.second_moments import second_moments
from workbench.edits.ledger import check_restored
from workbench.machine import paths
from workbench.machine.intervals import bootstrap_mean
from workbench.measuring.evaluate import evaluate
from workbench.measuring.scores import Evaluation
from workbench.measuring.summaries import summarise
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.counterfact import read_records
from workbench.records.facts import Record
from workbench.report.elements import Section
from workbench.report.write import write_report
from workbench.runs.run import Run
from workbench.studies.defaults import default_records, records_path
from workbench.studies.edit import make_editor, statistics_texts
from workbench.studies.locate import settled_layer
from workbench.tables.scores import main_table
from workbench.tables.table import to_markdown


def main() -> None:
    """Edit every record once for each text, then print and save both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--records", help="a CounterFact file, 'atlas' or 'smollm2' (default: by the model)")
    parser.add_argument("--texts", nargs="+", default=["self"], help="files, 'wikitext', 'self' or 'atlas'")
    parser.add_argument("--limit", type=int, default=20, help="records edited")
    parser.add_argument("--tokens", type=int, default=20_000, help="of each text, at most")
    parser.add_argument("--layer", type=int, help="default: the one located by tracing the records' facts")
    parser.add_argument("--preset", help="model whose hyperparameters are used (default: --model's)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/compare_texts"))
    arguments = parser.parse_args()

    arguments.records = arguments.records or default_records(arguments.model)
    records = [r for r in read_records(records_path(arguments.records)) if r.request.target_true is not None]
    model = load_model(arguments.model, device=arguments.device)
    # A file is named without its folder, so that the report says the same wherever it was read.
    names = {Path(text).name: text for text in arguments.texts}
    settings = vars(arguments) | {"command": "compare_texts", "texts": list(names)}
    run = Run.create(settings.pop("out"), settings)
    run.check_model(model.fingerprint())
    try:
        with run.running():
            layer = settled_layer(run, model, records, layer=arguments.layer, seed=arguments.seed)
            for editor, name in editors(model, layer, names, arguments):
                edit_all(run, model, name, editor, records[: arguments.limit])
            show(run)
    finally:
        saved = list(run.tables().values())
        page = [Section(title="Text by text", elements=saved)] if saved else []
        print(f"report: {write_report(run, page, title='Which text for second moments?', headline='')}")


def editors(
    model: Model, layer: int, names: dict[str, str], arguments: argparse.Namespace
) -> Iterator[tuple[ROME, str]]:
    """(ROME with the second moment over a text, the text's name), all over as many tokens."""
    texts = {name: statistics_texts(model, text, seed=arguments.seed) for name, text in names.items()}
    options = {"cache": paths.CACHE, "progress": True}
    counts = [second_moments(model, [layer], each, max_tokens=arguments.tokens, **options)[layer].count
              for each in texts.values()]  # fmt: skip
    for name, each in texts.items():
        moment = second_moments(model, [layer], each, max_tokens=min(counts), **options)[layer]
        editor = make_editor(
            model, "rome", layer=layer, text=names[name], seed=arguments.seed, preset_of=arguments.preset,
            second_moment=moment,
        )  # fmt: skip
        yield cast(ROME, editor), name


def edit_all(run: Run, model: Model, name: str, editor: ROME, records: Sequence[Record]) -> None:
    """Edit and score each record alone that is not done yet; its direction u is kept with its scores."""
    finished = {row["case_id"] for row in run.rows("evaluations") if row["text"] == name}
    left, weights = [record for record in records if record.case_id not in finished], model.fingerprint()
    for record in track(left, f"Editing with moments of {name}", len(left)):
        edit = editor(model, [record.request])
        found = evaluate(model, edit, record, generate=False, fluency_tokens=None)
        check_restored(model, weights, after=f"the edit of record {record.case_id}")
        direction = edit.updates[0].left[:, 0].tolist()
        run.append("evaluations", found.to_dict() | {"text": name, "direction": direction})


def show(run: Run) -> None:
    """Print and save the scores by text and the angles to the first text's directions."""
    rows = {name: [row for row in run.rows("evaluations") if row["text"] == name] for name in run.settings["texts"]}
    scores = main_table({name: summarise([Evaluation.from_dict(row) for row in some]) for name, some in rows.items()})
    run.save_table("scores", scores)
    print(to_markdown(scores))
    first, *others = rows
    lines = []
    for name in others:
        cosines = [abs(cosine(a["direction"], b["direction"])) for a, b in zip(rows[first], rows[name], strict=True)]
        found = bootstrap_mean(cosines)
        lines.append({
            "Text": name, "Compared with": first, "Records": found.n,
            "Cosine of u": f"{found.value:.3f} ({found.low:.3f}-{found.high:.3f})",
            "Mean angle": f"{np.degrees(np.mean([math.acos(min(1.0, each)) for each in cosines])):.1f} degrees",
        })  # fmt: skip
    if lines:
        caption = "Directions u = C^-1 k of the same records, C over two texts of as many tokens; bootstrap intervals."
        run.save_table("directions", pd.DataFrame(lines), caption=caption)
        print(pd.DataFrame(lines).to_string(index=False))


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the angle between two directions."""
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


if __name__ == "__main__":
    main()
