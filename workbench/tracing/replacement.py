"""Corruption by another subject: symmetric token replacement (Zhang & Nanda 2309.16042, section 2).

Noise leaves the embeddings that a model was trained on; another subject's tokens do not, and they change the
answer instead of destroying it.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.failures import FAILURES
from workbench.machine.processes import Processes
from workbench.models.model import Model
from workbench.records.facts import Fact
from workbench.tracing.fact import trace_fact
from workbench.tracing.known import NOT_KNOWN, as_asked, known_answer
from workbench.tracing.noise import fact_generator, subject_span
from workbench.tracing.positions import Positions, parse_positions
from workbench.tracing.sweep import TracedFact, check_facts, failure, sweep
from workbench.tracing.trace import CausalTrace

NO_PARTNER = "no other known fact differs from it in the subject's tokens and the answer alone"
"""Why a fact has no trace: nothing to put in its subject's place."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A fact with another one, whose subject is put in the place of its own."""

    fact: Fact
    """The fact to trace."""
    partner: Fact | None
    """The other fact: a prompt of the same tokens but for the subject's, which are as many; None without one."""
    foil: int | None
    """Id of the first token of the partner's answer, which is another than the fact's."""
    reason: str = ""
    """Why there is no partner."""


def pair_facts(model: Model, facts: Sequence[Fact], *, seed: int, keep_failures: bool = False) -> tuple[Pair, ...]:
    """Give every fact a partner among the facts, drawn by `seed` and the fact's index from all that suit.

    A partner has the same relation and template, and its prompt the same tokens in the same places except for
    the subject's; the model knows both facts, and their answers differ in the first token, so that each run's answer
    is the other's foil. With `keep_failures` a fact that raises one of `FAILURES` has the error as its reason.
    ValueError for an empty set of facts.
    """
    check_facts(facts)
    answers: dict[int, int] = {}
    keys: dict[int, Hashable] = {}
    groups: dict[Hashable, list[int]] = defaultdict(list)
    without: dict[int, str] = {}
    for index, fact in enumerate(facts):
        try:
            answer = known_answer(model, fact)
            ids = model.tokenize([as_asked(model, fact).prompt]).ids[0].tolist()
            first, end = subject_span(model, fact)
        except FAILURES as error:
            if not keep_failures:
                raise
            without[index] = failure(error)
            continue
        if answer is None:
            without[index] = NOT_KNOWN
            continue
        answers[index] = answer
        keys[index] = (fact.relation, fact.template, first, end, *ids[:first], *ids[end:])
        groups[keys[index]].append(index)

    def pair(index: int) -> Pair:
        if index in without:
            return Pair(fact=facts[index], partner=None, foil=None, reason=without[index])
        suited = [other for other in groups[keys[index]] if answers[other] != answers[index]]
        if not suited:
            return Pair(fact=facts[index], partner=None, foil=None, reason=NO_PARTNER)
        drawn = suited[int(torch.randint(len(suited), (), generator=fact_generator(seed, index)))]
        return Pair(fact=facts[index], partner=facts[drawn], foil=answers[drawn])

    return tuple(pair(index) for index in range(len(facts)))


def subject_embeddings(model: Model, fact: Fact) -> Float[Tensor, "1 subject_pos d_model"]:
    """Token embeddings of the subject as it stands in the fact's prompt."""
    embed = model.hook_name("embed")
    found = model.activations(model.tokenize([fact.prompt]), [embed])[embed]
    first, end = subject_span(model, fact)
    return found[:, first:end]


def trace_pairs(
    model: Model,
    facts: Sequence[Fact],
    *,
    seed: int,
    positions: Positions = "all",
    metric: str = "probability",
    done: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
    method: Callable[..., CausalTrace] = trace_fact,
    keep_failures: bool = False,
    **options: Any,
) -> Iterator[TracedFact]:
    """Trace facts as `trace_facts` does, each corrupted by its partner's subject (`pair_facts`): one run, no noise.

    The corrupted run is the partner's own prompt. For the metric "logit_difference" the foil is the partner's
    answer. Facts that the model does not know or that have no partner come back with `trace=None` and the reason, with
    `keep_failures` also those that raise one of `FAILURES`.
    The pairs are made at the call, over all facts; ValueError there for an empty set, and for positions that mean
    nothing.
    """
    positions = parse_positions(positions)
    pairs = pair_facts(model, facts, seed=seed, keep_failures=keep_failures)

    def trace(model: Model, index: int) -> CausalTrace | str:
        pair = pairs[index]
        if pair.partner is None:
            return pair.reason
        foil = {"foil": pair.foil} if metric == "logit_difference" else {}
        noise = subject_embeddings(model, pair.partner)
        return method(
            model, pair.fact, noise=noise, replace=True, positions=positions, metric=metric, **foil, **options
        )

    here = Processes(state=model)
    return sweep(facts, trace, workers=here, done=done, progress=progress, keep_failures=keep_failures)
