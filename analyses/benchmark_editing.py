"""How much faster is the fast search for values? ROME and MEMIT with it and with the plain one, on the same weights.

    python analyses/benchmark_editing.py                            # a GPT-2 small with random weights, and atlas
    python analyses/benchmark_editing.py --plain 1 --repeats 1      # a quick look
    python analyses/benchmark_editing.py --models smollm2 --requests 4 --plain 1 --repeats 1 --records 8 --alone 2
    python analyses/benchmark_editing.py --models gpt2-xl-shape --requests 1000 --plain 1 --repeats 1 --parts edits

The plain search is the project's own, one request at a time over the whole network (editors/search/values.py); the
fast one runs only what the value can change, many requests at once (editors/search/fast_values.py). On the GPT-2 small
shape ROME makes one edit, and MEMIT --requests of them in one batch; both with the published hyperparameters for
GPT2-XL, the layers scaled to the depth, and the identity for second moments. In each repeat both searches run in turn
on the same requests; printed are medians over repeats, of the seconds and of the ratios.

The plain search takes seconds a request, so MEMIT's is timed on --plain requests, and a plain edit is counted as what
it would be: these seconds a request and the rest of the fast edit (keys, solve, hashes), which is the same in both.

With ROME also: the edits of --records records, each for itself on the unedited model, searched at once (`Editor.each`)
against --alone of them one at a time; and their scores before and after, generation included, against asking the first
record prompt by prompt. SmolLM2 has its own presets, at layer 5, and the identity for second moments.

On the embedded model: the seconds of --requests MEMIT edits with its own preset, and second moments of several layers
in one pass against one pass a layer, in tokens a second. Each measurement is kept, so that a stopped run goes on.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from workbench.cli import options
from workbench.cli.session import analysis, console, given, one_of, script
from workbench.editors.registry import EDITORS
from workbench.machine.allocator import peak_memory
from workbench.machine.progress import track
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.records.reading import read_records
from workbench.report.elements import Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.benchmark_editors import settled_editor
from workbench.studies.benchmarking import benchmark_model, device_name, seconds
from workbench.studies.defaults import benchmark_records, records_path, training_records
from workbench.studies.editing_benchmark import SEARCHES, searching, seconds_a_request
from workbench.studies.editing_speed import many_table, measure_each, measure_scoring
from workbench.studies.going_on import complete, going_on, left_out, refusing
from workbench.studies.moments_benchmark import measure_moments, moment_table
from workbench.studies.stacked_edits import distinct

PARTS = ("edits", "many", "moments")
"""What is measured: edits by both searches, many records at once, second moments."""
BARS = {("gpt2-small-shape", "ROME", 1): 3.0, ("gpt2-small-shape", "MEMIT", 80): 8.0}
"""The least ratio of plain to fast seconds a request, by model, editor and number of requests."""
SECONDS_BARS = {("atlas", "MEMIT", 80): 60.0}
"""The most seconds that all requests together may take."""


def main(
    models: options.Models = ["gpt2-small-shape", "atlas"],
    requests: Annotated[int, typer.Option("--requests", min=1, help="Of a MEMIT batch.")] = 80,
    plain: Annotated[int, typer.Option("--plain", min=1, help="Requests of the plain search in each repeat.")] = 2,
    together: Annotated[int, typer.Option("--records", min=1, help="Searched at once, and scored.")] = 8,
    alone: Annotated[int, typer.Option("--alone", min=1, help="Of them, searched one at a time too.")] = 2,
    parts: Annotated[list[str], options.several("--parts", str, f"What is measured, of {', '.join(PARTS)}.")] = list(
        PARTS
    ),
    repeats: options.Repeats = 3,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Of text for second moments.")] = 5_000,
    seed: options.Seed = 0,
    out: options.Out = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    precision: options.Precision = "float32",
) -> None:
    """Measure what is not measured yet, print the tables and write the report."""
    for part in parts:
        one_of("--parts", part, PARTS)
    with analysis(out, given(device=device), title="Speed of editing", headline=headline) as page:
        page.show = lambda: show(page.run)
        for name in models:
            loaded = benchmark_model(name, device=device)
            page.run.note(device=device_name(loaded.device))
            every = distinct(read_records(records_path(benchmark_records(name))))
            if "edits" in parts:
                more = training_records(loaded) if requests > len(every) else []
                measure(page.run, loaded, name, distinct([*every, *more])[:requests])
            if "many" in parts:
                measure_many(page.run, loaded, name, every[:together], alone)
            if "moments" in parts:
                measure_moments(page.run, loaded, name)


# Measuring ---------------------------------------------------------------------------------------------


def measure(run: Run, model: Model, name: str, records: Sequence[Record]) -> None:
    """Time ROME's and MEMIT's edits with both searches in turn, a row a repeat.

    A record that an editor cannot take is kept as failed, and the others are timed without it.
    """
    for method in ("rome", "memit"):
        named = f"{method} on {name}"
        done = {
            row["repeat"]
            for row in run.rows("edits")
            if (row["model"], row["method"]) == (name, method) and complete(run, row, named)
        }
        if left := [repeat for repeat in range(run.settings["repeats"]) if repeat not in done]:
            editor = settled_editor(model, method, name, run.settings["seed"])
            attempt = partial(compare, run, model, {"model": name, "method": method}, editor, left, records)
            list(going_on(run, model, records, attempt, method=named))


def measure_many(run: Run, model: Model, name: str, records: Sequence[Record], alone: int) -> None:
    """Time ROME's edits of many records and their scores, once; a record that it cannot take is kept as failed."""
    if name in {row["model"] for row in run.rows("scoring")}:
        return
    editor = settled_editor(model, "rome", name, run.settings["seed"])

    def attempt(some: Sequence[Record]) -> Iterator[None]:
        with refusing(some, lambda record: editor(model, [record.request])):
            edits = measure_each(run, model, name, editor, some, alone)
        measure_scoring(run, model, name, some, edits)
        yield

    list(going_on(run, model, records, attempt, method=f"rome on {name}"))


def compare(
    run: Run,
    model: Model,
    names: dict[str, str],
    editor: Any,
    repeats: Sequence[int],
    every: Sequence[Record],
    records: Sequence[Record],
) -> Iterator[int]:
    """Time one editor on these of the records with both searches, repeat by repeat."""
    alone, requests = names["method"] == "rome", [record.request for record in records]
    counts = {"fast": 1 if alone else len(requests), "plain": 1 if alone else run.settings["plain"]}
    with refusing(records, lambda record: editor(model, [record.request])):
        editor(model, requests[:1])  # factors of C and first kernels
        for repeat in track(repeats, f"{names['method']} on {names['model']}", len(repeats)):
            row: dict[str, Any] = {**names, "repeat": repeat, "left_out": left_out(every, records)}
            values = {}
            for search, function in SEARCHES.items():
                first = repeat % len(requests) if alone else 0
                asked = requests[first : first + counts[search]]
                with searching(function, model.device) as watch:
                    whole, taken = memory_too(partial(editor, model, asked), model.device)
                evaluated = sum(len(value.losses) for value in watch.values)
                row[search] = {"whole": whole, "values": watch.seconds, "requests": len(asked), "losses": evaluated}
                row[search]["bytes"] = taken
                values[search] = watch.values
            row["difference"] = max(
                ((a.delta - b.delta).norm() / b.delta.norm()).item()
                for a, b in zip(values["fast"], values["plain"], strict=False)
            )
            run.append("edits", row)
            yield repeat


def memory_too(work: Callable[[], object], device: torch.device) -> tuple[float, int | None]:
    """Seconds that `work` takes, and on a GPU, where counting costs no time, the most bytes that it held."""
    if device.type == "cpu":
        return seconds(work, device), None
    return peak_memory(lambda: seconds(work, device), device)


# What came of it ---------------------------------------------------------------------------------------


def show(run: Run) -> list[Section]:
    """Print and save the tables; the sections of the report."""
    if not any(run.rows(name) for name in ("edits", "each", "moments")):
        return []
    repeats, device = run.settings["repeats"], run.read_json("results.json").get("device", "")
    device = f"{device}, {run.settings['precision']}"
    lines, said = [], []
    by_part: dict[tuple[str, str], list[dict[str, Any]]] = {}
    latest = {(row["model"], row["method"], row["repeat"]): row for row in run.rows("edits")}
    for row in latest.values():
        by_part.setdefault((row["model"], row["method"]), []).append(row)
    for (name, method), rows in by_part.items():
        found, fast, plain = seconds_a_request(rows), rows[0]["fast"], rows[0]["plain"]
        label = EDITORS[method].method
        lines.append(
            {
                "Model": name,
                "Editor": label,
                "Requests (plain, fast)": f"{plain['requests']}, {fast['requests']}",
                "Plain s a request": f"{found['plain']:.3f}",
                "Fast s a request": f"{found['fast']:.3f}",
                "Ratio": f"{found['ratio']:.1f}",
                "Search alone: plain s": f"{found['plain_values']:.3f}",
                "fast s": f"{found['fast_values']:.3f}",
                "ratio": f"{found['values_ratio']:.1f}",
                "Rest s": f"{found['rest']:.3f}",
                "Losses a request": f"{fast['losses'] / fast['requests']:.1f}",
                "MiB": f"{fast['bytes'] / 2**20:,.0f}" if fast.get("bytes") else "-",
                "Largest difference": f"{max(row['difference'] for row in rows):.1e}",
            }
        )
        key = (name, label, fast["requests"])
        if key in BARS:
            verdict = "met" if found["ratio"] >= BARS[key] else "MISSED"
            said.append(
                f"{label} on {name}: {found['ratio']:.1f} times as fast (bar: at least {BARS[key]:g}), {verdict}"
            )
        if key in SECONDS_BARS:
            whole = statistics.median(row["fast"]["whole"] for row in rows)
            verdict = "met" if whole < SECONDS_BARS[key] else "MISSED"
            said.append(
                f"{key[2]} {label} edits on {name}: {whole:.1f} s (bar: under {SECONDS_BARS[key]:g}), {verdict}"
            )
    speed = pd.DataFrame(lines)
    caption = (
        "Seconds a request with the plain search for values (one request at a time, whole network) and with the fast "
        f"one; {device}, medians of {repeats} interleaved repeats (ratios: of each repeat's). A plain edit is "
        "counted as its search, timed on fewer requests, and the rest of the fast one. Largest difference: of the "
        "values found, ||fast - plain|| / ||plain||. MiB: most that tensors of the fast edit of all requests take "
        "at one time beyond the model, counted on a GPU."
    )
    moments = moment_table(run)
    moments_caption = (
        f"Second moments of three layers in one pass and in one each; {device}, median of {repeats}. Tokens of text, "
        "counted once however many layers are read."
    )
    many = many_table(run)
    many_caption = (
        f"Many records at once against one at a time; {device}. ROME's edits: each for itself on the unedited model, "
        "searched at once. Scores: teacher-forced, continued and sampled texts, before and after; alone is prompt by "
        "prompt. Largest difference: of the edits ||dW - dW'|| / ||dW||, of the scores in the probability of the new "
        "answer."
    )
    run.note(bars=said)
    tables = {"speed": (speed, caption), "many": (many, many_caption), "moments": (moments, moments_caption)}
    tables = {name: (table, text) for name, (table, text) in tables.items() if len(table)}
    for name, (table, text) in tables.items():
        run.save_table(name, table, caption=text)
        console.print(f"{table.to_string(index=False)}\n{text}\n")
    for one in said:
        console.print(f"bar: {one}")
    saved = run.tables()
    titles = {"speed": "Values", "many": "Many records", "moments": "Second moments"}
    verdicts = [Paragraph(text=f"{one}.") for one in said]
    return [
        Section(title=titles[name], elements=[*(verdicts if name == "speed" else ()), saved[name]]) for name in tables
    ]


def headline(run: Run) -> str:
    """Whether the bars are met."""
    found = run.read_json("results.json")
    if "bars" not in found:
        return "Nothing is measured yet."
    return "; ".join(found["bars"] or ["no bar is set for these models"]) + "."


if __name__ == "__main__":
    script(main)
