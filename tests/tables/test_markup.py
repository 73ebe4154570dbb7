"""Cells come out as they stand, in Markdown and in LaTeX, and the reports hold what is written today."""

import json
from pathlib import Path

import pandas as pd
import pytest

from workbench.machine.paths import ROOT
from workbench.tables.markup import escaped, latex, markdown

EVIL = "a|b\\c\nd & 5 % of {x}_1 ~ y^2 <z> ± #$"


def test_a_cell_cannot_end_its_column() -> None:
    text = markdown(pd.DataFrame({"Name": [EVIL], "x": ["1"]}), caption=escaped("What|\n."), align="lr")
    caption, _, head, rule, row = text.splitlines()
    assert (caption, head, rule) == ("What\\| .", "| Name | x |", "| --- | ---: |")
    assert row == "| a\\|b\\\\c d & 5 % of {x}_1 ~ y^2 <z> ± #$ | 1 |"


def test_latex_escapes_cells_and_captions_alike() -> None:
    text = latex(pd.DataFrame({"Name": [EVIL]}), caption=EVIL, align="l", label="tab:x")
    shown = r"a\textbar{}b\textbackslash{}c" + "\n"
    shown += r"d \& 5 \% of \{x\}\_1 \textasciitilde{} y\textasciicircum{}2 \textless{}z\textgreater{} $\pm$ \#\$"
    assert rf"\caption{{{shown}}}" in text and f"{shown} \\\\\n\\bottomrule" in text
    bare = latex(pd.DataFrame({"Name": ["1"]}), caption="", align="l")
    assert r"\caption" not in bare and r"\label" not in bare


@pytest.mark.parametrize("path", sorted(ROOT.glob("reports/**/tables/*.json")), ids=lambda path: path.stem)
def test_reports_hold_the_markdown_of_their_cells(path: Path) -> None:
    saved, written = json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".md").read_text(encoding="utf-8")
    align = "".join("r" if rule.endswith(":") else "l" for rule in written.splitlines()[3].strip("| ").split(" | "))
    cells = pd.DataFrame(saved["rows"], columns=saved["columns"])
    made = {markdown(cells, caption=form(saved["caption"]), align=align) for form in (str, escaped)}
    assert written.replace("**", "") in made  # bold cells are plain in the JSON
