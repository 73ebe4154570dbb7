"""The view of causal traces in a browser: what a reader gets with a mouse or a keyboard, in light, dark and print."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, Browser, browser
from known_traces import EVIL, N_LAYERS, TOKENS, make_after, make_trace, save_traces

from workbench.records.facts import Fact
from workbench.report.write import write_report
from workbench.runs.run import Run
from workbench.tracing.trace import trace_view

MINUS = "\u2212"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")

TOOLS = (Path(__file__).parents[1] / "trace_view_tools.js").read_text(encoding="utf-8")
"""Functions of the page that the tests call."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture
def show(chromium: Browser, tmp_path: Path) -> Iterator[Any]:
    """Put fragments into a page and open it; at the end, whatever was done, nothing was fetched and nothing failed."""

    def open_page(*fragments: str, **look: Any) -> Browser:
        path = tmp_path / "page.html"
        meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        path.write_text(f"<!doctype html>{meta}<body>{''.join(fragments)}", encoding="utf-8")
        return open_file(chromium, path, **look)

    yield open_page
    assert_clean(chromium)


def open_file(chromium: Browser, path: Path, **look: Any) -> Browser:
    chromium.look(**look)
    chromium.open(path)
    chromium.evaluate(TOOLS)
    return chromium


def assert_clean(page: Browser) -> None:
    assert page.errors == []
    assert page.requests and all(address.startswith(("file:", "data:")) for address in page.requests)


def hover(page: Browser, row: int, column: int) -> dict[str, str]:
    page.point(*page.evaluate(f"middle(cell({row}, {column}))"))
    return page.evaluate("details()")


def choose(page: Browser, name: str, index: int = 0) -> None:
    """Click on a radio button by its value."""
    page.point(*page.evaluate(f'middle(view({index}).querySelector("input[value={name}]"))'), click=True)


def focused(page: Browser) -> list[int]:
    return page.evaluate("(({ row, column }) => [+row, +column])(view().activeElement.dataset)")


def test_pointing_at_a_cell_tells_its_numbers(show: Any) -> None:
    page = show(trace_view([make_trace()]))
    assert hover(page, 3, 6) == {"p(Paris)": "0.460", "Indirect effect": "+0.360", "Share of total effect": "45.0 %"}
    assert page.evaluate('part("token").innerText') == "␣Tower*"
    assert page.evaluate('part("where").innerText') == "Hidden state, layer 6"
    assert hover(page, 0, 0) == {"p(Paris)": "0.100", "Indirect effect": "0.000", "Share of total effect": "0.0 %"}
    assert page.evaluate('part("token").innerText') == "The"
    about = "p(Paris) is 0.900 clean and 0.100 with the subject* corrupted: a total effect of 0.800"
    assert page.evaluate('part("subtitle").innerText') == about


def test_rows_are_the_tokens_exactly_and_the_subject_is_starred(show: Any) -> None:
    page = show(trace_view([make_trace()], planted=range(2, 4)))
    labels = page.evaluate('[...view().querySelectorAll("tbody th")].map((head) => head.innerText)')
    assert labels == ["The", "␣Eiff*", "el*", "␣Tower*", "␣is", "↵", "␣in"]
    planted = page.evaluate('[...view().querySelectorAll("thead th.planted")].map((head) => head.innerText)')
    assert planted == ["2", "3"] and "layers 2 to 3" in page.evaluate('part("planted").innerText')
    assert page.evaluate('part("chooser").checkVisibility()') is False  # one fact: nothing to choose


def test_a_site_draws_its_own_map_on_the_common_scale(show: Any) -> None:
    page = show(trace_view([make_trace()]))
    ends = '[part("low").innerText, part("high").innerText]'
    color = "getComputedStyle(cell(6, 7)).backgroundColor"
    before = page.evaluate(f"[...{ends}, {color}]")
    choose(page, "mlp_out")
    after = page.evaluate(f"[...{ends}, {color}]")
    assert before[:2] == after[:2] == ["0.100 corrupted", "0.900 clean"] and before[2] != after[2]
    assert hover(page, 3, 6) == {"p(Paris)": "0.280", "Indirect effect": "+0.180", "Share of total effect": "22.5 %"}
    assert page.evaluate('part("where").innerText') == "MLP, layers 5 to 7"
    hover(page, 3, 0)
    assert page.evaluate('part("where").innerText') == "MLP, layers 0 to 1"
    assert "window of 3" in page.evaluate('part("axis").innerText')


def test_the_scale_runs_from_the_lower_end_where_the_noise_helps(show: Any) -> None:
    page = show(trace_view([make_trace(clean=0.2, corrupted=0.35)]))
    assert page.evaluate('[part("low").innerText, part("high").innerText]') == ["≤ 0.200 clean", "≥ 0.350 corrupted"]


def test_the_grid_is_one_tab_stop_and_keys_move_in_it(show: Any) -> None:
    page = show(trace_view([make_trace()]))
    assert page.evaluate("""view().querySelectorAll('[role="grid"] td[tabindex="0"]').length""") == 1
    page.press("Tab")
    assert page.evaluate("view().activeElement.value") == "resid_post"
    page.press("Tab")
    assert focused(page) == [3, 7]  # the subject's largest effect
    for key, ctrl, place in (
        ("ArrowUp", False, [2, 7]),
        ("ArrowRight", False, [2, 7]),  # there is nothing further
        ("ArrowLeft", False, [2, 6]),
        ("Home", False, [2, 0]),
        ("End", False, [2, 7]),
        ("Home", True, [0, 0]),
        ("ArrowDown", False, [1, 0]),
        ("ArrowRight", False, [1, 1]),
        ("ArrowRight", False, [1, 2]),
    ):
        page.press(key, ctrl=ctrl)
        assert focused(page) == place, key
    said = page.evaluate('part("live").innerText')
    assert said == (
        "Token Eiff, 2 of 7 in the subject; layer 2. "
        "p(Paris): 0.220; Indirect effect: +0.120; Share of total effect: 15.0 %."
    )
    assert page.evaluate('part("live").getAttribute("aria-live")') == "polite"
    assert page.evaluate('cell(1, 2).getAttribute("aria-label")') == "0.220"
    page.press("Tab")
    assert page.evaluate("view().activeElement") is None  # out of the view


def test_the_keyboard_changes_the_site_and_hears_what_that_does(show: Any) -> None:
    page = show(trace_view([make_trace()]))
    page.press("Tab")
    page.press("ArrowRight")
    assert page.evaluate("view().activeElement.value") == "mlp_out"
    said = page.evaluate('part("live").innerText')
    assert said.startswith("MLP. Token Tower, 4 of 7 in the subject; layers 6 to 7. p(Paris): 0.285;")


def test_before_after_and_their_difference(show: Any) -> None:
    page = show(trace_view([make_trace()], after=[make_after()]))
    assert hover(page, 4, 0)["p(Paris)"] == "0.500"
    choose(page, "after")
    assert hover(page, 4, 0) == {"p(Rome)": "0.250", "Indirect effect": "+0.200", "Share of total effect": "22.2 %"}
    assert page.evaluate('part("title").innerText').endswith("→ Rome")
    assert page.evaluate('[part("low").innerText, part("high").innerText]') == ["0.050", "0.950"]  # of both
    choose(page, "difference")
    told = hover(page, 4, 0)
    assert told["Difference"] == MINUS + "0.200"
    assert told["p(Paris) before"] == "0.500" and told["p(Rome) after"] == "0.250"
    assert page.evaluate('[part("low").innerText, part("high").innerText]') == [MINUS + "0.335", "+0.335"]  # symmetric
    color = "getComputedStyle(cell({}, 0)).getPropertyValue('--v')"
    assert page.evaluate(color.format(0)) == "0.5"  # no difference: the middle of the scale
    assert float(page.evaluate(color.format(6))) == pytest.approx(0.5 - 0.3 / 0.67, abs=1e-6)


def test_a_fact_without_an_edit_has_no_toggle(show: Any) -> None:
    other = make_trace(fact=Fact(subject="Eiffel Tower", template="Look: {}", object="Paris"))
    page = show(trace_view([make_trace(), other], after=[make_after(), None]))
    choose(page, "after")
    page.evaluate('change(part("facts"), 1, "change")')
    assert page.evaluate('part("state").checkVisibility()') is False
    assert page.evaluate('part("title").innerText') == "Look: Eiffel Tower → Paris"


def test_search_finds_facts(show: Any) -> None:
    facts = [Fact(subject=f"Tower {number}", template="The {} is in", object="Paris") for number in range(12)]
    page = show(trace_view([make_trace(fact=fact) for fact in facts]))
    options = '[...part("facts").options].map((option) => option.text)'
    assert len(page.evaluate(options)) == 12
    type_ = 'change(part("search"), "{}", "input")'
    page.evaluate(type_.format("TOWER 7"))
    assert page.evaluate(options) == ["The Tower 7 is in → Paris"]
    assert page.evaluate('part("title").innerText') == "The Tower 7 is in → Paris"
    page.evaluate(type_.format("Colosseum"))
    assert page.evaluate('part("facts").disabled') is True
    page.evaluate(type_.format(""))
    assert len(page.evaluate(options)) == 12 and page.evaluate('part("facts").value') == "7"


def test_views_on_one_page_do_not_clash(show: Any) -> None:
    page = show(
        "<style>td { padding: 40px; color: red } b { display: none }</style>", *[trace_view([make_trace()])] * 2
    )
    choose(page, "attn_out", 1)
    chosen = 'view({}).querySelector("input:checked").value'
    assert page.evaluate(chosen.format(0)) == "resid_post" and page.evaluate(chosen.format(1)) == "attn_out"
    assert page.evaluate("getComputedStyle(cell(0, 0)).padding") == "0px"


def test_text_stays_text(show: Any) -> None:
    trace = make_trace(fact=Fact(subject=EVIL, template="{} is", object="x"), tokens=(EVIL, *TOKENS[1:]), answer=EVIL)
    page = show(trace_view([trace, trace], after=[trace, None]))
    assert page.evaluate("window.evil === undefined")
    assert page.evaluate('part("title").textContent').startswith(EVIL + " is → ")
    assert page.evaluate('view().querySelectorAll("script").length') == 0


def test_what_was_not_measured_is_said(show: Any) -> None:
    values = torch.full((len(TOKENS), N_LAYERS), 0.5)
    values[2, 2] = math.nan
    page = show(trace_view([make_trace(restored={"resid_post": values}, clean=0.1)]))
    assert hover(page, 2, 2)["p(Paris)"] == "not measured"
    assert hover(page, 2, 3)["Share of total effect"] == "no total effect"


@pytest.mark.parametrize("state", ["before", "difference"])
def test_light_and_dark_can_both_be_read(show: Any, state: str) -> None:
    grounds, views = {}, trace_view([make_trace()] * 12, after=[make_after()] * 12, planted=range(2, 4))
    for scheme in ("light", "dark"):
        page = show(views, scheme=scheme)
        choose(page, state)
        for site in ("resid_post", "mlp_out", "attn_out"):
            choose(page, site)
            colors = page.evaluate("colors([0, 0.25, 0.5, 0.75, 1])")
            away = [abs(color - page.evaluate("behind(view().host)")) for color in colors]
            if state == "before":  # more is farther from the paper
                assert away == sorted(set(away))
            else:
                assert away[0] > away[1] > away[2] < away[3] < away[4]
        texts = page.evaluate("contrasts()")
        assert len(texts) > 40
        assert [text for text in texts if text[1] < 4.5] == []
        grounds[scheme] = page.evaluate("behind(view().host)")
        assert_clean(page)
    assert grounds["light"] > 0.9 and grounds["dark"] < 0.05
    page.look(scheme="dark", media="print")
    assert page.evaluate("behind(view().host)") > 0.9  # paper is white
    assert page.evaluate('part("chooser").checkVisibility()') is False


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("depth", [8, 48])
def test_nothing_overflows(show: Any, width: int, depth: int) -> None:
    restored = {site: torch.rand(len(TOKENS), depth) for site in make_trace().restored}
    long = Fact(subject="Eiffel Tower", template="A very long prompt, " * 12 + "{} is", object="Paris")
    page = show(trace_view([make_trace(fact=long, restored=restored)] * 12, after=[None] * 12), width=width)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate("outside()") == []
    assert page.evaluate('(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)(part("grid").parentElement)')


def test_the_view_lives_in_a_report_whose_policy_lets_only_its_script_run(chromium: Browser, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    save_traces(run, 3, after=(1,))
    run.note(planted=[2, 3])
    page = open_file(chromium, write_report(run, headline="<script>window.evil = 1</script>"))
    assert hover(page, 3, 5)["p(Paris)"] == "0.450"
    assert "layers 2 to 3" in page.evaluate('part("planted").innerText')
    assert page.evaluate('part("state").checkVisibility()') is False
    page.evaluate('change(part("facts"), 1, "change")')
    assert page.evaluate('part("state").checkVisibility()') is True
    assert_clean(page)
    page.evaluate('document.body.append(Object.assign(document.createElement("script"), { text: "window.evil = 1" }))')
    assert page.evaluate("window.evil === undefined")
