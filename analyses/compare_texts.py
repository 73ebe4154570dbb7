"""Does it matter over which text the keys' second moment is taken? ROME's direction u and its scores, text by text.

    python analyses/compare_texts.py --model smollm2 --texts self,wikitext2_test.txt
    python analyses/compare_texts.py --model gpt2-xl --records counterfact.json --texts wikitext,my_corpus.jsonl

The first text is what the others are compared with: the angle between the directions u = C^-1 k of each record
(Meng et al. 2022, section 3.1), and the scores of the records edited one at a time with either. All texts are cut to
the tokens of the shortest, so that the text is compared and not its length.

A run that is stopped goes on after the last record, when the same command is given again.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import pandas as pd
import typer

from workbench.cli import options
from workbench.cli.session import analysis, given, load, script
from workbench.editors.make import check_editor
from workbench.editors.rome import ROME
from workbench.editors.shared.second_moments import second_moments
from workbench.edits.ledger import check_restored, state_fingerprint
from workbench.machine import paths
from workbench.machine.hashing import digest
from workbench.machine.intervals import bootstrap_mean
from workbench.machine.progress import track
from workbench.measuring.evaluate import evaluate
from workbench.measuring.scores import Evaluation
from workbench.measuring.summaries import summarise
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.records.reading import read_records, stating_facts
from workbench.report.elements import Section
from workbench.runs.run import Run
from workbench.studies.checked import scored
from workbench.studies.defaults import default_records, records_path
from workbench.studies.edit import make_editor, statistics_texts
from workbench.studies.going_on import sound
from workbench.studies.layer_report import shown
from workbench.studies.locate import check_tracing, settled_layer
from workbench.tables.scores import main_table
from workbench.tables.table import to_markdown


def main(
    model: options.Model = "smollm2",
    records: options.Records = None,
    texts: Annotated[
        list[str], options.several("--texts", str, "Files, 'wikitext', 'self' or 'atlas'; the first is the standard.")
    ] = ["self"],
    limit: options.Limit = 20,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Of each text, at most.")] = 20_000,
    layer: options.Layer = None,
    preset: options.Preset = None,
    engine: options.Engine = "auto",
    seed: options.Seed = 0,
    out: options.Out = None,
    plugin: options.Plugin = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Edit every record once for each text, then print and save both tables."""
    check_tracing("last_subject", engine)
    # A file is named without its folder, so that the report says the same wherever it was read.
    names = {Path(text).name: text for text in texts}
    if len(names) < len(texts):
        raise ValueError(f"--texts takes files of different names, got {', '.join(texts)}: rename one")
    records = records or default_records(model)
    every = stating_facts(read_records(records_path(records)), records)
    loaded = load(model, device=device, dtype=dtype)
    check_editor(loaded, "rome", layer=layer, preset_of=preset)
    held = {name: digest(Path(text).read_bytes()) for name, text in names.items() if Path(text).is_file()}
    settings = given(records=records, texts=list(names), held=held)
    title, checks = "Which text for second moments?", [scored(every[:limit])]
    with analysis(out, settings, loaded, title=title, headline="", methods=["rome"], checks=checks) as page:
        page.show = lambda: show(page.run)
        layer = settled_layer(page.run, loaded, every, layer=layer, seed=seed, engine=engine)
        for editor, name in editors(page.run, loaded, layer, names):
            edit_all(page.run, loaded, name, editor, every[:limit])


def editors(run: Run, model: Model, layer: int, names: dict[str, str]) -> Iterator[tuple[ROME, str]]:
    """(ROME with the second moment over a text, the text's name), all over as many tokens."""
    seed, most, preset = (run.settings[name] for name in ("seed", "tokens", "preset"))
    texts = {name: statistics_texts(model, text, seed=seed) for name, text in names.items()}
    options = {"cache": paths.CACHE, "progress": True}
    counts = [second_moments(model, [layer], each, max_tokens=most, **options)[layer].count
              for each in texts.values()]  # fmt: skip
    for name, each in texts.items():
        moment = second_moments(model, [layer], each, max_tokens=min(counts), **options)[layer]
        editor = make_editor(
            model, "rome", layer=layer, text=names[name], seed=seed, preset_of=preset,
            second_moment=moment,
        )  # fmt: skip
        yield cast(ROME, editor), name


def edit_all(run: Run, model: Model, name: str, editor: ROME, records: Sequence[Record]) -> None:
    """Edit and score each record alone that is not done yet; its direction u is kept with its scores."""
    finished = {row["case_id"] for row in run.rows("evaluations") if row["text"] == name}
    left = [record for record in sound(run, records, name) if record.case_id not in finished]
    weights = state_fingerprint(model)
    for record in track(left, f"Editing with moments of {name}", len(left)):
        with run.keeping(record.case_id, of=len(records), method=name):
            edit = editor(model, [record.request])
            found = evaluate(model, edit, record, generate=False, fluency_tokens=None)
            direction = edit.updates[0].left[:, 0].tolist()
            run.append("evaluations", found.to_dict() | {"text": name, "direction": direction})
        check_restored(model, weights, after=f"the edit of record {record.case_id}")


def show(run: Run) -> list[Section]:
    """Print and save the scores by text and the angles to the first text's directions, record by record."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for name in run.settings["texts"]:
        if some := {row["case_id"]: row for row in run.rows("evaluations") if row["text"] == name}:
            rows[name] = some
    if not rows:
        return []
    scores = main_table(
        {name: summarise([Evaluation.from_dict(row) for row in some.values()]) for name, some in rows.items()}
    )
    run.save_table("scores", scores)
    print(to_markdown(scores))
    first, *others = rows
    lines = []
    for name in others:
        both = [case for case in rows[first] if case in rows[name]]
        cosines = [abs(cosine(rows[first][case]["direction"], rows[name][case]["direction"])) for case in both]
        found = bootstrap_mean(cosines)
        lines.append({
            "Text": name, "Compared with": first, "Records": found.n,
            "Cosine of u": shown(found, scale=1.0, digits=3),
            "Mean angle": f"{np.degrees(np.mean([math.acos(min(1.0, each)) for each in cosines])):.1f} degrees",
        })  # fmt: skip
    if lines:
        caption = "Directions u = C^-1 k of the same records, C over two texts of as many tokens; bootstrap intervals."
        run.save_table("directions", pd.DataFrame(lines), caption=caption)
        print(pd.DataFrame(lines).to_string(index=False))
    return [Section(title="Text by text", elements=list(run.tables().values()))]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the angle between two directions."""
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


if __name__ == "__main__":
    script(main)
