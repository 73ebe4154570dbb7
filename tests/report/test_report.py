"""A report is one page that needs nothing else, says what was found, and shows text as text."""

import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from workbench.machine.intervals import Estimate
from workbench.measuring.scores import KINDS, Evaluation, PromptScores, RecordScores
from workbench.records.facts import EditRequest
from workbench.report.elements import Example, ExamplePrompt, Examples, Paragraph, Section
from workbench.report.once import said_once
from workbench.report.page import cells, numeric
from workbench.report.study import study_headline
from workbench.report.write import write_report
from workbench.runs.artifacts import SavedFigure, SavedTable
from workbench.runs.run import Run

EVIL = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of the style."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == [], "unclosed tags"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", {"model": "atlas", "seed": 0, "editor": {"steps": 20}})


def make_figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0])
    return figure


def make_evaluation(case_id: int, said: str = " Rome is old") -> Evaluation:
    def state(generated: str) -> RecordScores:
        scores = PromptScores(
            prompt="The capital of France is",
            targets_new=("Rome",),
            targets_true=("Paris",),
            p_new=0.9,
            p_true=0.1,
            top_new=True,
            top_true=False,
            generated=generated,
        )
        return RecordScores(prompts=dict.fromkeys(KINDS, (scores,)))

    pre, post = state(" Paris, of course"), state(said)
    return Evaluation(case_id=case_id, pre=pre, post=post, kl=0.1, relative_norms={4: 0.1}, seconds=0.1)


def append_evaluation(run: Run, evaluation: Evaluation, subject: str = "France") -> None:
    request = EditRequest(template="The capital of {} is", subject=subject, target_new="Rome", target_true="Paris")
    run.append("evaluations", evaluation.to_dict() | {"request": request, "method": "ROME"})


def finish(run: Run) -> None:
    with run.running():
        run.save_figure("average_effects", make_figure(), caption="Averages.")
        run.save_figure("trace_1", make_figure(), caption="One fact.")
        run.save_table("average_effects", pd.DataFrame({"Role": ["last"], "Effect": [0.5]}), caption="Roles.")
        run.note(layer=4, window=3, facts_traced=60, total_effect=0.9, planted=[3, 4, 5])
        run.note(peak_effect=0.6, peak_total_effect=0.8)
        append_evaluation(run, make_evaluation(1))
        run.save_figure("scores", make_figure(), caption="Scores.")
        run.save_table("scores", pd.DataFrame({"Editor": ["ROME"], "S": ["90.0 (80.0-95.0)"]}), caption="Main.")
        run.save_table("extra", pd.DataFrame({"a": [1]}), caption="Something else.")
        scores = {"ES": 1.0, "PS": 0.85, "NS": 0.9}
        estimates = {k: Estimate(value=v, low=v, high=v, n=20).to_dict() for k, v in scores.items()}
        run.note(method="ROME", records_edited=20, scores=estimates)


def test_a_study_is_one_file_that_needs_no_network(run: Run) -> None:
    finish(run)
    page = Page(write_report(run))
    assert len(page.all("img")) == 3
    assert all((image["src"] or "").startswith("data:image/png;base64,") and image["alt"] for image in page.all("img"))
    assert page.all("script") == [] and page.all("link") == [] and page.all("iframe") == []
    assert all((link["href"] or "").startswith("#") for link in page.all("a"))
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert "prefers-color-scheme: dark" in style and "@media print" in style


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        (
            {},
            ["Each record is edited alone, measured", "Then one state of the clean run", "probability regained"],
            "nats",
        ),
        ({"batch": 10}, ["Each 10 records are written as one edit", "edited 10 at a time"], "edited alone"),
        (
            {"span": 2, "severed": "mlp_out", "metric": "kl"},
            ["2 tokens' states together (mlp_out of later layers kept corrupted)", "by how many nats KL"],
            "probability regained",
        ),
    ],
)
def test_a_study_says_how_it_was_made(settings: dict, said: list[str], unsaid: str, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", settings)
    finish(run)
    text = " ".join(Page(write_report(run)).text.split())
    assert all(each in text for each in said) and unsaid not in text


def test_links_lead_to_sections(run: Run) -> None:
    finish(run)
    page = Page(write_report(run))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [link["href"] for link in page.all("a")] == [f"#{name}" for name in ids]


def test_a_study_shows_everything_that_was_saved(run: Run) -> None:
    finish(run)
    page = Page(write_report(run))
    for text in ("Averages.", "One fact.", "Roles.", "Scores.", "Main.", "Something else.", "Caveats"):
        assert text in page.text
    assert "(80.0-95.0)" in page.text and "editor.steps" in page.text
    assert "The capital of France is … Paris → Rome" in page.text
    assert "Paris, of course" in page.text and "Rome is old" in page.text
    assert "interrupted" not in page.text


def test_headline_says_what_was_located_and_what_editing_did(run: Run) -> None:
    assert "Nothing was finished" in study_headline(run)
    finish(run)
    headline = study_headline(run)
    assert "60 facts" in headline and "layer 4" in headline and "layers 3 to 5" in headline and "75 %" in headline
    assert "ROME on 20 records" in headline
    assert all(
        text in headline for text in ("100 % of the prompts", "85 % of their paraphrases", "90 % of the prompts")
    )


def test_marks_say_what_came_out_as_wanted(run: Run) -> None:
    append_evaluation(run, make_evaluation(1))
    page = Page(write_report(run))
    assert page.text.count("✓") == 4  # the new answer, on all kinds but neighborhood
    assert page.text.count("✗") == 1  # where the old one was wanted


def test_text_of_records_is_escaped(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"model": EVIL, "records": EVIL})
    append_evaluation(run, make_evaluation(1, said=EVIL), subject=EVIL)
    run.save_figure("average_effects", make_figure(), caption=EVIL)
    run.save_table("other", pd.DataFrame({EVIL: [EVIL]}), caption=EVIL)
    run.note(method=EVIL, records_edited=1, scores={})
    page = Page(write_report(run, title=EVIL))
    assert page.all("script") == [] and "<script" not in page.source
    assert page.text.count("<script>alert('x')</script>") > 8
    assert page.all("img")[0]["alt"] == EVIL


def test_composed_reports_escape_too(run: Run) -> None:
    figure = SavedFigure(path=run.save_figure("any", make_figure()), caption=EVIL)
    prompt = ExamplePrompt(label=EVIL, prompt=EVIL, before=EVIL, after=EVIL, wanted=EVIL, right=None)
    elements = [
        Paragraph(text=EVIL),
        figure,
        SavedTable(columns=(EVIL,), rows=((EVIL,),), caption=EVIL),
        Examples(examples=[Example(title=EVIL, prompts=[prompt])], caption=EVIL),
    ]
    path = write_report(run, [Section(title=EVIL, elements=elements)], headline=EVIL, name="own.html")
    page = Page(path)
    assert path.name == "own.html" and "<script" not in page.source
    assert re.fullmatch(r"[\w-]+", Section(title=EVIL, elements=[]).anchor)


def test_an_interrupted_study_shows_what_is_finished(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt), run.running():
        run.append("traces", {"index": 0, "known": True})
        for case_id in range(3):
            append_evaluation(run, make_evaluation(case_id))
        raise KeyboardInterrupt
    page = Page(write_report(run))
    assert "was interrupted (Ctrl-C)" in page.text
    assert "1 facts were traced" not in page.text and "1 fact was traced" in page.text
    assert "3 records were measured" in page.text and "100.0" in page.text
    assert "CounterFact scores" in page.text


def test_a_torn_record_does_not_spoil_the_report(run: Run) -> None:
    append_evaluation(run, make_evaluation(1))
    with (run.folder / "evaluations.jsonl").open("a") as file:
        file.write('{"case_id": 2, "pre"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        page = Page(write_report(run))
    assert "1 record was measured" in page.text


def test_an_empty_run_gives_a_page(run: Run) -> None:
    page = Page(write_report(run))
    assert "not finished" in page.text and "Nothing was finished yet" in page.text


def test_numbers_stand_on_the_right_with_their_interval_below() -> None:
    rows = (("ROME (r)", "90.0 (80.0-95.0)", "-"), ("FT", "-1.0", "20"))
    table = SavedTable(columns=("Editor", "S", "n"), rows=rows, caption="", best=((0, 1),))
    assert numeric(table) == [False, True, True]
    assert cells(table)[0] == [("ROME (r)", "", False), ("90.0", "(80.0-95.0)", True), ("-", "", False)]
    assert numeric(SavedTable(columns=("a", "b"), rows=(), caption="")) == [False, False]


def test_the_best_are_bold_and_a_table_scrolls_in_an_area_of_its_own(run: Run) -> None:
    run.save_table("scores", pd.DataFrame({"Editor": ["A"], "S": ["90.0"]}), caption="What.")
    table = SavedTable(caption="", columns=("Editor", "S"), rows=(("A", "90.0"), ("B", "9.0")), best=((0, 1),))
    source = Page(write_report(run, [Section(title="One", elements=[table])])).source
    assert "<b>90.0</b>" in source and "<b>9.0" not in source and '<div class="scroll" tabindex="0">\n<table>' in source
    run.write_json("tables/scores.json", {"caption": "", "columns": ["Editor"], "rows": [["A"]]})
    assert run.tables()["scores"].best == ()  # of reports from before


def test_nothing_is_said_twice() -> None:
    shared = "Scores of edits. Intervals are over records (1,000 resamples)."
    table = SavedTable(caption=f"{shared} Bold: best.", columns=("a",), rows=())
    other = SavedTable(caption=f"{shared} Another model.", columns=("a",), rows=())
    figure = SavedFigure(path=Path("x.png"), caption=shared)
    lone = SavedTable(caption="Scores of edits. Costs.", columns=("a",), rows=())
    said, more = Paragraph(text="ROME wins."), Paragraph(text="By far.")
    sections = [
        Section(title="One", elements=[said, more, table, other]),
        Section(title="Two", elements=[figure, lone]),
    ]
    one, two = said_once(sections, "Which one? ROME wins.")
    assert list(one.elements)[:2] == [more, table]
    assert [each.caption for each in one.elements[2:]] == ["Another model. Else as Table 1 says."]  # pyright: ignore
    assert [each.caption for each in two.elements] == ["As Table 1 says.", lone.caption]  # pyright: ignore
