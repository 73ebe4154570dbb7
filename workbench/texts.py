"""Plain text, over which statistics of a model's activations are taken."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import track

from workbench.files import write_whole
from workbench.models import Model

WIKITEXT = ("Salesforce/wikitext", "wikitext-103-raw-v1")
"""Hub name and configuration of what "wikitext" stands for (a corpus that ROME's published statistics use)."""

SELF_TOKENS = 10_000
"""Of the texts that a model makes up: several times as many as a key of SmolLM2 has dimensions."""
SELF_LENGTH = 128
"""Tokens of one such text."""
_SELF_AT_ONCE = 160  # each step reads all weights once, whatever the number of texts
_SELF_FORMAT = 1


def read_texts(name: str, *, limit: int = 100_000) -> list[str]:
    """At most `limit` non-blank texts: lines of a .txt file, the "text" of each line of a .jsonl, or "wikitext".

    "wikitext" is fetched from the Hugging Face hub. FileNotFoundError or ValueError names the file, the line and what
    was expected.
    """
    if name == "wikitext":
        return _fetch_wikitext(limit)
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"no text at '{path}': give a .txt or .jsonl file, 'wikitext', 'self', or 'atlas'")
    texts = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            text = _jsonl_text(path, number, line) if path.suffix == ".jsonl" else line
            if text.strip():
                texts.append(text.strip())
            if len(texts) == limit:
                break
    if not texts:
        raise ValueError(f"{path} holds no text")
    return texts


def self_texts(model: Model, *, seed: int, tokens: int = SELF_TOKENS, cache: Path | None = None) -> list[str]:
    """Texts of about so many tokens that the model itself makes up, for a machine that has no corpus.

    Sampled at temperature 1 from the whole vocabulary, `SELF_LENGTH` tokens each, after the token that begins a text.
    The same weights, seed and device give the same texts. With a `cache` folder they are sampled once.
    """
    key = json.dumps([_SELF_FORMAT, model.fingerprint(), seed, tokens, SELF_LENGTH, model.device.type])
    path = None if cache is None else cache / f"self_texts-{hashlib.sha256(key.encode()).hexdigest()[:32]}.jsonl"
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
        yield model.generate_unprompted(some, max_new_tokens=length, generator=generator)


def _jsonl_text(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f'{path}: line {number}: expected {{"text": "..."}}, got {line.strip()[:60]!r}')
    return text


def _fetch_wikitext(limit: int) -> list[str]:
    import datasets  # slow to import, and needed for this alone

    try:
        rows = datasets.load_dataset(*WIKITEXT, split="train", streaming=True)
        texts = (row["text"].strip() for row in rows)
        return [text for text, _ in zip((t for t in texts if t), range(limit), strict=False)]
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot fetch {WIKITEXT[0]} from the hub ({type(error).__name__}): give a .txt or .jsonl file with --text"
        ) from error
