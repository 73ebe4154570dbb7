"""Which hyperparameters suit a model? Some fields of every method's preset are tried on training records.

    python analyses/tune_editors.py --model smollm2 --methods rome memit
    python analyses/tune_editors.py --model smollm2 --write     # and put the best into data/presets

What is tried stands in data/searches/MODEL.yaml, a list of fields and their values for each method. Each is scored on
--limit records edited one at a time and, for methods that write a batch, on --edits records kept together; the best is
that with the highest mean of the two S. Records are the model's training records, whose subjects no evaluation record
has.

A run that is stopped goes on after the last record, when the same command is given again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.progress import track

from workbench.editors.registry import EDITORS
from workbench.editors.setup.presets import PRESETS
from workbench.edits.ledger import check_restored
from workbench.measuring.evaluate import evaluate
from workbench.measuring.scores import Evaluation
from workbench.measuring.summaries import Summary, summarise
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.counterfact import read_records
from workbench.records.facts import Record
from workbench.report.elements import Section
from workbench.report.write import write_report
from workbench.runs.run import Run
from workbench.studies.defaults import RECORDS, default_text
from workbench.studies.edit import make_editor
from workbench.studies.locate import settled_layer
from workbench.studies.stacked_edits import change_by_layer, distinct, evaluations, score_stack, untouched

SEARCHES = PRESETS.parent / "searches"
SCORES = ("S", "ES", "PS", "NS")


def main() -> None:
    """Try everything, print what came of it and, if asked, write the presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--methods", nargs="+", choices=list(EDITORS), default=list(EDITORS))
    parser.add_argument("--limit", type=int, default=12, help="records edited one at a time")
    parser.add_argument("--edits", type=int, default=40, help="records kept together, for methods that write a batch")
    parser.add_argument("--layer", type=int, help="default: the one located by tracing the records' facts")
    parser.add_argument("--text", help="text for second moments: a file, 'wikitext', 'self' or 'atlas'")
    parser.add_argument("--write", action="store_true", help="put the best of each method into data/presets")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/tune_editors"))
    arguments = parser.parse_args()

    searches = yaml.safe_load((SEARCHES / f"{arguments.model}.yaml").read_text(encoding="utf-8"))
    records = distinct(read_records(RECORDS[arguments.model] / "records_train.json"))
    model = load_model(arguments.model, device=arguments.device)
    settings = vars(arguments) | {"command": "tune_editors", "text": arguments.text or default_text(model)}
    write, methods = settings.pop("write"), settings.pop("methods")  # another method goes on in the same folder
    run = Run.create(settings.pop("out"), settings)
    run.check_model(model.fingerprint())
    try:
        with run.running():
            layer = settled_layer(run, model, records, layer=arguments.layer, seed=arguments.seed)
            for method in methods:
                for changes in searches[method]:
                    try_changes(run, model, method, changes, records, layer)
            show(run)
            if write:
                for method in methods:
                    write_preset(run, method, arguments.model)
    finally:
        print(f"report: {write_report(run, sections(run), title='Which hyperparameters?', headline='')}")


def try_changes(
    run: Run, model: Model, method: str, changes: Mapping[str, Any], records: Sequence[Record], layer: int
) -> None:
    """Score one set of hyperparameters on the records that are not done yet, alone and together."""
    key = json.dumps([method, changes], sort_keys=True)
    limit, edits, seed = run.settings["limit"], run.settings["edits"], run.settings["seed"]
    finished = {row["case_id"] for row in run.rows("evaluations") if row["key"] == key}
    left = [record for record in records[:limit] if record.case_id not in finished]
    batches = EDITORS[method].batches
    stacked = not batches or any(row["key"] == key for row in run.rows("stacked"))
    if not left and stacked:
        return
    editor = make_editor(model, method, layer=layer, text=run.settings["text"], seed=seed, **changes)
    weights, row = model.fingerprint(), {"key": key, "method": method, "changes": changes}
    for record in track(left, f"{method} {said(changes)}", len(left)):
        edit = editor(model, [record.request])
        found = evaluate(model, edit, record, generate=False, fluency_tokens=None)
        check_restored(model, weights, after=f"the edit of record {record.case_id} with {method}")
        run.append("evaluations", found.to_dict() | row)
    if not stacked:
        together = records[:edits]
        requests = [record.request for record in together]
        asked = [untouched(record, requests) for record in together]
        before = score_stack(model, asked)
        with editor(model, requests).applied(model):
            norms, after = change_by_layer(model), score_stack(model, asked)
        check_restored(model, weights, after=f"{edits} edits with {method}")
        found = evaluations(asked, before, after, norms=norms, seconds=0.0)
        run.append("stacked", row | {"evaluations": [one.to_dict() for one in found]})


def tried_methods(run: Run) -> list[str]:
    """In the order of `EDITORS`."""
    found = {row["method"] for row in run.rows("evaluations")}
    return [method for method in EDITORS if method in found]


def tried(run: Run, method: str) -> list[dict[str, Any]]:
    """What was tried of a method with its scores in per cent, the best first."""
    found = []
    for key in dict.fromkeys(row["key"] for row in run.rows("evaluations") if row["method"] == method):
        alone = [Evaluation.from_dict(row) for row in run.rows("evaluations") if row["key"] == key]
        one: dict[str, Any] = {"changes": json.loads(key)[1]} | _scores(summarise(alone), "")
        for row in run.rows("stacked"):
            if row["key"] == key:
                one |= _scores(summarise([Evaluation.from_dict(each) for each in row["evaluations"]]), " together")
        found.append(one)
    return sorted(found, key=_mean, reverse=True)


def _scores(summary: Summary, suffix: str) -> dict[str, float]:
    norms = [estimate.value for name, estimate in summary.post.items() if name.startswith("relative_norm.")]
    scores = {f"{name}{suffix}": round(100 * summary.post[name].value, 1) for name in SCORES}
    return scores | {f"||dW||/||W||{suffix}": round(100 * max(norms), 1)}


def said(changes: Mapping[str, Any]) -> str:
    """Fields and values as one text."""
    return ", ".join(f"{name} {value:g}" for name, value in changes.items())


def _mean(one: Mapping[str, float]) -> float:
    values = [one[name] for name in ("S", "S together") if name in one]
    return sum(values) / len(values)


def show(run: Run) -> None:
    """Save and print a table a method."""
    for method in tried_methods(run):
        lines = [one | {"changes": said(one["changes"])} for one in tried(run, method)]
        if lines:
            frame = pd.DataFrame(lines)
            run.save_table(method, frame, caption=f"{method}: what was tried on training records, scores in %.")
            print(f"{method}\n{frame.to_string(index=False)}\n")


def sections(run: Run) -> list[Section]:
    """A section a method."""
    saved = run.tables()
    return [Section(title=name, elements=[saved[name]]) for name in tried_methods(run) if name in saved]


def write_preset(run: Run, method: str, model: str) -> None:
    """Put the best of what was tried into the method's preset of the model, with the search that found it."""
    path = PRESETS / f"{method}.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    found = tried(run, method)
    if found:
        entries[model]["fields"] |= found[0]["changes"]
        entries[model]["search"] = {
            "records": f"{run.settings['limit']} training records alone, {run.settings['edits']} together",
            "tried": found,
        }
        path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
