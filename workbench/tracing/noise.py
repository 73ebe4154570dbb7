"""Noise on the subject: where its tokens are, how loud the noise is, and the noise itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.model import Model
from workbench.records.facts import EditRequest, Fact, subject_characters, token_span

Kind = Literal["gaussian", "uniform", "multivariate"]

_TOKENS_AT_ONCE = 4096
_SUBJECTS_AT_ONCE = 64


def subject_span(model: Model, fact: Fact | EditRequest) -> tuple[int, int]:
    """The subject's tokens in the fact's prompt, [first, end); a BOS in front counts as token 0."""
    tokens = model.tokenize([fact.prompt])
    return token_span(tokens.offsets[0], subject_characters(fact.template, fact.subject))


def embedding_noise_std(model: Model, facts: Sequence[Fact]) -> float:
    """Standard deviation of the subjects' token embeddings over a set of facts (Meng et al. 2022, section 2).

    As published: every subject is tokenised alone (no word in front, so without a leading space), a subject
    of several facts counts once a fact, all entries of all tokens are pooled, and the deviation is the
    unbiased one. Tokens that the tokenizer adds by itself do not count. ValueError for an empty set and for
    embeddings that are not finite.
    """
    if not facts:
        raise ValueError("the standard deviation of subject embeddings needs at least one fact, got none")
    embed = model.hook_name("embed")
    parts = []
    for start in range(0, len(facts), _SUBJECTS_AT_ONCE):
        subjects = [fact.subject for fact in facts[start : start + _SUBJECTS_AT_ONCE]]
        tokens = model.tokenize(subjects)
        embedded = model.activations(tokens, [embed])[embed].float().cpu()
        for row, subject in enumerate(subjects):
            first, end = token_span(tokens.offsets[row], (0, len(subject)))
            parts.append(embedded[row, first:end])
    std = torch.cat(parts).std().item()
    if not math.isfinite(std):
        raise _broken_embeddings(model)
    return std


@torch.no_grad()
def embedding_gaussian(model: Model) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "d_model d_model"]]:
    """Mean of the token embeddings, and the symmetric square root of their covariance: root @ root = covariance.

    Every token of the vocabulary counts once; the published code counts tokens as often as Wikipedia has them.
    Both on the CPU in float32. ValueError for embeddings that are not finite.
    """
    n = min(len(model.tokenizer), int(model.bridge.cfg.d_vocab))
    total = torch.zeros(model.d_embed, dtype=torch.float64)
    products = torch.zeros(model.d_embed, model.d_embed, dtype=torch.float64)
    for ids in torch.arange(n, device=model.device).split(_TOKENS_AT_ONCE):
        some = model.bridge.embed(ids[None])[0].double().cpu()
        total += some.sum(dim=0)
        products += some.T @ some
    if not torch.isfinite(products).all():
        raise _broken_embeddings(model)
    mean = total / n
    covariance = (products - n * torch.outer(mean, mean)) / (n - 1)
    # The symmetric root is unique, so that a seed gives the same noise whatever computes the eigenvectors.
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return mean.float(), root.float()


def gaussian_noise(
    std: float, samples: int, subject_tokens: int, d_model: int, *, generator: torch.Generator
) -> Float[Tensor, "sample subject_pos d_model"]:
    """Normal noise of deviation `std` for the subject's token embeddings, float32 on the CPU.

    Drawn on the CPU, so that a seed gives the same noise on every device. ValueError for a negative or
    infinite `std` and for fewer than one sample or token.
    """
    _check_draw(std, samples, subject_tokens)
    return std * torch.randn(samples, subject_tokens, d_model, generator=generator)


@dataclass(frozen=True, kw_only=True)
class NoiseRule:
    """How subjects are corrupted; `fit` finds the noise's size on a model.

    The default is the published one (Meng et al. 2022): Gaussian noise of three standard deviations of the
    subjects' embeddings, added to them.
    """

    kind: Kind = "gaussian"
    """Gaussian of a standard deviation, uniform within +- a half width, or multivariate: Gaussian with the mean and
    the covariance of the model's token embeddings (`embedding_gaussian`)."""
    scale: float = 3.0
    """The standard deviation or half width; for the multivariate kind what draws are multiplied by, 1 as published."""
    relative: bool = True
    """Whether `scale` counts in standard deviations of the subjects' embeddings (`embedding_noise_std`) or is
    the size itself; False for the multivariate kind."""
    replace: bool = False
    """Whether the noise is put in place of the embeddings instead of added to them."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind of noise must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"scale of noise must be a finite number of at least 0, got {self.scale}")
        if self.kind == "multivariate" and self.relative:
            raise ValueError("multivariate noise is fitted to the embeddings: give relative=False and a scale of 1")

    @classmethod
    def parse(cls, text: str) -> "NoiseRule":
        """A rule from its short form; `str` gives that form back.

        "s3" is Gaussian noise of 3 standard deviations of the subjects' embeddings, "0.2" Gaussian of
        deviation 0.2, "us3" and "u0.2" uniform within +- that much, "m" the multivariate Gaussian fitted to
        the token embeddings ("m0.5" half of it). With "replace:" in front the noise takes the place of the
        embeddings. ValueError for anything else.
        """
        spec = text.removeprefix("replace:")
        for prefix, kind, relative in _PREFIXES:
            if spec.startswith(prefix):
                try:
                    number = spec.removeprefix(prefix)
                    scale = 1.0 if (prefix, number) == ("m", "") else float(number)
                    return cls(kind=kind, scale=scale, relative=relative, replace=spec != text)
                except ValueError:
                    break
        raise ValueError(
            f"noise must be s3 (Gaussian, in standard deviations of the embeddings), 0.2 (Gaussian), us3 or u0.2 "
            f"(uniform) or m (multivariate), with a number of at least 0 and perhaps replace: in front, got {text!r}"
        )

    def __str__(self) -> str:
        prefix = next(p for p, kind, relative in _PREFIXES if (kind, relative) == (self.kind, self.relative))
        number = "" if (prefix, self.scale) == ("m", 1) else repr(float(self.scale)).removesuffix(".0")
        return f"{'replace:' * self.replace}{prefix}{number}"

    def fit(self, model: Model, facts: Sequence[Fact]) -> "Noise":
        """Noise of the size that the rule means on this model and these facts."""
        size = self.scale * embedding_noise_std(model, facts) if self.relative else self.scale
        mean, root = embedding_gaussian(model) if self.kind == "multivariate" else (None, None)
        return Noise(rule=self, size=size, d_model=model.d_embed, mean=mean, root=root)


_PREFIXES: tuple[tuple[str, Kind, bool], ...] = (
    ("us", "uniform", True),
    ("u", "uniform", False),
    ("s", "gaussian", True),
    ("m", "multivariate", False),
    ("", "gaussian", False),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise(Shown):
    """A noise rule fitted to a model; the same for all facts."""

    rule: NoiseRule
    """What was fitted."""
    size: float
    """Standard deviation, half width, or factor of multivariate draws, in the units of the embeddings."""
    d_model: int
    """Width of the embeddings."""
    mean: Float[Tensor, " d_model"] | None = None
    """Mean of the token embeddings; None unless the rule is multivariate."""
    root: Float[Tensor, "d_model d_model"] | None = None
    """Symmetric square root of their covariance; None unless the rule is multivariate."""

    @property
    def replace(self) -> bool:
        """Whether draws are put in place of the embeddings."""
        return self.rule.replace

    def draw(
        self, samples: int, subject_tokens: int, *, generator: torch.Generator
    ) -> Float[Tensor, "sample subject_pos d_model"]:
        """Noise for the tokens of one subject, float32 on the CPU; ValueError for fewer than one sample or token."""
        _check_draw(self.size, samples, subject_tokens)
        if self.rule.kind == "uniform":
            drawn = 2 * torch.rand(samples, subject_tokens, self.d_model, generator=generator) - 1
            return self.size * drawn
        if self.mean is None or self.root is None:
            return gaussian_noise(self.size, samples, subject_tokens, self.d_model, generator=generator)
        standard = torch.randn(samples, subject_tokens, self.d_model, generator=generator)
        return self.size * (self.mean + standard @ self.root)


def _check_draw(std: float, samples: int, subject_tokens: int) -> None:
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"noise needs a finite standard deviation of at least 0, got {std}")
    if samples < 1 or subject_tokens < 1:
        raise ValueError(f"noise needs at least 1 sample and 1 subject token, got {samples} and {subject_tokens}")


def _broken_embeddings(model: Model) -> ValueError:
    return ValueError(f"model {model.name!r} has token embeddings that are NaN or infinite; load it again")


def fact_generator(seed: int, index: int) -> torch.Generator:
    """A generator of its own for every pair of seed and index."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
