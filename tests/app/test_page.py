"""The page in a browser: trace, click a layer, edit, read, undo, save and download; nothing asks beyond the machine."""

import base64
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser

from workbench.edits.edit import Edit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs the extra [app]"),
]
LINE = 'document.querySelector("#line").innerText'
CELL = "document.querySelector(\"#map .trace-view\").shadowRoot.querySelector(\"td[data-row='{}'][data-column='{}']\")"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page of the embedded model, by the command, which Ctrl-C ends."""
    command = [sys.executable, "-m", "workbench", "app", "--out", str(tmp_path_factory.mktemp("page"))]
    # Ctrl-C is to reach it also where these tests run in the background, which ignore it.
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
    assert served.stdout is not None
    (address,) = re.findall(r"Open (http://127\.0\.0\.1:\d+/)", served.stdout.readline())
    with browser() as one:
        one.look(width=1280)
        one.open(address)
        until(one, 'document.querySelector("#trace")')
        yield one
    served.send_signal(signal.SIGINT)
    assert served.wait(30) == 0


def until(page: Browser, script: str, *, limit: float = 120) -> None:
    """Wait until an expression is true."""
    end = time.monotonic() + limit
    while not page.evaluate(f"!!({script})"):
        assert time.monotonic() < end, f"{script}: {page.evaluate(LINE)} {page.errors}"
        time.sleep(0.1)


def click(page: Browser, name: str, then: str) -> None:
    page.evaluate(f'document.querySelector("#{name}").click()')
    until(page, f"{LINE}.includes({then!r})")


def write(page: Browser, name: str, text: str) -> None:
    page.evaluate(
        f'(() => {{ const field = document.querySelector("#{name} textarea, #{name} input"); field.value = {text!r};'
        'field.dispatchEvent(new Event("input", {bubbles: true})); })()'
    )


def said(page: Browser) -> list[str]:
    """What stands under Before and After of the edited prompt."""
    return page.evaluate(
        '[...document.querySelectorAll("#compared article:first-child .both p")].map(p => p.innerText)'
    )


def test_a_fact_is_traced_edited_read_undone_and_saved(page: Browser) -> None:
    click(page, "trace", "of the effect back, more than those of other layers")
    page.evaluate(f"{CELL.format(2, 4)}.click()")
    until(page, f"{LINE}.includes('Layer 4')")
    write(page, "new", "Asia")
    click(page, "edit", "one edit stands")
    before, after = said(page)
    assert "Asia" in after and "Asia" not in before
    assert "layer 4" in page.evaluate('document.querySelector("#stack").innerText')

    write(page, "new", "Africa")
    click(page, "edit", "2 edits stand")
    assert "Africa" in said(page)[1]
    click(page, "undo", "one edit stands")
    assert "Asia" in said(page)[1]

    click(page, "save", "workbench chat")
    until(page, 'document.querySelector("#files a[download]")')
    script = (
        'fetch(document.querySelector("#files a[download]").href).then((answer) => answer.arrayBuffer())'
        ".then((bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes).slice(0, 60000))) + ' ' + bytes.byteLength)"
    )
    begins, size = page.evaluate(script).split()
    (path,) = page.evaluate(f"{LINE}").split("chat ")[1].split(" --model")[:1]
    content = Path(path).read_bytes()
    assert len(content) == int(size) and content.startswith(base64.b64decode(begins))
    assert Edit.load(path).requests[0].target_new == "Asia"
    click(page, "figure", "Saved in")
    until(page, '[...document.querySelectorAll("#files a[download]")].some((link) => link.href.endsWith("trace.pdf"))')
    click(page, "undo", "no edit stands")
    assert said(page)[0].removeprefix("Before") == said(page)[1].removeprefix("After")


def test_what_goes_wrong_is_a_line(page: Browser) -> None:
    write(page, "subject", "Atlantis")
    click(page, "trace", "does not stand in the prompt")
    assert page.evaluate('document.querySelectorAll("#line .wrong").length') == 1
    assert "Traceback" not in page.evaluate("document.body.innerText")


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_its_window(page: Browser, width: int) -> None:
    page.look(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_is_asked_of_the_network_and_nothing_fails(page: Browser) -> None:
    assert page.requests and not [
        url for url in page.requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))
    ]
    assert not page.errors
