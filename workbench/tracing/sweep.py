"""Tracing many facts, one after the other, so that it can be stopped and resumed."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.facts import Fact
from workbench.models import SITES, Model, join
from workbench.tracing.noise import embedding_noise_std, gaussian_noise, subject_span
from workbench.tracing.plain import trace_fact
from workbench.tracing.trace import CausalTrace, check_probabilities


@dataclass(frozen=True, kw_only=True)
class TracedFact:
    """What became of one fact: its trace, or, where the model does not know the fact, none."""

    index: int
    """The fact's place in the sequence that was given."""
    fact: Fact
    """The fact."""
    trace: CausalTrace | None
    """Its trace; None for a fact that the model does not know."""


@dataclass(frozen=True, kw_only=True)
class TraceSet:
    """The traces of the facts a model knows, and the facts it does not know."""

    traces: tuple[CausalTrace, ...]
    """In the facts' order."""
    skipped: tuple[Fact, ...]
    """Facts whose object the model does not predict, in the facts' order; `len(skipped)` counts them."""

    @classmethod
    def collect(cls, results: Iterable[TracedFact]) -> "TraceSet":
        """Run through results of `trace_facts`, in any order, and part known facts from skipped ones."""
        ordered = sorted(results, key=lambda result: result.index)
        return cls(
            traces=tuple(result.trace for result in ordered if result.trace is not None),
            skipped=tuple(result.fact for result in ordered if result.trace is None),
        )


def knows(model: Model, fact: Fact) -> bool:
    """Whether the model's top token after the prompt is the first token of the fact's object.

    That token is the one that follows the prompt's own tokens when prompt and object are tokenised together;
    where the object changes the prompt's tokens, the model cannot predict it and the fact counts as not known.
    A tokenizer that makes the space before the object a token of its own has that space compared, nothing more.
    """
    prompt = model.tokenize([fact.prompt])
    whole = model.tokenize([join(fact.prompt, fact.object)]).ids[0]
    n_pos = prompt.ids.shape[1]
    with torch.no_grad():
        last = model.logits(prompt, keep_last=1)[0, -1]
    check_probabilities(last.float().cpu(), model=model.name, prompt=fact.prompt)
    continues = len(whole) > n_pos and torch.equal(whole[:n_pos], prompt.ids[0])
    return continues and int(last.argmax()) == int(whole[n_pos])


def trace_facts(
    model: Model,
    facts: Sequence[Fact],
    *,
    seed: int,
    noise_std: float | None = None,
    noise_multiplier: float = 3.0,
    samples: int = 10,
    sites: Sequence[str] = SITES,
    window: int = 10,
    batch_size: int = 256,
    skip_before_subject: bool = False,
    done: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
    engine: Callable[..., CausalTrace] = trace_fact,
) -> Iterator[TracedFact]:
    """Trace facts one by one; those that the model does not know come back with `trace=None`.

    A fact's noise depends on `seed` and its index alone, so a run that leaves out the indices `done` gives
    what the uninterrupted run gives for the others. `TraceSet.collect` gathers the results and the skipped
    facts.

    Args:
        noise_std: standard deviation of the noise; by default `noise_multiplier` times that of the embeddings
        of all
            the facts' subjects (`embedding_noise_std`), also of the facts that are done or not known.
        done: indices of facts to leave out, since their results are kept from an earlier run.
        progress: called with (facts finished, all facts) after every fact, `done` counted as finished.
        engine: what traces one fact; takes the arguments of `trace_fact`.

    Raises ValueError at the call, before the first fact, for an empty set of facts.
    """
    if not facts:
        raise ValueError("tracing needs at least one fact, got none")
    if noise_std is None:
        noise_std = noise_multiplier * embedding_noise_std(model, facts)
    scale = noise_std

    def results() -> Iterator[TracedFact]:
        todo = [index for index in range(len(facts)) if index not in done]
        for count, index in enumerate(todo, start=len(facts) - len(todo) + 1):
            fact = facts[index]
            trace = None
            if knows(model, fact):
                first, end = subject_span(model, fact)
                generator = _fact_generator(seed, index)
                trace = engine(
                    model,
                    fact,
                    noise=gaussian_noise(scale, samples, end - first, model.d_model, generator=generator),
                    sites=sites,
                    window=window,
                    batch_size=batch_size,
                    skip_before_subject=skip_before_subject,
                )
            if progress is not None:
                progress(count, len(facts))
            yield TracedFact(index=index, fact=fact, trace=trace)

    return results()


def _fact_generator(seed: int, index: int) -> torch.Generator:
    """A generator of its own for every pair of seed and index."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
