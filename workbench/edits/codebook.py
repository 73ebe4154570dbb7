"""A codebook of one layer: states that replace the layer's output where its input is near a key."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.machine.shown import Shown
from workbench.models.model import Model

Label = tuple[int, tuple[int, ...]]
"""What an entry makes the model say: the number of its prompt's tokens, and the tokens of its answer."""

READ = {"mlp_pre": "mlp_in", "mlp_write": "mlp_key"}
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
        return model.hook_name(READ[self.site], self.layer), model.hook_name(self.site, self.layer)

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
class Codebook(Shown):
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
