"""Hugging Face checkpoints: loaded under TransformerLens, and written back with edits."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

ATLAS = Path(__file__).resolve().parents[1] / "data" / "atlas"
"""Folder of the embedded default; its model lies in `ATLAS / "model"`."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint."""

    bridge: TransformerBridge
    """The TransformerLens model, with raw weights."""
    tokenizer: PreTrainedTokenizerBase
    """The checkpoint's own tokenizer (the bridge's is rebuilt, and may add a BOS)."""
    parameters: dict[str, Tensor]
    """Live parameters under the checkpoint's names, tied ones once."""
    buffers: dict[str, Tensor]
    """Live persistent buffers under the checkpoint's names."""

    def save(self, folder: Path) -> None:
        """Write the present weights and the tokenizer as a Hugging Face folder."""
        weights = {name: tensor.detach() for name, tensor in (self.parameters | self.buffers).items()}
        hf: Any = self.bridge.original_model
        with _quiet():
            hf.save_pretrained(folder, state_dict=weights)
            self.tokenizer.save_pretrained(folder)


def load_checkpoint(name: str, *, device: str, dtype: torch.dtype | None) -> Checkpoint:
    """Load "atlas", a local folder or a hub name; ValueError naming it and the way out otherwise.

    `dtype` None is that of the checkpoint's weights.
    """

    def unusable(why: str) -> ValueError:
        ways = 'give "atlas", a local Hugging Face folder, or a hub name such as gpt2-xl'
        return ValueError(f"cannot load model {name!r}: {why}; {ways}")

    path = ATLAS / "model" if name == "atlas" else Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise unusable(f"the folder {path} has no config.json")
    elif not name or path.exists() or name == "atlas" or name.startswith((".", "/", "~")):
        raise unusable(f"{path} is not a folder")
    source = str(path) if path.is_dir() else name
    with _quiet():
        try:
            AutoConfig.from_pretrained(source)  # first, so that an unreachable hub is waited for once
            tokenizer = AutoTokenizer.from_pretrained(source)
            hf: Any = AutoModelForCausalLM.from_pretrained(
                source, attn_implementation="eager", dtype=dtype or _stored(source)
            )
        except Exception as error:  # each library below has its own: OSError, ValueError, SafetensorError ...
            reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
            raise unusable(reason) from error
        if not tokenizer.is_fast:
            raise unusable("its tokenizer is not a fast one, and the place of a subject needs character offsets")
        hf = hf.to(device).eval()
        dtype = hf.dtype
        # Taken before bridging, which renames: these are the names that a checkpoint is saved under.
        parameters, persistent = dict(hf.named_parameters()), hf.state_dict().keys()
        buffers = {name: buffer for name, buffer in hf.named_buffers() if name in persistent}
        bridge = TransformerBridge.boot_transformers(  # pyright: ignore[reportAttributeAccessIssue]
            source, hf_model=hf, tokenizer=copy.deepcopy(tokenizer), device=device, dtype=dtype
        )
    bridge.eval()
    for module in bridge.modules():  # the bridge splits fused attention into parameters of its own
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    return Checkpoint(bridge=bridge, tokenizer=tokenizer, parameters=parameters, buffers=buffers)


def _stored(source: str) -> "torch.dtype | str":
    """The type of most of the weights in a folder's safetensors; "auto", which asks the config, for other files."""
    counts: dict[torch.dtype, int] = {}
    for path in sorted(Path(source).glob("*.safetensors")):
        with safe_open(str(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118 (an open safetensors file is not a mapping)
                weight = file.get_slice(name)
                dtype = file.get_tensor(name).dtype if not weight.get_shape() else weight[:0].dtype
                if dtype.is_floating_point:
                    counts[dtype] = counts.get(dtype, 0) + math.prod(weight.get_shape())
    return max(counts, key=counts.__getitem__) if counts else "auto"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and notices of loading, and put both back."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
