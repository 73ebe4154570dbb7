"""Work on a Ray cluster of two nodes on this machine: the numbers of one process, in order, whoever is killed."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from known_records import CAPITALS, capital

from workbench.editors.rome import ROME
from workbench.editors.shared.second_moments import second_moments
from workbench.edits.weights import WeightEdit
from workbench.machine import cluster
from workbench.models.model import Model
from workbench.runs.run import Run
from workbench.studies.edit import edit_records, load_edits
from workbench.studies.measure import score_edits
from workbench.studies.replicas import Replicas, chosen_workers
from workbench.tracing.sweep import TraceSet, trace_facts

RECORDS = [capital(index, *each) for index, each in enumerate(CAPITALS)]
FACTS = [record.request.fact for record in RECORDS] * 4


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head and a second node, of one CPU each."""
    utils = pytest.importorskip("ray.cluster_utils")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    pytest.importorskip("ray").cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    started = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    started.add_node(num_cpus=1)
    yield started
    started.shutdown()


@pytest.fixture
def replicas(nodes: Any, tiny_gpt2: Model) -> Iterator[Replicas]:
    there = Replicas(tiny_gpt2, address=nodes.address, workers=2)  # another test may have added a node
    yield there
    there.close()


def traced(model: Model, **options: Any) -> Any:
    return trace_facts(model, FACTS, seed=1, samples=2, window=3, **options)


def process(model: Model, item: int) -> tuple[int, int, int]:
    time.sleep(0.2)
    return item, os.getpid(), torch.get_num_threads()


def killing_once(marker: Path, model: Model, item: int) -> int:
    if item == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def killing_always(model: Model, item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failing(model: Model, item: int) -> int:
    """Fails at the second item, which is ready before the first."""
    time.sleep(0.5 * (1 - item))
    warnings.warn(f"item {item}", UserWarning, stacklevel=1)
    if item == 1:
        raise LookupError("no such item")
    return item


@pytest.mark.slow
def test_what_replicas_find_is_what_one_process_finds(replicas: Replicas, tiny_gpt2: Model, tmp_path: Path):
    alone, there = (TraceSet.collect(traced(tiny_gpt2, workers=who)) for who in (1, replicas))
    assert len(there.traces) == len(alone.traces) > 4
    for one, other in zip(alone.traces, there.traces, strict=True):
        assert one.fact == other.fact
        for site, values in one.restored.items():
            torch.testing.assert_close(other.restored[site], values, atol=1e-6, rtol=0)

    texts = [f"{fact.prompt} {fact.object}." for fact in FACTS]
    mine, theirs = (second_moments(tiny_gpt2, [1, 2], texts, max_tokens=70, workers=who) for who in (None, replicas))
    for layer, moment in mine.items():
        assert theirs[layer].count == moment.count == 70
        torch.testing.assert_close(theirs[layer].matrix, moment.matrix, atol=1e-6, rtol=1e-6)

    rows = []
    editor = ROME(layer=2, second_moment=None, steps=3)
    for name, who in (("here", None), ("there", replicas)):
        run = Run.create(tmp_path / name, {"command": "edit"})
        edits = edit_records(run, tiny_gpt2, editor, RECORDS, together=2, workers=who)
        score_edits(run, tiny_gpt2, edits, records=RECORDS, seed=0, fluency=1, workers=who)
        rows.append(run.rows("evaluations"))
        assert [record for record, _ in load_edits(run, RECORDS)] == RECORDS
    for one, other in zip(*rows, strict=True):
        for row in (one, other):
            del row["seconds"]
        assert flat(one) == pytest.approx(flat(other), abs=1e-6)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: each for part in value for key, each in flat(value[part], f"{name}.{part}").items()}
    if isinstance(value, list):
        return {key: each for i, part in enumerate(value) for key, each in flat(part, f"{name}.{i}").items()}
    return {name: value} if isinstance(value, int | float) else {f"{name}={value}": 0}


@pytest.mark.slow
def test_nothing_is_lost_with_a_worker(replicas: Replicas, tmp_path: Path):
    with pytest.warns(UserWarning, match="a worker of the cluster was lost"):
        assert list(replicas.map(partial(killing_once, tmp_path / "killed"), range(9))) == list(range(9))
    lost = pytest.raises(RuntimeError, match=r"3 workers were lost with the same work.*goes on")
    with lost, warnings.catch_warnings(record=True):
        list(replicas.map(killing_always, [0]))
    found = replicas.map(failing, range(2))
    with pytest.warns(UserWarning, match="item 0"):
        assert next(found) == 0
    with pytest.warns(UserWarning, match="item 1"), pytest.raises(LookupError, match="no such item"):
        next(found)


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_stopped_though_a_node_is_killed(nodes: Any, tiny_gpt2: Model):
    whole = TraceSet.collect(traced(tiny_gpt2))
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    replicas = Replicas(tiny_gpt2, address=nodes.address)
    try:
        found = list(replicas.map(process, range(12)))
        assert [item for item, *_ in found] == list(range(12))
        assert {threads for *_, threads in found} == {1}
        assert 1 <= len({process for _, process, _ in found}) <= replicas.count == 3  # one may still be loading
        sweep = traced(tiny_gpt2, workers=replicas)
        begun = [next(sweep), next(sweep)]
        sweep.close()
        rest = traced(tiny_gpt2, workers=replicas, done={each.index for each in begun})
        begun.append(next(rest))
        from ray._private.worker import global_worker

        connected: Any = global_worker.node
        here = {nodes.head_node._raylet_socket_name, connected._raylet_socket_name}
        other = next(node for node in nodes.list_all_nodes() if node._raylet_socket_name not in here)
        nodes.remove_node(other, allow_graceful=False)
        begun += rest
        with warnings.catch_warnings(record=True):
            assert [item for item, *_ in replicas.map(process, range(8))] == list(range(8))
    finally:
        replicas.close()
    assert [each.index for each in begun] == list(range(len(FACTS)))
    for one, other in zip(whole.traces, TraceSet.collect(begun).traces, strict=True):
        torch.testing.assert_close(other.restored["mlp_out"], one.restored["mlp_out"], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_replicas_are_what_the_model_is(nodes: Any, tiny_gpt2: Model):
    kept = tiny_gpt2.snapshot()
    # One after the other: an actor that the cluster has no room for would be waited for.
    before = Replicas(tiny_gpt2, address=nodes.address, workers=1)
    try:
        with torch.no_grad():
            tiny_gpt2.weight(1).mul_(1.01)
        with pytest.raises(ValueError, match="was edited after the workers"):
            before.map(process, [0])
    finally:
        before.close()
    after = Replicas(tiny_gpt2, address=nodes.address, workers=1)
    try:
        with pytest.raises(ValueError, match="has other weights there"):
            list(after.map(process, [0]))
    finally:
        after.close()
        tiny_gpt2.restore_(kept)
    with pytest.raises(ValueError, match="a worker needs 2 GPU, and the cluster has 0"):
        Replicas(tiny_gpt2, address=nodes.address, gpus=2.0)


TOKEN = {"RAY_AUTH_TOKEN": "ab" * 32}
FOUND = """
import os, sys
from ray._private import services
from workbench.machine.running_cluster import running
services.find_gcs_addresses = lambda: set(sys.argv[1:])
print(running(), os.environ.get("RAY_AUTH_MODE"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "running", "wanted"),
    [
        (TOKEN, ["here:1"], "here:1 token"),  # `ray start` asks for it where there is one
        ({}, ["here:1"], "here:1 None"),
        (TOKEN | {"RAY_AUTH_MODE": "disabled"}, ["here:1"], "here:1 disabled"),
        (TOKEN | {"RAY_ADDRESS": "there:2"}, ["here:1"], "there:2 None"),  # it is not sent elsewhere
        (TOKEN, [], "local None"),
    ],
)
def test_a_cluster_that_runs_here_is_joined_by_its_token(
    tmp_path: Path, given: dict[str, str], running: list[str], wanted: str
) -> None:
    setup = pytest.importorskip("ray._private.authentication.authentication_token_setup")
    if not hasattr(setup, "maybe_enable_token_auth_if_token_available"):
        pytest.skip("this Ray asks for no token")
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", FOUND, *running]
    done = subprocess.run(
        command, env={**own, "HOME": str(tmp_path), **given}, capture_output=True, text=True, timeout=200, check=True
    )
    assert done.stdout.strip() == wanted


def test_what_is_not_there(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"--gpus-per-worker 1 .* give --cluster"), chosen_workers(tiny_gpt2, gpus=1.0):
        pass
    with chosen_workers(tiny_gpt2) as who:
        assert who is None
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install ray"), chosen_workers(tiny_gpt2, cluster="auto"):
        pass


@pytest.mark.slow
def test_edits_are_made_and_scored_by_processes(tiny_gpt2: Model, tmp_path: Path):
    run = Run.create(tmp_path, {"command": "edit"})
    texts = [f"{fact.prompt} {fact.object}." for fact in FACTS]
    with chosen_workers(tiny_gpt2, workers=2) as who:
        assert second_moments(tiny_gpt2, [2], texts, workers=who)[2].count > 0
        editor = ROME(layer=2, second_moment=None, steps=2)
        edits = edit_records(run, tiny_gpt2, editor, RECORDS, workers=who)
        evaluations = score_edits(run, tiny_gpt2, edits, records=RECORDS, seed=0, fluency=0, workers=who)
    assert [each.case_id for each in evaluations] == [record.case_id for record in RECORDS]
    for record, edit in load_edits(run, RECORDS):
        there = editor(tiny_gpt2, [record.request])
        assert isinstance(edit, WeightEdit)
        for one, other in zip(edit.updates, there.updates, strict=True):
            torch.testing.assert_close(one.right, other.right, atol=1e-5, rtol=1e-4)
    assert asdict(RECORDS[0].request) == run.rows("evaluations")[0]["request"]
