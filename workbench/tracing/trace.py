"""CausalTrace: what tracing one fact gives, how it is kept on disk and looked at."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.as_json import AsJson
from workbench.machine.sealed import load_sealed, save_sealed
from workbench.machine.shown import Shown
from workbench.models.tokens import visible
from workbench.records.facts import Fact
from workbench.tracing.view import view_html

FORMAT = "workbench.causal_trace.2"
SITE_LABELS = {"resid_post": "Hidden state", "mlp_out": "MLP", "attn_out": "Attention"}
"""What readers call the sites that are restored."""


class TraceError(ValueError):
    """A trace on disk that cannot be read; the message names the file and what is wrong with it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalTrace(Shown, AsJson):
    """Probability of a fact's answer with single clean states restored (Meng et al. 2022, section 2)."""

    fact: Fact
    """The fact whose prompt was traced."""
    tokens: tuple[str, ...]
    """The prompt's tokens as text, one each `pos`."""
    subject: tuple[int, int]
    """The subject's tokens, [first, end): those that noise was added to."""
    answer: str
    """The model's own top token of the clean run, as text."""
    answer_id: int
    """That token's id."""
    clean: float
    """Probability of the answer, or what else `metric` names, in the clean run."""
    corrupted: float
    """The same in the corrupted runs, nothing restored: mean over the samples."""
    restored: Mapping[str, Float[Tensor, "pos layer"]] = field(metadata={"json": False})
    """By site, the same mean when the site's clean states at the positions [pos, pos + span) are restored in the
    layers `restored_layers(layer, window, n_layers)`, for `resid_post` in `layer`; rows as `positions`."""
    window: int
    """How many layers are restored together for `mlp_out` and `attn_out`, not for `resid_post`."""
    positions: tuple[int, ...] = ()
    """The tokens that were traced, ascending; all of them unless given."""
    span: int = 1
    """How many positions are restored together."""
    severed: str | None = None
    """Site whose outputs in later layers were frozen at their corrupted values at the restored positions."""
    metric: str = "probability"
    """What was measured: one of `METRICS`."""
    foil: str | None = None
    """The token that a logit difference compares the answer with, as text."""
    samples: int = 0
    """Corrupted runs that are averaged; 0 where an earlier version, which did not note it, has saved the trace."""

    def __post_init__(self) -> None:
        first, end = self.subject
        if not 0 <= first < end <= len(self.tokens):
            raise ValueError(f"subject must lie within the {len(self.tokens)} tokens, got [{first}, {end})")
        if self.window < 1:
            raise ValueError(f"window must be at least 1 layer, got {self.window}")
        if not self.positions:
            object.__setattr__(self, "positions", tuple(range(len(self.tokens))))
        if not set(self.positions) <= set(range(len(self.tokens))) or sorted(set(self.positions)) != [*self.positions]:
            raise ValueError(f"positions must be some of 0 to {len(self.tokens) - 1}, ascending, got {self.positions}")
        for site, values in self.restored.items():
            if values.shape[0] != len(self.positions):
                raise ValueError(
                    f"restored[{site!r}] needs {len(self.positions)} rows, one a token traced, got {values.shape[0]}"
                )

    @property
    def total_effect(self) -> float:
        """Clean minus corrupted: of probabilities unless `metric` says otherwise."""
        return self.clean - self.corrupted

    def indirect_effect(self, site: str) -> Float[Tensor, "pos layer"]:
        """Restored minus corrupted; ValueError for a site that was not traced."""
        if site not in self.restored:
            traced = ", ".join(self.restored) or "no site"
            raise ValueError(f"site {site!r} was not traced; this trace has {traced}")
        return self.restored[site] - self.corrupted

    def effect_at(self, site: str, pos: int) -> Float[Tensor, " layer"]:
        """`indirect_effect` at one token, by layer; ValueError for a token that was not traced."""
        if pos not in self.positions:
            traced = ", ".join(map(str, self.positions))
            raise ValueError(f"token {pos} of {self.fact.prompt!r} was not traced; this trace has {traced}")
        return self.indirect_effect(site)[self.positions.index(pos)]

    @property
    def restoring(self) -> str:
        """What a cell restores, in words, and what is kept corrupted."""
        return restoring(self.span, self.severed)

    @property
    def last_subject(self) -> int:
        """The subject's last token."""
        return self.subject[1] - 1

    def __repr__(self) -> str:
        sites = ", ".join(self.restored)
        ran = f"{self.clean:.3f} clean, {self.corrupted:.3f} corrupted"
        return f"CausalTrace({self.fact.prompt!r} -> {self.answer!r}: {ran}; {sites} at {len(self.positions)} tokens)"

    def _repr_html_(self) -> str:
        """The trace as a heat map to point at, for notebooks."""
        return trace_view([self])

    def save(self, path: Path) -> None:
        """Write the trace exactly as one safetensors file with a checksum; it appears whole or not at all."""
        save_sealed(path, self.restored, self.to_dict() | {"sites": list(self.restored)}, format=FORMAT)

    @classmethod
    def load(cls, path: Path) -> "CausalTrace":
        """Read what `save` wrote; FileNotFoundError, or TraceError for a file that is damaged or no trace."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no trace at {path}")
        try:
            tensors, meta = load_sealed(path, format=FORMAT)
            restored = {site: tensors[site] for site in meta.pop("sites")}
            return cls.from_dict(meta | {"restored": restored})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TraceError(f"{path}: damaged trace, trace the fact again ({error})") from error


def restoring(span: int = 1, severed: str | None = None) -> str:
    """The words for a span of tokens that are restored together and a site that is severed."""
    states = "one state" if span == 1 else f"{span} tokens' states together"
    return f"{states} ({severed} of later layers kept corrupted)" if severed else states


def restored_layers(layer: int, window: int, n_layers: int) -> range:
    """The layers [layer - floor(window/2), layer + ceil(window/2)), cut at the model's ends.

    `layer` is the centre of an odd window; an even window holds one more layer below `layer` than above it.
    Windows at the ends are shorter, not shifted. ValueError for a window below 1, IndexError for a layer not
    there.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 layer, got {window}")
    if not 0 <= layer < n_layers:
        raise IndexError(f"layer {layer} is out of range: the model has layers 0 to {n_layers - 1}")
    return range(max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2))


def check_probabilities(values: Float[Tensor, "..."], *, model: str, prompt: str) -> None:
    """ValueError where a run gave NaN, which means that weights or activations are not finite."""
    if not torch.isfinite(values).all():
        raise ValueError(
            f"model {model!r} gives NaN probabilities for {prompt!r}: its weights hold NaN or infinity; load it again"
        )


# To look at ---------------------------------------------------------------------------------------------


def trace_view(
    traces: Sequence[CausalTrace],
    *,
    after: Sequence[CausalTrace | None] | None = None,
    planted: range | None = None,
) -> str:
    """Heat maps (tokens by layers) of causal traces, to point at or to walk through with the keyboard.

    A single trace has no chooser of facts. Numbers are rounded to four digits; what is not finite, and tokens that were
    not traced, are shown as not measured. ValueError for no traces, and for a trace after an edit that is not of the
    same tokens, positions, sites and layers.

    Args:
        after: For each trace that of the same prompt after an edit, or None; both and their difference can be shown.
        planted: The layers that the model was trained to recall in, marked below the map.
    """
    if not traces:
        raise ValueError("trace_view needs at least one trace, got none")
    edited = [None] * len(traces) if after is None else list(after)
    if len(edited) != len(traces):
        raise ValueError(
            f"after needs one entry a trace, None where there is none: got {len(edited)} for {len(traces)} traces"
        )
    sites = {site: None for trace in traces for site in (*trace.restored, trace.severed) if site}
    data = {
        "labels": {site: SITE_LABELS.get(site, site) for site in sites},
        "planted": None if planted is None else [planted.start, planted.stop],
        "traces": [_payload(trace, then) for trace, then in zip(traces, edited, strict=True)],
    }
    first = traces[0]
    fallback = (
        f"{first.fact.prompt} → {visible(first.answer)}: {first.clean:.3f} clean, {first.corrupted:.3f} corrupted. "
        "The causal trace needs JavaScript; a notebook must be trusted."
    )
    return view_html(data, fallback=fallback)


def _payload(trace: CausalTrace, after: CausalTrace | None) -> dict[str, Any]:
    payload = _run(trace) | {
        "prompt": trace.fact.prompt,
        "tokens": trace.tokens,
        "subject": trace.subject,
        "window": trace.window,
        "span": trace.span,
        "severed": trace.severed,
        "metric": trace.metric,
    }
    if after is not None:
        for name in ("tokens", "subject", "positions", "window", "span", "severed", "metric"):
            if getattr(after, name) != getattr(trace, name):
                raise ValueError(
                    f"{trace.fact.prompt!r}: {name} must be the same before and after the edit, got "
                    f"{getattr(trace, name)!r} and {getattr(after, name)!r}"
                )
        shapes = [{site: tuple(values.shape) for site, values in one.restored.items()} for one in (trace, after)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{trace.fact.prompt!r}: sites and layers must be the same before and after the edit, got "
                f"{shapes[0]} and {shapes[1]}"
            )
        payload["after"] = _run(after)
    return payload


def _run(trace: CausalTrace) -> dict[str, Any]:
    """What an edit changes of a trace."""
    return {
        "answer": trace.answer,
        "foil": trace.foil,
        "clean": _short(trace.clean),
        "corrupted": _short(trace.corrupted),
        "sites": {site: _rows(trace, site) for site in trace.restored},
    }


def _rows(trace: CausalTrace, site: str) -> list[list[float | None]]:
    """A row a token of the prompt; None where it was not traced."""
    values = trace.restored[site].float()
    rows: list[list[float | None]] = [[None] * values.shape[1] for _ in trace.tokens]
    for pos, row in zip(trace.positions, values.tolist(), strict=True):
        rows[pos] = [_short(value) for value in row]
    return rows


def _short(value: float) -> float | None:
    """Four significant digits; None, which JSON can hold, for what is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
