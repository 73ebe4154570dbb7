"""Weights on several devices: which go where. `test_other_device.py` runs a model that is spread over two."""

from pathlib import Path

import pytest
import torch
from command import TINY
from conftest import load_hf

from workbench.models import placement
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.placement import automatic, main_device


def test_without_gpus_all_is_on_the_cpu(tiny_gpt2: Model):
    model = load_model(str(TINY), device_map="auto")
    assert (model.device.type, model.device_map, model.spread) == ("cpu", "auto", False)
    assert model.fingerprint() == tiny_gpt2.fingerprint()
    tokens = tiny_gpt2.tokenize(["The capital of Japan is"])
    assert torch.equal(model.logits(tokens), tiny_gpt2.logits(tokens))


def test_blocks_stay_whole_and_what_does_not_fit_goes_to_the_cpu(monkeypatch: pytest.MonkeyPatch):
    hf = load_hf(TINY)
    size = sum(parameter.numel() * 4 for parameter in hf.transformer.h[0].parameters())
    rest = sum(parameter.numel() * 4 for parameter in hf.parameters()) - 6 * size
    monkeypatch.setattr(placement, "BUDGET", size / 2**30)
    room = {0: rest + 4 * size, 1: int(2.5 * size), "cpu": 10 * size}
    monkeypatch.setattr(placement, "get_balanced_memory", lambda *args, **options: room)
    found = automatic(hf)
    blocks = [found[f"transformer.h.{layer}"] for layer in range(6)]
    assert blocks[0] == torch.device("cuda", 0) == main_device(found)
    assert {device.type for device in blocks} == {"cuda", "cpu"} and torch.device("cuda", 1) in blocks
    room["cpu"] = 0
    with pytest.raises(ValueError, match=r"no room for all of it .* give --dtype bfloat16"):
        automatic(hf)


def test_what_means_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"device map is one of auto.* got 'balanced'"):
        load_model(str(TINY), device_map="balanced")
    with pytest.raises(ValueError, match="leave device 'cpu' out"):
        load_model(str(TINY), device="cpu", device_map="auto")
