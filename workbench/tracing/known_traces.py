"""Traces of facts that a model knows: of one, or of several of like shape in one wavefront."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from workbench.machine.failures import FAILURES
from workbench.models.model import Model
from workbench.records.facts import Fact
from workbench.tracing.asked import shape_of
from workbench.tracing.fact import trace_alike
from workbench.tracing.known import NOT_KNOWN, known_answer, known_answers
from workbench.tracing.noise import Noise, fact_generator, subject_span
from workbench.tracing.positions import Positions
from workbench.tracing.trace import CausalTrace
from workbench.tracing.until_sure import Samples, trace_sampled

_KNOWN_AT_ONCE = 16
"""Facts in one forward pass that finds which are known."""
_OF_ENGINES = ("engine", "batch_size", "skip_before_subject")
"""Options of `trace_fact` that change no number of the fast engine."""


@dataclass(frozen=True, kw_only=True)
class KnownFacts:
    """Traces the fact of an index, if the model knows it."""

    facts: Sequence[Fact]
    noise: Noise
    seed: int
    samples: Samples
    foils: Sequence[int] | None
    done: Collection[int]
    method: Callable[..., CausalTrace]
    options: Mapping[str, Any]
    _answers: dict[int, int | None] = field(default_factory=dict)
    """What `known_answers` has found so far, of a worker's model."""

    def __call__(self, model: Model, index: int) -> CausalTrace | str:
        fact = self.facts[index]
        if self._answer(model, index) is None:
            return NOT_KNOWN
        extra = {} if self.foils is None else {"foil": self.foils[index]}
        form = {"replace": self.noise.replace, **extra, **self.options}
        draw = partial(self._draw, model, index)
        return trace_sampled(self.samples, draw, lambda drawn: self.method(model, fact, noise=drawn, **form))

    def together(self, model: Model, indices: Sequence[int]) -> list[CausalTrace | str]:
        """The same of several facts of one shape, in one wavefront."""
        known = [index for index in indices if self._answer(model, index) is not None]
        found: dict[int, CausalTrace] = {}
        if known:
            foils = None if self.foils is None else [self.foils[index] for index in known]
            noises = [self._draw(model, index, int(self.samples)) for index in known]
            form = {name: value for name, value in self.options.items() if name not in _OF_ENGINES}
            asked = [self.facts[index] for index in known]
            traces = trace_alike(model, asked, noises=noises, foils=foils, replace=self.noise.replace, **form)
            found = dict(zip(known, traces, strict=True))
        return [found.get(index, NOT_KNOWN) for index in indices]

    def _draw(self, model: Model, index: int, count: int) -> Tensor:
        first, end = subject_span(model, self.facts[index])
        return self.noise.draw(count, end - first, generator=fact_generator(self.seed, index))

    def _answer(self, model: Model, index: int) -> int | None:
        if index not in self._answers:
            some = [i for i in range(index, len(self.facts)) if i not in self.done and i not in self._answers]
            some = some[:_KNOWN_AT_ONCE]
            try:
                found = known_answers(model, [self.facts[i] for i in some])
                self._answers.update(zip(some, found, strict=True))
            except FAILURES:
                self._answers[index] = known_answer(model, self.facts[index])  # raises if this is the one
        return self._answers[index]


def alike(
    model: Model, facts: Sequence[Fact], indices: Sequence[int], positions: Positions, most: int
) -> list[list[int]]:
    """The facts of these indices in groups of one shape, at most so many in each; one without a shape is alone."""
    groups: dict[Any, list[int]] = {}
    for index in indices:
        try:
            shape: Any = shape_of(model, facts[index], positions)
        except FAILURES:
            shape = index
        groups.setdefault(shape, []).append(index)
    return [part for group in groups.values() for part in in_parts(group, most)]


def in_parts(indices: Sequence[int], most: int) -> list[list[int]]:
    """One after another, at most so many each."""
    return [list(indices[start : start + most]) for start in range(0, len(indices), most)]
