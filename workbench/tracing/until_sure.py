"""As many noise samples as a fact needs: they are added until the lead of its layer is known well enough."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.machine.intervals import student_half_width
from workbench.tracing.trace import CausalTrace

AUTO = "auto"
"""In place of a number of samples: as many as are needed."""
TOLERANCE = 0.02
"""Half width of the 95 % interval that is narrow enough, in what is measured. It is nominal: looked at after every
block, an interval may be narrow by luck, and covers the lead less often."""
BLOCK, FEWEST, MOST = 2, 6, 60
"""Samples added at a time, and the fewest and the most that are taken."""

Samples = int | str
"""A number of samples, or `AUTO`."""


def check_samples(samples: Samples) -> None:
    """ValueError for what is neither a positive number nor `AUTO`."""
    if samples != AUTO and not (isinstance(samples, int) and samples >= 1):
        raise ValueError(f"samples must be a number of at least 1, or {AUTO!r}, got {samples!r}")


def trace_sampled(
    samples: Samples,
    draw: Callable[[int], Float[Tensor, "sample subject_pos d_model"]],
    trace: Callable[[Any], CausalTrace],
    *,
    tolerance: float = TOLERANCE,
) -> CausalTrace:
    """A trace with so many noise samples or, with `AUTO`, with as many as its lead needs.

    The lead is what the layer with the greatest effect of the MLPs at the last subject token has before the next one;
    where these are not traced, the effect of every cell takes its place. Samples are added until the 95 % interval of
    its mean (Student's t over blocks of them) has a half width of at most `tolerance`, or there are `MOST`, of which
    it is not asked (`reached_most`).

    Args:
        draw: so many samples; of the same seed each time, so that those of before are drawn again with more behind.
        trace: the fact's trace with given noise.
    """
    check_samples(samples)
    if samples != AUTO:
        return trace(draw(int(samples)))
    blocks: list[CausalTrace] = []
    before = draw(BLOCK)
    for count in range(BLOCK, MOST + 1, BLOCK):
        drawn = draw(count)
        if not torch.equal(drawn[: len(before)], before):  # a generator need not draw what it drew of fewer
            blocks = []
        before = drawn
        blocks += [trace(part) for part in drawn[BLOCK * len(blocks) :].split(BLOCK)]
        if FEWEST <= count < MOST and _half_width(blocks) <= tolerance:
            break
    return _mean(blocks)


def reached_most(trace: CausalTrace) -> bool:
    """Whether a trace of as many samples as needed ended at `MOST`: its interval was not yet narrow enough before."""
    return trace.samples >= MOST


def _half_width(blocks: Sequence[CausalTrace]) -> float:
    """Of the interval of the lead, or the widest of all cells'."""
    first = blocks[0]
    if "mlp_out" in first.restored and first.last_subject in first.positions:
        effects = np.stack([one.effect_at("mlp_out", one.last_subject).double().numpy() for one in blocks])
        *_, second, best = np.argsort(effects.mean(axis=0)) if effects.shape[1] > 1 else (0, 0)
        values = (effects[:, best] - effects[:, second])[:, None] if second != best else effects
    else:
        cells = [torch.cat([one.indirect_effect(site).flatten() for site in one.restored]) for one in blocks]
        values = torch.stack(cells).double().numpy()
    return float(student_half_width(values).max())


def _mean(blocks: Sequence[CausalTrace]) -> CausalTrace:
    """The trace over all samples, of blocks of as many each."""
    first, restored = blocks[0], {}
    for site in first.restored:
        restored[site] = torch.stack([one.restored[site] for one in blocks]).mean(dim=0)
    corrupted = float(np.mean([one.corrupted for one in blocks]))
    return replace(first, corrupted=corrupted, restored=restored, samples=sum(one.samples for one in blocks))
