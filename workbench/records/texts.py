"""Plain text, over which statistics of a model's activations are taken."""

import json
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from workbench.records.facts import encodable

LONGEST = 2**16
"""Characters of one text."""
MOST = 2**28
"""Characters of all texts together, which are held in memory."""
WIKITEXT = ("Salesforce/wikitext", "wikitext-103-raw-v1")
"""Hub name and configuration of what "wikitext" stands for (a corpus that ROME's published statistics use)."""


def read_texts(name: str, *, limit: int = 100_000) -> list[str]:
    """At most `limit` non-blank texts: lines of a .txt file, the "text" of each line of a .jsonl, or "wikitext".

    Longer ones than `LONGEST` are cut between words (`cut`) as they are read, and no more than `MOST` characters are
    held, with a warning. "wikitext" is fetched from the Hugging Face hub.
    FileNotFoundError or ValueError names the file, the line and what was expected.
    """
    if name == "wikitext":
        return _fetch_wikitext(limit)
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"no text at '{path}': give a .txt or .jsonl file, 'wikitext', 'self', or 'atlas'")
    texts, left = [], MOST
    with path.open(encoding="utf-8-sig") as file:
        lines = _jsonl(path, file) if path.suffix.lower() == ".jsonl" else _lines(file)
        try:
            for text in islice(lines, limit):
                left -= len(text)
                if left < 0:
                    warnings.warn(f"{path}: no more than its first {MOST:,} characters are used", stacklevel=2)
                    break
                texts.append(text)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected text in UTF-8, after {len(texts):,} texts: {error}") from None
    if not texts:
        raise ValueError(f"{path} holds no text")
    return texts


def cut(text: str) -> Iterator[str]:
    """A text in pieces of at most `LONGEST` characters, cut between words where there are some; none of a blank one.

    A tokenizer takes a hundred times as much memory as the text that it is given at once.
    """
    start, end = 0, len(text)
    while start < end:
        stop = end if end - start <= LONGEST else _end_of_piece(text, start)
        if piece := text[start:stop].strip():
            yield piece
        start = stop


def _end_of_piece(text: str, start: int) -> int:
    """Before a space, which many tokenizers make part of the word behind it."""
    space = text.rfind(" ", start + 1, start + LONGEST)
    return space if space > 0 else start + LONGEST


def _lines(file: TextIO) -> Iterator[str]:
    """The texts of lines, of which no more than two pieces are held."""
    held, begun = "", False
    while part := file.readline(LONGEST):
        held = held + part if begun else (held + part).lstrip()
        if part.endswith("\n"):
            yield from cut(held.rstrip())
            held, begun = "", False
        elif len(held) > LONGEST:
            stop = _end_of_piece(held, 0)
            yield from cut(held[:stop])
            held, begun = held[stop:], True
    yield from cut(held.rstrip())


def _jsonl(path: Path, file: TextIO) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield from cut(_jsonl_text(path, number, line).strip())


def _jsonl_text(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str) or not encodable(text):
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
