"""What tensors take at their peak, and that measuring it takes nothing for good."""

from pathlib import Path

import pytest
import torch

from workbench.machine.allocator import free_memory, out_of_memory, peak_memory

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


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at another call"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
    ids=lambda value: str(value)[:45],
)
def test_what_says_that_memory_ran_out(error: Exception, full: bool) -> None:
    assert out_of_memory(error) == full


def test_what_torch_holds_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 50)
    assert free_memory(torch.device("cuda")) == 120
