"""The sections of a study, from whatever its run folder holds so far."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from workbench.measuring.scores import Evaluation, PromptScores
from workbench.measuring.summaries import summarise
from workbench.report.elements import Element, Example, ExamplePrompt, Examples, Paragraph, Section, Traces
from workbench.runs.artifacts import SavedFigure, SavedTable
from workbench.runs.run import Run
from workbench.tables.scores import generation_table, main_table
from workbench.tracing.trace import CausalTrace, TraceError, restoring

_Saved = TypeVar("_Saved", SavedFigure, SavedTable)

EXAMPLES = 6
"""Records shown in full."""
TRACES = 25
"""Causal traces that the page holds, to look at."""

_LOCATE_FIGURES, _LOCATE_TABLES = ("average_effects", "neurons", "trace_"), ("average_effects", "published_effects")
_LENS_FIGURES = ("lens_",)
_TRACES = ("traces", "traces_after")
_MEASURE_FIGURES, _MEASURE_TABLES = ("scores",), ("scores", "generation", "accuracy", "change")

_CAVEATS = (
    "A causal trace says that restoring a state is enough to bring the answer back. It does not say that "
    "the fact is stored there, nor that the state is needed; how well a layer can be edited is a question "
    "of its own (Hase et al. 2023).",
    "The noise, its scale and the window of layers are choices. A window restores several layers at once, "
    "so its centre is blurred by half its width.",
    "Facts that the model does not know are left out of the trace; scores count every record.",
    "Teacher-forced scores compare the probabilities of two given answers. They can be high where the "
    "model, left to itself, writes something else: read them beside the generated ones.",
    "{edited}",
    "Intervals cover the choice of facts and records, not that of the model, the seed or the prompts' wording.",
)


_ALONE = (
    "Each record is edited alone, measured, and undone: the weights afterwards are those before, bit for bit.",
    "Each record is edited alone and the weights are restored before the next one. Many edits kept at once do more "
    "harm than these numbers show.",
)
_TOGETHER = (
    "Each {} records are written as one edit, measured with all of it, and undone: the weights afterwards are those "
    "before, bit for bit.",
    "Records are edited {} at a time, and the weights are restored before the next ones: larger batches do more harm "
    "than these numbers show.",
)
"""What is said of how records were edited, beside the scores and among the caveats."""


def study_headline(run: Run) -> str:
    """What was located and what editing did, in a sentence or two, from the run's results.json."""
    results, sentences = run.read_json("results.json"), []
    if "layer" in results:
        sentences.append(_located(results))
    if "scores" in results:
        sentences.append(_edited(results))
    return " ".join(sentences) or "Nothing was finished yet: there is no result to report."


def _located(results: dict[str, Any]) -> str:
    if results["layer"] is None:
        return f"{results.get('facts_traced', 0):,} facts were traced, but not at the last tokens of their subjects."
    planted = results.get("planted")
    where = f" (recall was planted in layers {planted[0]} to {planted[-1]})" if planted else ""
    window = results.get("window", 1)
    centre = f", the centre of a window of {window}" if window > 1 else ""
    sentence = (
        f"Tracing {results.get('facts_traced', 0):,} facts locates their recall in the MLP of layer "
        f"{results['layer']}{centre}{where}"
    )
    if results.get("peak_total_effect"):  # over the facts that the peak averages
        share = 100 * results["peak_effect"] / results["peak_total_effect"]
        sentence += f"; restored at the last subject token, it regains {share:.0f} % of what the noise takes"
    return sentence + "."


def _edited(results: dict[str, Any]) -> str:
    scores = {name: score["value"] for name, score in results["scores"].items()}
    texts = {
        "ES": "the new answer beats the old one on {:.0f} % of the prompts",
        "PS": "on {:.0f} % of their paraphrases",
        "NS": "the old one still wins on {:.0f} % of the prompts about neighbors",
    }
    said = [text.format(100 * scores[name]) for name, text in texts.items() if scores.get(name) is not None]
    if not said:
        said = ["no record has a score"]
    *most, last = said
    listed = f"{', '.join(most)}, and {last}" if most else last
    return f"With {results.get('method', 'edits')} on {results.get('records_edited', 0):,} records, {listed}."


def study_sections(run: Run) -> list[Section]:
    """Locate, measure, examples, whatever else the run has saved, caveats; empty ones are left out."""
    figures, tables = run.figures(), run.tables()
    other_figures = [
        name for name in figures if not name.startswith((*_LOCATE_FIGURES, *_MEASURE_FIGURES, *_LENS_FIGURES))
    ]
    other_tables = [name for name in tables if name not in (*_LOCATE_TABLES, *_MEASURE_TABLES)]
    sections = [
        Section(title="Where facts are recalled", elements=_locate(run, figures, tables)),
        Section(title="What editing did", elements=_measure(run, figures, tables)),
        Section(title="The path to the answer", elements=_paths(figures)),
        Section(title="Examples", elements=_examples(run)),
        Section(
            title="More results",
            elements=[*_saved(figures, other_figures), *_saved(tables, other_tables)],
        ),
        Section(title="Caveats", elements=[Paragraph(text=text.format(edited=_how(run)[1])) for text in _CAVEATS]),
    ]
    return [section for section in sections if section.elements]


def _locate(run: Run, figures: dict[str, SavedFigure], tables: dict[str, SavedTable]) -> list[Element]:
    traced = run.rows("traces")
    if not figures.keys() & {"average_effects"} and not traced:
        return []
    again = restoring(run.settings.get("span", 1), run.settings.get("severed"))
    what, gain = "the answer's probability", "the probability regained"
    if run.settings.get("metric") == "kl":
        what, gain = "what it said", "by how many nats KL(clean || run) falls"
    text = (
        f"Noise on the embeddings of a fact's subject makes the model lose the answer. Then {again} of the "
        f"clean run is restored at a time: where that brings {what} back, the state carries the fact (causal tracing, "
        f"Meng et al. 2022). The effect is {gain}."
    )
    if "average_effects" not in figures:
        text = f"{_were(len(traced), 'fact')} traced before the run stopped; averages come once all are."
    names = ["average_effects", "neurons", *(name for name in figures if name.startswith("trace_"))]
    return [Paragraph(text=text), *_saved(figures, names), *_traces(run), *_saved(tables, _LOCATE_TABLES)]


def _traces(run: Run) -> list[Element]:
    """The traces in the run's `traces/`, beside those of the same names in `traces_after/`, made after an edit.

    Of more than `TRACES`, the first; those that have a trace after an edit go before the others.
    """
    before, after = ({path.name: path for path in (run.folder / name).glob("*.safetensors")} for name in _TRACES)
    names = sorted(sorted(before, key=lambda name: (name not in after, name))[:TRACES])
    pairs = [(_trace(before[name]), _trace(after[name]) if name in after else None) for name in names]
    traces = [(trace, then) for trace, then in pairs if trace is not None]
    if not traces:
        return []
    some = f"{len(traces)} of the {len(before):,} facts traced" if len(traces) < len(before) else "the facts traced"
    caption = f"Causal traces of {some}. Choose a fact and what is restored, then point at a cell, or step to the map "
    caption += "with the tab key and through it with the arrow keys."
    edited = sum(then is not None for _, then in traces)
    if edited:
        caption += f" {_were(edited, 'fact')} traced again after an edit: there, choose before, after or difference."
    planted = run.read_json("results.json").get("planted")
    return [
        Traces(
            traces=[trace for trace, _ in traces],
            after=[then for _, then in traces],
            caption=caption,
            planted=range(planted[0], planted[-1] + 1) if planted else None,
        )
    ]


def _trace(path: Path) -> CausalTrace | None:
    """The trace; None, with a warning, for a file that is damaged."""
    try:
        return CausalTrace.load(path)
    except TraceError as error:
        warnings.warn(f"the report leaves out a trace: {error}", stacklevel=2)
        return None


def _measure(run: Run, figures: dict[str, SavedFigure], tables: dict[str, SavedTable]) -> list[Element]:
    rows = run.rows("evaluations")
    if "scores" in tables:
        text = (
            f"{_how(run)[0]} A good edit gives the new answer on the prompt and its paraphrases and leaves prompts "
            "about other subjects as they were."
        )
        return [Paragraph(text=text), *_saved(figures, _MEASURE_FIGURES), *_saved(tables, _MEASURE_TABLES)]
    if not rows:
        return []
    text = f"{_were(len(rows), 'record')} measured before the run stopped; these are the scores so far."
    by_method: dict[str, list[Evaluation]] = {}
    for row in rows:
        by_method.setdefault(row.get("method", "edited"), []).append(Evaluation.from_dict(row))
    summaries = {method: summarise(evaluations) for method, evaluations in by_method.items()}
    return [Paragraph(text=text), *map(SavedTable.of, (main_table(summaries), generation_table(summaries)))]


def _how(run: Run) -> tuple[str, ...]:
    """How its records were edited, and what that leaves open."""
    batch = run.settings.get("batch")
    return tuple(text.format(batch) for text in _TOGETHER) if batch else _ALONE


def _paths(figures: dict[str, SavedFigure]) -> list[Element]:
    names = [name for name in figures if name.startswith(_LENS_FIGURES)]
    text = (
        "The logit lens reads the residual stream that leaves each layer as if that layer were the last. Below the "
        "edited layer both models are the same. At the last subject token an edit writes; at the last token the "
        "answer is read out, some layers later."
    )
    return [Paragraph(text=text), *_saved(figures, sorted(names, reverse=True))] if names else []


def _examples(run: Run) -> list[Element]:
    rows = run.rows("evaluations")[:EXAMPLES]
    if not rows:
        return []
    caption = (
        "The first records in full, one prompt of each kind: the model's own greedy continuation before and "
        "after the edit, and what a good edit makes it say."
    )
    return [Examples(caption=caption, examples=[_example(row) for row in rows])]


def _example(row: dict[str, Any]) -> Example:
    evaluation, request = Evaluation.from_dict(row), row.get("request", {})
    prompt = request.get("template", "").replace("{}", request.get("subject", ""))
    change = f"{request.get('target_true') or '?'} → {request.get('target_new', '')}"
    pairs = [
        (kind, before[0], evaluation.post.prompts[kind][0]) for kind, before in evaluation.pre.prompts.items() if before
    ]
    return Example(
        title=f"{prompt} … {change}" if prompt else f"Record {evaluation.case_id}",
        prompts=[_prompt(kind, before, after) for kind, before, after in pairs],
    )


def _prompt(kind: str, before: PromptScores, after: PromptScores) -> ExamplePrompt:
    keeps = kind == "neighborhood"
    protocol = "top1" if after.generated is None else "generated"
    right = after.correct("true" if keeps else "new", protocol)
    wanted = after.targets_true if keeps else after.targets_new
    return ExamplePrompt(
        label=kind,
        prompt=after.prompt,
        before=_first_line(before.generated),
        after=_first_line(after.generated),
        wanted=" / ".join(wanted),
        right=None if right != right else right == 1.0,  # NaN: there is no answer to compare with
    )


def _first_line(text: str | None) -> str:
    return "(not generated)" if text is None else " ".join(text.split())


def _were(count: int, noun: str) -> str:
    return f"1 {noun} was" if count == 1 else f"{count:,} {noun}s were"


def _saved(artifacts: Mapping[str, _Saved], names: Sequence[str]) -> list[_Saved]:
    """Those that there are."""
    return [artifacts[name] for name in names if name in artifacts]
