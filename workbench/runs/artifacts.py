"""Figures and tables as files, and read back to be shown."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.machine.as_json import AsJson
from workbench.machine.files import write_whole
from workbench.machine.jsonl import dumps, load_json
from workbench.tables.markup import apart, csv, escaped, latex, markdown
from workbench.tables.table import Table, to_csv, to_latex, to_markdown

_GLYPH = re.compile(r"Glyph (\d+) ")
"""How matplotlib warns of a character that no font in use draws."""


@dataclass(frozen=True, kw_only=True)
class SavedFigure:
    """A figure that a run has saved."""

    path: Path
    """The PNG."""
    caption: str
    """What it shows, in a sentence or two; may be empty."""


@dataclass(frozen=True, kw_only=True)
class SavedTable(AsJson):
    """A table as it is shown."""

    caption: str
    """What it shows and how it was measured."""
    columns: tuple[str, ...]
    """Heads."""
    rows: tuple[tuple[str, ...], ...]
    """Cells as text."""
    best: tuple[tuple[int, int], ...] = ()
    """(row, column) of those that are shown in bold."""

    @classmethod
    def of(cls, table: Table | pd.DataFrame, caption: str = "") -> "SavedTable":
        """What is shown of a table, which has its own caption, or of a frame without its index."""
        shown = table.frame() if isinstance(table, Table) else table.map(_shown)
        return cls(
            caption=table.caption if isinstance(table, Table) else caption,
            columns=tuple(map(str, shown.columns)),
            rows=tuple(tuple(map(str, row)) for row in shown.to_numpy().tolist()),
        )


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write `<path>.png` (150 dpi) and `<path>.pdf`, the same bytes for the same figure; the PNG's path.

    Characters that no installed font draws are boxes; one warning names them.
    """
    path = Path(path)
    # TrueType, so that the text of a PDF stays text; no dates, so that equal figures are equal files.
    with matplotlib.rc_context({"pdf.fonttype": 42, "savefig.bbox": None}), _missing_glyphs(path.name):
        for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=metadata)
            write_whole(path.parent / (path.name + suffix), buffer.getvalue())
    return path.parent / f"{path.name}.png"


@contextmanager
def _missing_glyphs(name: str) -> Iterator[None]:
    """Tell of characters without a glyph once for the figure of that name, not once a character and drawing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    missing = sorted({int(found[1]) for one in caught if (found := _GLYPH.match(str(one.message)))})
    for one in caught:
        if not _GLYPH.match(str(one.message)):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if missing:
        warnings.warn(
            f"no installed font draws {' '.join(map(chr, missing[:8]))}{' ...' if missing[8:] else ''} of figure "
            f"'{name}': install one that does, such as Noto Sans CJK, delete matplotlib's font cache "
            f"({matplotlib.get_cachedir()}) and draw it again",
            stacklevel=3,
        )


def save_table(table: Table | pd.DataFrame, path: str | Path, *, caption: str = "") -> Path:
    """Write `<path>.csv` (numbers), `.md` and `.tex`, and `.json` (what is shown); the CSV's path.

    A `Table` has its own caption. The index of a frame is left out: names of rows belong in a column. Of its cells that
    are texts such as "0.37 ± 0.01" the CSV has the numbers in columns of their own.
    """
    path = Path(path)
    shown, label = SavedTable.of(table, caption), f"tab:{path.name}"
    if isinstance(table, Table):
        numbers, md, tex = to_csv(table), to_markdown(table), to_latex(table, label=label)
    else:
        numbers = csv(apart(table))
        cells, align = pd.DataFrame(list(shown.rows), columns=list(shown.columns)), "l" * len(shown.columns)
        md = markdown(cells, caption=escaped(caption), align=align)
        tex = latex(cells, caption=caption, align=align, label=label)
    for suffix, text in (("json", dumps(shown.to_dict())), ("md", md), ("tex", tex), ("csv", numbers)):
        write_whole(path.parent / f"{path.name}.{suffix}", text.encode())
    return path.parent / f"{path.name}.csv"


def figures_in(folder: Path) -> dict[str, SavedFigure]:
    """The figures of a folder by name, in natural order; their captions lie beside them as text."""

    def caption(path: Path) -> str:
        return path.read_text(encoding="utf-8") if path.exists() else ""

    paths = sorted(folder.glob("*.png"), key=_natural)
    return {path.stem: SavedFigure(path=path, caption=caption(path.with_suffix(".txt"))) for path in paths}


def tables_in(folder: Path) -> dict[str, SavedTable]:
    """The tables of a folder by name, in natural order."""
    paths = sorted(folder.glob("*.json"), key=_natural)
    return {path.stem: SavedTable.from_dict(load_json(path)) for path in paths}


def _natural(path: Path) -> tuple[str, int, str]:
    """`trace_2` before `trace_10`."""
    letters = path.stem.rstrip("0123456789")
    return letters, int(path.stem[len(letters) :] or -1), path.stem


def _shown(cell: Any) -> str:
    if isinstance(cell, float | np.floating):
        return "-" if np.isnan(cell) else f"{cell:.3g}"
    return str(cell)
