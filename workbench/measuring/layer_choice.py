"""What choosing the layer of an edit by tracing is worth: edits at every layer against the facts' tracing effects."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int

from workbench.machine.intervals import (
    Estimate,
    bootstrap_mean,
    bootstrap_means,
    from_samples,
    record_means,
)
from workbench.machine.shown import Shown
from workbench.measuring.metrics import harmonic_mean
from workbench.measuring.regression import Explained, explained, rank_correlations
from workbench.measuring.scores import Evaluation, PromptScores
from workbench.tracing.trace import CausalTrace

LEAST_TOTAL_EFFECT = 0.05
"""Facts that lose less probability to the noise have no share of it that a layer could restore."""
SUCCESSES = ("ES", "PS", "NS")
"""What S is the harmonic mean of."""
NEAR = 0.02
"""Difference in S below which a layer is called as good as another."""
OUTCOMES = ("rewrite", "paraphrase", "neighborhood")
"""Scores of `normalised_scores`."""
CHOICES = {
    "random": "A random layer",
    "located": "The located layer",
    "own": "Each fact's own located layer",
    "best": "The best layer, in hindsight",
}
"""Ways to choose the layer that is edited."""


def normalised_scores(evaluation: Evaluation) -> dict[str, float]:
    """The scores of Hase et al. (2301.04213, section 3), by kind of prompt, each at most 1; NaN without such prompts.

    With p and p' the new target's probability before and after the edit: (p' - p) / (1 - p), the share of the possible
    rise, not below 0, on rewrite and paraphrase prompts; 1 - |p' - p| / max(p, 1 - p), the possible change that did
    not happen, on neighborhood prompts. The published code takes the first prompt of a kind, this the mean over all.
    """

    def rise(p: float, after: float) -> float:
        return max(0.0, (after - p) / (1 - p)) if p < 1 else math.nan

    def unchanged(p: float, after: float) -> float:
        return 1 - abs(after - p) / max(p, 1 - p)

    def mean(kind: str) -> float:
        pairs: Iterable[tuple[PromptScores, PromptScores]] = zip(
            evaluation.pre.prompts[kind], evaluation.post.prompts[kind], strict=True
        )
        score = unchanged if kind == "neighborhood" else rise
        values = [score(pre.p_new, post.p_new) for pre, post in pairs]
        known = [value for value in values if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    return {kind: mean(kind) for kind in OUTCOMES}


def comparable(trace: CausalTrace) -> bool:
    """Whether a trace tells layers apart: the noise takes at least `LEAST_TOTAL_EFFECT`, and the prompt goes on after
    its subject, so that recall can be told from read-out."""
    return trace.total_effect >= LEAST_TOTAL_EFFECT and trace.subject[1] < len(trace.tokens)


def last_subject_effect(trace: CausalTrace) -> Float[np.ndarray, " layer"]:
    """Indirect effect of the MLPs at the last subject token, as a share of the total effect."""
    return trace.effect_at("mlp_out", trace.last_subject).double().numpy() / trace.total_effect


@dataclass(frozen=True, kw_only=True)
class LayerChoices(Shown):
    """Scores when the layer of an edit is chosen in several ways; all intervals from the same resamples of facts."""

    scores: Mapping[str, Mapping[str, Estimate]]
    """By choice (`CHOICES`), S and `SUCCESSES`; for a random layer the mean over layers."""
    against_random: Mapping[str, Estimate]
    """By choice, S minus that of a random layer."""
    against_best: Mapping[str, Estimate]
    """By choice, S minus that of the best layer."""
    best: int
    """The layer with the greatest S on these very facts, the lowest one on a tie."""
    near: tuple[int, ...]
    """The layers whose S is at most `NEAR` lower, the best one among them."""


def compare_choices(
    success: Mapping[str, Float[np.ndarray, "fact layer"]],
    *,
    layers: Sequence[int],
    located: int,
    own: Int[np.ndarray, " fact"],
    generator: np.random.Generator,
    resamples: int = 1000,
) -> LayerChoices:
    """Score ways to choose the layer.

    Args:
        success: by name of `SUCCESSES`, each fact's value when edited at each layer; NaN where it has none.
        layers: the layers that were edited.
        located: the one of them that tracing the facts together names.
        own: by fact, the index in `layers` of the one that tracing this fact alone names.
    """
    by_layer = np.stack([success[name] for name in SUCCESSES], axis=1)
    chosen = np.take_along_axis(by_layer, own[:, None, None], axis=2)
    values = rearrange(np.concatenate([by_layer, chosen], axis=2), "fact score option -> fact (score option)")

    def with_overall(means: np.ndarray) -> np.ndarray:
        parts = rearrange(means, "resample (score option) -> resample option score", score=len(SUCCESSES))
        return np.concatenate([harmonic_mean(parts)[..., None], parts], axis=-1)

    means = with_overall(record_means(values)[None])
    samples = with_overall(bootstrap_means(values, resamples=resamples, generator=generator))
    best = int(np.nan_to_num(means[0, :-1, 0], nan=-1).argmax())

    def choose(options: np.ndarray) -> dict[str, np.ndarray]:
        edited = options[:, :-1]
        return {
            "random": edited.mean(axis=1),
            "located": edited[:, layers.index(located)],
            "own": options[:, -1],
            "best": edited[:, best],
        }

    found, resampled = choose(means), choose(samples)
    n = len(own)

    def difference(one: str, other: str) -> Estimate:
        return from_samples(found[one][0, 0] - found[other][0, 0], resampled[one][:, 0] - resampled[other][:, 0], n)

    return LayerChoices(
        scores={
            choice: {
                name: from_samples(found[choice][0, index], resampled[choice][:, index], n)
                for index, name in enumerate(("S", *SUCCESSES))
            }
            for choice in CHOICES
        },
        against_random={choice: difference(choice, "random") for choice in CHOICES},
        against_best={choice: difference(choice, "best") for choice in CHOICES},
        best=layers[best],
        near=tuple(layer for layer, s in zip(layers, means[0, :-1, 0], strict=True) if s >= means[0, best, 0] - NEAR),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerComparison(Shown):
    """One editor at every layer, beside the tracing effect of that layer on the same facts."""

    layers: tuple[int, ...]
    """The layers that were edited."""
    effects: Float[np.ndarray, "fact layer"]
    """`last_subject_effect` of each fact at each of them."""
    outcomes: Mapping[str, Float[np.ndarray, "fact layer"]]
    """By name of `OUTCOMES`, each fact's score when edited at each of them."""
    explained: Mapping[str, Explained]
    """By outcome, how far effect and layer explain it; outcomes that no fact has are left out."""
    ranks: Mapping[str, Estimate]
    """By outcome, the rank correlation of effect and score over a fact's layers, mean over facts."""
    choices: LayerChoices
    """What locating bought."""


def compare_method(
    evaluations: Mapping[tuple[int, int], Evaluation],
    *,
    cases: Sequence[int],
    layers: Sequence[int],
    effects: Float[np.ndarray, "fact layer"],
    located: int,
    seed: int,
) -> LayerComparison:
    """Compare one editor's evaluations, by (layer, case), with the tracing effects of the facts of `cases`."""

    def array(values: Mapping[tuple[int, int], Mapping[str, float]], name: str) -> Float[np.ndarray, "fact layer"]:
        return np.array([[values[layer, case][name] for layer in layers] for case in cases], dtype=float)

    normalised = {place: normalised_scores(evaluation) for place, evaluation in evaluations.items()}
    after = {place: evaluation.metrics()[1] for place, evaluation in evaluations.items()}
    outcomes = {name: array(normalised, name) for name in OUTCOMES}
    known = {name: values for name, values in outcomes.items() if not np.isnan(values).any(axis=1).all()}
    return LayerComparison(
        layers=tuple(layers),
        effects=effects,
        outcomes=outcomes,
        explained={n: explained(effects, v, generator=np.random.default_rng(seed)) for n, v in known.items()},
        ranks={
            name: bootstrap_mean(rank_correlations(effects, values), generator=np.random.default_rng(seed))
            for name, values in known.items()
        },
        choices=compare_choices(
            {name: array(after, name) for name in SUCCESSES},
            layers=layers,
            located=located,
            own=effects.argmax(axis=1),
            generator=np.random.default_rng(seed),
        ),
    )
