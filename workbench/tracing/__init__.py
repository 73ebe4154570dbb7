"""Causal tracing (Meng et al. 2022, section 2): where in a model a fact is recalled.

`noise` and `replacement` say how the subject is corrupted, `positions` which tokens are traced, `cells` what a
restored run changes, `measure` what is measured. `fact` traces one fact by the engine `fast` or its oracle `plain`,
`attribution` estimates the same from gradients. `sweep` traces many facts, `trace` is what comes out, `averages` reads
the mediating layer from many traces. `lens` reads the way to the answer.
"""

from workbench.tracing.attribution import Agreement, agreement, attribute_fact
from workbench.tracing.averages import ROLES, AverageEffect, average_effects, mediating_layer, token_roles
from workbench.tracing.fact import ENGINES, trace_fact
from workbench.tracing.lens import PLACES, Lens, average_lens, logit_lens
from workbench.tracing.measure import METRICS
from workbench.tracing.noise import Noise, NoiseRule, embedding_noise_std, gaussian_noise, subject_span
from workbench.tracing.positions import POSITIONS, parse_positions, traced_positions
from workbench.tracing.replacement import NO_PARTNER, Pair, pair_facts, trace_pairs
from workbench.tracing.sweep import (
    NOT_KNOWN,
    TracedFact,
    TraceSet,
    answer_token,
    default_workers,
    fact_generator,
    known_answer,
    known_answers,
    knows,
    top_tokens,
    trace_facts,
)
from workbench.tracing.trace import CausalTrace, TraceError, restored_layers

__all__ = [
    "ENGINES",
    "METRICS",
    "NOT_KNOWN",
    "NO_PARTNER",
    "PLACES",
    "POSITIONS",
    "ROLES",
    "Agreement",
    "AverageEffect",
    "CausalTrace",
    "Lens",
    "Noise",
    "NoiseRule",
    "Pair",
    "TraceError",
    "TraceSet",
    "TracedFact",
    "agreement",
    "answer_token",
    "attribute_fact",
    "average_effects",
    "average_lens",
    "default_workers",
    "embedding_noise_std",
    "fact_generator",
    "gaussian_noise",
    "known_answer",
    "known_answers",
    "knows",
    "logit_lens",
    "mediating_layer",
    "pair_facts",
    "parse_positions",
    "restored_layers",
    "subject_span",
    "token_roles",
    "top_tokens",
    "trace_fact",
    "trace_facts",
    "trace_pairs",
    "traced_positions",
]
