"""Which way of tracing finds where facts are recalled? Every published form on the same facts, against the truth.

    python analyses/compare_tracing.py                                  # the embedded model, whose layers are known
    python analyses/compare_tracing.py --model gpt2-xl --records known_1000.json --limit 50

Every way of tracing names a layer for every fact: the one with the greatest effect of the MLPs at the last subject
token, its peak. The embedded model was trained to recall in known (planted) layers, so there one can count how often
the peak is inside them, with Wilson's 95 % intervals; the control, trained without interventions, stands beside it.
Compared are windows of layers, noise rules, corruption by another subject (Zhang & Nanda 2309.16042) scored by
probability, logit difference and KL, severed paths (Meng et al. 2022, section 2.2), and attribution patching, the
first-order estimate, whose agreement with exact tracing is stated. Last: how much the noise's size and the number of
samples matter.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from workbench.atlas.card import load_traces
from workbench.cli import options
from workbench.cli.session import analysis, given, load, script
from workbench.figures.compare import peak_figure
from workbench.figures.tracing import attribution_figure, sensitivity_figure
from workbench.models.model import SITES, Model
from workbench.report.elements import Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.checked import traced
from workbench.studies.defaults import default_records, default_window, planted_layers
from workbench.studies.locate import check_tracing
from workbench.studies.method_traces import Traces, choose_facts, results, trace, traces
from workbench.studies.tracing_methods import MethodResult, TracingMethod, method_result
from workbench.studies.tracing_report import agreement_table, method_table, tracing_headline
from workbench.tracing.attribution import agreement
from workbench.tracing.averages import average_effects

FEWEST = "last_subject"
"""The tokens whose cells name a fact's layer."""


def main(
    model: options.Model = "atlas",
    records: options.Records = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Facts traced by every method.")] = 100,
    few: Annotated[
        int, typer.Option("--few", min=1, help="Facts for what takes many runs: sensitivity, agreement.")
    ] = 25,
    window: options.Window = None,
    windows: Annotated[list[int], options.several("--windows", int, "Windows that are compared.")] = [1, 3, 5, 10],
    noise: Annotated[list[str], options.several("--noise", str, "Noise rules that are compared with s3.")] = [
        "s1",
        "us3",
        "0.2",
        "m",
        "replace:s3",
        "replace:m",
    ],
    levels: Annotated[
        list[float], options.several("--levels", float, "Of noise, in standard deviations, for sensitivity.")
    ] = [1.0, 2.0, 3.0, 5.0],
    samples: Annotated[
        list[int], options.several("--samples", int, "Noise samples, for sensitivity; the last for all.")
    ] = [1, 3, 10],
    positions: Annotated[
        str | None,
        typer.Option(
            "--positions",
            help="Tokens traced. [default: those shown: the subject's last, for agreement also all after]",
        ),
    ] = None,
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
    """Trace by every method, and write figures, tables and report."""
    check_tracing(positions or FEWEST, engine, layer_needed=True)
    records = records or default_records(model)
    loaded = load(model, device=device, dtype=dtype)
    planted = planted_layers(loaded)
    control = load_traces() if planted else ()
    window = window or default_window(loaded)
    settings = given(records=records, window=window)
    facts, partners = choose_facts(loaded, records, limit, seed)
    methods = compared(settings)
    exact, estimate = methods[0], methods[-1]
    everywhere = [replace(m, sites=SITES, positions=positions or "roles") for m in (exact, estimate)]
    at_levels = {
        (level, number): replace(exact, name=named(level, number), noise=f"s{level:g}", samples=number)
        for level in levels
        for number in samples
    }
    title = "Which way of tracing finds recall?"
    with analysis(out, settings, loaded, title=title, headline=headline, checks=[traced(facts)]) as page:
        run = page.run
        for method in methods:
            trace(run, loaded, method, facts, partners)
            if method is exact and not traces(run, exact, facts):
                none_is_known(run, loaded, len(facts))
        some = list(traces(run, exact, facts))[:few]
        for method in (*everywhere, *at_levels.values()):
            trace(run, loaded, method, facts, only=some)
        found = results(run, methods, facts, planted=planted)
        if control:
            found[f"Control, window {control[0].window}"] = method_result(control, planted=planted)
        page.show = lambda: [
            show_methods(run, loaded, found, planted),
            show_agreement(run, *(traces(run, method, some) for method in everywhere)),
            show_sensitivity(run, {place: traces(run, method, some) for place, method in at_levels.items()}, planted),
            Section(title="How to read it", elements=[Paragraph(text=text) for text in caveats(planted)]),
        ]


def none_is_known(run: Run, model: Model, facts: int) -> None:
    """ValueError, which says why a fact failed if any has."""
    why = [f" ({row['reason']})" for row in run.rows("failures")][:1]
    raise ValueError(f"{model.name} knows none of the {facts} facts{''.join(why)}: choose records that it knows")


def compared(settings: Mapping[str, Any]) -> list[TracingMethod]:
    """All ways of tracing, the published one first and its estimate last."""
    window = settings["window"]
    common = {
        "window": window, "samples": settings["samples"][-1],
        "positions": settings["positions"] or FEWEST, "engine": settings["engine"],
    }  # fmt: skip
    return [
        TracingMethod(name=f"Exact: noise s3, window {window}", **common),
        *(TracingMethod(name=f"Window {width}", **common | {"window": width})
          for width in settings["windows"] if width != window),
        *(TracingMethod(name=f"Noise {rule}", noise=rule, **common) for rule in settings["noise"]),
        *(TracingMethod(name=f"Other subject: {name}", noise=None, metric=metric, **common)
          for metric, name in {"probability": "probability", "logit_difference": "logits", "kl": "KL"}.items()),
        TracingMethod(name="Severed MLPs", severed="mlp_out", **common),
        TracingMethod(name="Severed attention", severed="attn_out", **common),
        TracingMethod(name="Attribution patching", estimated=True, **common),
    ]  # fmt: skip


def show_methods(run: Run, model: Model, results: Mapping[str, MethodResult], planted: range | None) -> Section:
    """The table of all ways of tracing, and where their peaks are."""
    exact, *_ = results.values()
    inside = {name: one.inside for name, one in results.items() if one.inside is not None} or None
    chance = "" if planted is None else (
        f" Inside planted: the peak is in layers {planted[0]}-{planted[-1]}, with Wilson's 95 % intervals; a layer "
        f"drawn at random is in {100 * len(planted) / len(exact.peaks):.0f} % of the cases."
    )  # fmt: skip
    caption = (
        f"Ways of tracing facts that {model.name} knows. A fact's peak is the layer with the greatest effect of the "
        f"MLPs at its last subject token.{chance} Effects are in what was measured (probability; logits; nats for KL); "
        "± is half of a 95 % interval. Seconds: median, of the MLPs alone. Facts without another one in the same "
        "template, of as many tokens, cannot be corrupted by another subject."
    )
    run.save_table("methods", method_table(results), caption=caption)
    figure = peak_figure({name: one.peaks for name, one in results.items()}, inside=inside, planted=planted)
    shown = "Share of the facts whose peak is at each layer, by way of tracing."
    shown += "" if planted is None else " Right: how often it is inside the planted layers; dotted: by chance."
    run.save_figure("peaks", figure, caption=shown)
    run.note(
        planted=list(planted) if planted else None,
        layers=len(exact.peaks),
        methods={
            name: {
                "facts": one.facts,
                "inside": None if one.inside is None else one.inside.to_dict(),
                "window": one.window,
                "mean_peak": one.mean_peak.value,
                "peak": one.peak,
                "seconds": one.seconds,
            }
            for name, one in results.items()
        },
    )
    elements = [run.figures()["peaks"], run.tables()["methods"]]
    return Section(title="Where each way of tracing points", elements=elements)


def show_agreement(run: Run, exact: Traces, estimated: Traces) -> Section:
    """How far attribution patching agrees with exact tracing of the same facts."""
    both = sorted(exact.keys() & estimated.keys())
    one, other = ([found[case] for case in both] for found in (exact, estimated))
    found = {site: agreement(one, other, site) for site in SITES}
    caption = (
        f"Attribution patching against exact tracing over {len(both)} facts: correlations over a fact's cells from its "
        "subject on, mean over facts (95 % intervals by Student's t), and the share of facts whose peaks at the last "
        "subject token are at most half a window apart (Wilson's intervals). The estimate does not replace the trace."
    )
    run.save_table("agreement", agreement_table(found), caption=caption)
    shown = "First-order estimates of indirect effects against exact ones, a dot a cell."
    run.save_figure("agreement", attribution_figure(one, other), caption=shown)
    mlp = found["mlp_out"]
    run.note(agreement={"rank_correlation": mlp.spearman.to_dict(), "same_layer": mlp.same_layer.to_dict()})
    elements = [run.figures()["agreement"], run.tables()["agreement"]]
    return Section(title="Attribution patching against exact tracing", elements=elements)


def show_sensitivity(run: Run, found: Mapping[tuple[float, int], Traces], planted: range | None) -> Section:
    """What the noise's size and the number of samples change."""
    averages = {place: average_effects(list(some.values()), "mlp_out") for place, some in found.items()}
    figure = sensitivity_figure(averages, planted=planted)
    n = next(iter(averages.values())).facts
    caption = f"Noise of several sizes and numbers of samples on {n} facts: the peak of the average effect of the MLPs "
    caption += "at the last subject token, and its layer (lines that coincide are drawn a little apart)."
    run.save_figure("sensitivity", figure, caption=caption)
    read = {named(*place): method_result(list(some.values()), planted=planted) for place, some in found.items()}
    table = method_table(read)
    said = f"Noise in standard deviations of the subjects' embeddings, by samples, {n} facts; columns as above."
    run.save_table("sensitivity", table.drop(columns="Seconds a fact"), caption=said)
    elements = [run.figures()["sensitivity"], run.tables()["sensitivity"]]
    return Section(title="Noise and samples", elements=elements)


def headline(run: Run) -> str:
    """Where the peaks are, and how far the estimate agrees."""
    return tracing_headline(run.read_json("results.json"))


def named(level: float, samples: int) -> str:
    return f"s{level:g}, {samples} sample{'s' * (samples > 1)}"


def caveats(planted: range | None) -> list[str]:
    """What the numbers are not."""
    texts = [
        "A window is named by its centre (an even one by the layer above its middle), so that a peak can lie half a "
        "window outside the layers that make it; a window as wide as the model says little about where.",
        "Noise takes the answer away; another subject replaces it, on embeddings that the model was trained on. The "
        "two ask different questions, and only facts with a partner in the same template can be asked the second.",
        "Severed: the MLPs (or attention) above the restored ones stay corrupted at that token. What is left of the "
        "effect goes around them, so its peak need not be where the whole effect is greatest.",
    ]
    if planted is None:
        return texts
    return [
        *texts,
        f"Planted layers are those whose MLP outputs at the last subject token were trained to decide the answer "
        f"({planted[0]}-{planted[-1]}). The control's peaks say where tracing points without any planting; it is "
        "another network, with the same text and subjects.",
    ]


if __name__ == "__main__":
    script(main)
