"""What is asked of a prompt and in which form, checked."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.model import SITES, Model
from workbench.models.tokens import Tokens
from workbench.records.facts import Fact
from workbench.tracing.corruption import Corruption
from workbench.tracing.known import as_asked
from workbench.tracing.noise import subject_span
from workbench.tracing.positions import Positions, traced_positions

ENGINES = ("auto", "fast", "plain")
"""How cells are computed, all to the same numbers; "auto" is fast where a model's blocks are known, else plain."""
Shape = tuple[int, int, tuple[int, ...]]
"""A prompt's tokens, the first of its subject, and the positions that are traced."""


def shape_of(model: Model, fact: Fact, positions: Positions = "all") -> Shape:
    """What facts must have in common to be traced together."""
    n_pos, (first, end) = model.tokenize([as_asked(model, fact).prompt]).ids.shape[1], subject_span(model, fact)
    return n_pos, first, traced_positions(positions, n_tokens=n_pos, subject=(first, end))


@dataclass(frozen=True)
class Form:
    """What is asked of every prompt; see `trace_fact`."""

    sites: Sequence[str]
    window: int
    span: int
    severed: str | None
    severed_below: bool
    metric: str
    skip_before_subject: bool

    def check(self, engine: str) -> None:
        unknown = [site for site in self.sites if site not in SITES]
        if unknown or not self.sites:
            got = ", ".join(map(repr, self.sites)) or "none"
            raise ValueError(f"sites must be some of {', '.join(SITES)}, got {got}")
        if self.severed not in (None, "mlp_out", "attn_out"):
            raise ValueError(f"severed must be mlp_out, attn_out or None, got {self.severed!r}")
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        for name, value in (("window", self.window), ("span", self.span)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, eq=False)
class Prompt(Shown):
    """A fact with its tokens and its corruption."""

    fact: Fact
    tokens: Tokens
    subject: tuple[int, int]
    positions: tuple[int, ...]
    corruption: Corruption
    foil: int | None

    @property
    def shape(self) -> Shape:
        return self.tokens.ids.shape[1], self.subject[0], self.positions


def prompt_of(
    model: Model,
    fact: Fact,
    noise: Tensor,
    replace: bool,
    positions: Positions,
    severed_noise: Tensor | None,
    foil: int | None,
) -> Prompt:
    tokens = model.tokenize([as_asked(model, fact).prompt])
    first, end = subject_span(model, fact)
    for each in (noise,) if severed_noise is None else (noise, severed_noise):
        if len(each) < 1 or tuple(each.shape[1:]) != (end - first, model.d_embed) or len(each) != len(noise):
            raise ValueError(
                f"noise for {fact.subject!r} in {fact.prompt!r} must be [samples, {end - first} subject tokens, "
                f"{model.d_embed}], got {list(each.shape)}"
            )
    chosen = traced_positions(positions, n_tokens=tokens.ids.shape[1], subject=(first, end))
    corruption = Corruption(first=first, noise=noise, replace=replace, frozen_noise=severed_noise)
    return Prompt(fact, tokens, (first, end), chosen, corruption, foil)
