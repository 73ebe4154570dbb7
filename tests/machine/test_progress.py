"""Titles of progress bars are plain text."""

import pytest

from workbench.machine.progress import track


@pytest.mark.parametrize("title", ["Editing [/red]", "runs/[bold]x", "a[b].json", "[link=x]"])
def test_brackets_stand_as_they_are(title: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2], title)) == [1, 2]
    assert title in capsys.readouterr().out
