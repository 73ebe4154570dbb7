"""CausalTrace: what tracing one fact gives, and how it is kept on disk."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from workbench.facts import Fact
from workbench.files import write_whole

FORMAT = "workbench.causal_trace.1"


class TraceError(ValueError):
    """A trace on disk that cannot be read; the message names the file and what is wrong with it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalTrace:
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
    restored: Mapping[str, Float[Tensor, "pos layer"]]
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
    def last_subject(self) -> int:
        """The subject's last token."""
        return self.subject[1] - 1

    def _repr_html_(self) -> str:
        """The trace as a heat map to point at, for notebooks."""
        from workbench.report.trace_view import trace_view  # report imports tracing

        return trace_view([self])

    def save(self, path: Path) -> None:
        """Write the trace exactly as one safetensors file; the file appears whole or not at all."""
        meta = {field: getattr(self, field) for field in _PLAIN_FIELDS} | {
            "fact": asdict(self.fact),
            "sites": list(self.restored),
        }
        tensors = {site: values.detach().cpu().contiguous() for site, values in self.restored.items()}
        write_whole(Path(path), save(tensors, metadata={"format": FORMAT, "trace": json.dumps(meta)}))

    @classmethod
    def load(cls, path: Path) -> "CausalTrace":
        """Read what `save` wrote; FileNotFoundError, or TraceError for a file that is damaged or no trace."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no trace at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise TraceError(f"{path}: expected a {FORMAT} file, got format {header.get('format')!r}")
                meta = json.loads(header["trace"])
                restored = {site: file.get_tensor(site) for site in meta["sites"]}
            plain = {field: meta[field] for field in _PLAIN_FIELDS if field in meta}
            plain |= {name: tuple(plain[name]) for name in ("tokens", "subject", "positions") if name in plain}
            return cls(fact=Fact(**meta["fact"]), restored=restored, **plain)
        except TraceError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path}: damaged trace, trace the fact again ({error})") from error


_PLAIN_FIELDS = ("tokens", "subject", "answer", "answer_id", "clean", "corrupted", "window",
                 "positions", "span", "severed", "metric", "foil")  # fmt: skip


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
