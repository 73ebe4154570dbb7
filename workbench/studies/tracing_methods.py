"""Ways of tracing as values that can be listed and compared, and where each of them finds recall."""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.machine.intervals import Estimate, student, wilson
from workbench.machine.shown import Shown
from workbench.models.model import Model
from workbench.records.facts import Fact
from workbench.studies.locate import fitted
from workbench.tracing.attribution import attribute_fact
from workbench.tracing.averages import average_effects
from workbench.tracing.fact import trace_fact
from workbench.tracing.noise import subject_span
from workbench.tracing.replacement import trace_pairs
from workbench.tracing.sweep import TracedFact, trace_facts
from workbench.tracing.trace import CausalTrace


@dataclass(frozen=True, kw_only=True)
class TracingMethod:
    """One way of tracing facts."""

    name: str
    """What tables and figures call it."""
    window: int
    """MLP layers restored together."""
    noise: str | None = "s3"
    """Short form of the noise rule (`NoiseRule.parse`); None: corruption by another subject (`trace_pairs`)."""
    samples: int = 10
    """Corrupted runs of a fact; another subject is always one."""
    metric: str = "probability"
    """What is measured: one of `METRICS`."""
    severed: str | None = None
    """Site whose modules above the restored ones are frozen to their corrupted values."""
    estimated: bool = False
    """Whether effects are estimated by attribution patching."""
    sites: tuple[str, ...] = ("mlp_out",)
    """What is restored."""
    positions: str = "all"
    """Where: one of `POSITIONS`."""
    engine: str = "auto"
    """What computes exact effects: one of `ENGINES`; all give the same traces."""

    @property
    def key(self) -> str:
        """The same for methods that give the same traces; fit for the name of a folder."""
        noise = "subject" if self.noise is None else f"{self.noise.replace(':', '-')}x{self.samples}"
        severed = self.severed and f"severed-{self.severed}"
        parts = (noise, f"w{self.window}", self.metric, severed, "estimate" * self.estimated, *self.sites)
        parts += (self.positions,) if self.positions != "all" else ()
        return "_".join(part for part in parts if part)

    def trace(
        self, model: Model, facts: Sequence[Fact], *, partners: Sequence[Fact], seed: int, done: Collection[int]
    ) -> Iterator[TracedFact]:
        """Trace the facts that are not done, by index; one that cannot be traced comes back as failed.

        `partners` are further facts whose subjects may take the place of the facts' own; they are not traced.
        """
        method: Callable[..., CausalTrace] = attribute_fact if self.estimated else trace_fact
        options: dict[str, Any] = {
            "window": self.window, "metric": self.metric, "sites": self.sites, "positions": self.positions,
            "method": method, "keep_failures": True,
        }  # fmt: skip
        if not self.estimated:
            options["engine"] = self.engine
        if self.severed is not None:
            options["severed"] = self.severed
        if self.noise is None:
            every = [*facts, *partners]
            return trace_pairs(model, every, seed=seed, done={*done, *range(len(facts), len(every))}, **options)
        noise = fitted(model, facts, self.noise)
        return trace_facts(model, facts, seed=seed, noise_rule=noise, samples=self.samples, done=done, **options)


def draw_partners(model: Model, facts: Sequence[Fact], others: Iterable[Fact], *, most: int, seed: int) -> list[Fact]:
    """Further facts for `TracingMethod.trace`: for each fact at most `most` of the others, drawn by the seed.

    They have its relation and template, another object, and their subject's tokens in the same places; what the
    tokenizer cannot take has none and is none.
    """

    def shape(fact: Fact) -> tuple[str, str, tuple[int, int]] | None:
        try:
            return fact.relation, fact.template, subject_span(model, fact)
        except ValueError:
            return None

    templates = {(fact.relation, fact.template) for fact in facts}
    alike: dict[tuple | None, list[Fact]] = defaultdict(list)
    for other in others:
        if (other.relation, other.template) in templates:
            alike[shape(other)].append(other)
    alike[None] = []
    drawn: dict[Fact, None] = {}
    for index, fact in enumerate(facts):
        suited = [other for other in alike[shape(fact)] if other.object != fact.object]
        some = random.Random(f"{seed} {index}").sample(suited, min(most, len(suited)))
        drawn |= dict.fromkeys(some)
    return [fact for fact in drawn if fact not in set(facts)]


def peak_layers(traces: Sequence[CausalTrace]) -> list[int]:
    """By trace, the layer with the greatest effect of the MLPs at the last subject token, the lowest one on a tie."""
    return [int(trace.effect_at("mlp_out", trace.last_subject).argmax()) for trace in traces]


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodResult(Shown):
    """What one way of tracing says about a set of facts."""

    facts: int
    """How many were traced."""
    window: int
    """MLP layers restored together."""
    peaks: Float[np.ndarray, " layer"]
    """Share of the facts whose peak (`peak_layers`) is at each layer."""
    inside: Estimate | None
    """Share of the facts whose peak is inside the planted layers, with Wilson's interval; None without such layers."""
    mean_peak: Estimate
    """Mean of the facts' peaks, with Student's interval."""
    peak: int
    """Layer of the greatest average effect."""
    effect: Estimate
    """The average effect there, in what was measured, with Student's interval."""
    share: float
    """That effect as a share of the average total effect; NaN where there is none."""
    seconds: float | None
    """Median time that a fact took; None if it was not measured."""


def method_result(
    traces: Sequence[CausalTrace], *, planted: range | None, seconds: Sequence[float] = ()
) -> MethodResult:
    """Read the traces of one method at the last subject token; ValueError for no traces."""
    average = average_effects(traces, "mlp_out")
    at_peak = [trace.effect_at("mlp_out", trace.last_subject).double() for trace in traces]
    effects = np.stack([effect.numpy() for effect in at_peak])
    peaks, n_layers = np.array(peak_layers(traces)), effects.shape[1]
    peak = int(effects.mean(axis=0).argmax())
    return MethodResult(
        facts=len(traces),
        window=average.window,
        peaks=np.bincount(peaks, minlength=n_layers) / len(traces),
        inside=None if planted is None else wilson(np.isin(peaks, planted).tolist()),
        mean_peak=student(peaks.astype(float)),
        peak=peak,
        effect=student(effects[:, peak]),
        share=float(effects[:, peak].mean()) / average.total if average.total else math.nan,
        seconds=float(np.median(seconds)) if seconds else None,
    )
