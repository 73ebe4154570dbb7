"""What a restored run changes: the cells of a trace's grid, and the patches each makes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

from workbench.tracing.trace import restored_layers


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One layer's state or module output, at the positions of its cell, taken from another run."""

    layer: int
    """The layer."""
    site: str
    """`resid_post`, `mlp_out` or `attn_out`."""
    source: Literal["clean", "corrupted"] = "clean"
    """The run it is taken from; "corrupted" freezes a module against what lower patches change."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One restored run: a corrupted run with patches at some positions."""

    positions: tuple[int, int]
    """The tokens patched, [first, end)."""
    patches: tuple[Patch, ...]
    """Ordered by layer; none is the corrupted run itself."""

    def patches_in(self, layer: int) -> tuple[Patch, ...]:
        """Those in a layer."""
        return self._by_layer.get(layer, ())

    @cached_property
    def _by_layer(self) -> dict[int, tuple[Patch, ...]]:
        return {layer: tuple(patches) for layer, patches in groupby(self.patches, key=lambda patch: patch.layer)}


def grid(
    site: str,
    *,
    n_layers: int,
    n_pos: int,
    positions: Sequence[int],
    window: int = 1,
    span: int = 1,
    severed: str | None = None,
    severed_below: bool = False,
) -> Iterator[Cell]:
    """Every cell of a site at some positions, position by position, layer by layer.

    A cell restores `site` in the layers `restored_layers(layer, window, n_layers)` - one layer for
    `resid_post` - at the positions [pos, pos + span), cut at the prompt's end. With `severed`, the outputs of
    that module in all later layers are frozen at these positions to their corrupted values (Meng et al. 2022,
    section 2.2 and figure 3); with `severed_below` in all earlier layers too, which matters only where these
    values come from runs with other noise.
    """
    width = 1 if site == "resid_post" else window
    for pos in positions:
        for layer in range(n_layers):
            restored = restored_layers(layer, width, n_layers)
            patches = [Patch(layer=each, site=site) for each in restored]
            if severed is not None:
                below = range(restored.start) if severed_below else ()
                frozen = (*below, *range(restored.stop, n_layers))
                patches += [Patch(layer=each, site=severed, source="corrupted") for each in frozen]
            patches.sort(key=lambda patch: patch.layer)
            yield Cell(positions=(pos, min(pos + span, n_pos)), patches=tuple(patches))
