"""Texts that a model makes up, over which its keys are averaged where there is no corpus."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from workbench.edits.ledger import state_fingerprint
from workbench.machine.files import write_whole
from workbench.machine.hashing import digest
from workbench.machine.progress import track
from workbench.models.generation import generate_unprompted
from workbench.models.model import Model
from workbench.records.texts import read_texts

SELF_TOKENS = 10_000
"""Of the texts that a model makes up: several times as many as a key of SmolLM2 has dimensions."""
SELF_LENGTH = 128
"""Tokens of one such text."""
_SELF_AT_ONCE = 160  # each step reads all weights once, whatever the number of texts
_SELF_FORMAT = 1


def self_texts(model: Model, *, seed: int, tokens: int = SELF_TOKENS, cache: Path | None = None) -> list[str]:
    """Texts of about so many tokens that the model itself makes up, for a machine that has no corpus.

    Sampled at temperature 1 from the whole vocabulary, `SELF_LENGTH` tokens each, after the token that begins a text.
    The same weights, seed and device give the same texts. With a `cache` folder they are sampled once.
    """
    key = json.dumps([_SELF_FORMAT, state_fingerprint(model), seed, tokens, SELF_LENGTH, model.device.type])
    path = None if cache is None else cache / f"self_texts-{digest(key)[:32]}.jsonl"
    if path is not None and path.is_file():
        return read_texts(str(path))
    texts = [text for batch in _sampled(model, seed, max(1, tokens // SELF_LENGTH)) for text in batch if text.strip()]
    if path is not None:
        write_whole(path, "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    return [text.strip() for text in texts]


def _sampled(model: Model, seed: int, count: int) -> Iterator[list[str]]:
    generator = torch.Generator(device=model.device).manual_seed(seed)
    length = min(SELF_LENGTH, model.n_ctx - 2)
    for start in track(range(0, count, _SELF_AT_ONCE), "Sampling texts from the model"):
        some = min(_SELF_AT_ONCE, count - start)
        yield generate_unprompted(model, some, max_new_tokens=length, generator=generator)
