"""The options of the commands and of the analyses: what each is called and means, once for all.

Options of several values take them with commas between, or the option again: `--edits 10,80`, or `--edits 10 --edits
80`. Nothing heavy is imported here, so that `--help` answers at once.
"""

from pathlib import Path
from typing import Annotated, Any, no_type_check

import typer

from workbench.editors.registry import EDITORS


def several(name: str, kind: type, help: str) -> Any:
    """An option of several values."""

    def parse(text: Any) -> list[Any]:
        text = str(text)  # a default, or a number in a file of options
        try:
            return [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError:
            numbers = "whole numbers" if kind is int else "numbers"
            raise typer.BadParameter(f"{text!r} is not {numbers} with commas between, such as 1,10") from None

    def flat(values: list[list[Any]] | None) -> list[Any] | None:
        found = [value for part in values or () for value in part]
        if values and not found:
            raise typer.BadParameter("it names nothing: leave it out, or give it a value")
        return found or None

    metavar = "NAME,..." if kind is str else "NUMBER,..."
    return typer.Option(name, parser=parse, callback=flat, metavar=metavar, help=help)


@no_type_check  # what is passed is the class that this one derives from
def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options in a file for defaults; ValueError for one that the command does not have."""
    if path is not None:
        from workbench.cli.config import options_in

        context.default_map = options_in(path, context.command.params)
    return path


# What is studied -----------------------------------------------------------------------------------------------

Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="'atlas' (embedded), 'smollm2' (after `workbench fetch smollm2`), a local Hugging Face folder, a .gguf "
        "file, or a hub name such as gpt2-xl.",
    ),
]
Models = Annotated[
    list[str],
    several("--models", str, "Models, or shapes with random weights such as gpt2-small-shape."),
]
Records = Annotated[
    str | None,
    typer.Option(
        "--records",
        help="A file in the format of CounterFact, zsRE, EasyEdit, KnowEdit, the course or known_1000 (tracing only), "
        "in JSON or JSON Lines; 'atlas', or 'smollm2': facts that SmolLM2 knows; or their questions, 'atlas_questions' "
        "and 'smollm2_questions'. [default: atlas for the embedded model, else smollm2]",
    ),
]
SeveralRecords = Annotated[
    list[str] | None,
    several(
        "--records",
        str,
        "Files or names as --records takes elsewhere. [default: atlas,atlas_questions for the embedded model, else "
        "smollm2,smollm2_questions]",
    ),
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many records are edited.")]
FactLimit = Annotated[int, typer.Option("--limit", min=1, help="How many facts are traced.")]
Traces = Annotated[int, typer.Option("--traces", min=1, help="How many facts are traced.")]

# Tracing -------------------------------------------------------------------------------------------------------

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


def _samples(text: Any) -> int | str:
    text = str(text)  # a file of options may hold a number
    if text == "auto":
        return text
    if not (text.isdecimal() and int(text) >= 1):
        raise typer.BadParameter(f"{text!r} is neither a number of at least 1 nor auto")
    return int(text)


SamplesOrAuto = Annotated[
    Any,
    typer.Option(
        "--samples",
        parser=_samples,
        metavar="NUMBER|auto",
        help="Noise samples a fact; auto adds them until the lead of the fact's layer is known to 0.02.",
    ),
]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Noise samples a fact.")]
Noise = Annotated[
    str,
    typer.Option(
        "--noise",
        help="s3: 3 standard deviations of embeddings; also 0.2, us3, u0.2, m, and replace: before one (see README).",
    ),
]

# Editing -------------------------------------------------------------------------------------------------------

_KNOWN = f"any of {', '.join(EDITORS)}"
Method = Annotated[str, typer.Option("--method", help=f"The editor: {_KNOWN}.")]
Methods = Annotated[list[str] | None, several("--methods", str, f"Editors: {_KNOWN}. [default: all that are ready]")]
SomeMethods = Annotated[list[str], several("--methods", str, f"Editors: {_KNOWN}.")]
Layer = Annotated[
    int | None, typer.Option("--layer", help="The layer to edit, or around which. [default: the located one]")
]
Layers = Annotated[
    list[int] | None,
    several("--layers", int, "All layers to edit, for methods of several. [default: what the preset says]"),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="A field of the editor that differs from its preset; once each. See --help-editor.",
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        "--text",
        help="Text for the second moment of keys: a .txt or .jsonl file, 'wikitext' (hub), 'self' (sampled from the "
        "model), or 'atlas'; or a folder that `workbench moments` has written. [default: wikitext; atlas and self for "
        "the models at hand]",
    ),
]
Preset = Annotated[
    str | None, typer.Option("--preset", help="Model whose published hyperparameters are used. [default: --model's]")
]
Together = Annotated[
    int,
    typer.Option(
        "--together",
        min=1,
        help="Records whose edits are searched at once, each still made for itself on the unedited model.",
    ),
]
Kept = Annotated[list[int], several("--edits", int, "How many edits are kept together.")]

Plugin = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A Python file with editors or readers of your own (see README); once each."),
]

# Measuring -----------------------------------------------------------------------------------------------------

_FLUENCY = "Records whose fluency is measured, which takes long."
Fluency = Annotated[int, typer.Option("--fluency", min=0, help=_FLUENCY)]
AnyFluency = Annotated[int | None, typer.Option("--fluency", min=0, help=f"{_FLUENCY} [default: all]")]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Interleaved runs of each, to take medians of.")]

# The run and the machine ---------------------------------------------------------------------------------------

Out = Annotated[Path | None, typer.Option("--out", help="The run's folder. [default: runs/COMMAND-MODEL]")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of noise, contexts, sampling and bootstrap.")]
Retry = Annotated[bool, typer.Option("--retry", help="Try again the records that failed in an earlier run.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete what an earlier run left in --out, and start again.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
OwnDtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16. [default: the checkpoint's own]")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="auto: spread a model that is larger than a GPU over all GPUs and, what does not fit, the CPU; each "
        "matrix is multiplied where it lies.",
    ),
]
NumberOfWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Facts, edits or texts worked on at once: processes of one thread (Linux, on a CPU), or with --cluster "
        "replicas of the model. [default: for tracing a small model a process a thread, else this one]",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="auto|ADDRESS",
        help="Work on replicas of the model in a Ray cluster: the one at this address, or with auto the one that runs "
        "here, else one that is started for this command. All machines need the workbench and the same files. Needs "
        "the package ray.",
    ),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        min=0,
        help="GPUs that a replica in the cluster has, 0.5 for two on one. [default: 1 if the cluster has any]",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", help="Of products of float32 matrices: float32, or tf32 (faster on Nvidia's GPUs; 10 bits)."
    ),
]


# Of every command, see `session.told` ---------------------------------------------------------------------------

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=read_config,
        help="A YAML file of options by name, 'limit: 3'; what the command line gives wins.",
    ),
]
HelpEditor = Annotated[
    str | None,
    typer.Option("--help-editor", metavar="METHOD", help="Show a method's fields with the preset's values, and exit."),
]
