"""Hugging Face checkpoints: loaded under TransformerLens, and written back with edits."""

import copy
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from workbench.architectures import load_decoder, missing_parts, refusal

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


def load_checkpoint(name: str, *, device: str, dtype: torch.dtype) -> Checkpoint:
    """Load "atlas", a local folder or a hub name; ValueError naming it and the way out otherwise."""

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
            # First, so that an unreachable hub is waited for once. A checkpoint's own code is never run.
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            refused = refusal(config)
            if refused is None:
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
                hf = load_decoder(source, config, attn_implementation="eager", dtype=dtype)
        except Exception as error:  # each library below has its own: OSError, ValueError, SafetensorError ...
            raise unusable(_reason(error)) from error
        if refused is not None:
            raise unusable(refused)
        if not tokenizer.is_fast:
            raise unusable("its tokenizer is not a fast one, and the place of a subject needs character offsets")
        hf = hf.to(device).eval()
        # Taken before bridging, which renames: these are the names that a checkpoint is saved under.
        parameters, persistent = dict(hf.named_parameters()), hf.state_dict().keys()
        buffers = {name: buffer for name, buffer in hf.named_buffers() if name in persistent}
        try:
            bridge = TransformerBridge.boot_transformers(  # pyright: ignore[reportAttributeAccessIssue]
                source, hf_model=hf, tokenizer=copy.deepcopy(tokenizer), device=device, dtype=dtype
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # TransformerLens meets what it does not know in as many ways
            raise unusable(f"TransformerLens cannot hook {type(hf).__name__}: {_reason(error)}") from error
    missing = missing_parts(bridge)
    if missing is not None:
        raise unusable(missing)
    bridge.eval()
    for module in bridge.modules():  # the bridge splits fused attention into parameters of its own
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    return Checkpoint(bridge=bridge, tokenizer=tokenizer, parameters=parameters, buffers=buffers)


def _reason(error: Exception) -> str:
    """The first line of what went wrong."""
    if "trust_remote_code" in str(error):
        return "it asks for code of its own to be run, which is never done here"
    first = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    return textwrap.shorten(first, 300, placeholder=" ...")


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
