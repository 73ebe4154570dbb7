"""What is measured of one record before and after an edit, and the metrics that follow; JSON both ways."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from workbench.machine.intervals import nan_to_none, none_to_nan
from workbench.measuring.metrics import magnitude, ngram_entropy, success
from workbench.records.joining import starts_with_target

KINDS = ("rewrite", "paraphrase", "neighborhood", "portability", "reversion")
"""Kinds of prompts whose answers are scored."""

FLUENCY_TOKENS = 100
"""Length of a sampled text, its prompt included, as published."""
FLUENCY_TOP_K = 5
"""A sampled text's next token is drawn from this many likeliest ones, at temperature 1, as published."""

Answer = Literal["new", "true"]


@dataclass(frozen=True, kw_only=True)
class PromptScores:
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

    def correct(self, answer: Answer, protocol: Literal["top1", "generated"]) -> float:
        """1.0 if the model gives one of the answers, 0.0 if not; NaN without answers or generations."""
        targets = self.targets_new if answer == "new" else self.targets_true
        if not targets or (protocol == "generated" and self.generated is None):
            return math.nan
        if protocol == "top1":
            return float(self.top_new if answer == "new" else self.top_true)
        return float(any(starts_with_target(self.generated or "", target) for target in targets))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "prompt": self.prompt,
            "targets_new": list(self.targets_new),
            "targets_true": list(self.targets_true),
            "p_new": nan_to_none(self.p_new),
            "p_true": nan_to_none(self.p_true),
            "top_new": self.top_new,
            "top_true": self.top_true,
            "generated": self.generated,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PromptScores":
        """The inverse of `to_dict`."""
        changed = {
            "targets_new": tuple(values["targets_new"]),
            "targets_true": tuple(values["targets_true"]),
            "p_new": none_to_nan(values["p_new"]),
            "p_true": none_to_nan(values["p_true"]),
        }
        return cls(**{**values, **changed})


@dataclass(frozen=True, kw_only=True)
class RecordScores:
    """All prompts of one record under one state of the model."""

    prompts: Mapping[str, tuple[PromptScores, ...]]
    """By kind (`KINDS`), every kind present, in the record's order."""
    texts: tuple[str, ...] = ()
    """Sampled texts, generation prompts included, whose entropy is the fluency; empty if not measured."""
    neighborhood_log_probs: Float[Tensor, "neighborhood vocab"] | None = field(default=None, compare=False, repr=False)
    """Next-token distributions for KL(pre || post); in memory only: not in `to_dict` or `Evaluation`."""

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
                for answer in ("new", "true"):
                    given = (prompt.correct(answer, protocol) for prompt in self.prompts[kind])
                    values[f"{protocol}.{kind}.{answer}"] = _mean(given)
        return values

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without `neighborhood_log_probs`."""
        prompts = {kind: [prompt.to_dict() for prompt in self.prompts[kind]] for kind in KINDS}
        return {"prompts": prompts, "texts": list(self.texts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RecordScores":
        """The inverse of `to_dict`."""
        prompts = {kind: tuple(map(PromptScores.from_dict, values["prompts"][kind])) for kind in KINDS}
        return cls(prompts=prompts, texts=tuple(values["texts"]))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
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

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: one line of a run folder."""
        return {
            "case_id": self.case_id,
            "pre": self.pre.to_dict(),
            "post": self.post.to_dict(),
            "kl": nan_to_none(self.kl),
            "relative_norms": {str(layer): norm for layer, norm in self.relative_norms.items()},
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Evaluation":
        """The inverse of `to_dict`; other keys (what a run folder adds) are ignored."""
        return cls(
            case_id=values["case_id"],
            pre=RecordScores.from_dict(values["pre"]),
            post=RecordScores.from_dict(values["post"]),
            kl=none_to_nan(values["kl"]),
            relative_norms={int(layer): norm for layer, norm in values["relative_norms"].items()},
            seconds=values["seconds"],
        )


def _mean(values: Iterable[float]) -> float:
    """Mean of those that are not NaN; NaN if none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
