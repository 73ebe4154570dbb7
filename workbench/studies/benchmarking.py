"""What benchmarks share: models of a published shape with random weights, and how fast a machine multiplies."""

import copy
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config
from transformers.utils import logging

from workbench.machine.paths import ATLAS
from workbench.models.kernels import LINEAR_KERNEL
from workbench.models.loading import load_model, named_device
from workbench.models.model import Model

SHAPES = {"gpt2-small": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-xl": (48, 1600, 25)}
"""(layers, d_model, heads) of GPT-2s; vocabulary and context are GPT-2's own."""

# torch's own counter does not know this kernel.
_FLOP = {LINEAR_KERNEL: lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]} if LINEAR_KERNEL else {}


def benchmark_model(name: str, *, device: str = "auto", dtype: torch.dtype = torch.float32) -> Model:
    """The model of that name, or for "gpt2-small-shape" etc. a GPT-2 of that shape with random weights.

    A shape has the vocabulary size of GPT-2 and the embedded model's tokenizer, so nothing is downloaded.
    """
    shape = name.removesuffix("-shape")
    if shape == name:
        return load_model(name, device=device, dtype=dtype)
    if shape not in SHAPES:
        raise ValueError(f"no shape {name!r}; there are {', '.join(f'{each}-shape' for each in SHAPES)}")
    layers, d_model, heads = SHAPES[shape]
    config = GPT2Config(n_layer=layers, n_embd=d_model, n_head=heads, bos_token_id=0, eos_token_id=0)
    return _random(name, config, AutoTokenizer.from_pretrained(ATLAS / "model"), device=device, dtype=dtype)


def shallower(model: Model, layers: int) -> Model:
    """The model itself where it has so many layers, else one of its sizes with so many and random weights."""
    if layers == model.n_layers:
        return model
    config: Any = copy.deepcopy(model.hf.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer % model.n_layers] for layer in range(layers)]
    name = f"{model.name}-{layers}-layers"
    return _random(Path(name).name, config, model.tokenizer, device=str(model.device), dtype=model.dtype)


def _random(name: str, config: Any, tokenizer: Any, *, device: str, dtype: torch.dtype) -> Model:
    logging.disable_progress_bar()
    where = torch.device(named_device(device))
    gpus = [where] if where.type == "cuda" else []
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=gpus):
        torch.manual_seed(0)
        path = Path(folder) / name
        with where:  # where billions of random numbers are drawn fastest
            made = AutoModelForCausalLM.from_config(config)
        made.to(dtype).save_pretrained(path)
        del made
        tokenizer.save_pretrained(path)
        return load_model(str(path), device=device, dtype=dtype)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds that `work` takes, kernels finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def floating_point_operations(work: Callable[[], object]) -> int:
    """Of the matrix products that `work` does."""
    with FlopCounterMode(display=False, custom_mapping=_FLOP) as counter:
        work()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype, *, repeats: int = 5) -> float:
    """Floating-point operations a second of the fastest of some square products (2048 and 4096)."""
    best = 0.0
    for size in (2048, 4096):
        left, right = torch.randn(2, size, size, device=device, dtype=dtype)
        for _ in range(repeats):
            best = max(best, 2 * size**3 / seconds(lambda left=left, right=right: left @ right, device))
    return best


def device_name(device: torch.device) -> str:
    """The GPU's name, or how many threads of the processor are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
