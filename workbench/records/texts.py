"""Plain text, over which statistics of a model's activations are taken."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

LONGEST = 2**16
"""Characters of one text."""
WIKITEXT = ("Salesforce/wikitext", "wikitext-103-raw-v1")
"""Hub name and configuration of what "wikitext" stands for (a corpus that ROME's published statistics use)."""


def read_texts(name: str, *, limit: int = 100_000) -> list[str]:
    """At most `limit` non-blank texts: lines of a .txt file, the "text" of each line of a .jsonl, or "wikitext".

    Longer ones than `LONGEST` are cut between words (`cut`). "wikitext" is fetched from the Hugging Face hub.
    FileNotFoundError or ValueError names the file, the line and what was expected.
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
            texts += islice(cut(text.strip()), limit - len(texts))
            if len(texts) == limit:
                break
    if not texts:
        raise ValueError(f"{path} holds no text")
    return texts


def cut(text: str) -> Iterator[str]:
    """A text in pieces of at most `LONGEST` characters, cut between words where there are some; none of a blank one.

    A tokenizer takes a hundred times as much memory as the text that it is given at once.
    """
    start, end = 0, len(text)
    while start < end:
        stop = min(start + LONGEST, end)
        if stop < end and (space := text.rfind(" ", start + 1, stop)) > 0:
            stop = space  # before the space, which many tokenizers make part of the word behind it
        if piece := text[start:stop].strip():
            yield piece
        start = stop


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
