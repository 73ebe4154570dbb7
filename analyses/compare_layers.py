"""Does locating help? Edit success by layer against the tracing effect of that layer (after Hase et al. 2301.04213).

    python analyses/compare_layers.py                    # the embedded model, ROME and FT, 30 records a layer
    python analyses/compare_layers.py --model gpt2-xl --records counterfact.json --layers 0,5,10,17,30

The facts of the records are traced, and those that the model knows are edited alone, at every layer, by every method,
and scored teacher-forced: ES, PS, NS and S with bootstrap 95 % intervals. Fact by fact, the effect of restoring the
MLPs at the last subject token (windows as in the trace, as a share of the total effect) is set against the score of
editing that layer: R^2 of regressions on the effect, on the layer and on both, and rank correlations over a fact's
layers. What locating bought is S at the layer that tracing names (all facts together, or each fact for itself) against
a random layer (the mean over layers) and the best one, which is known in hindsight only.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer

from workbench.cli import options
from workbench.cli.session import analysis, given, load, one_of, script
from workbench.editors.make import check_editor
from workbench.editors.registry import EDITORS
from workbench.editors.shared.second_moments import second_moments
from workbench.edits.edit import Edit
from workbench.figures.compare import layer_choice_figure
from workbench.figures.layers import layer_comparison_figure
from workbench.machine import paths
from workbench.machine.failures import lines
from workbench.machine.processes import Workers
from workbench.measuring.evaluate import evaluate
from workbench.measuring.layer_choice import comparable, compare_method, last_subject_effect
from workbench.measuring.scores import Evaluation, RecordScores
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.records.reading import read_records, stating_facts
from workbench.report.elements import Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.alone import each_alone
from workbench.studies.before import Before
from workbench.studies.checked import check_for_s, scored, traced
from workbench.studies.defaults import default_records, default_text, default_window, records_path
from workbench.studies.edit import make_editor, statistics_texts
from workbench.studies.going_on import sound
from workbench.studies.layer_report import (
    bought,
    by_layer,
    caveats,
    choice_table,
    explained_table,
    headline,
    layer_table,
    results,
)  # fmt: skip
from workbench.studies.locate import check_tracing, locate, true_facts
from workbench.studies.located import Located
from workbench.studies.replicas import chosen_workers
from workbench.tracing.averages import average_effects
from workbench.tracing.trace import CausalTrace

METHODS = {"rome": "ROME", "r_rome": "r-ROME", "ft": "FT", "ft_l": "FT-L"}  # which change the one layer asked for
SCORING: dict[str, Any] = {"generate": False, "fluency_tokens": None}  # teacher-forced alone


def main(
    model: options.Model = "atlas",
    records: options.Records = None,
    methods: options.SomeMethods = ["rome", "ft"],
    preset: options.Preset = None,
    layers: Annotated[
        list[int] | None,
        options.several("--layers", int, "Layers that are edited, beside the located one. [default: all]"),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Records traced, and edited at each layer if known.")
    ] = 30,
    window: options.Window = None,
    positions: options.Positions = "last_subject",
    engine: options.Engine = "auto",
    text: options.Text = None,
    together: options.Together = 16,
    workers: options.NumberOfWorkers = None,
    cluster: options.Cluster = None,
    gpus_per_worker: options.GpusPerWorker = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    plugin: options.Plugin = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Trace, edit at every layer, and write figures, tables and report."""
    check_tracing(positions, engine, layer_needed=True)
    for method in methods:
        one_of("--methods", method, METHODS)
    records = records or default_records(model)
    every = stating_facts(read_records(records_path(records)), records)
    check_for_s(every[:limit], records)
    loaded = load(model, device=device, dtype=dtype)
    text, window = text or default_text(loaded), window or default_window(loaded)
    layers = sorted(set(layers or range(loaded.n_layers)))
    for layer in layers:
        for method in methods:
            check_editor(loaded, method, layer=layer, preset_of=preset, alone=True)
    settings = given(records=records, text=text, window=window, layers=layers)
    checks, title = [traced(true_facts(every[:limit])), scored(every[:limit])], "Does locating help?"
    crew = chosen_workers(loaded, workers=workers, cluster=cluster, gpus=gpus_per_worker, plugins=plugin)
    with (
        analysis(out, settings, loaded, title=title, headline=headline, methods=methods, checks=checks) as page,
        crew as those,
    ):
        located = locate(
            page.run, loaded, true_facts(every), limit=limit, seed=seed, window=window, positions=positions,
            engine=engine, workers=those,
        )  # fmt: skip
        traces = {case: trace for case, trace in located.traces.items() if comparable(trace)}
        if located.layer is None or not traces:
            raise ValueError("no fact traced has an effect at its last subject token to compare with: raise --limit")
        edited = [record for record in every if record.case_id in traces]
        edited_at = sorted({*layers, located.layer})
        evaluations = {
            method: edit_everywhere(page.run, loaded, method, edited, edited_at, together, those) for method in methods
        }
        page.show = lambda: show(page.run, loaded, located, traces, edited_at, evaluations)


def edit_everywhere(
    run: Run,
    model: Model,
    method: str,
    records: Sequence[Record],
    layers: Sequence[int],
    together: int,
    workers: Workers[Model] | None,
) -> dict[tuple[int, int], Evaluation]:
    """Edit every record alone at every layer, or read what is done: evaluations by (layer, case).

    A record that fails at one layer is kept as failed and left out from there on.
    """
    text, seed = run.settings["text"], run.settings["seed"]
    rows = [row for row in run.rows("by_layer") if row["method"] == method]
    finished = {(row["layer"], row["case_id"]): Evaluation.from_dict(row) for row in rows}
    some = sound(run, records, method)
    left = {layer: [one for one in some if (layer, one.case_id) not in finished] for layer in layers}
    if not any(left.values()):
        return finished
    if EDITORS[method].needs_moments:  # all layers in one pass, for make_editor to find them in the cache
        texts = statistics_texts(model, text, seed=seed)
        second_moments(model, layers, texts, cache=paths.CACHE, progress=True)
    before = Before(model=model, records=some, options=lambda _: SCORING).kept(some)
    for layer, of_layer in left.items():
        if not of_layer:
            continue
        failed = run.failed(method=method)  # at a layer before it
        options = {"text": text, "seed": seed, "preset_of": run.settings["preset"]}
        edited = each_alone(
            run,
            model,
            make_editor(model, method, layer=layer, alone=True, run=run, **options),
            [record for record in of_layer if record.case_id not in failed],
            partial(evaluated, before),
            title=f"{method} at layer {layer} ({layers.index(layer) + 1} of {len(layers)})",
            of=len(records),
            method=method,
            together=together,
            workers=workers,
        )
        for record, _, evaluation in edited:
            run.append("by_layer", evaluation.to_dict() | {"method": method, "layer": layer})
            finished[layer, record.case_id] = evaluation
    return finished


def evaluated(before: Mapping[int, RecordScores], model: Model, edit: Edit, record: Record) -> Evaluation:
    """The scores of a record with its edit."""
    return evaluate(model, edit, record, pre=before.get(record.case_id), **SCORING)


def show(
    run: Run,
    model: Model,
    located: Located,
    traces: Mapping[int, CausalTrace],
    layers: Sequence[int],
    evaluations: Mapping[str, Mapping[tuple[int, int], Evaluation]],
) -> list[Section]:
    """Figures, tables and what they say, of the facts that every method could edit at every layer."""
    seed, chosen = run.settings["seed"], located.layer
    assert chosen is not None  # or nothing was edited
    failed = set().union(run.failed(), *(run.failed(method=method) for method in evaluations))
    cases = [case for case in traces if case not in failed]
    if not cases:
        raise ValueError(f"none of the {len(traces)} facts could be edited: {'; '.join(lines(run.rows('failures')))}")
    left = [trace for case, trace in located.traces.items() if case not in failed and case not in traces]
    effects = np.stack([last_subject_effect(traces[case]) for case in cases])[:, list(layers)]
    mlp = average_effects([traces[case] for case in cases], "mlp_out")
    restored = "the MLP there" if mlp.window == 1 else f"the MLPs of a window of {mlp.window} layers centred there"
    found = {
        METHODS[method]: compare_method(
            of_method, cases=cases, layers=layers, effects=effects, located=chosen, seed=seed
        )
        for method, of_method in evaluations.items()
    }
    run.note(methods={name: results(one) for name, one in found.items()}, located=chosen, facts_edited=len(cases))
    n, used = len(cases), f"{len(cases)} facts that {model.name} knows"
    elements: dict[str, list] = {}
    for method, of_method in evaluations.items():
        of_cases = {place: one for place, one in of_method.items() if place[1] in cases}
        tidy, name, label = by_layer(mlp, layers, of_cases, seed), METHODS[method], f"layers_{method}"
        caption = (
            f"{name}: scores of editing {used} at each layer, one at a time (teacher-forced; bootstrap 95 % intervals "
            f"over facts), and the average indirect effect, over the same facts, of restoring {restored} (± Student's "
            "t). Grey bar: the layer that tracing all facts together locates."
        )
        random_layer = found[name].choices.scores["random"]["S"].value
        figure = layer_comparison_figure(tidy, window=mlp.window, located=chosen, random_layer=random_layer)
        run.save_figure(label, figure, caption=caption)
        run.save_table(label, layer_table(tidy), caption=caption)
        elements[name] = [run.figures()[label], run.tables()[label]]
    run.save_table(
        "locating",
        choice_table(found),
        caption=f"What locating bought over {n} facts: scores (%) by the way the layer is chosen, with bootstrap 95 % "
        "intervals over facts. Random: the mean over layers. The best layer was chosen on these very facts. "
        "Differences are of S, paired over facts, in points.",
    )
    run.save_table(
        "explained",
        explained_table(found),
        caption=f"R² of regressing a score on the fact's tracing effect at the layer, on the layer as a category, and "
        f"on both, a line each layer ({n} facts x {len(layers)} layers; of the fit itself). Gain: both minus layer; by "
        "chance: its mean when facts exchange effects (p: share of exchanges with no smaller gain); less chance: gain "
        "minus that mean. Rank correlation: Spearman's over a fact's layers, mean (bootstrap 95 % interval).",
    )
    run.save_figure(
        "facts",
        layer_choice_figure(found),
        caption=f"Left: a dot is one of {n} facts edited at one layer, by the share of its own total effect that "
        f"restoring {restored} brings back. Middle: R² of the regressions. Right: S by the way the layer is chosen, "
        "with bootstrap 95 % intervals over facts.",
    )
    figures, tables = run.figures(), run.tables()
    return [
        Section(title="What locating bought", elements=[
            *(Paragraph(text=bought(name, results(one), chosen)) for name, one in found.items()),
            tables["locating"],
            figures["facts"],
            tables["explained"],
        ]),
        *(Section(title=f"{name} by layer", elements=some) for name, some in elements.items()),
        Section(title="How to read it", elements=[Paragraph(text=text) for text in caveats(left)]),
    ]  # fmt: skip


if __name__ == "__main__":
    script(main)
