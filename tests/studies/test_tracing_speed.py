"""Tracing cell by cell as published is the plain engine's; costs are counted, and laws of growth found."""

import math

import pytest
import torch
from command import TINY
from known_traces import FACT

from workbench.figures.growth import growth_figure
from workbench.machine.cost import cost
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.studies.benchmarking import shallower
from workbench.studies.published_protocol import PublishedRuns
from workbench.studies.speed_table import against_float32
from workbench.studies.tracing_growth import exponent, grow, growth_table, of_length
from workbench.studies.tracing_speed import TOGETHER, Traced, spread, timed, to_float32
from workbench.tracing.cells import Cell, Patch


def test_the_published_protocol_gives_the_numbers_of_both_engines(tiny_gpt2: Model) -> None:
    traced = Traced(model=tiny_gpt2, fact=FACT, window=3, samples=3, seed=0)
    fast = traced.fast(("mlp_out",)).restored["mlp_out"].flatten()
    for protocol in ("published", "plain", "plain batched"):
        _, values, some = traced.by_cell(protocol, "mlp_out", 7)
        assert len(some) == 7 and torch.allclose(values, fast[some], atol=1e-5)
    assert not torch.allclose(fast[:7], fast[some], atol=1e-5)  # other cells have other values


def test_the_published_protocol_refuses_what_it_did_otherwise(tiny_gpt2: Model) -> None:
    traced = Traced(model=tiny_gpt2, fact=FACT, window=3, samples=1, seed=0)
    severed = Cell(positions=(1, 2), patches=(Patch(layer=2, site="mlp_out", source="corrupted"),))
    runs = traced.runs("published")
    assert isinstance(runs, PublishedRuns)
    with pytest.raises(ValueError, match="clean run alone"):
        runs.values([severed], lambda logits: logits[..., 0])


@pytest.mark.slow
def test_a_fact_is_timed_in_every_way(tiny_gpt2: Model) -> None:
    found = timed(tiny_gpt2, FACT, 0, window=3, samples=2, repeats=1, cells=2)
    assert found["difference"] < 1e-5 and found["cells"] == [2, tiny_gpt2.n_layers * found["tokens"]]
    assert {len(found["times"][TOGETHER][way]) for way in ("published", "plain", "fast")} == {1}
    assert found["launches"]["published"] > found["launches"]["fast"] > 0 < found["bytes"]["fast"]
    assert found["plain_flop"] > found["fast_flop"]["resid_post"]


def test_operators_and_memory_are_counted() -> None:
    x = torch.ones(1024)
    one, two = (cost(lambda n=n: [x.exp() for _ in range(n)], x.device) for n in (1, 2))
    assert two.launches == 2 * one.launches > 0
    assert (one.bytes, two.bytes) == (4096, 8192)


def test_cells_are_spread_evenly() -> None:
    assert spread(10, 3) == [1, 5, 8] and spread(2, 5) == [0, 1]


@pytest.mark.slow
def test_growth_has_a_row_a_size(tiny_gpt2: Model) -> None:
    sizes = {"facts": [1, 2], "tokens": [9], "layers": [2]}
    rows = list(grow(tiny_gpt2, [FACT, FACT], sizes, window=3, samples=1, cells=1))
    assert [(row["axis"], row["size"]) for row in rows] == [("facts", 1), ("facts", 2), ("tokens", 9), ("layers", 2)]
    assert all(min(row["seconds"].values()) > 0 for row in rows)
    table = growth_table(rows)
    assert len(table) == 9 and "nan" in set(table["Exponent"])
    assert shallower(tiny_gpt2, tiny_gpt2.n_layers) is tiny_gpt2
    assert tiny_gpt2.tokenize([of_length(tiny_gpt2, FACT, 12).prompt]).ids.shape[1] == 12


def test_the_exponent_of_a_power_law_is_found() -> None:
    assert exponent([1, 10, 100], [3.0, 300.0, 30000.0]) == pytest.approx(2)
    assert math.isnan(exponent([4], [1.0]))
    seconds = {"facts": {"fast": {1: 1.0, 10: 10.0}}}
    (panel,) = growth_figure(seconds, {"facts": {"fast": 1.0}}).axes
    assert panel.get_xscale() == "log" and panel.get_legend_handles_labels()[1] == ["fast (exponent 1.00)"]


def test_what_bfloat16_changes_is_told(tiny_gpt2: Model) -> None:
    coarse = load_model(str(TINY), device="cpu", dtype=torch.bfloat16)
    found = [to_float32(model, tiny_gpt2, FACT, 0, window=3, samples=2) for model in (tiny_gpt2, coarse)]
    assert found[0] == {"difference": 0.0, "same_layer": True}
    assert 0 < found[1]["difference"] < 0.05
    assert against_float32([{}]) == ""
    told = against_float32([{"to_float32": one} for one in (found[0], {"difference": 0.01, "same_layer": False})])
    assert told.endswith("at most 1.0e-02, and the layer located is the same for 1 of 2 facts.")
