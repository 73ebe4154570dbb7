"""Names are shown as they are."""

import pytest

from workbench.cli.session import console
from workbench.machine.progress import track

NAME = "replace:m: [bold] models/[/x]"


def test_a_bar_counts_and_changes_no_title(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter([1, 2]), NAME, 2)) == [1, 2]
    shown = capsys.readouterr().out
    assert NAME in shown and "100%" in shown
    assert list(track(iter([]), NAME, 0)) == []  # what is done already gets no bar
    assert capsys.readouterr().out == ""


def test_what_a_model_writes_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.print(NAME)
    assert capsys.readouterr().out == f"{NAME}\n"
