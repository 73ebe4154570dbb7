"""How an answer follows its prompt: with a space between them, or directly, as their writing asks."""

# ruff: noqa: RUF001

import re
import unicodedata
from collections.abc import Iterable

from workbench.records.facts import Record

UNSPACED = (
    "\u0e00-\u0fff"  # Thai, Lao, Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaadf"  # Burmese, Shan, Tai Viet
    "\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf"  # Khmer, Tai Le, New Tai Lue, Tai Tham
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fff\u3001-\u312f\u3190-\ua4cf"  # Han, kana, Bopomofo, their punctuation, Yi; Hangul lies between
    "\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff9f\uffe0-\uffe6"  # compatibility, vertical, full and half width
    "\U00016fe0-\U00018dff\U0001aff0-\U0001b2ff\U00020000-\U0003ffff"  # Tangut, more kana, rare Han
)
"""Scripts written without spaces between words, with their punctuation, as the inside of a regular expression's []."""

_UNSPACED = re.compile(f"[{UNSPACED}]")
_CLOSING = re.compile(r"[,.;:!?%)\]}…”»]++(?!\w)")
_MARKS = "\"'“”„‟«»‹›"
"""Quotation marks; which of them open and which close differs between languages."""


def join(prompt: str, target: str, separator: str | None = None) -> str:
    """The prompt followed by the target: with `separator` between them or, where that is None, as the text asks.

    Then a space is put between them unless either brings whitespace of its own; the prompt ends in a character of a
    script without spaces (`UNSPACED`), or contains one and the target begins with one; the prompt ends in an opening
    quotation mark or bracket, an elision (l', d'), a slash, or a hyphen or dash that follows its word directly; or the
    target is, or begins with, closing punctuation. ValueError if either is blank.
    """
    for name, text in (("prompt", prompt), ("target", target)):
        if not text.strip():
            raise ValueError(f"the {name} is blank: got {text!r}")
    if separator is None:
        separator = "" if _follows_directly(prompt, target) else " "
    return f"{prompt}{separator}{target}"


def true_statements(records: Iterable[Record]) -> list[str]:
    """Prompts with their true answers, of the records that have one."""
    requests = [(record.request, record.request.target_true) for record in records]
    return [join(request.prompt, true, request.separator) for request, true in requests if true is not None]


def whole_word(text: str) -> str:
    """A regular expression that finds the text, but not inside a longer word of a script with spaces."""
    letter = rf"[^\W{UNSPACED}]"
    before, after = (letter if re.match(letter, end) else "" for end in (text[0], text[-1]))
    return f"{f'(?<!{before})' if before else ''}{re.escape(text)}{f'(?!{after})' if after else ''}"


def _follows_directly(prompt: str, target: str) -> bool:
    if prompt[-1].isspace() or target[0].isspace() or _CLOSING.match(target):
        return True
    # Marks and invisible characters belong to the letter before them.
    letters = [letter for letter in prompt if unicodedata.category(letter) not in ("Mn", "Me", "Cf")] or list(prompt)
    before, last = letters[-2] if len(letters) > 1 else " ", letters[-1]
    if _UNSPACED.match(last) or (_UNSPACED.match(target) and _UNSPACED.search(prompt)):
        return True
    free = not before.isalnum() and unicodedata.category(before) not in ("Po", "Pe", "Pf")
    if last in _MARKS and (free or _UNSPACED.match(before)):
        return True
    if last in "'’":
        word = re.split(r"\W", "".join(letters[:-1]))[-1]
        return word.isalpha() and len(word) <= 5 and not (len(word) > 2 and word[-1] in "sS") and not _quoted(prompt)
    if unicodedata.category(last) == "Ps":
        return last != "„" or free
    return (last == "/" or unicodedata.category(last) == "Pd") and not before.isspace()


def _quoted(prompt: str) -> bool:
    """Whether the single quotation mark at the end of a prompt closes one that was opened in it."""
    opener = "‘" if prompt.endswith("’") else r"'"
    return re.search(rf"(?:^|[\s(\[]){opener}\w[^'’]*['’]$", prompt) is not None


def starts_with_target(continuation: str, target: str) -> bool:
    """Whether prompt + target begins prompt + continuation: case sensitive, but for leading whitespace.

    Compared as characters: the continuation "Parisian" starts with "Paris".
    """
    if not target.strip():
        raise ValueError(f"a target needs a character that is not whitespace, got {target!r}")
    return continuation.lstrip().startswith(target.strip())
