"""Batches that fit into memory: how much a forward pass holds at its peak, by the shape of its batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from workbench.machine.allocator import free_memory

BUDGET = 2.0
"""GiB that one forward pass may hold beside the weights; a batch is made smaller, a text cut shorter, to stay below."""

_SHARE = 8
"""Of a GPU's free memory a forward pass may take one part in so many; it is there to be used."""

_SCORES = 3
"""Scores held at once by eager attention: as computed, in float32, and their softmax; masks are as two heads."""


def budget(device: torch.device) -> float:
    """GiB that a forward pass may hold on a device: `BUDGET`, or of a GPU more where much is free, and at most half of
    what is."""
    if device.type != "cuda":
        return BUDGET
    free = free_memory(device) / 2**30
    return min(max(BUDGET, free / _SHARE), free / 2)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The sizes of a model that decide what a forward pass holds."""

    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int
    d_vocab: int
    itemsize: int
    """Bytes of one number of its activations."""
    unembeds_all: bool
    """Whether logits are computed at every position, however few are asked for."""

    def size(self, rows: int, pos: int, *, keep: int | None, cached: bool = False) -> int:
        """Bytes, at most, of a pass over `rows` texts of `pos` tokens without gradients, whose last `keep` positions
        are unembedded (None: all); `cached`: the keys and values of all layers are kept.

        The scores of attention are pos x pos a head, and the logits a number for each word of the vocabulary.
        """
        kept = pos if keep is None or self.unembeds_all else min(keep, pos)
        scores = _SCORES * (self.n_heads + 2) * pos**2 * max(self.itemsize, 4)
        states = pos * (3 * self.d_mlp + 8 * self.d_model) * self.itemsize
        cache = 2 * self.n_layers * self.d_model * pos * self.itemsize if cached else 0
        logits = kept * self.d_vocab * (self.itemsize + 8)  # with log-probabilities in float32
        return rows * (scores + states + cache + logits)

    def training_size(self, rows: int, pos: int, *, keep: int | None) -> int:
        """The same of a pass whose gradients are taken, which holds what every layer computes."""
        one = self.size(rows, pos, keep=0) - self.size(rows, 0, keep=0)
        return self.n_layers * one + 2 * self.size(rows, pos, keep=keep)

    def longest(self, limit: int, *, keep: int | None, budget: float) -> int:
        """The most tokens, up to `limit`, of one text that fits into the budget in GiB; at least 2."""
        low, high = min(2, limit), limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.size(1, middle, keep=keep) <= budget * 2**30 else (low, middle - 1)
        return low


def consecutive(
    lengths: Sequence[int], keeps: Sequence[int | None], *, at_most: int, fits: Callable[[int, int, int | None], bool]
) -> list[range]:
    """Texts of these lengths, each with so many positions to unembed, in batches that follow each other.

    A batch has at most `at_most` texts, and no more than `fits(rows, pos, keep)` allows; always one.
    """
    if at_most < 1:
        raise ValueError(f"expected batch_size >= 1, got {at_most}")
    batches: list[range] = []
    start, longest, most = 0, 0, 0
    for index, (length, keep) in enumerate(zip(lengths, keeps, strict=True)):
        longest, most = max(longest, length), None if most is None or keep is None else max(most, keep)
        if index > start and (index - start == at_most or not fits(index + 1 - start, longest, most)):
            batches.append(range(start, index))
            start, longest, most = index, length, keep
    return [*batches, range(start, len(lengths))] if lengths else []


PASSAGE = 64
"""Tokens from which on a passage that all texts of a batch begin with is run once for them (`direct`)."""


def by_passage(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Texts by what they begin with, as indices: those together that share a passage, three quarters of the longer or
    more; the others make one group."""
    if sum(len(text) > PASSAGE for text in texts) < 2:
        return [list(range(len(texts)))]
    groups: list[list[int]] = []
    for index in sorted(range(len(texts)), key=lambda index: tuple(texts[index])):
        text = texts[index]
        if groups and _shared(texts[groups[-1][0]], text) >= max(PASSAGE, 0.75 * len(text)):
            groups[-1].append(index)
        else:
            groups.append([index])
    others = sorted(group[0] for group in groups if len(group) == 1)
    return [*([others] if others else ()), *(group for group in groups if len(group) > 1)]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    differ = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))
