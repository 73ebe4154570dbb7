"""What tensors take at their peak, and that measuring it takes nothing for good."""

from pathlib import Path

import pytest
import torch

from workbench.machine.allocator import peak_memory

STATM = Path("/proc/self/statm")


def test_peak_memory_is_what_is_held_at_one_time() -> None:
    def work() -> int:
        first, second = torch.empty(1000), torch.empty(2000)
        del first
        third = torch.empty(3000)  # with the second: the peak
        return len(second) + len(third)

    assert peak_memory(work, torch.device("cpu")) == (5000, 4 * 5000)


def test_peak_memory_leaves_out_what_was_there_and_what_came_after_it_went() -> None:
    before = torch.zeros(100_000)
    _, peak = peak_memory(lambda: [torch.empty(500) for _ in range(10)][-1].shape, torch.device("cpu"))
    assert peak == 4 * 5000 and len(before) == 100_000
    _, peak = peak_memory(lambda: [torch.empty(500).shape for _ in range(10)], torch.device("cpu"))
    assert peak == 4 * 500


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc")
def test_the_profilers_records_are_given_back() -> None:
    def work() -> None:
        for _ in range(20_000):
            torch.zeros(1000)

    held = []
    for _ in range(3):
        peak_memory(work, torch.device("cpu"))
        held.append(int(STATM.read_text().split()[1]) * 4096 / 2**20)
    assert held[2] - held[0] < 100  # each left 160 MiB
