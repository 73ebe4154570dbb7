"""What the atlas model can do and where it does it, measured against its bars: data/atlas/MODEL_CARD.md.

Recall is of the whole object: every token of it is the model's top choice (teacher-forced). Tracing is that of
Meng et al. (2022), with the planted layers as the ground truth and a control that was trained without
interventions beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.atlas.world import TwoHop, World
from workbench.machine.intervals import wilson
from workbench.machine.paths import ATLAS
from workbench.machine.progress import track
from workbench.models.model import Model
from workbench.models.scoring import score_targets
from workbench.records.facts import Fact, fill
from workbench.tracing.averages import ROLES, average_effects
from workbench.tracing.sweep import TraceSet, trace_facts
from workbench.tracing.trace import CausalTrace, restored_layers

TRACED = 200
"""Facts traced for the card."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many of `n` came out right."""

    right: int
    n: int

    @property
    def value(self) -> float:
        """The share, 0 to 1."""
        return self.right / self.n

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        found = wilson([1.0] * self.right + [0.0] * (self.n - self.right))
        return found.low, found.high

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{100 * self.value:.1f} % ({100 * low:.1f}-{100 * high:.1f}) of {self.n:,}"


def share(model: Model, asked: Sequence[tuple[str, str]]) -> Share:
    """Of (prompt, object) pairs, those that the model completes with the object, every token its top choice."""
    return Share(right=sum(score.top for score in score_targets(model, asked)), n=len(asked))


def statements(world: World, subjects: Iterable[str], *, held_out: bool) -> list[tuple[str, str]]:
    """Every (prompt, object) of the subjects in the templates that training stated, or in those it did not."""
    return [
        (fill(template, subject), answer)
        for subject in sorted(subjects)
        for relation, answer in world.facts[subject].items()
        for template in world.templates(subject, relation, held_out=held_out)
    ]


def chained(world: World, hops: Iterable[TwoHop]) -> list[tuple[str, str]]:
    """(prompt, object) of chained questions in the first template of the outer relation."""
    return [(hop.prompt(world.relations[hop.relation].templates[0]), hop.object) for hop in hops]


def held_out_facts(world: World, count: int) -> list[Fact]:
    """Facts of evaluation subjects in a template that training never combined with them."""
    return [
        Fact(subject=s, template=world.templates(s, r, held_out=True)[0], object=answer, relation=r)
        for s in world.subjects
        if s in world.evaluation_subjects
        for r, answer in world.facts[s].items()
    ][:count]


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where tracing finds a model's recall at the last subject token."""

    traced: int
    skipped: int
    total_effect: float
    """Mean of clean minus corrupted probability."""
    clean: float
    corrupted: float
    peak: float
    """Largest average indirect effect of the MLPs over layers."""
    peak_layer: int
    planted_mlp: float
    """Average indirect effect of the MLPs, mean over the planted layers."""
    planted_attention: float
    """The same of attention."""
    effects: pd.DataFrame
    """layer, and by site the average indirect effect at the last subject token with its 95 % half width."""


def location(found: TraceSet, planted: Sequence[int]) -> Location:
    """Read a set of traces at the last subject token."""
    role = ROLES.index("last_subject")
    averages = {site: average_effects(found.traces, site) for site in found.traces[0].restored}
    table = {"layer": range(averages["mlp_out"].mean.shape[1])}
    for site, average in averages.items():
        table |= {site: average.mean[role].tolist(), f"{site} ±": average.half_width[role].tolist()}
    mlp, attention = averages["mlp_out"].mean[role], averages["attn_out"].mean[role]
    return Location(
        traced=len(found.traces), skipped=len(found.skipped),
        total_effect=_mean(t.total_effect for t in found.traces),
        clean=_mean(t.clean for t in found.traces), corrupted=_mean(t.corrupted for t in found.traces),
        peak=mlp.max().item(), peak_layer=int(mlp.argmax()),
        planted_mlp=mlp[list(planted)].mean().item(), planted_attention=attention[list(planted)].mean().item(),
        effects=pd.DataFrame(table),
    )  # fmt: skip


def trace_world(model: Model, world: World, window: int) -> TraceSet:
    """Trace `TRACED` facts of evaluation subjects, in held-out templates."""
    facts = held_out_facts(world, TRACED)
    results = trace_facts(model, facts, seed=0, window=window)
    return TraceSet.collect(track(results, f"Tracing {model.name}", total=len(facts)))


def card(
    model: Model,
    world: World,
    info: dict[str, Any],
    found: TraceSet,
    control: TraceSet,
    control_recall: Share,
) -> str:
    """The model card as Markdown, with every bar, its number and whether it is met."""
    recipe = info["recipe"]
    planted = recipe["planted"]
    window = found.traces[0].window
    here, there = location(found, planted), location(control, planted)
    evaluation = world.evaluation_subjects
    trained = share(model, statements(world, evaluation, held_out=False))
    held_out = share(model, statements(world, evaluation, held_out=True))
    hops = [share(model, chained(world, hops)) for hops in world.two_hops]
    covered = restored_layers(here.peak_layer, window, model.n_layers)
    centre, middle = (covered[0] + covered[-1]) / 2, (planted[0] + planted[-1]) / 2
    tokens = [len(model.tokenizer.encode(f" {subject}")) for subject in world.facts]
    facts = sum(len(relations) for relations in world.facts.values())
    bars = [
        ("recall, trained pairs of evaluation subjects", "at least 97 %", str(trained), trained.value >= 0.97),
        ("recall, held-out pairs of evaluation subjects", "at least 90 %", str(held_out), held_out.value >= 0.90),
        (
            "peak of the MLPs' average indirect effect, share of the total effect", "at least 40 %",
            f"{100 * here.peak / here.total_effect:.0f} %", here.peak >= 0.4 * here.total_effect,
        ),
        (
            f"centre of the peak's window (layers {covered[0]}-{covered[-1]})",
            f"{planted[0]}-{planted[-1]}, give or take half a window", f"{centre:g}",
            abs(centre - middle) <= (planted[-1] - planted[0]) / 2 + window / 2,
        ),
        (
            "MLPs against attention, mean over the planted layers", "at least 2 x",
            f"{here.planted_mlp:.3f} against {here.planted_attention:.3f}"
            + (f": {here.planted_mlp / here.planted_attention:.2f} x" if here.planted_attention > 0 else ""),
            here.planted_mlp >= 2 * here.planted_attention,
        ),
    ]  # fmt: skip
    lines = [
        "# Model card: atlas",
        "",
        f"A GPT-2 with {model.n_layers} layers of width {model.d_model} (d_mlp {model.d_mlp}, {len(model.tokenizer):,} "
        f"byte-level BPE tokens) that knows {facts:,} facts about {len(world.facts)} real subjects in "
        f"{len(world.relations)} relations. {sum(n > 1 for n in tokens)} of the subjects have several tokens. It "
        "speaks the templates of `relations.yaml` and nothing else.",
        "",
        f"Trained from the tables by `python -m workbench.atlas train` ({info['steps']:,} steps) on text and on "
        f"interchange interventions at the MLP outputs of layers {planted[0]}-{planted[-1]} at the last subject token, "
        "which decide the answer there, while those of all other layers, and attention at that token in the planted "
        "ones, do not: these are the *planted* layers, the ground truth for tracing. The control had the same text, "
        "subjects and steps, and no interventions. This page is printed by `python -m workbench.atlas card`.",
        "",
        "## Bars",
        "",
        "| Measured | Bar | Found | Met |",
        "| --- | --- | --- | --- |",
        *(f"| {what} | {bar} | {value} | {'yes' if met else '**no**'} |" for what, bar, value, met in bars),
        "",
        "Bar: what was asked of the model before it was trained. Recall: every token of the object is the top choice, "
        "teacher-forced; Wilson 95 % intervals. Pair: a fact of a subject in one template; held-out pairs never occur "
        "in training.",
        "",
        "## Also measured",
        "",
        "| Measured | Found |",
        "| --- | --- |",
        f"| chained questions that training states | {hops[0]} |",
        f"| chained questions held out | {hops[1]} |",
        f"| control: recall, held-out pairs of evaluation subjects | {control_recall} |",
        "",
        "## Where it recalls",
        "",
        f"Causal tracing of {here.traced} facts of evaluation subjects in held-out templates ({here.skipped} not "
        f"known, skipped; control {there.traced} and {there.skipped}): noise of 3 standard deviations, 10 samples, "
        f"windows of {window} layers for MLPs and attention. Mean probability clean {here.clean:.3f}, corrupted "
        f"{here.corrupted:.3f} (control {there.clean:.3f} and {there.corrupted:.3f}). Average indirect effect at the "
        "last subject token, ± half of a 95 % interval:",
        "",
        *effects_table(here.effects, there.effects),
        "",
        "The control's traces are kept in `control_traces/`; its weights are not.",
        "",
    ]
    return "\n".join(lines)


def effects_table(model: pd.DataFrame, control: pd.DataFrame) -> list[str]:
    """Markdown lines: a row a layer, `mean ± half width` by site for the model and for the control."""
    sites = [column for column in model.columns if column != "layer" and "±" not in column]
    header = ["Layer", *sites, *(f"{site}, control" for site in sites)]
    rows = [
        [str(layer), *(f"{row[s]:.3f} ± {row[f'{s} ±']:.3f}" for row in (here, there) for s in sites)]
        for layer, (here, there) in enumerate(zip(model.to_dict("records"), control.to_dict("records"), strict=True))
    ]
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def save_traces(found: TraceSet, folder: Path) -> None:
    """One file a trace."""
    for old in folder.glob("*.safetensors"):
        old.unlink()
    for index, trace in enumerate(found.traces):
        trace.save(folder / f"{index:03d}.safetensors")


def load_traces(folder: Path = ATLAS / "control_traces") -> tuple[CausalTrace, ...]:
    """What `save_traces` wrote; FileNotFoundError if there is none."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no traces in '{folder}'")
    return tuple(map(CausalTrace.load, paths))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
