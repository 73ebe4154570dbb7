"""The fast tracing engine gives the plain engine's numbers, in every family and for every form of tracing."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from workbench.models.blocks_check import blocks_of
from workbench.models.loading import load_model
from workbench.models.model import SITES, Model
from workbench.records.facts import Fact
from workbench.tracing import fast
from workbench.tracing.cells import Cell, Patch, grid
from workbench.tracing.corruption import Corruption
from workbench.tracing.fact import trace_fact
from workbench.tracing.fast import FastRuns
from workbench.tracing.noise import gaussian_noise, subject_span
from workbench.tracing.plain import PlainRuns

REFERENCE = json.loads((GOLDEN / "rome.json").read_text())
TOWER = Fact(subject="Eiffel Tower", template="In Paris the {} stands in", object="Rome")
PORTUGAL = Fact(subject="Portugal", template="The capital of {} is", object="Lisbon")

FORMS = {
    "as published": {"window": 10},
    "windows of 1": {"window": 1},
    "windows of 2": {"window": 2},
    "windows of 3, two tokens": {"window": 3, "span": 2},
    "without MLPs": {"window": 1, "severed": "mlp_out"},
    "without attention": {"window": 2, "severed": "attn_out"},
    "embeddings replaced": {"window": 3, "replace": True},
    "logit difference": {"window": 3, "metric": "logit_difference", "foil": 5},
    "divergence": {"window": 3, "metric": "kl"},
}


def noise_for(model: Model, fact: Fact, *, std: float = 0.5, samples: int = 3) -> torch.Tensor:
    first, end = subject_span(model, fact)
    return gaussian_noise(std, samples, end - first, model.d_model, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_plain_engine_in_every_family(family_model: Model, form: str) -> None:
    noise = noise_for(family_model, TOWER)
    fast, plain = (trace_fact(family_model, TOWER, noise=noise, engine=e, **FORMS[form]) for e in ("fast", "plain"))
    assert fast.clean == pytest.approx(plain.clean, abs=1e-5)
    assert fast.corrupted == pytest.approx(plain.corrupted, abs=1e-5)
    for site in SITES:
        torch.testing.assert_close(fast.restored[site], plain.restored[site], atol=1e-5, rtol=0)
        assert plain.indirect_effect(site).abs().max() > 1e-3  # so that equality says something
    assert (fast.tokens, fast.subject, fast.answer) == (plain.tokens, plain.subject, plain.answer)


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_severed_paths_equal_the_published_code(tiny_gpt2: Model, engine: str) -> None:
    numbers = load_file(GOLDEN / "rome.safetensors")
    request = REFERENCE["rome"][0]["request"]
    fact = Fact(subject=request["subject"], template=request["prompt"], object=request["target_true"]["str"])
    # The published code draws the noise of its second pass, whose states are restored, anew from the same numbers.
    first = numbers["trace.0.noise"]
    draws = np.random.RandomState(1).randn(2, *first.shape)
    second = torch.tensor(REFERENCE["noise_level"] * draws[1], dtype=torch.float32)
    torch.testing.assert_close(torch.tensor(REFERENCE["noise_level"] * draws[0], dtype=torch.float32), first)
    for severed, name in (("mlp_out", "mlp"), ("attn_out", "attn")):
        trace = trace_fact(
            tiny_gpt2, fact, noise=second, severed=severed, severed_noise=first, sites=["resid_post"], engine=engine
        )
        at_subject = trace.restored["resid_post"][trace.subject[1] - 1]
        torch.testing.assert_close(at_subject, numbers[f"severed.0.{name}"], atol=1e-5, rtol=0)


def test_severing_takes_the_effect_of_early_states_away(tiny_gpt2: Model) -> None:
    noise = noise_for(tiny_gpt2, PORTUGAL)
    whole, severed = (
        trace_fact(tiny_gpt2, PORTUGAL, noise=noise, sites=["resid_post"], severed=s) for s in (None, "mlp_out")
    )
    # Above the last layer there is nothing to sever.
    torch.testing.assert_close(severed.restored["resid_post"][:, -1], whole.restored["resid_post"][:, -1])
    assert not torch.allclose(severed.restored["resid_post"], whole.restored["resid_post"], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [1e-6, 3e-4])
def test_a_small_memory_splits_the_cells_and_changes_nothing(tiny_gpt2: Model, memory: float) -> None:
    noise = noise_for(tiny_gpt2, PORTUGAL)
    one, split = (trace_fact(tiny_gpt2, PORTUGAL, noise=noise, window=3, memory=m) for m in (1.0, memory))
    for site in SITES:
        torch.testing.assert_close(one.restored[site], split.restored[site], atol=1e-6, rtol=0)


def test_cells_of_any_shape(tiny_gpt2: Model) -> None:
    """Patches in layers that are not neighbours, of both runs, and cells that part late."""
    tokens, first = tiny_gpt2.tokenize([PORTUGAL.prompt]), subject_span(tiny_gpt2, PORTUGAL)[0]
    corruption = Corruption(first=first, noise=noise_for(tiny_gpt2, PORTUGAL))

    def patches(*layers: int, site: str = "mlp_out") -> tuple[Patch, ...]:
        return tuple(Patch(layer=layer, site=site) for layer in layers)

    frozen = Patch(layer=4, site="attn_out", source="corrupted")
    cells = [
        Cell(positions=(4, 6), patches=patches(0, 3)),
        Cell(positions=(4, 6), patches=patches(0, 3, 4)),
        Cell(positions=(4, 6), patches=(*patches(0), frozen)),
        Cell(positions=(3, 7), patches=patches(1, 2, site="attn_out")),
        Cell(positions=(5, 6), patches=()),
        Cell(positions=(5, 6), patches=patches(5)),
    ]
    answer = int(PlainRuns(tiny_gpt2, tokens, corruption).clean_logits.argmax())

    def measure(logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=-1)[..., answer]

    plain, fast = (runs(tiny_gpt2, tokens, corruption).values(cells, measure) for runs in (PlainRuns, FastRuns))
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    assert len(set(plain.tolist())) == 5  # the last two are the corrupted run


@pytest.mark.slow
def test_bfloat16_stays_near_float32(checkpoints: dict[str, Path]) -> None:
    folder = str(checkpoints["llama"])
    noise = noise_for(load_model(folder, device="cpu"), TOWER)
    exact, half = (
        trace_fact(load_model(folder, device="cpu", dtype=dtype), TOWER, noise=noise, window=2)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for site in SITES:
        torch.testing.assert_close(half.restored[site], exact.restored[site], atol=0.05, rtol=0)


def test_edits_of_the_weights_are_seen(tiny_gpt2: Model) -> None:
    noise, before = noise_for(tiny_gpt2, PORTUGAL), tiny_gpt2.snapshot()
    trace_fact(tiny_gpt2, PORTUGAL, noise=noise, sites=["mlp_out"])
    try:
        with torch.no_grad():
            tiny_gpt2.weight(2).mul_(1.5)
        fast, plain = (
            trace_fact(tiny_gpt2, PORTUGAL, noise=noise, sites=["mlp_out"], engine=e) for e in ("fast", "plain")
        )
    finally:
        tiny_gpt2.restore_(before)
    torch.testing.assert_close(fast.restored["mlp_out"], plain.restored["mlp_out"], atol=1e-5, rtol=0)


# What a GPU does, on the CPU


@pytest.mark.parametrize("tokens_at_once", [1.0, math.inf])
def test_any_number_of_tokens_at_once_changes_nothing(tiny_gpt2: Model, tokens_at_once: float) -> None:
    """All at once is how GPUs go; before the first cell starts, that is none."""
    tokens, (first, _) = tiny_gpt2.tokenize([PORTUGAL.prompt]), subject_span(tiny_gpt2, PORTUGAL)
    corruption = Corruption(first=first, noise=noise_for(tiny_gpt2, PORTUGAL))
    n_pos = tokens.ids.shape[1]
    cells = [
        cell
        for site in SITES
        for cell in grid(site, n_layers=tiny_gpt2.n_layers, n_pos=n_pos, positions=range(first, n_pos), window=3)
    ]

    def measure(logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=-1)[..., 0]

    usual, other = (
        FastRuns(tiny_gpt2, tokens, corruption, tokens_at_once=at_once).values(cells, measure)
        for at_once in (None, tokens_at_once)
    )
    torch.testing.assert_close(other, usual, atol=1e-6, rtol=1e-5)


def test_fused_attention_and_plain_linear_modules_change_nothing(
    family_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs on a GPU instead of the two matrix products and of oneDNN's kernel."""
    noise = noise_for(family_model, TOWER)
    usual = trace_fact(family_model, TOWER, noise=noise, window=2, engine="fast")
    monkeypatch.setattr(blocks_of(family_model), "short", 0)
    monkeypatch.setattr("workbench.models.kernels.LINEAR_KERNEL", None)
    other = trace_fact(family_model, TOWER, noise=noise, window=2, engine="fast")
    for site in SITES:
        torch.testing.assert_close(other.restored[site], usual.restored[site], atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokens_at_once", [1.0, math.inf])
def test_whole_rows_count_where_all_attend_together(tiny_gpt2: Model, tokens_at_once: float) -> None:
    """Queries, keys, values and what is read at every position, also of cells that begin at the last one."""
    tokens, (first, _) = tiny_gpt2.tokenize([PORTUGAL.prompt]), subject_span(tiny_gpt2, PORTUGAL)
    corruption, n_pos = Corruption(first=first, noise=noise_for(tiny_gpt2, PORTUGAL)), tokens.ids.shape[1]
    cells = [
        Cell(positions=(n_pos - 1, n_pos), patches=(Patch(layer=layer, site="mlp_out"),)) for layer in (1, 2, 3) * 10
    ]
    token, row = 4 * 12 * tiny_gpt2.d_model, 4 * 4 * tiny_gpt2.d_model * n_pos
    together = tokens_at_once == math.inf
    room = 3 * 7 * (token + together * row)  # of 7 cells of 3 samples each
    runs = FastRuns(tiny_gpt2, tokens, corruption, memory=1.001 * room / 2**30, tokens_at_once=tokens_at_once)
    assert [len(chunk) for chunk in runs._chunks(range(30), cells)] == [7, 7, 7, 7, 2]


@pytest.mark.parametrize(("free", "expected"), [(70, 10), (20, 10), (12, 6)])
def test_usual_memory_is_at_most_half_of_what_a_gpu_has_free(
    free: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 80 * 2**30))
    monkeypatch.setattr(fast, "free_memory", lambda device: free * 2**30)
    assert fast.usual_memory(torch.device("cuda")) == expected
    assert fast.usual_memory(torch.device("cpu")) == 1
