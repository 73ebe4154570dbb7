"""The page: a thin layer of Gradio over `bench`. Nothing leaves the machine, and what goes wrong is a line on it."""

import inspect
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]  # of an extra
from gradio.themes import Base  # pyright: ignore[reportMissingImports]

from workbench.app import bench
from workbench.app.bench import Standing
from workbench.app.shown import comparison_html, line_html, stack_html, trace_html
from workbench.edits.edit import Edit
from workbench.machine.failures import told_in_a_line
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.tracing.trace import CausalTrace

_FOLDER = files("workbench.app")
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")  # none is fetched
Changes = dict[Any, Any]
"""What an event changes: values by component."""


def build(model: Model, folder: Path, *, samples: int = 10) -> gr.Blocks:
    """The page of a model, whose files are saved into a folder. Its events wait for each other, also of several tabs;
    each tab has edits of its own."""
    first, *others = bench.examples(model)
    with gr.Blocks(title=f"workbench · {model.name}", analytics_enabled=False) as page:
        trace, stack = gr.State(None), gr.State(())
        gr.HTML(f"<h1>workbench · {model.name}</h1><p class=lead>Where is a fact recalled, and what does rewriting it "
                "there do? Trace, click a layer, edit, and read.</p>")  # fmt: skip
        line = _html("line")
        names = [f"{each.request.prompt} → {each.request.target_new}" for each in (first, *others)]
        example = gr.Dropdown(names, label="Examples", type="index", value=names[0])
        with gr.Row():
            prompt = gr.Textbox(first.request.prompt, label="Prompt", scale=2, min_width=280, elem_id="prompt")
            subject = gr.Textbox(
                first.request.subject, label="Subject, as in the prompt", min_width=280, elem_id="subject"
            )
        locate = gr.Button("Trace", variant="primary", elem_id="trace")
        heat = gr.HTML(js_on_load=_FOLDER.joinpath("page.js").read_text(encoding="utf-8"), elem_id="map")
        with gr.Row():
            new = gr.Textbox(first.request.target_new, label="New answer", elem_id="new")
            old = gr.Textbox(first.request.target_true or "", label="Old answer", elem_id="old")
        with gr.Row():
            method = gr.Dropdown(bench.methods(model), value="rome", label="Method", min_width=280, elem_id="method")
            layer = gr.Slider(
                0, model.n_layers - 1, step=1, label="Layer, or click one above", min_width=280, elem_id="layer"
            )
        with gr.Accordion("Your own prompts, one a line"):
            paraphrases = gr.Textbox("\n".join(first.paraphrase_prompts), label="In other words", lines=2)
            neighbors = gr.Textbox(
                "\n".join(first.neighborhood_prompts[:5]), label="About others with the same old answer", lines=3
            )
            consequences = gr.Textbox("", label="What follows, as: prompt → answer", lines=2)
        with gr.Row():
            edit = gr.Button("Edit", variant="primary", elem_id="edit")
            read = gr.Button("Read again", elem_id="read")
            undo = gr.Button("Undo", elem_id="undo")
        standing, compared = _html("stack"), _html("compared")
        with gr.Row():
            save = gr.Button("Save edits", elem_id="save")
            figure = gr.Button("Save heat map", elem_id="figure")
        saved = gr.File(label="Files", file_count="multiple", interactive=False, visible=False, elem_id="files")

        fields = (prompt, subject, old, new)
        tests = (paraphrases, neighbors, consequences)

        def choose(index: int) -> Changes:
            chosen = (first, *others)[index]
            request = chosen.request
            return {
                prompt: request.prompt, subject: request.subject, new: request.target_new,
                old: request.target_true or "", paraphrases: "\n".join(chosen.paraphrase_prompts),
                neighbors: "\n".join(chosen.neighborhood_prompts[:5]), consequences: "", line: "",
            }  # fmt: skip

        def run_trace(asked: str, about: str, known: str, kept: Sequence[Standing]) -> Iterator[Changes]:
            yield {heat: "", trace: None, line: line_html("Tracing ...")}
            grown: CausalTrace | None = None
            for grown in bench.trace_rows(model, asked, about, edits=_edits(kept), samples=samples):
                said = f"Tracing: {len(grown.positions)} of {len(grown.tokens)} tokens"
                yield {heat: trace_html(grown), line: line_html(said)}
            assert grown is not None
            word = bench.first_word(model, asked, grown.answer, edits=_edits(kept))
            answer = known if known.strip().startswith(word) else word
            found = bench.recalling_layer(grown)
            chosen = {} if found is None else {layer: found}
            yield {trace: grown, old: answer, line: line_html(bench.recall(grown))} | chosen

        def pick(event: gr.EventData) -> Changes:
            chosen = int(event.layer)
            return {layer: chosen, line: line_html(f"Layer {chosen} is edited next.")}

        def look(kept: Sequence[Standing], fields: Sequence[str], said: str) -> Changes:
            record = _record(*fields)
            found = bench.compare(model, _edits(kept), record)
            return {standing: stack_html(kept), compared: comparison_html(found), line: line_html(said)}

        def run_edit(kept: Sequence[Standing], method: str, layer: int, *given: str) -> Iterator[Changes]:
            record = _record(*given)
            yield {line: line_html(f"Editing with {method} ...")}
            made = bench.new_edit(model, record.request, method=method, layer=int(layer), edits=_edits(kept))
            kept = (*kept, Standing(edit=made, record=record))
            yield {stack: kept, standing: stack_html(kept), line: line_html("Reading ...")}
            yield look(
                kept, given, f"{made.method} is done; {_standing(kept)}. Nothing is written to the model's files."
            )

        def run_read(kept: Sequence[Standing], *given: str) -> Iterator[Changes]:
            yield {line: line_html("Reading ...")}
            yield look(kept, given, _standing(kept).capitalize() + ".")

        def run_undo(kept: Sequence[Standing], *given: str) -> Iterator[Changes]:
            if not kept:
                raise ValueError("no edit stands, so there is none to undo")
            kept = tuple(kept[:-1])
            yield {stack: kept, standing: stack_html(kept), line: line_html("Reading ...")}
            yield look(kept, given, f"The last edit is taken back; {_standing(kept)}.")

        def run_save(kept: Sequence[Standing]) -> Changes:
            paths = bench.save_edits(_edits(kept), _fresh(folder, "edits"))
            dtype = str(model.dtype).removeprefix("torch.")
            loaded = ["--model", model.name, *(["--dtype", dtype] if dtype != "float32" else [])]
            chat = shlex.join(["workbench", "chat", *map(str, paths), *loaded])
            return {saved: gr.update(value=list(map(str, paths)), visible=True), line: line_html(f"Saved: {chat}")}

        def run_figure(traced: CausalTrace | None) -> Changes:
            paths = bench.save_map(traced, _fresh(folder, "figure"))
            said = f"Saved in {paths[0].parent}"
            return {saved: gr.update(value=list(map(str, paths)), visible=True), line: line_html(said)}

        together: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
        given = [*fields, *tests]
        for listen, run, inputs, changed in (
            (example.input, choose, [example], [*given, line]),
            (locate.click, run_trace, [prompt, subject, old, stack], [heat, trace, layer, old, line]),
            (heat.pick, pick, None, [layer, line]),
            (edit.click, run_edit, [stack, method, layer, *given], [stack, standing, compared, line]),
            (read.click, run_read, [stack, *given], [standing, compared, line]),
            (undo.click, run_undo, [stack, *given], [stack, standing, compared, line]),
            (save.click, run_save, [stack], [saved, line]),
            (figure.click, run_figure, [trace], [saved, line]),
        ):
            listen(_told(run, line), inputs, changed, api_visibility="private", **together)
    return page


def serve(model: Model, folder: Path, *, host: str, port: int | None) -> tuple[gr.Blocks, str]:
    """Serve the page in the background, to this machine alone unless the host says otherwise; it, and its address.

    ValueError for a host or a port that cannot be listened at.
    """
    try:
        socket.create_server((host, port or 0)).close()
    except OSError as error:
        at = f"--host {host}" + (f" --port {port}" if port else "")
        raise ValueError(f"the page cannot be served at {at} ({error.strerror}): give others") from None
    folder.mkdir(parents=True, exist_ok=True)
    page = build(model, folder)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        theme=Base(font=_FONT, font_mono=("ui-monospace", "monospace")),
        css=_FOLDER.joinpath("page.css").read_text(encoding="utf-8"),
        allowed_paths=[str(folder.absolute())],
    )
    return page, address


def _told(run: Callable[..., Any], line: gr.HTML) -> Callable[..., Iterator[Any]]:
    """An event that tells what goes wrong on the page's line."""

    @wraps(run)
    def event(*given: Any) -> Iterator[Any]:
        try:
            found = run(*given)
            if inspect.isgenerator(found):
                yield from found
            else:
                yield found
        except Exception as error:  # whatever it is, a user wants one line
            yield {line: line_html(told_in_a_line(error), wrong=True)}

    return event


def _html(name: str) -> gr.HTML:
    return gr.HTML(elem_id=name, apply_default_css=False)


def _record(prompt: str, subject: str, old: str, new: str, *tests: str) -> Record:
    paraphrases, neighbors, consequences = tests
    request = bench.asked_request(prompt, subject, old=old, new=new)
    return bench.asked_record(request, paraphrases=paraphrases, neighbors=neighbors, consequences=consequences)


def _edits(kept: Sequence[Standing]) -> list[Edit]:
    return [each.edit for each in kept]


def _standing(kept: Sequence[Standing]) -> str:
    return {0: "no edit stands", 1: "one edit stands"}.get(len(kept), f"{len(kept)} edits stand")


def _fresh(folder: Path, name: str) -> Path:
    """A name for a folder that is not there yet."""
    return next(path for number in count(1) if not (path := folder / f"{name}-{number}").exists())
