"""Cells of text as a Markdown or a LaTeX table, or as CSV; every table that the workbench writes goes through here."""

import re
from typing import Any

import pandas as pd

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$"}
)
_BREAKS = re.compile(r"\s*[\x00-\x1f\x7f\x85\u2028\u2029]\s*")
"""What ends a line somewhere, or is no text."""
_MARKDOWN = re.compile(r"[\\|<\[`$~]|&(?=#?\w+;)|(?<!\*)\*(?!\*)")
"""What ends a cell of Markdown, or begins HTML, a link, code, a formula or emphasis in it; two stars make it bold."""
_FORMULA = re.compile(r"[=+\-@\t\r\n]")
"""How a cell begins that spreadsheets compute."""
_NUMBERS = re.compile(r"[-+]?(?:[\d.,%()±\s+-]|to|e|inf|nan)*")
"""Cells of numbers alone, with their intervals, or a dash: "-1.2", "-27.8 (-32.7 to -23.2)"."""
_PARTS = (r"^(-?[\d.]+)(?: ± ([\d.]+))?$", r"^(-?[\d.]+)(?: \((-?[\d.]+)(?:-| to )(-?[\d.]+)\))?$")
"""A value with half of its interval, or with both ends."""
_ENDS = {2: ("", " ±"), 3: ("", " from", " to")}
"""What their columns are called, behind the name."""
_RULES = {"l": "---", "r": "---:"}


def markdown(cells: pd.DataFrame, *, caption: str, align: str) -> str:
    """The caption, then a pipe table; `align` has "l" or "r" for each column, as LaTeX has.

    Cells are plain text. The caption is Markdown already: `escaped` makes it of plain text.
    """
    lines = [list(cells.columns), [_RULES[side] for side in align], *cells.to_numpy().tolist()]
    body = "\n".join("| " + " | ".join(escaped(str(cell)) for cell in line) + " |" for line in lines)
    return f"{caption}\n\n{body}\n"


def escaped(text: str) -> str:
    """Text in one line in which Markdown sees no end of a cell, no HTML, link, code, formula or emphasis."""
    return _MARKDOWN.sub(r"\\\g<0>", _BREAKS.sub(" ", text))


def latex(cells: pd.DataFrame, *, caption: str, align: str, label: str | None = None) -> str:
    """A booktabs table environment, without a caption if that is empty; all text is escaped."""
    whole = [list(cells.columns), *cells.to_numpy().tolist()]
    header, *lines = (_tex_line(" & ".join(_tex(str(cell)) for cell in line)) for line in whole)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{_tex(caption)}}}"] if caption else []),
            *([rf"\label{{{label}}}"] if label else []),
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            header,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex(text: str) -> str:
    return _BREAKS.sub(" ", text).translate(_LATEX)


def _tex_line(cells: str) -> str:
    r"""A row; `\\` before it takes an opening bracket or a star as its own."""
    return ("{}" if cells[:1] in ("[", "*") else "") + cells + r" \\"


def csv(frame: pd.DataFrame, **options: Any) -> str:
    """Comma-separated values, in which no text is a formula: an apostrophe stands before what spreadsheets compute."""
    return frame.rename(columns=_inert).map(_inert).to_csv(index=False, lineterminator="\n", **options)


def apart(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of which columns such as "0.37 ± 0.01" or "97 (94-99)" are split into values and intervals."""
    columns = {}
    for name in frame.columns:
        texts = frame[name].astype(str).replace("-", "")
        found = [texts.str.extract(pattern) for pattern in _PARTS]
        split = next((one for one in found if one.notna().any()[1] and (one[0].notna() | (texts == "")).all()), None)
        parts = {} if split is None else {end: split[place] for place, end in enumerate(_ENDS[len(split.columns)])}
        columns |= {f"{name}{end}": part for end, part in parts.items()} or {name: frame[name]}
    return pd.DataFrame(columns)


def _inert(cell: Any) -> Any:
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBERS.fullmatch(cell):
        return f"'{cell}"
    return cell
