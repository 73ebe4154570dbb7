"""Cells come out as they stand, in Markdown and in LaTeX, and the reports hold what is written today."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest

from workbench.machine.paths import ROOT
from workbench.tables.markup import csv, escaped, latex, markdown

EVIL = "a|b\\c\nd & 5 % of {x}_1 ~ y^2 <z> ± #$"


def test_a_cell_cannot_end_its_column() -> None:
    text = markdown(pd.DataFrame({"Name": [EVIL], "x": ["1"]}), caption=escaped("What|\n."), align="lr")
    caption, _, head, rule, row = text.splitlines()
    assert (caption, head, rule) == ("What\\| .", "| Name | x |", "| --- | ---: |")
    assert row == "| a\\|b\\\\c d & 5 % of {x}_1 \\~ y^2 \\<z> ± #\\$ | 1 |"
    assert escaped("*a* **b** &lt; a & b") == "\\*a\\* **b** \\&lt; a & b"


def test_latex_escapes_cells_and_captions_alike() -> None:
    text = latex(pd.DataFrame({"Name": [EVIL]}), caption=EVIL, align="l", label="tab:x")
    shown = r"a\textbar{}b\textbackslash{}c d \& 5 \% of \{x\}\_1 "
    shown += r"\textasciitilde{} y\textasciicircum{}2 \textless{}z\textgreater{} $\pm$ \#\$"
    assert rf"\caption{{{shown}}}" in text and f"{shown} \\\\\n\\bottomrule" in text
    bare = latex(pd.DataFrame({"Name": ["1"]}), caption="", align="l")
    assert r"\caption" not in bare and r"\label" not in bare


def test_no_cell_is_html_a_link_or_code() -> None:
    assert escaped("<img src=x>") == "\\<img src=x>" and escaped("[a](b)") == "\\[a](b)" and escaped("`a`") == "\\`a\\`"
    assert escaped("a\r\n\x00b\u2028c") == "a b c"


def test_no_row_of_latex_is_an_argument_of_the_one_before() -> None:
    text = latex(pd.DataFrame({"Name": ["[2ex]", "*", "a"]}), caption="", align="l")
    assert "\n{}[2ex] \\\\\n{}* \\\\\na \\\\\n" in text


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3+A1", "@SUM(A1)", "\t=1", "-x", "+A1"]
NUMBERS = ["-1.2", "-27.8 (-32.7 to -23.2)", "-0.001 ± 0.2", "-", "+3", "-1e-05", "-inf", "1=2", "a-b", ""]


def test_no_cell_of_csv_is_computed() -> None:
    frame = pd.DataFrame({"=name": [*FORMULAS, *NUMBERS]})
    head, *lines = pd.read_csv(io.StringIO(csv(frame)), header=None, keep_default_na=False)[0]
    assert head == "'=name" and lines == [*(f"'{cell}" for cell in FORMULAS), *NUMBERS]
    assert csv(pd.DataFrame({"x": [-1.25, 2.0], "n": [-3, 4]})) == "x,n\n-1.25,-3\n2.0,4\n"


@pytest.mark.parametrize("path", sorted(ROOT.glob("reports/**/tables/*.json")), ids=lambda path: path.stem)
def test_reports_hold_the_markdown_of_their_cells(path: Path) -> None:
    saved, written = json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".md").read_text(encoding="utf-8")
    align = "".join("r" if rule.endswith(":") else "l" for rule in written.splitlines()[3].strip("| ").split(" | "))
    cells = pd.DataFrame(saved["rows"], columns=saved["columns"])
    made = {markdown(cells, caption=form(saved["caption"]), align=align) for form in (str, escaped)}
    assert written.replace("**", "") in made  # bold cells are plain in the JSON
