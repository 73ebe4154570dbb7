"""Work side by side in forked processes: order, errors, killed and abandoned workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from workbench.machine.processes import check_workers, side_by_side


def test_results_come_in_order_from_other_processes_of_one_thread():
    offset = torch.tensor(5)  # reaches the workers without being pickled

    def work(item):
        time.sleep(0.05 if item == 0 else 0)
        return item + offset, os.getpid(), torch.get_num_threads()

    values, processes, threads = zip(*side_by_side(work, range(6), workers=2), strict=True)
    assert [int(value) for value in values] == [5, 6, 7, 8, 9, 10]
    assert os.getpid() not in processes
    assert len(set(processes)) <= 2
    assert set(threads) == {1}


def test_one_worker_is_this_process():
    assert set(side_by_side(lambda _: os.getpid(), range(3), workers=1)) == {os.getpid()}
    assert set(side_by_side(lambda _: os.getpid(), [0], workers=4)) == {os.getpid()}
    assert list(side_by_side(str, [], workers=4)) == []


def test_errors_are_raised_here():
    def work(item):
        if item == 2:
            raise ValueError(f"no such item: {item}")
        return item

    results = side_by_side(work, range(4), workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="no such item: 2"):
        next(results)


def test_a_killed_worker_is_one_error():
    with pytest.raises(RuntimeError, match=r"one of 2 worker processes was killed.*use fewer workers"):
        list(side_by_side(lambda _: os.kill(os.getpid(), signal.SIGKILL), range(4), workers=2))


def test_abandoned_work_leaves_no_process():
    results = side_by_side(lambda item: item, range(50), workers=2)
    assert next(results) == 0
    results.close()
    assert multiprocessing.active_children() == []


def runs(process: int) -> bool:
    """Whether there is such a process, and not only its exit status."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed():
    script = """
import os, time
from workbench.machine.processes import side_by_side

def work(item):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(60)

list(side_by_side(work, range(4), workers=2))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    deadline = time.monotonic() + 10
    while any(runs(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive the process that they work for"
        time.sleep(0.05)


def test_where_processes_cannot_be_forked():
    check_workers(1, torch.device("cuda"))
    check_workers(2, torch.device("cpu"))
    with pytest.raises(ValueError, match="2 workers need a model on the CPU and Linux, got cuda"):
        check_workers(2, torch.device("cuda"))
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        check_workers(0, torch.device("cpu"))
