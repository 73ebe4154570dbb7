"""Does locating help? Edit success by layer against the tracing effect of that layer (after Hase et al. 2301.04213).

    python analyses/compare_layers.py                    # the embedded model, ROME and FT, 30 records a layer
    python analyses/compare_layers.py --model gpt2-xl --records counterfact.json --layers 0 5 10 17 30

The facts of the records are traced, and those that the model knows are edited alone, at every layer, by every method,
and scored teacher-forced: ES, PS, NS and S with bootstrap 95 % intervals. Fact by fact, the effect of restoring the
MLPs at the last subject token (windows as in the trace, as a share of the total effect) is set against the score of
editing that layer: R^2 of regressions on the effect, on the layer and on both, and rank correlations over a fact's
layers. What locating bought is S at the layer that tracing names (all facts together, or each fact for itself) against
a random layer (the mean over layers) and the best one, which is known in hindsight only.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import track

from workbench.editors.editor import Editor
from workbench.editors.make import check_editor
from workbench.editors.registry import EDITORS
from workbench.editors.shared.second_moments import second_moments
from workbench.figures.compare import layer_choice_figure
from workbench.figures.layers import layer_comparison_figure
from workbench.machine import paths
from workbench.measuring.evaluate import evaluate, score_state
from workbench.measuring.layer_choice import comparable, compare_method, last_subject_effect
from workbench.measuring.scores import Evaluation, RecordScores
from workbench.measuring.summaries import summarise
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.counterfact import read_records
from workbench.records.facts import Record
from workbench.report.elements import Paragraph, Section
from workbench.report.write import write_report
from workbench.runs.run import Run
from workbench.studies.defaults import default_records, default_text, default_window, records_path
from workbench.studies.edit import make_editor, statistics_texts
from workbench.studies.layer_report import SCORES, bought, choice_table, explained_table, layer_table, results, sentence
from workbench.studies.locate import Located, locate, true_facts
from workbench.tracing.averages import ROLES
from workbench.tracing.fact import ENGINES
from workbench.tracing.positions import POSITIONS
from workbench.tracing.trace import CausalTrace

METHODS = {"rome": "ROME", "r_rome": "r-ROME", "ft": "FT", "ft_l": "FT-L"}
"""Editors that change one layer, whichever is asked for."""


def main() -> None:
    """Trace, edit at every layer, and write figures, tables and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--records", help="a CounterFact file, 'atlas' or 'smollm2' (default: by the model)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["rome", "ft"])
    parser.add_argument("--preset", help="model whose hyperparameters are used (default: --model's)")
    parser.add_argument("--layers", type=int, nargs="+", help="default: all")
    parser.add_argument("--limit", type=int, default=30, help="records traced, and edited at each layer if known")
    parser.add_argument("--window", type=int, help="layers restored together (default 10; atlas: 3)")
    parser.add_argument("--positions", choices=POSITIONS, default="all", help="tokens traced")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="what traces")
    parser.add_argument("--text", help="for second moments: a file, 'wikitext', 'self', 'atlas' (default: by model)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/compare_layers"))
    arguments = parser.parse_args()

    arguments.records = arguments.records or default_records(arguments.model)
    records = [r for r in read_records(records_path(arguments.records)) if r.request.target_true is not None]
    model = load_model(arguments.model)
    arguments.text = arguments.text or default_text(model)
    layers = sorted(set(arguments.layers or range(model.n_layers)))
    for layer in layers:
        for method in arguments.methods:
            check_editor(model, method, layer=layer, preset_of=arguments.preset)
    window = arguments.window or default_window(model)
    settings = vars(arguments) | {"command": "compare_layers", "window": window, "layers": layers}
    run = Run.create(settings.pop("out"), settings)
    run.check_model(model.fingerprint())
    sections = []
    try:
        with run.running():
            facts = true_facts(records)
            located = locate(
                run, model, facts, limit=arguments.limit, seed=arguments.seed, window=window,
                positions=arguments.positions, engine=arguments.engine,
            )  # fmt: skip
            indices = sorted(row["index"] for row in run.rows("traces") if row["known"])
            traced = dict(zip(indices, located.found.traces, strict=True))
            traces = {records[index].case_id: trace for index, trace in traced.items() if comparable(trace)}
            if not traces:
                raise ValueError(
                    "no fact traced has an effect at its last subject token to compare with: raise --limit"
                )
            edited = [record for record in records if record.case_id in traces]
            evaluations = {
                method: edit_everywhere(run, model, method, edited, layers, arguments) for method in arguments.methods
            }
            sections = show(run, model, located, traces, evaluations, arguments.seed)
    finally:
        print(f"report: {write_report(run, sections or None, title='Does locating help?', headline=headline(run))}")


def edit_everywhere(
    run: Run, model: Model, method: str, records: Sequence[Record], layers: Sequence[int], arguments: argparse.Namespace
) -> dict[tuple[int, int], Evaluation]:
    """Edit every record alone at every layer, or read what is done: evaluations by (layer, case)."""
    rows = [row for row in run.rows("by_layer") if row["method"] == method]
    finished = {(row["layer"], row["case_id"]): Evaluation.from_dict(row) for row in rows}
    cells = [(layer, r) for layer in layers for r in records if (layer, r.case_id) not in finished]
    if cells and EDITORS[method].needs_moments:  # all layers in one pass, for make_editor to find them in the cache
        texts = statistics_texts(model, arguments.text, seed=arguments.seed)
        second_moments(model, layers, texts, cache=paths.CACHE, progress=True)
    before: dict[int, RecordScores] = {}
    editor: Editor | None = None
    at = None
    for layer, record in track(cells, f"{method} at every layer", len(cells)):
        if layer != at:
            options = {"text": arguments.text, "seed": arguments.seed, "preset_of": arguments.preset}
            editor, at = make_editor(model, method, layer=layer, alone=True, **options), layer
        if record.case_id not in before:
            before[record.case_id] = score_state(model, record, generate=False, fluency_tokens=None)
        assert editor is not None
        edit = editor(model, [record.request])
        pre = before[record.case_id]
        scored = evaluate(model, edit, record, pre=pre, generate=False, fluency_tokens=None)
        run.append("by_layer", scored.to_dict() | {"method": method, "layer": layer})
        finished[layer, record.case_id] = scored
    return finished


def show(
    run: Run,
    model: Model,
    located: Located,
    traces: Mapping[int, CausalTrace],
    evaluations: Mapping[str, Mapping[tuple[int, int], Evaluation]],
    seed: int,
) -> list[Section]:
    """Figures, tables and what they say."""
    layers = run.settings["layers"]
    cases = list(traces)
    effects = np.stack([last_subject_effect(trace) for trace in traces.values()])[:, layers]
    mlp = next(average for average in located.averages if average.site == "mlp_out").row("last_subject")
    chosen = max(layers, key=lambda layer: (float(mlp[layer]), -layer))  # the located one, if it was edited
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
        tidy, name, label = by_layer(located, layers, of_method, seed), METHODS[method], f"layers_{method}"
        caption = (
            f"{name}: scores of editing {used} at each layer, one at a time (teacher-forced; bootstrap 95 % intervals "
            f"over facts), and the average indirect effect of the MLP there (± Student's t). Grey bar: located layer."
        )
        random_layer = found[name].choices.scores["random"]["S"].value
        figure = layer_comparison_figure(tidy, located=chosen, random_layer=random_layer)
        run.save_figure(label, figure, caption=caption)
        run.save_table(label, layer_table(tidy), caption=caption)
        elements[name] = [
            run.figures()[label],
            run.tables()[label],
        ]
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
        f"on both, a line each layer ({n} facts x {len(layers)} layers; bootstrap 95 % intervals over facts). Gain: "
        "both minus layer; by chance: its mean when facts exchange their effects, and p, the share of exchanges with "
        "no smaller gain. Rank correlation: Spearman's over the layers of a fact, mean over facts.",
    )
    run.save_figure(
        "facts",
        layer_choice_figure(found),
        caption=f"Left: a dot is one of {n} facts edited at one layer, by its own tracing effect there. Middle: R² of "
        "the regressions. Right: S by the way the layer is chosen. Lines are bootstrap 95 % intervals over facts.",
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
        Section(title="How to read it", elements=[Paragraph(text=t) for t in caveats(n, len(located.found.traces))]),
    ]  # fmt: skip


def caveats(n: int, traced: int) -> list[str]:
    """What the numbers are not."""
    left = f" {traced - n} facts traced were left out: the noise hardly lowers them." if traced > n else ""
    return [
        f"Only facts that the model knows are edited, and every fact's own trace stands beside its edits.{left}",
        "A high effect says that a state carries the fact, not that its weights are the best to change: these are two "
        "questions, and Hase et al. found the answer to the one to say little about the other.",
        "R² is that of the fit itself; a line each layer always gains a little over a mean each layer, which is why "
        "the gain by chance stands beside it. Scores near 0 or 1 at whole layers leave little that could be explained "
        "within a layer.",
    ]


def by_layer(
    located: Located, layers: Sequence[int], evaluations: Mapping[tuple[int, int], Evaluation], seed: int
) -> pd.DataFrame:
    """Tidy: layer, measure (`effect`, `S`, `ES`, `PS`, `NS`), value, low, high."""
    mlp = next(average for average in located.averages if average.site == "mlp_out")
    role = ROLES.index("last_subject")
    lines = []
    for layer in layers:
        mean, half = float(mlp.mean[role, layer]), float(mlp.half_width[role, layer])
        lines.append({"layer": layer, "measure": "effect", "value": mean, "low": mean - half, "high": mean + half})
        post = summarise([scored for (at, _), scored in evaluations.items() if at == layer], seed=seed).post
        lines += [
            {"layer": layer, "measure": s, "value": post[s].value, "low": post[s].low, "high": post[s].high}
            for s in SCORES
        ]
    return pd.DataFrame(lines)


def headline(run: Run) -> str:
    """What locating bought, in a sentence a method."""
    found = run.read_json("results.json")
    if "methods" not in found:
        return "The comparison is not finished."
    return " ".join(sentence(name, one, found["located"]) for name, one in found["methods"].items())


if __name__ == "__main__":
    main()
