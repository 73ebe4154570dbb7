"""Texts that a model makes up, over which its keys are averaged where there is no corpus."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from workbench.edits.ledger import state_fingerprint
from workbench.machine.hashing import digest
from workbench.machine.progress import track
from workbench.machine.sealed import Damaged, load_sealed, save_sealed
from workbench.models.generation import generate_unprompted
from workbench.models.model import Model

SELF_TOKENS = 10_000
"""Of the texts that a model makes up: several times as many as a key of SmolLM2 has dimensions."""
A_DIMENSION = 3
"""As many tokens at least for each dimension of a key, of fewer than one the second moment has no inverse."""
SELF_LENGTH = 128
"""Tokens of one such text."""
_SELF_AT_ONCE = 160  # each step reads all weights once, whatever the number of texts
_SELF_FORMAT = 1
_KEPT = "workbench-texts-1"


def self_texts(model: Model, *, seed: int, tokens: int | None = None, cache: Path | None = None) -> list[str]:
    """Texts of about so many tokens that the model itself makes up, for a machine that has no corpus.

    Sampled at temperature 1 from the whole vocabulary, `SELF_LENGTH` tokens each, after the token that begins a text.
    By default `SELF_TOKENS`, or more for a model whose keys have more dimensions than a third of that.
    The same weights, seed and device give the same texts. With a `cache` folder they are sampled once.
    """
    tokens = max(SELF_TOKENS, A_DIMENSION * model.d_mlp) if tokens is None else tokens
    key = json.dumps([_SELF_FORMAT, state_fingerprint(model), seed, tokens, SELF_LENGTH, model.device.type])
    path = None if cache is None else cache / f"self_texts-{digest(key)[:32]}.safetensors"
    if path is not None and path.is_file():
        try:
            return load_sealed(path, format=_KEPT)[1]
        except Damaged as error:
            warnings.warn(f"the texts in '{path}' are damaged ({error}); they are made up again", stacklevel=3)
    sampled = (text.strip() for batch in _sampled(model, seed, max(1, tokens // SELF_LENGTH)) for text in batch)
    texts = [text for text in sampled if text]
    if path is not None:
        save_sealed(path, {}, texts, format=_KEPT)
    return texts


def _sampled(model: Model, seed: int, count: int) -> Iterator[list[str]]:
    generator = torch.Generator(device=model.device).manual_seed(seed)
    length = min(SELF_LENGTH, model.n_ctx - 2)
    for start in track(range(0, count, _SELF_AT_ONCE), "Sampling texts from the model"):
        some = min(_SELF_AT_ONCE, count - start)
        yield generate_unprompted(model, some, max_new_tokens=length, generator=generator)
