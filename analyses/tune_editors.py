"""Which hyperparameters suit a model? Some fields of every method's preset are tried on training records.

    python analyses/tune_editors.py --model smollm2 --methods rome,memit
    python analyses/tune_editors.py --model smollm2 --write     # and put the best into data/presets

What is tried stands in data/searches/MODEL.yaml, a list of fields and their values for each method; `layer` is the one
edited in place of the located one. Each is scored on --limit records edited one at a time and, for MEMIT and its kin,
on --edits records kept together; the best is that with the highest mean of the two S, over the records that all
settings have, and one that lacks an S is never the best. Records are the model's training records, whose subjects no
evaluation record has.

A run that is stopped goes on after the last record, when the same command is given again.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import pandas as pd
import typer
import yaml

from workbench.cli import options
from workbench.cli.session import analysis, given, load, one_of, script
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
    methods: Annotated[
        list[str] | None,
        options.several("--methods", str, "Editors of data/searches/MODEL.yaml. [default: all of them]"),
    ] = None,
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
    searches = searched(model)
    methods = methods or list(searches)
    for method in methods:
        one_of("--methods", method, searches)
    records = distinct(read_records(RECORDS[model] / "records_train.json"))
    loaded = load(model, device=device, dtype=dtype)
    text = text or default_text(loaded)
    settings = given(text=text, without=["write", "methods"])  # another method goes on in the same folder
    title, checks = "Which hyperparameters?", [scored(records[: max(limit, edits)])]
    with analysis(out, settings, loaded, title=title, headline="", methods=methods, checks=checks) as page:
        page.show = lambda: show(page.run)
        layer = settled_layer(page.run, loaded, records, layer=layer, seed=seed, engine=engine)
        for method in methods:
            for changes in searches[method]:
                try_changes(page.run, loaded, method, changes, records, layer)
        if write:
            for method in methods:
                write_preset(page.run, method, model)


def searched(model: str) -> dict[str, list[dict[str, Any]]]:
    """By method the fields that are tried for a model; ValueError for one without such a file or training records."""
    file = SEARCHES / f"{model}.yaml"
    if not file.is_file() or model not in RECORDS:
        raise ValueError(
            f"'{file}' would say what is tried for {model}: write it as {SEARCHES / 'smollm2.yaml'} is, and name the "
            "folder of the model's records_train.json in RECORDS of workbench/studies/defaults.py"
        )
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def try_changes(
    run: Run, model: Model, method: str, changes: Mapping[str, Any], records: Sequence[Record], layer: int
) -> None:
    """Score one set of hyperparameters on the records that are not done yet, alone and together."""
    key = json.dumps([method, changes], sort_keys=True)
    limit, edits, seed = run.settings["limit"], run.settings["edits"], run.settings["seed"]
    named = f"{method} ({said(changes)})"
    finished = {row["case_id"] for row in run.rows("evaluations") if row["key"] == key}
    left = [record for record in sound(run, records[:limit], named) if record.case_id not in finished]
    together = failing(named, edits)
    stacked = not _batches(method) or any(
        row["key"] == key and complete(run, row, together) for row in run.rows("stacked")
    )
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
        with refusing(some, lambda record: score_stack(model, [record])), edit.applied(model):
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
    """What was tried of a method with its scores in per cent over the records that all of it has, the best first."""
    alone: dict[str, list[dict[str, Any]]] = {}
    for row in run.rows("evaluations"):
        if row["method"] == method:
            alone.setdefault(row["key"], []).append(row)
    stacked = {row["key"]: row["evaluations"] for row in run.rows("stacked") if row["key"] in alone}  # the latest
    parts = {"": _compared(alone)} | ({" together": _compared(stacked)} if _batches(method) else {})
    found = []
    for key in alone:
        one: dict[str, Any] = {"changes": json.loads(key)[1]}
        for suffix, part in parts.items():
            some = part.get(key, [])
            one |= {f"n{suffix}": len(some)} | (_scores(summarise(some), suffix) if some else {})
        found.append(one)
    return sorted(found, key=lambda one: _mean(one, method), reverse=True)


def _batches(method: str) -> bool:
    """Whether a method writes a batch, so that its settings are also tried on records that are kept together."""
    return issubclass(EDITORS[method], SpreadEditor)


def _compared(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Evaluation]]:
    """By setting, the evaluations of the records that all settings have, so that these alone make a difference."""
    shared = set.intersection(*({row["case_id"] for row in some} for some in rows.values())) if rows else set()
    return {key: [Evaluation.from_dict(row) for row in some if row["case_id"] in shared] for key, some in rows.items()}


def _scores(summary: Summary, suffix: str) -> dict[str, float]:
    norms = [estimate.value for name, estimate in summary.post.items() if name.startswith("relative_norm.")]
    scores = {f"{name}{suffix}": round(100 * summary.post[name].value, 1) for name in SCORES}
    return scores | ({f"||dW||/||W||{suffix}": round(100 * max(norms), 1)} if norms else {})


def said(changes: Mapping[str, Any]) -> str:
    """Fields and values as one text."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in changes.items()
    )


def _mean(one: Mapping[str, float], method: str) -> float:
    """Of S alone and together; the least of all where one is missing, as of a stack that could not be made."""
    values = [one.get(name, math.nan) for name in (("S", "S together") if _batches(method) else ("S",))]
    return -math.inf if math.isnan(sum(values)) else sum(values) / len(values)


def show(run: Run) -> list[Section]:
    """Save and print a table a method; the sections of the report."""
    sections = []
    for method in tried_methods(run):
        lines = [one | {"changes": said(one["changes"])} for one in tried(run, method)]
        if lines:
            frame = pd.DataFrame(lines)
            caption = (
                f"{method}: what was tried on training records, the best first; scores in %, over the n records that "
                "all settings have. A setting that lacks an S, alone or together, stands last."
            )
            run.save_table(method, frame, caption=caption)
            print(f"{method}\n{frame.to_string(index=False, na_rep='-')}\n")
            sections.append(Section(title=method, elements=[run.tables()[method]]))
    return sections


def write_preset(run: Run, method: str, model: str) -> None:
    """Put the best of what was tried into the method's preset of the model, with the search that found it; a warning
    where nothing that was tried has all of its scores."""
    path = PRESETS / f"{method}.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    found = tried(run, method)
    if not found or _mean(found[0], method) == -math.inf:
        warnings.warn(f"no setting of {method} has all of its scores: its preset is left as it is", stacklevel=2)
        return
    entries[model]["fields"] |= found[0]["changes"]
    together = f", {found[0]['n together']} together" if "n together" in found[0] else ""
    entries[model]["search"] = {"records": f"{found[0]['n']} training records alone{together}", "tried": found}
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    script(main)
