"""Cells of text as a Markdown or a LaTeX table; every table that the workbench writes goes through here."""

import pandas as pd

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$"}
)
_RULES = {"l": "---", "r": "---:"}


def markdown(cells: pd.DataFrame, *, caption: str, align: str) -> str:
    """The caption, then a pipe table; `align` has "l" or "r" for each column, as LaTeX has.

    Cells are plain text. The caption is Markdown already: `escaped` makes it of plain text.
    """
    lines = [list(cells.columns), [_RULES[side] for side in align], *cells.to_numpy().tolist()]
    body = "\n".join("| " + " | ".join(escaped(str(cell)) for cell in line) + " |" for line in lines)
    return f"{caption}\n\n{body}\n"


def escaped(text: str) -> str:
    """Text in one line in which Markdown sees no end of a cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def latex(cells: pd.DataFrame, *, caption: str, align: str, label: str | None = None) -> str:
    """A booktabs table environment, without a caption if that is empty; all text is escaped."""
    header, *lines = (
        " & ".join(str(cell).translate(_LATEX) for cell in line) + r" \\"
        for line in [list(cells.columns), *cells.to_numpy().tolist()]
    )
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{caption.translate(_LATEX)}}}"] if caption else []),
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
