"""Does locating help? Edit success by layer beside the tracing effect of that layer (after Hase et al. 2301.04213).

    python analyses/compare_layers.py                    # the embedded model, 20 records a layer
    python analyses/compare_layers.py --model gpt2-xl --records counterfact.json --text wikitext --layers 0 5 10 17 30

Every record is edited alone at every layer and scored teacher-forced: ES, PS, NS and S with bootstrap 95 % intervals.
Beside it stands the average indirect effect of the MLP at the last subject token (windows as in the trace), over
facts of the same records. Controls: a random layer (the mean over layers) and the best layer. The correlation is over
layers, Pearson's and Spearman's; with few layers it says little, and the report says so.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from workbench.datasets import read_records
from workbench.evaluation import evaluate
from workbench.figures import layer_comparison_figure
from workbench.models import Model, load_model
from workbench.report import Figure, Paragraph, Section, Table, write_report
from workbench.runs import Run
from workbench.scores import Evaluation
from workbench.stages import (
    Located,
    default_window,
    known_answers,
    locate,
    make_editor,
    progress,
    records_path,
    statistics_texts,
)
from workbench.summaries import summarise
from workbench.tracing import ROLES

SCORES = ("S", "ES", "PS", "NS")


def main() -> None:
    """Trace, edit at every layer, and write figure, table and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--records", default="atlas", help="a CounterFact file, or 'atlas'")
    parser.add_argument("--method", default="rome")
    parser.add_argument("--preset", help="model whose hyperparameters are used (default: --model's)")
    parser.add_argument("--layers", type=int, nargs="+", help="default: all")
    parser.add_argument("--limit", type=int, default=20, help="records edited at each layer")
    parser.add_argument("--traces", type=int, default=40, help="facts traced")
    parser.add_argument("--window", type=int, help="layers restored together (default 10; atlas: 3)")
    parser.add_argument("--text", default="atlas", help="text for the second moments: a file, 'wikitext' or 'atlas'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/compare_layers"))
    arguments = parser.parse_args()

    records = read_records(records_path(arguments.records))
    model = load_model(arguments.model)
    layers = arguments.layers or list(range(model.n_layers))
    window = arguments.window or default_window(model)
    settings = vars(arguments) | {"command": "compare_layers", "window": window, "layers": layers}
    run = Run.create(settings.pop("out"), settings)
    run.check_model(model.fingerprint())
    sections = []
    try:
        with run.running():
            facts = known_answers(records)
            located = locate(run, model, facts, limit=arguments.traces, seed=arguments.seed, window=window)
            texts = statistics_texts(arguments.text)
            finished = {(row["layer"], row["case_id"]): row for row in run.rows("by_layer")}
            cells = [(layer, record) for layer in layers for record in records[: arguments.limit]]
            editor = None
            for layer, record in progress(cells, "Editing every layer", len(cells)):
                if (layer, record.case_id) in finished:
                    continue
                if editor is None or editor.layer != layer:
                    editor = make_editor(
                        model,
                        arguments.method,
                        preset_of=arguments.preset,
                        layer=layer,
                        texts=texts,
                        seed=arguments.seed,
                    )
                edit = editor(model, [record.request])
                scored = evaluate(model, edit, record, generate=False, fluency_tokens=None)
                finished[layer, record.case_id] = scored.to_dict() | {"layer": layer}
                run.append("by_layer", finished[layer, record.case_id])
            sections = show(run, model, located, layers, list(finished.values()), arguments.seed)
    finally:
        print(f"report: {write_report(run, sections or None, title='Does locating help?', headline=headline(run))}")


def show(
    run: Run, model: Model, located: Located, layers: Sequence[int], rows: Sequence[dict], seed: int
) -> list[Section]:
    """Figure, table and what they say."""
    tidy = compare(located, layers, rows, seed)
    wide = tidy.pivot(index="layer", columns="measure", values="value")
    overall = dict(zip(wide.index.tolist(), wide["S"].tolist(), strict=True))
    effect, score = wide["effect"].to_numpy(), wide["S"].to_numpy()
    pearson = float(np.corrcoef(effect, score)[0, 1])
    spearman = float(np.corrcoef(rankdata(effect), rankdata(score))[0, 1])
    random_layer, best = sum(overall.values()) / len(overall), max(overall, key=overall.__getitem__)
    chosen = located.layer if located.layer in overall else None
    figure = layer_comparison_figure(tidy, located=chosen, random_layer=random_layer)
    n = len(rows) // len(layers)
    caption = (
        f"Scores of editing {n} records at each layer of {model.name} (teacher-forced; bootstrap 95 % intervals over "
        f"records) and the average indirect effect of the MLP there over {located.averages[0].facts} facts."
    )
    run.save_figure("layers", figure, caption=caption)
    lines = pd.DataFrame({"Layer": wide.index})
    for measure, scale, digits in [("effect", 1.0, 3), *((score, 100.0, 1) for score in SCORES)]:
        rows_of = tidy.query("measure == @measure").sort_values(by="layer")[["value", "low", "high"]].to_numpy()
        lines[measure] = [
            f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})" for value, low, high in scale * rows_of
        ]
    run.save_table("layers", lines, caption=caption)
    run.note(
        pearson=pearson, spearman=spearman, random_layer=random_layer, best_layer=best, layers_compared=len(layers),
        best_score=overall[best], located_score=None if chosen is None else overall[chosen],
    )  # fmt: skip
    return [
        Section(
            title="Edit success by layer",
            blocks=[
                Paragraph(text=headline(run)),
                Figure(path=run.figures()["layers"].path, caption=caption),
                Table.of(run.tables()["layers"]),
                Paragraph(
                    text="The correlation is over layers, not over facts: with so few points its interval is wide. "
                    "A high effect says that a state carries the fact, not that its weights are the best to change."
                ),
            ],
        )
    ]


def compare(located: Located, layers: Sequence[int], rows: Sequence[dict], seed: int) -> pd.DataFrame:
    """Tidy: layer, measure (`effect`, `S`, `ES`, `PS`, `NS`), value, low, high."""
    mlp = next(average for average in located.averages if average.site == "mlp_out")
    role = ROLES.index("last_subject")
    lines = []
    for layer in layers:
        mean, half = float(mlp.mean[role, layer]), float(mlp.half_width[role, layer])
        lines.append({"layer": layer, "measure": "effect", "value": mean, "low": mean - half, "high": mean + half})
        scored = [Evaluation.from_dict(row) for row in rows if row["layer"] == layer]
        post = summarise(scored, seed=seed).post
        lines += [
            {"layer": layer, "measure": s, "value": post[s].value, "low": post[s].low, "high": post[s].high}
            for s in SCORES
        ]
    return pd.DataFrame(lines)


def headline(run: Run) -> str:
    """What locating bought, plainly."""
    found = run.read_json("results.json")
    if "best_layer" not in found:
        return "The comparison is not finished."
    located = found["located_score"]
    at = "was not edited" if located is None else f"gives S = {100 * located:.1f}"
    return (
        f"Tracing locates layer {found['layer']}, which {at}; the best layer ({found['best_layer']}) gives "
        f"{100 * found['best_score']:.1f} and a random one {100 * found['random_layer']:.1f} on average. Over "
        f"{found['layers_compared']} layers, effect and S correlate with r = {found['pearson']:.2f} "
        f"(rank correlation {found['spearman']:.2f})."
    )


if __name__ == "__main__":
    main()
