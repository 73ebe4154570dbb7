"""Which facts a model knows, and tracing many of them, so that it can be stopped and resumed."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.machine.failures import FAILURES, reason
from workbench.machine.processes import Processes, Workers, can_fork, check_workers
from workbench.machine.shown import Shown, html_table
from workbench.models.model import Model
from workbench.records.facts import Fact
from workbench.records.joining import join
from workbench.tracing.fact import trace_fact
from workbench.tracing.noise import Noise, NoiseRule, subject_span
from workbench.tracing.positions import Positions, parse_positions
from workbench.tracing.trace import CausalTrace, check_probabilities, trace_view
from workbench.tracing.until_sure import Samples, check_samples, trace_sampled

NOT_KNOWN = "the model does not know it"
"""Why a fact has no trace: its object is not what the model predicts."""

_FAILED = "failed with "
_PUBLISHED = NoiseRule()
_KNOWN_AT_ONCE = 16
"""Facts in one forward pass that finds which are known."""
_SMALL = 1024
"""Width of a model up to which processes of one thread are sooner done than threads."""


@dataclass(frozen=True, kw_only=True)
class TracedFact:
    """What became of one fact: its trace, or why there is none."""

    index: int
    """The fact's place in the sequence that was given."""
    fact: Fact
    """The fact."""
    trace: CausalTrace | None
    """Its trace; None for a fact that was skipped."""
    reason: str = ""
    """Why a fact without a trace was skipped; empty for a traced one."""

    @property
    def failed(self) -> bool:
        """Whether tracing it raised an error, which `reason` names."""
        return self.trace is None and self.reason.startswith(_FAILED)


@dataclass(frozen=True, kw_only=True)
class TraceSet(Shown):
    """The traces of the facts that were traced, and the facts that were skipped."""

    traces: tuple[CausalTrace, ...]
    """In the facts' order."""
    skipped: tuple[Fact, ...]
    """Facts whose object the model does not predict, or that have no partner to be corrupted with, in the
    facts' order; `len(skipped)` counts them."""
    reasons: tuple[str, ...] = ()
    """Why, one a skipped fact."""

    def __repr__(self) -> str:
        return f"TraceSet({len(self.traces):,} traces, {len(self.skipped):,} facts skipped)"

    def _repr_html_(self) -> str:
        """The traces as heat maps to choose from, for notebooks."""
        return trace_view(self.traces) if self.traces else html_table(repr(self), [])

    @classmethod
    def collect(cls, results: Iterable[TracedFact]) -> "TraceSet":
        """Run through results of `trace_facts`, in any order, and part traced facts from skipped ones."""
        ordered = sorted(results, key=lambda result: result.index)
        skipped = [result for result in ordered if result.trace is None]
        return cls(
            traces=tuple(result.trace for result in ordered if result.trace is not None),
            skipped=tuple(result.fact for result in skipped),
            reasons=tuple(result.reason for result in skipped),
        )


def answer_token(model: Model, prompt: str, answer: str, separator: str | None = None) -> int | None:
    """Id of the answer's first token as it follows the prompt; None where the answer changes the prompt's tokens.

    That token is the one behind the prompt's own tokens when both are tokenised together. A tokenizer that makes
    the space before the answer a token of its own gives that space, nothing more.
    """
    alone = model.tokenize([prompt]).ids[0]
    whole = model.tokenize([join(prompt, answer, separator)]).ids[0]
    n_pos = len(alone)
    return int(whole[n_pos]) if len(whole) > n_pos and torch.equal(whole[:n_pos], alone) else None


def top_tokens(model: Model, prompts: Sequence[str]) -> list[int]:
    """Id of the most likely token after each prompt; ValueError for a model that gives NaN."""
    if not prompts:
        return []
    rows = model.encode(prompts)
    tops: dict[int, int] = {}
    for batch in model.batches(rows, len(rows), keep=1):
        with torch.no_grad():
            tokens = model.pad([rows[index] for index in batch], padding_side="left")
            last = model.logits(tokens, keep_last=1)[:, -1].float().cpu()
        for index, logits in zip(batch, last, strict=True):
            check_probabilities(logits, model=model.name, prompt=prompts[index])
            tops[index] = int(logits.argmax())
    return [tops[index] for index in range(len(prompts))]


def known_answers(model: Model, facts: Sequence[Fact]) -> list[int | None]:
    """For each fact the id of its object's first token if it is the model's top token after the prompt, else None.

    Where the object changes the prompt's tokens (`answer_token`), the model cannot predict it.
    """
    tops = top_tokens(model, [fact.prompt for fact in facts])
    answers = [answer_token(model, fact.prompt, fact.object, fact.separator) for fact in facts]
    return [answer if answer == top else None for answer, top in zip(answers, tops, strict=True)]


def known_answer(model: Model, fact: Fact) -> int | None:
    """`known_answers` of one fact."""
    return known_answers(model, [fact])[0]


def trace_facts(
    model: Model,
    facts: Sequence[Fact],
    *,
    seed: int,
    noise_rule: NoiseRule | Noise = _PUBLISHED,
    samples: Samples = 10,
    positions: Positions = "all",
    foils: Sequence[int] | None = None,
    done: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
    method: Callable[..., CausalTrace] = trace_fact,
    workers: int | Workers[Model] = 1,
    keep_failures: bool = False,
    **options: Any,
) -> Iterator[TracedFact]:
    """Trace facts one by one; those that the model does not know come back with `trace=None`.

    A fact's noise depends on `seed` and its index alone, so a run that leaves out the indices `done` gives
    what the uninterrupted run gives for the others. `TraceSet.collect` gathers the results and the skipped
    facts.

    Args:
        noise_rule: how subjects are corrupted. A rule is fitted to all the facts, also to those that are done or
            not known; noise that was fitted already is taken as it is.
        samples: how many corrupted runs are averaged; "auto": as many as each fact needs (`trace_sampled`), of which
            the first n are those of n samples.
        positions: tokens of each prompt that are traced (`traced_positions`).
        foils: one token id a fact, for the metric "logit_difference".
        done: indices of facts to leave out, since their results are kept from an earlier run.
        progress: called with (facts finished, all facts) after every fact, `done` counted as finished.
        method: what traces one fact: `trace_fact`, or `attribute_fact` for its first-order estimate.
        workers: facts traced at once, each in a process of one thread (Linux, models on the CPU); of small models
            n workers trace more than n threads do (`default_workers`). Each takes the method's `memory` for itself. Or
            who traces them: the replicas of this model in a cluster.
        keep_failures: a fact that raises one of `FAILURES` comes back with the error as its reason (`failed`).
        options: further arguments of the method: sites, window, span, severed, metric, engine, ...

    Raises ValueError at the call, before the first fact, for an empty set of facts, positions that
    mean nothing, other than one foil a fact, and several workers on a GPU or another system than Linux.
    """
    if isinstance(workers, int):
        check_workers(workers, model.device)
        workers = Processes(state=model, count=workers)
    check_samples(samples)
    positions = parse_positions(positions)
    if foils is not None and len(foils) != len(facts):
        raise ValueError(f"tracing needs one foil a fact, got {len(foils)} for {len(facts)} facts")
    check_facts(facts)
    noise = noise_rule.fit(model, facts) if isinstance(noise_rule, NoiseRule) else noise_rule
    known: dict[int, int | None] = {}

    def trace(model: Model, index: int) -> CausalTrace | str:  # a worker's model
        fact = facts[index]
        if index not in known:
            next_ones = [i for i in range(index, len(facts)) if i not in done][:_KNOWN_AT_ONCE]
            try:
                known.update(zip(next_ones, known_answers(model, [facts[i] for i in next_ones]), strict=True))
            except FAILURES:
                known[index] = known_answer(model, fact)  # raises if this is the one
        if known[index] is None:
            return NOT_KNOWN
        first, end = subject_span(model, fact)
        extra = {} if foils is None else {"foil": foils[index]}
        form = {"replace": noise.replace, "positions": positions, **extra, **options}

        def draw(count: int) -> Tensor:
            return noise.draw(count, end - first, generator=fact_generator(seed, index))

        return trace_sampled(samples, draw, lambda drawn: method(model, fact, noise=drawn, **form))

    return sweep(facts, trace, done=done, progress=progress, workers=workers, keep_failures=keep_failures)


def sweep(
    facts: Sequence[Fact],
    trace: Callable[[Model, int], CausalTrace | str],
    *,
    workers: Workers[Model],
    done: Collection[int],
    progress: Callable[[int, int], None] | None,
    keep_failures: bool = False,
) -> Iterator[TracedFact]:
    """What `trace` makes of each fact that is not done, by index: a trace, or the reason why there is none."""

    def attempt(model: Model, index: int) -> CausalTrace | str:
        try:
            return trace(model, index)
        except FAILURES as error:
            if not keep_failures:
                raise
            return failure(error)

    todo = [index for index in range(len(facts)) if index not in done]
    found = zip(todo, workers.map(attempt, todo), strict=True)
    for count, (index, each) in enumerate(found, start=len(facts) - len(todo) + 1):
        if progress is not None:
            progress(count, len(facts))
        traced, why = (None, each) if isinstance(each, str) else (each, "")
        yield TracedFact(index=index, fact=facts[index], trace=traced, reason=why)


def failure(error: BaseException) -> str:
    """The reason of a `TracedFact` whose tracing raised the error."""
    return f"{_FAILED}{reason(error)}"


def default_workers(model: Model) -> int:
    """As many as there are threads for a small model on a CPU (Linux); 1 where matrices keep all threads busy."""
    small = model.d_model <= _SMALL and can_fork(model.device)
    return torch.get_num_threads() if small else 1


def check_facts(facts: Sequence[Fact]) -> None:
    """ValueError for an empty set of facts."""
    if not facts:
        raise ValueError("tracing needs at least one fact, got none")


def fact_generator(seed: int, index: int) -> torch.Generator:
    """A generator of its own for every pair of seed and index."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
