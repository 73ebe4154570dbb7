"""A page says everything once: tables and figures that are kept for themselves have captions that share sentences."""

import re
from collections.abc import Sequence
from dataclasses import replace

from workbench.report.elements import Element, Examples, Paragraph, Section, Traces
from workbench.runs.artifacts import SavedTable

_SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z|(\d])")
_SHARED = 2
"""Sentences in common from which on a caption refers to the earlier one in their place."""


def said_once(sections: Sequence[Section], headline: str) -> list[Section]:
    """The sections without paragraphs that the headline holds, and captions that refer to what an earlier one says."""
    earlier: list[tuple[str, list[str]]] = []
    counts = {"Figure": 0, "Table": 0}

    def shown(element: Element) -> Element:
        if isinstance(element, Paragraph | Examples):
            return element
        kind = "Table" if isinstance(element, SavedTable) else "Figure"
        counts[kind] += 1
        name, said = f"{kind} {counts[kind]}", _SENTENCE.split(element.caption)
        shares = [(of, set(said) & set(one)) for of, one in earlier]
        of, shared = max(shares, key=lambda pair: len(pair[1]), default=("", set()))
        earlier.append((name, said))
        if isinstance(element, Traces) or len(shared) < _SHARED:
            return element
        own = [sentence for sentence in said if sentence not in shared]
        return replace(element, caption=" ".join([*own, f"{'Else as' if own else 'As'} {of} says."]))

    found = []
    for section in sections:
        kept = [one for one in section.elements if not (isinstance(one, Paragraph) and one.text in headline)]
        found.append(replace(section, elements=[shown(one) for one in kept]))
    return found
