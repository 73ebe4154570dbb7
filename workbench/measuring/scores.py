"""What is measured of one record before and after an edit, and the metrics that follow; JSON both ways."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from workbench.machine.as_json import AsJson
from workbench.machine.shown import Shown, html_table, percent
from workbench.measuring.metrics import magnitude, ngram_entropy, success
from workbench.records.joining import starts_with_target

KINDS = ("rewrite", "paraphrase", "neighborhood", "portability", "reversion")
"""Kinds of prompts whose answers are scored."""

FLUENCY_TOKENS = 100
"""Length of a sampled text, its prompt included, as published."""
FLUENCY_TOP_K = 5
"""A sampled text's next token is drawn from this many likeliest ones, at temperature 1, as published."""

Target = Literal["new", "true"]
"""An answer: that after the edit, or that before it."""


@dataclass(frozen=True, kw_only=True)
class PromptScores(Shown, AsJson):
    """One prompt and what one state of the model makes of it."""

    prompt: str
    targets_new: tuple[str, ...]
    """Right answers after the edit; on rewrite, paraphrase and neighborhood prompts the new target."""
    targets_true: tuple[str, ...]
    """Right answers before the edit; empty if unknown."""
    p_new: float
    """Probability of the likeliest of `targets_new` (`metrics.target_probability`); NaN if there is none."""
    p_true: float
    """The same of `targets_true`."""
    top_new: bool
    """Teacher-forced: every token of one of `targets_new` is the model's top choice."""
    top_true: bool
    """The same of `targets_true`."""
    generated: str | None
    """Greedy continuation, long enough for the targets; None if nothing was generated."""

    def correct(self, target: Target, protocol: Literal["top1", "generated"]) -> float:
        """1.0 if the model gives one of the targets, 0.0 if not; NaN without targets or generations."""
        targets = self.targets_new if target == "new" else self.targets_true
        if not targets or (protocol == "generated" and self.generated is None):
            return math.nan
        if protocol == "top1":
            return float(self.top_new if target == "new" else self.top_true)
        return float(any(starts_with_target(self.generated or "", one) for one in targets))


@dataclass(frozen=True, kw_only=True)
class RecordScores(Shown, AsJson):
    """All prompts of one record under one state of the model."""

    prompts: Mapping[str, tuple[PromptScores, ...]]
    """By kind (`KINDS`), every kind present, in the record's order."""
    texts: tuple[str, ...] = ()
    """Sampled texts, generation prompts included, whose entropy is the fluency; empty if not measured."""
    neighborhood_log_probs: Float[Tensor, "neighborhood vocab"] | None = field(
        default=None, compare=False, repr=False, metadata={"json": False}
    )
    """Next-token distributions for KL(pre || post); in memory only: not in `to_dict` or `Evaluation`."""

    def __repr__(self) -> str:
        asked = [f"{len(prompts)} {kind}" for kind, prompts in self.prompts.items() if prompts]
        return f"RecordScores({', '.join(asked)} prompts, {len(self.texts)} texts)"

    @property
    def fluency(self) -> float:
        """Mean `metrics.ngram_entropy` of the texts, in bits; NaN without texts."""
        return _mean(map(ngram_entropy, self.texts))

    def metrics(self) -> dict[str, float]:
        """This record's value of each metric, NaN where it lacks the prompts.

        ES, EM, PS, PM, NS, NM and fluency, then `{top1,generated}.{kind}.{new,true}`: the share of prompts of
        the kind that are answered with the new or the true target.
        """
        values = {}
        for name, kind in (("E", "rewrite"), ("P", "paraphrase"), ("N", "neighborhood")):
            new = np.array([prompt.p_new for prompt in self.prompts[kind]], dtype=float)
            true = np.array([prompt.p_true for prompt in self.prompts[kind]], dtype=float)
            better, worse = (true, new) if kind == "neighborhood" else (new, true)
            values[f"{name}S"], values[f"{name}M"] = success(better, worse), magnitude(better, worse)
        values["fluency"] = self.fluency
        for protocol in ("top1", "generated"):
            for kind in KINDS:
                for target in ("new", "true"):
                    given = (prompt.correct(target, protocol) for prompt in self.prompts[kind])
                    values[f"{protocol}.{kind}.{target}"] = _mean(given)
        return values


@dataclass(frozen=True, kw_only=True)
class Evaluation(Shown, AsJson):
    """One record before and after an edit."""

    case_id: int
    pre: RecordScores
    post: RecordScores
    kl: float
    """KL(pre || post) of the next token in nats, mean over neighborhood prompts; NaN if there are none."""
    relative_norms: Mapping[int, float]
    """||dW|| / ||W|| (Frobenius) by layer; empty for an edit that writes no weights."""
    seconds: float
    """Wall-clock time of the evaluation; the making of the edit is not in it."""

    def __repr__(self) -> str:
        before, after = self.metrics()
        compared = [name for name in ("ES", "PS", "NS") if not math.isnan(after[name])]
        answered = [f"generated.{kind}.new" for kind in KINDS if self.post.prompts[kind]]  # without a true answer
        told = [f"{name} {percent(before[name])} -> {percent(after[name])}" for name in compared or answered]
        return f"Evaluation(record {self.case_id}: {', '.join(told)})"

    def _repr_html_(self) -> str:
        """What each prompt was continued with before and after, for notebooks."""
        rows = []
        for kind in KINDS:
            for pre, post in zip(self.pre.prompts[kind], self.post.prompts[kind], strict=True):
                likely = [f"{percent(one.p_new)} / {percent(one.p_true)}" for one in (pre, post)]
                rows.append((kind, pre.prompt, pre.generated or "", post.generated or "", *likely))
        head = ("kind", "prompt", "before", "after", "% new / true before", "% new / true after")
        return html_table(repr(self), rows, head=head)

    def metrics(self) -> tuple[dict[str, float], dict[str, float]]:
        """This record's values (before, after) of `RecordScores.metrics`; after the edit also

        `kl`, `seconds`, `relative_norm.{layer}` and `generated.portability.new_if_known`: portability over
        the prompts whose old answer the model generated before the edit (the filter of Cohen et al. 2024).
        """
        pairs = zip(self.pre.prompts["portability"], self.post.prompts["portability"], strict=True)
        known = [post for pre, post in pairs if pre.correct("true", "generated") == 1]
        after = self.post.metrics() | {
            "generated.portability.new_if_known": _mean(post.correct("new", "generated") for post in known),
            "kl": self.kl,
            "seconds": self.seconds,
        }
        after |= {f"relative_norm.{layer}": norm for layer, norm in self.relative_norms.items()}
        return self.pre.metrics(), after


def _mean(values: Iterable[float]) -> float:
    """Mean of those that are not NaN; NaN if none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
