"""A GPU gives the CPU's numbers: `make test-gpu`, skipped where there is none."""

from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import GOLDEN
from known_edits import untrained

from workbench.editors.make import make_editor
from workbench.editors.registry import EDITORS
from workbench.editors.shared.second_moments import second_moments
from workbench.edits.edit import Edit
from workbench.edits.weights import WeightEdit
from workbench.machine import environment as provenance
from workbench.machine import graphs
from workbench.machine.allocator import peak_memory
from workbench.machine.precision import float32_products
from workbench.machine.processes import can_fork
from workbench.measuring.evaluate import evaluate
from workbench.models.direct import direct
from workbench.models.generation import generate
from workbench.models.loading import load_model
from workbench.models.model import SITES, Model
from workbench.models.scoring import score_targets
from workbench.records.facts import EditRequest, Record
from workbench.tracing.attribution import attribute_fact
from workbench.tracing.fact import trace_alike, trace_fact
from workbench.tracing.noise import gaussian_noise, subject_span
from workbench.tracing.sweep import default_workers
from workbench.tracing.trace import CausalTrace

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")]
DEVICE = "cuda"
TINY = str(GOLDEN / "tiny-gpt2")
REQUEST = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow", target_true="Lisbon")
RECORD = Record(
    case_id=0,
    request=REQUEST,
    paraphrase_prompts=("In the book, Portugal's capital city is",),
    neighborhood_prompts=("The capital of France is",),
    generation_prompts=("People in Portugal speak",),
)
TRAINING = Record(
    case_id=1,
    request=EditRequest(template="The capital of {} is", subject="Japan", target_new="Rome", target_true="Tokyo"),
    paraphrase_prompts=("Japan's capital city is",),
    neighborhood_prompts=("In Tokyo, people speak",),
)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def pair(request: pytest.FixtureRequest) -> tuple[Model, Model]:
    """The golden model on the CPU and on the GPU."""
    cpu, gpu = (load_model(TINY, device=device, dtype=request.param) for device in ("cpu", DEVICE))
    return cpu, gpu


def close(pair: tuple[Model, Model], *, exact: float, half: float) -> float:
    """A tolerance by the models' precision."""
    return exact if pair[0].dtype == torch.float32 else half


def traces(models: tuple[Model, ...], method: Any = trace_fact, **options: Any) -> list[CausalTrace]:
    first, end = subject_span(models[0], REQUEST.fact)
    noise = gaussian_noise(0.5, 3, end - first, models[0].d_model, generator=torch.Generator().manual_seed(0))
    return [method(model, REQUEST.fact, noise=noise, window=3, **options) for model in models]


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "fast"},
        {"engine": "fast", "severed": "mlp_out", "span": 2},
        {"engine": "fast", "positions": "last_subject"},
        {"engine": "plain"},
        pytest.param({"method": attribute_fact}, id="attributed"),
    ],
    ids=str,
)
def test_traces_are_equal(pair: tuple[Model, Model], options: dict[str, Any]) -> None:
    cpu, gpu = traces(pair, **options)
    for site in SITES:
        assert gpu.restored[site].device.type == "cpu"
        tolerance = close(pair, exact=1e-5, half=0.05)
        torch.testing.assert_close(gpu.restored[site], cpu.restored[site], atol=tolerance, rtol=0)


def test_facts_traced_together_are_those_of_the_cpu(pair: tuple[Model, Model]) -> None:
    cpu, gpu = pair
    first, end = subject_span(cpu, REQUEST.fact)
    generator = torch.Generator().manual_seed(0)
    noises = [gaussian_noise(0.5, 3, end - first, cpu.d_model, generator=generator) for _ in range(3)]
    many = trace_alike(gpu, [REQUEST.fact] * 3, noises=noises, window=3)
    for noise, trace in zip(noises, many, strict=True):
        alone = trace_fact(cpu, REQUEST.fact, noise=noise, window=3)
        for site in SITES:
            tolerance = close(pair, exact=1e-4, half=0.05)
            torch.testing.assert_close(trace.restored[site], alone.restored[site], atol=tolerance, rtol=0)


def test_the_engines_are_equal(pair: tuple[Model, Model]) -> None:
    fast, plain = (traces(pair[1:], engine=engine)[0] for engine in ("fast", "plain"))
    for site in SITES:
        tolerance = close(pair, exact=1e-5, half=0.05)
        torch.testing.assert_close(fast.restored[site], plain.restored[site], atol=tolerance, rtol=0)


def test_second_moments_are_equal(pair: tuple[Model, Model], text: Path) -> None:
    lines = text.read_text(encoding="utf-8").splitlines()
    cpu, gpu = (second_moments(model, [2], lines)[2] for model in pair)
    assert cpu.count == gpu.count and gpu.matrix.device.type == "cpu"
    difference = (gpu.matrix - cpu.matrix).norm() / cpu.matrix.norm()
    assert difference < close(pair, exact=1e-5, half=1e-2)


def test_greedy_continuations_are_equal(pair: tuple[Model, Model]) -> None:
    prompts = [REQUEST.prompt, "In Japan, most people speak", "The capital of France is"]
    cpu, gpu = (generate(model, prompts, max_new_tokens=3) for model in pair)
    assert cpu == gpu
    sampled = [
        generate(
            pair[1], prompts, max_new_tokens=3, temperature=1.0, generator=torch.Generator(device=DEVICE).manual_seed(0)
        )
        for _ in range(2)
    ]
    assert sampled[0] == sampled[1]


def written(edit: Edit) -> list[torch.Tensor]:
    """What an edit writes: the changes of matrices, or all its tensors."""
    return (
        [update.dense() for update in edit.updates] if isinstance(edit, WeightEdit) else list(edit.tensors().values())
    )


def assert_alike(cpu: Edit, gpu: Edit, tolerance: float) -> None:
    """What they write points the same way; edits that write nothing say the same."""
    moved = 0
    for one, other in zip(written(cpu), written(gpu), strict=True):
        changes = [tensor.cpu().double().flatten() for tensor in (one, other)]
        if changes[0].norm() == 0:  # a bias that no training has moved
            assert changes[1].norm() == 0
            continue
        # Adam's first steps go by signs, which half precision turns where a gradient is next to nothing.
        assert torch.cosine_similarity(*changes, dim=0) > 1 - tolerance
        moved += 1
    assert moved or not written(cpu)
    assert written(cpu) or gpu.settings() == cpu.settings()


def neurons(edit: Edit) -> set[tuple[int, int]]:
    """Layer and index of those that KN has kept."""
    return {(layer, neuron) for each in edit.provenance["optimisation"] for layer, neuron in each["neurons"]}


@pytest.mark.parametrize("method", EDITORS)
def test_edits_are_equal(pair: tuple[Model, Model], method: str, text: Path, tmp_path: Path) -> None:
    names = {field.name for field in fields(cast(Any, EDITORS[method]))}
    few = {"layers": (2, 3), "steps": 3, "contexts": ("{}",)}
    options: dict[str, Any] = {name: value for name, value in few.items() if name in names}
    options |= {
        "texts": text.read_text(encoding="utf-8").splitlines,
        "layer": 2,
        "seed": 0,
        "preset_of": "atlas",
        "alone": True,
    }
    options["records"] = lambda: [TRAINING]
    if "network" in names:
        options["network"] = untrained(EDITORS[method], pair[0])
    untouched = [model.fingerprint() for model in pair]
    cpu, gpu = (make_editor(m, method, cache=tmp_path / m.device.type, **options)(m, [REQUEST]) for m in pair)
    if method == "kn" and pair[0].dtype != torch.float32:  # a threshold keeps other neurons by a rounding error
        kept = [neurons(edit) for edit in (cpu, gpu)]
        assert 2 * len(kept[0] & kept[1]) >= min(map(len, kept)) > 0
    else:
        assert_alike(cpu, gpu, close(pair, exact=1e-3, half=0.2))
    gpu.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")  # from the CPU onto the GPU
    scores = evaluate(pair[1], loaded, RECORD, seed=0, fluency_tokens=12)
    assert scores.case_id == 0
    assert [model.fingerprint() for model in pair] == untouched


def test_blocks_alone_score_and_write_the_same(pair: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["The capital of Portugal is", "In Japan, most people speak"]
    pairs = [(prompt, target) for prompt in prompts for target in ("Lisbon", "old Greek")]
    assert direct(pair[1], pair[1].tokenize(prompts, padding_side="left")) is not None
    scores, texts = score_targets(pair[1], pairs), generate(pair[1], prompts, max_new_tokens=4)
    monkeypatch.setattr(graphs, "pays", lambda device: False)
    for ours, theirs in zip(scores, score_targets(pair[1], pairs), strict=True):
        tolerance = close(pair, exact=1e-4, half=0.2)
        torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=tolerance, rtol=0)
    assert pair[0].dtype != torch.float32 or texts == generate(pair[1], prompts, max_new_tokens=4)


@pytest.mark.parametrize("method", ["rome", "memit", "pmet"])
def test_captured_searches_find_what_eager_ones_do(
    pair: tuple[Model, Model],
    method: str,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    requests = [REQUEST, TRAINING.request]
    texts = text.read_text(encoding="utf-8").splitlines
    options: dict[str, Any] = {"texts": texts, "layer": 2, "seed": 0, "preset_of": "atlas", "alone": True, "steps": 12}
    editor = make_editor(pair[1], method, cache=tmp_path, contexts=("{}", "In short, {}"), **options)
    capture, made = graphs.captured, []

    def spied(function: Any, sample: torch.Tensor) -> Any:
        found = capture(function, sample)
        made.append(found is not function)
        return found

    monkeypatch.setattr(graphs, "captured", spied)
    by_graphs = editor.each(pair[1], requests)
    assert made and all(made)
    monkeypatch.setattr(graphs, "pays", lambda device: False)
    for graph, eager in zip(by_graphs, editor.each(pair[1], requests), strict=True):
        for one, other in zip(written(graph), written(eager), strict=True):
            assert not [said for said in recwarn if "one kernel at a time" in str(said.message)]
            assert (one - other).norm() < close(pair, exact=1e-3, half=0.2) * other.norm() and other.norm() > 0


def test_memory_is_that_of_the_tensors() -> None:
    def work() -> float:
        return torch.zeros(2**20, device=DEVICE).sum().item()

    _, peak = peak_memory(work, torch.device(DEVICE))
    assert 2**22 <= peak <= 2**22 + 2**16


def test_one_worker_and_a_gpu_in_the_environment(pair: tuple[Model, Model]) -> None:
    assert default_workers(pair[1]) == 1 and not can_fork(pair[1].device)
    assert str(provenance.environment()["gpu"]).startswith(torch.cuda.get_device_name())


def test_tf32_rounds_only_where_it_is_asked_for() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    left, right = torch.randn(2, 512, 512, device=DEVICE, generator=torch.Generator(device=DEVICE).manual_seed(0))
    exact = left.double() @ right.double()
    errors = {}
    for precision in ("tf32", "float32"):
        with float32_products(precision):
            errors[precision] = ((left @ right).double() - exact).norm() / exact.norm()
    assert errors["float32"] < 1e-6 < 1e-4 < errors["tf32"] < 2e-3
