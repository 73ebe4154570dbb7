"""Plain text, over which statistics of a model's activations are taken."""

import json
from pathlib import Path

WIKITEXT = ("Salesforce/wikitext", "wikitext-103-raw-v1")
"""Hub name and configuration of what "wikitext" stands for (a corpus that ROME's published statistics use)."""


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
