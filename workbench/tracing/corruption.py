"""What becomes of the subject's embeddings in the corrupted runs."""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from workbench.machine.shown import Shown


@dataclass(frozen=True, kw_only=True, eq=False)
class Corruption(Shown):
    """Noise added to the token embeddings of a subject, or put in their place."""

    first: int
    """The subject's first token."""
    noise: Float[Tensor, "sample subject_pos d_model"]
    """The noise, the same for every cell."""
    replace: bool = False
    """Whether the noise is put in place of the embeddings."""
    frozen_noise: Float[Tensor, "sample subject_pos d_model"] | None = None
    """Noise of the corrupted runs that severed modules are frozen to; None for `noise` itself."""

    @property
    def samples(self) -> int:
        """How many corrupted runs there are."""
        return len(self.noise)

    @property
    def subject(self) -> slice:
        """The positions changed."""
        return slice(self.first, self.first + self.noise.shape[1])

    @property
    def frozen(self) -> "Corruption":
        """The corruption of the runs that severed modules are frozen to."""
        return self if self.frozen_noise is None else replace(self, noise=self.frozen_noise, frozen_noise=None)

    def parts(self, most: int) -> "list[Corruption]":
        """The corrupted runs in parts of at most so many; itself where they are no more."""
        if self.samples <= most:
            return [self]
        frozen = self.frozen_noise
        return [
            replace(self, noise=part, frozen_noise=None if frozen is None else frozen[start : start + most])
            for start, part in zip(range(0, self.samples, most), self.noise.split(most), strict=True)
        ]

    def __call__(self, embeddings: Float[Tensor, "... sample pos d_model"]) -> Float[Tensor, "... sample pos d_model"]:
        """Corrupted copies of token embeddings."""
        noise = self.noise.to(embeddings)
        corrupted = embeddings.clone()
        corrupted[..., self.subject, :] = noise if self.replace else embeddings[..., self.subject, :] + noise
        return corrupted
