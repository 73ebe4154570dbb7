"""Which hyperparameters suit a model? Some fields of every method's preset are tried on training records.

    python analyses/tune_editors.py --model smollm2 --methods rome,memit
    python analyses/tune_editors.py --model smollm2 --write     # and put the best into data/presets

What is tried stands in data/searches/MODEL.yaml, a list of fields and their values for each method; `layer` is the one
edited in place of the located one. Each is scored on --limit records edited one at a time and, for methods that write a
batch, on --edits records kept together; the best is that with the highest mean of the two S. Records are the model's
training records, whose subjects no evaluation record has.

A run that is stopped goes on after the last record, when the same command is given again.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import pandas as pd
import typer
import yaml

from workbench.cli import options
from workbench.cli.session import analysis, given, load, one_of, script
from workbench.editors.make import ready
from workbench.editors.registry import EDITORS
from workbench.editors.setup.presets import PRESETS
from workbench.editors.spread import SpreadEditor
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.machine.progress import track
from workbench.measuring.evaluate import evaluate
from workbench.measuring.scores import Evaluation
from workbench.measuring.summaries import Summary, summarise
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.records.reading import read_records
from workbench.report.elements import Section
from workbench.runs.run import Run
from workbench.studies.checked import scored
from workbench.studies.defaults import RECORDS, default_text
from workbench.studies.edit import make_editor
from workbench.studies.going_on import complete, failing, going_on, left_out, refusing, sound
from workbench.studies.locate import check_tracing, settled_layer
from workbench.studies.stacked_edits import change_by_layer, distinct, evaluations, score_stack, untouched

SEARCHES = PRESETS.parent / "searches"
SCORES = ("S", "ES", "PS", "NS")


def main(
    model: options.Model = "smollm2",
    methods: options.Methods = None,
    limit: options.Limit = 12,
    edits: Annotated[
        int, typer.Option("--edits", min=1, help="Records kept together, for methods that write a batch.")
    ] = 40,
    layer: options.Layer = None,
    engine: options.Engine = "auto",
    text: options.Text = None,
    write: Annotated[bool, typer.Option("--write", help="Put the best of each method into data/presets.")] = False,
    seed: options.Seed = 0,
    out: options.Out = None,
    plugin: options.Plugin = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Try everything, print what came of it and, if asked, write the presets."""
    check_tracing("last_subject", engine)
    methods = methods or ready(model)
    searches = yaml.safe_load((SEARCHES / f"{model}.yaml").read_text(encoding="utf-8"))
    for method in methods:
        one_of("--methods", method, searches)
    records = distinct(read_records(RECORDS[model] / "records_train.json"))
    loaded = load(model, device=device, dtype=dtype)
    text = text or default_text(loaded)
    settings = given(text=text, without=["write", "methods"])  # another method goes on in the same folder
    title, checks = "Which hyperparameters?", [scored(records[: max(limit, edits)])]
    with analysis(out, settings, loaded, title=title, headline="", presets=False, checks=checks) as page:
        page.show = lambda: show(page.run)
        layer = settled_layer(page.run, loaded, records, layer=layer, seed=seed, engine=engine)
        for method in methods:
            for changes in searches[method]:
                try_changes(page.run, loaded, method, changes, records, layer)
        if write:
            for method in methods:
                write_preset(page.run, method, model)


def try_changes(
    run: Run, model: Model, method: str, changes: Mapping[str, Any], records: Sequence[Record], layer: int
) -> None:
    """Score one set of hyperparameters on the records that are not done yet, alone and together."""
    key = json.dumps([method, changes], sort_keys=True)
    limit, edits, seed = run.settings["limit"], run.settings["edits"], run.settings["seed"]
    named = f"{method} ({said(changes)})"
    finished = {row["case_id"] for row in run.rows("evaluations") if row["key"] == key}
    left = [record for record in sound(run, records[:limit], named) if record.case_id not in finished]
    batches, together = issubclass(EDITORS[method], SpreadEditor), failing(named, edits)
    stacked = not batches or any(row["key"] == key and complete(run, row, together) for row in run.rows("stacked"))
    if not left and stacked:
        return
    editor = make_editor(model, method, **{"layer": layer, "text": run.settings["text"], "seed": seed, **changes})
    weights, row = state_fingerprint(model), {"key": key, "method": method, "changes": changes}
    for record in track(left, named, len(left)):
        with run.keeping(record.case_id, of=len(records[:limit]), method=named):
            edit = editor(model, [record.request])
            found = evaluate(model, edit, record, generate=False, fluency_tokens=None)
            run.append("evaluations", found.to_dict() | row)
        check_restored(model, weights, after=f"the edit of record {record.case_id} with {method}")

    def attempt(some: Sequence[Record]) -> Iterator[None]:
        requests = [record.request for record in some]
        asked = untouched(some, requests)
        with refusing(some, lambda record: score_stack(model, [record])):
            before = score_stack(model, asked)
        with refusing(some, lambda record: editor(model, [record.request])):
            edit = editor(model, requests)
        with edit.applied(model):
            norms, after = change_by_layer(model), score_stack(model, asked)
        found = evaluations(asked, before, after, norms=norms, seconds=0.0)
        scores = {"evaluations": [one.to_dict() for one in found], "left_out": left_out(records[:edits], some)}
        run.append("stacked", row | scores)
        yield

    if not stacked:
        list(going_on(run, model, records[:edits], attempt, method=together))
        check_restored(model, weights, after=f"{edits} edits with {method}")


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
    return scores | ({f"||dW||/||W||{suffix}": round(100 * max(norms), 1)} if norms else {})


def said(changes: Mapping[str, Any]) -> str:
    """Fields and values as one text."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in changes.items()
    )


def _mean(one: Mapping[str, float]) -> float:
    values = [one[name] for name in ("S", "S together") if name in one]
    return sum(values) / len(values)


def show(run: Run) -> list[Section]:
    """Save and print a table a method; the sections of the report."""
    sections = []
    for method in tried_methods(run):
        lines = [one | {"changes": said(one["changes"])} for one in tried(run, method)]
        if lines:
            frame = pd.DataFrame(lines)
            run.save_table(method, frame, caption=f"{method}: what was tried on training records, scores in %.")
            print(f"{method}\n{frame.to_string(index=False)}\n")
            sections.append(Section(title=method, elements=[run.tables()[method]]))
    return sections


def write_preset(run: Run, method: str, model: str) -> None:
    """Put the best of what was tried into the method's preset of the model, with the search that found it."""
    path = PRESETS / f"{method}.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    found = tried(run, method)
    if found:
        entries[model]["fields"] |= found[0]["changes"]
        entries[model]["search"] = {
            "records": f"{run.settings['limit']} training records alone"
            + (f", {run.settings['edits']} together" if "S together" in found[0] else ""),
            "tried": found,
        }
        path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    script(main)
