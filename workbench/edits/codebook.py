"""Edits of one layer by a codebook: states that replace the layer's output where its input is near a key."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.edits.edit import Edit
from workbench.edits.hooked import HookEdit
from workbench.models.hooks import EditHook, ForwardPass
from workbench.models.model import Model

Label = tuple[int, tuple[int, ...]]
"""What an entry makes the model say: the number of its prompt's tokens, and the tokens of its answer."""

_READ = {"mlp_pre": "mlp_in", "mlp_write": "mlp_key"}
"""Site that is replaced -> what the layer that writes it reads, which the keys are of."""
_SAME_PLACE = 1e-3
"""Keys nearer than this part of a new entry's radius are one key, read twice."""
_PUBLISHED_GAP = 1e-5
"""By how much a split leaves the older radius below half the distance."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What edits must share to be one codebook: which layer it wraps, and how it is looked up and kept."""

    layer: int
    """The layer."""
    site: Literal["mlp_pre", "mlp_write"] = "mlp_write"
    """What is replaced; keys are what the matrix that writes it multiplies (`mlp_in`, `mlp_key`)."""
    replace: Literal["prompt", "last"] = "last"
    """Where a prompt's states are replaced: at all its tokens before the last, or at the last alone."""
    radius: float = 1.0
    """Of a new entry."""
    form: Literal["paper", "published", "easyedit"] = "paper"
    """Whose rules; see `Codebook.written`."""

    def __post_init__(self) -> None:
        for name, known in {
            "site": ("mlp_pre", "mlp_write"),
            "replace": ("prompt", "last"),
            "form": ("paper", "published", "easyedit"),
        }.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not self.radius > 0:
            raise ValueError(f"radius must be positive, got {self.radius}")

    def sites(self, model: Model) -> tuple[str, str]:
        """Hook names of what is read and of what is replaced; IndexError for a layer out of range."""
        return model.hook_name(_READ[self.site], self.layer), model.hook_name(self.site, self.layer)

    def widths(self, model: Model) -> tuple[int, int]:
        """Sizes of a key and of a value."""
        d_mlp, d_model = model.weight(self.layer).shape
        return (d_mlp, d_model) if self.site == "mlp_write" else (d_model, d_mlp)

    def replaced(
        self,
        states: Float[Tensor, "batch pos d_out"],
        lasts: Int[Tensor, " batch"],
        values: Float[Tensor, "batch d_out"],
        found: Bool[Tensor, " batch"],
    ) -> Float[Tensor, "batch pos d_out"]:
        """The states with each row's value in place, where it has found one; `lasts` is where its prompt ends."""
        places = torch.arange(states.shape[1], device=states.device)
        at = places == lasts[:, None] if self.replace == "last" else places < lasts[:, None]
        return torch.where((at & found[:, None])[..., None], values[:, None].to(states.dtype), states)


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """Keys with their values, deferral radii and labels."""

    rules: Rules
    keys: Float[Tensor, "entry d_in"]
    values: Float[Tensor, "entry d_out"]
    radii: Float[Tensor, " entry"]
    labels: tuple[Label, ...]

    @classmethod
    def empty(cls, rules: Rules, d_in: int, d_out: int, dtype: torch.dtype) -> "Codebook":
        """One that replaces nothing."""
        keys, values = torch.empty(0, d_in, dtype=dtype), torch.empty(0, d_out, dtype=dtype)
        return cls(rules=rules, keys=keys, values=values, radii=torch.empty(0, dtype=dtype), labels=())

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Codebook":
        """The same on a device."""
        keys, values, radii = (tensor.to(device) for tensor in (self.keys, self.values, self.radii))
        return replace(self, keys=keys, values=values, radii=radii)

    def nearest(self, queries: Float[Tensor, "query d_in"]) -> tuple[Float[Tensor, " query"], Int[Tensor, " query"]]:
        """Distance (Euclidean) to the nearest key of each query, and its index."""
        # By differences: by products, as is the default, what is left of a small distance is rounding.
        mode = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(queries.to(self.keys.dtype), self.keys, compute_mode=mode)
        least, index = distances.min(dim=1)
        return least, index

    def lookup(
        self, queries: Float[Tensor, "query d_in"]
    ) -> tuple[Bool[Tensor, " query"], Float[Tensor, "query d_out"]]:
        """Whether each query lies within the radius of the key nearest to it, and that key's value."""
        distances, index = self.nearest(queries)
        return distances <= self.radii[index], self.values[index]

    def shared(self, key: Float[Tensor, " d_in"], label: Label) -> int | None:
        """The entry that a request of this key and label is written into; None if it needs one of its own."""
        if not len(self):
            return None
        distance, index = (found[0] for found in self.nearest(key[None]))
        near = distance <= self.rules.radius + self.radii[index]
        return int(index) if near and self._says(int(index), label) else None

    def written(self, key: Float[Tensor, " d_in"], value: Float[Tensor, " d_out"], label: Label) -> "Codebook":
        """The codebook with one more request in it (Hartvigsen et al. 2023, algorithm 1).

        - Far from the nearest key, at more than its radius plus `Rules.radius`: a new entry of `Rules.radius`.
        - Near one of the same label: that entry takes the value, and its radius grows to reach the key.
        - Near one of another label: a new entry, and both radii become half the distance.

        Labels are the same under "paper" if the answers' tokens are. There, what lies in the same place as a key
        takes over that key's entry: half of no distance would leave both without effect. "published" is the
        authors' code: labels are the same if the means of their ids are, with -100 for each token of the prompt,
        and the older radius is 1e-5 below the half. "easyedit" besides puts new labels at the front of the list, so
        that from the second on they belong to other keys.
        """
        same = self.shared(key, label)
        if same is not None:
            return self._put(same, value, label, distance=self.nearest(key[None])[0][0])
        if not len(self):
            return self._with(key, value, label, self.rules.radius)
        distance, index = (found[0] for found in self.nearest(key[None]))
        if distance > self.rules.radius + self.radii[index]:
            return self._with(key, value, label, self.rules.radius)
        if self.rules.form == "paper" and distance <= _SAME_PLACE * self.rules.radius:
            return self._put(int(index), value, label, distance=distance)
        grown = self._with(key, value, label, float(distance / 2))
        grown.radii[index] = distance / 2 - (0 if self.rules.form == "paper" else _PUBLISHED_GAP)
        return grown

    def _says(self, index: int, label: Label) -> bool:
        other = self.labels[index]
        if self.rules.form == "paper":
            return other[1] == label[1]
        one, two = (torch.tensor([-100] * prompt + list(answer)).float().mean() for prompt, answer in (other, label))
        return bool(one == two)

    def _put(self, index: int, value: Tensor, label: Label, *, distance: Tensor) -> "Codebook":
        """With an entry's value and label changed, and its radius wide enough for the distance."""
        values, radii = self.values.clone(), self.radii.clone()
        values[index], radii[index] = value, torch.maximum(radii[index], distance)
        labels = self.labels if self.rules.form != "paper" else (*self.labels[:index], label, *self.labels[index + 1 :])
        return replace(self, values=values, radii=radii, labels=labels)

    def _with(self, key: Tensor, value: Tensor, label: Label, radius: float) -> "Codebook":
        return replace(
            self,
            keys=torch.cat([self.keys, key[None]]),
            values=torch.cat([self.values, value[None]]),
            radii=torch.cat([self.radii, torch.tensor([radius], dtype=self.radii.dtype)]),
            labels=(label, *self.labels) if self.rules.form == "easyedit" else (*self.labels, label),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CodebookEdit(HookEdit):
    """Requests written into a codebook: their keys, values and labels.

    The edits of the same `Rules` that are applied to a model are one codebook: `codebook` writes their requests one
    after another, in the order in which the edits were applied. One that is taken back leaves the codebook
    that the others make without it, so that also the radii are what they would be had it never been.

    The codebook is asked once for each prompt, at its last token, which with a key-value cache is in the first pass;
    what follows the prompt is neither asked about nor replaced. (The published code does so too where it scores
    answers; where it generates it asks anew at each token.)
    """

    rules: Rules
    """Of the codebook that the requests are written into."""
    keys: Float[Tensor, "request d_in"]
    """What the layer reads at the last token of each request's prompt."""
    values: Float[Tensor, "request d_out"]
    """What it gives instead."""
    labels: tuple[Label, ...]
    """What the requests make the model say."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.keys) == len(self.values) == len(self.labels):
            raise ValueError(f"{len(self.keys)} keys, {len(self.values)} values and {len(self.labels)} labels")
        if not (self.keys.isfinite().all() and self.values.isfinite().all()):
            raise ValueError(f"the keys or values of layer {self.rules.layer} are not finite")

    def check_fits(self, model: Model) -> None:
        """IndexError for a layer out of range, ValueError for keys or values of another size."""
        self.rules.sites(model)
        widths, own = self.rules.widths(model), (self.keys.shape[1], self.values.shape[1])
        if own != widths:
            raise ValueError(
                f"the keys and values are of sizes {own}, but those of layer {self.rules.layer} of {model.name} "
                f"of {widths}; was the edit made for another model?"
            )

    def hooks(self, model: Model) -> Sequence[EditHook]:
        """Of the first edit of a codebook, for all of them."""
        edits = _of(model.edits, self.rules)
        if not edits or edits[0] is not self:
            return ()
        book, rules = self._codebook(edits, model.device), self.rules
        if not len(book):
            return ()
        answers: list[tuple[Tensor, Tensor]] = []

        def look_up(states: Tensor, which: ForwardPass) -> None:
            lasts, new = which.prompt_ends - which.offset, states.shape[1]
            if rules.replace == "prompt" and ((lasts >= new) | ((lasts >= 0) & (which.offset > 0))).any():
                raise RuntimeError("a codebook that replaces prompts needs each prompt whole, in one forward pass")
            queries = states[torch.arange(len(states), device=states.device), lasts.clamp(0, new - 1)]
            found, values = book.lookup(queries)
            answers.append((found & (lasts >= 0) & (lasts < new), values))

        def put(states: Tensor, which: ForwardPass) -> Tensor:
            found, values = answers.pop()
            return rules.replaced(states, which.prompt_ends - which.offset, values, found)

        return [(_READ[rules.site], rules.layer, look_up), (rules.site, rules.layer, put)]

    def _codebook(self, edits: tuple["CodebookEdit", ...], device: torch.device) -> Codebook:
        """That of edits of which this is the first; goes on from the last one made, since hooks are made each pass."""
        made, book = self._made.get("edits", ()), self._made.get("book")
        if book is None or made != edits:
            if book is None or made != edits[: len(made)]:
                made, book = (), Codebook.empty(self.rules, self.keys.shape[1], self.values.shape[1], self.keys.dtype)
            for edit in edits[len(made) :]:
                keys, values = edit.keys.detach().cpu(), edit.values.detach().cpu()
                for key, value, label in zip(keys, values, edit.labels, strict=True):
                    book = book.written(key, value, label)
            self._made.clear()
            self._made.update({"edits": edits, "book": book})
        return self._made.setdefault(device, book.to(device))

    @cached_property
    def _made(self) -> dict[Any, Any]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Keys and values."""
        return {"keys": self.keys, "values": self.values}

    def settings(self) -> dict[str, Any]:
        """Rules and labels."""
        return {"rules": asdict(self.rules), "labels": [[prompt, list(answer)] for prompt, answer in self.labels]}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> "CodebookEdit":
        """The inverse of `tensors` and `settings`."""
        labels = tuple((prompt, tuple(answer)) for prompt, answer in settings["labels"])
        return cls(rules=Rules(**settings["rules"]), labels=labels, **tensors, **common)


def codebook(model: Model, rules: Rules) -> Codebook:
    """The codebook of these rules that the edits applied to a model make, on the CPU."""
    dtype = torch.promote_types(model.dtype, torch.float32)
    edits = _of(model.edits, rules)
    if not edits:
        return Codebook.empty(rules, *rules.widths(model), dtype)
    return edits[0]._codebook(edits, torch.device("cpu"))


def _of(edits: Sequence[Edit], rules: Rules) -> tuple[CodebookEdit, ...]:
    return tuple(edit for edit in edits if isinstance(edit, CodebookEdit) and edit.rules == rules)
