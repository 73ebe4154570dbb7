"""One edit, five prompts: what does the model write before and after, and which of the five came out right?

    python analyses/single_edit.py                                        # data/examples/single_edit.yaml
    python analyses/single_edit.py my_edit.yaml --method memit
    python analyses/single_edit.py my_edit.yaml --model gpt2-xl --records counterfact.json --text wikitext
    python analyses/single_edit.py --case 14                              # a record of --records instead of a file

The file, JSON or YAML, holds the request and the prompts:

    prompt: "{} plays the"          # {} is where the subject goes; with quotes, as YAML has a meaning for {}
    subject: Miles Davis
    target_new: piano               # or {str: piano}
    generation_prompts:
      - prompt: The instrument of Miles Davis is the
        begins_with: piano          # a text, or a list of which one is enough
      - prompt: Miles Davis is famous for
        contains: [piano, pianist]
      - Everyone knows that Miles Davis plays the     # shown, not judged

Continuations are greedy, `--tokens` long; `begins_with` and `contains` are case sensitive. The layer is located by
tracing facts of --records unless --layer gives it. A record's five prompts are its own, a paraphrase, a neighborhood
prompt (right: the old answer, unchanged), a reversion (the subject, asked for by its new object) and a portability
prompt (what follows from the edit), as far as it has them.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from workbench.cli import options
from workbench.cli.session import analysis, console, given, load, script
from workbench.editors.make import ask
from workbench.machine.jsonl import dumps
from workbench.machine.paths import DATA
from workbench.models.generation import generate
from workbench.models.model import Model
from workbench.records.course import GenerationPrompt, SingleEdit, read_single_edit
from workbench.records.facts import Record
from workbench.records.reading import read_records
from workbench.report.elements import Section
from workbench.runs.run import Run
from workbench.studies.checked import scored
from workbench.studies.defaults import default_records, default_text, records_path
from workbench.studies.edit import make_editor
from workbench.studies.locate import check_tracing, settled_layer

EXAMPLE = DATA / "examples" / "single_edit.yaml"


def main(
    file: Annotated[Path, typer.Argument(help="The request and its prompts.")] = EXAMPLE,
    model: options.Model = "atlas",
    records: options.Records = None,
    case: Annotated[
        int | None, typer.Option("--case", help="The case_id of a record of --records, instead of the file.")
    ] = None,
    method: options.Method = "rome",
    preset: options.Preset = None,
    layer: options.Layer = None,
    layers: options.Layers = None,
    changes: options.Changes = None,
    engine: options.Engine = "auto",
    text: options.Text = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="How many are generated.")] = 12,
    seed: options.Seed = 0,
    out: options.Out = None,
    plugin: options.Plugin = None,
    retry: options.Retry = False,
    fresh: options.Fresh = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    precision: options.Precision = "float32",
) -> None:
    """Make the edit and print its prompts."""
    check_tracing("last_subject", engine)
    records = records or default_records(model)
    every = read_records(records_path(records))
    single = read_single_edit(file) if case is None else of_record(find(every, case))
    loaded = load(model, device=device, dtype=dtype)
    wanted = ask(loaded, method, preset_of=preset, settings=changes or (), layer=layer, layers=layers)
    text = text or default_text(loaded)
    settings = given(records=records, text=text, single=asdict(single), without=["file"])
    digest = hashlib.sha256(dumps(settings).encode()).hexdigest()[:8]
    folder = out or Path("runs") / f"single_edit-{Path(model).name}-{digest}"  # so that the next request needs no --out
    alone = Record(case_id=case or 0, request=single.request)
    checks = [scored([alone], lambda _: [(asked.prompt, None) for asked in single.prompts])]
    with analysis(
        folder, settings, loaded, title="What one edit changes", headline=headline, methods=[method], checks=checks
    ) as page:
        run = page.run
        page.show = lambda: show(run, single)
        if wanted.located or layer is not None:
            layer = settled_layer(run, loaded, every, layer=layer, seed=seed, engine=engine)
        else:
            layer = wanted.layer
        if not run.rows("written"):
            editor = make_editor(
                loaded,
                method,
                preset_of=preset,
                layer=layer,
                text=text,
                seed=seed,
                run=run,
                alone=wanted.alone,
                **wanted.fields,
            )
            pre = continuations(loaded, single, tokens)
            edit = editor(loaded, [single.request])
            edit.save(run.folder / "edits" / "edit.safetensors")
            with edit.applied(loaded):
                post = continuations(loaded, single, tokens)
            layers = sorted({layer for layer, _ in edit.places})
            run.append("written", {"method": edit.method, "layers": layers, "pre": pre, "post": post})


def find(records: Sequence[Record], case: int) -> Record:
    """The record of that number; ValueError for an unknown one."""
    for record in records:
        if record.case_id == case:
            return record
    numbers = [record.case_id for record in records]
    raise ValueError(f"no record has case_id {case}; the file has {len(numbers)}, such as {numbers[:5]}")


def of_record(record: Record) -> SingleEdit:
    """The first prompt of each kind that a record has."""
    request = record.request
    asked = [(request.prompt, (request.target_new,))]
    asked += [(prompt, (request.target_new,)) for prompt in record.paraphrase_prompts[:1]]
    if request.target_true is not None:
        asked += [(prompt, (request.target_true,)) for prompt in record.neighborhood_prompts[:1]]
    probes = [*record.reversion_prompts[:1], *record.portability_prompts[:1]]
    asked += [(probe.prompt, probe.targets_new) for probe in probes]
    prompts = (GenerationPrompt(prompt=prompt, rule="begins_with", texts=texts) for prompt, texts in asked)
    return SingleEdit(request=request, prompts=tuple(prompts))


def continuations(model: Model, single: SingleEdit, tokens: int) -> list[str]:
    """What the model, as it is, writes after each prompt."""
    written = generate(model, [asked.prompt for asked in single.prompts], max_new_tokens=tokens)
    return [text.strip().replace("\n", " ") for text in written]


def show(run: Run, single: SingleEdit) -> list[Section]:
    """Print the prompts and save them as a table; the section of the report."""
    if not (rows := run.rows("written")):
        return []
    (row,), request = rows, single.request
    old = "" if request.target_true is None else f"{request.target_true} -> "
    where = f"layer{'s' * (len(row['layers']) > 1)} {', '.join(map(str, row['layers']))}"
    said = f"{request.prompt}: {old}{request.target_new}  ({row['method']}, {where})"
    console.print(f"{said}\n")
    console.print(shown(single, row["pre"], row["post"]))
    right = [asked.succeeded(after) for asked, after in zip(single.prompts, row["post"], strict=True)]
    table = pd.DataFrame({
        "Prompt": [asked.prompt for asked in single.prompts], "Before": row["pre"], "After": row["post"],
        "Succeeded": ["-" if one is None else "yes" if one else "no" for one in right],
    })  # fmt: skip
    run.save_table("prompts", table, caption=f"What is written after each prompt before and after the edit. {said}.")
    run.note(succeeded=sum(one is True for one in right), judged=sum(one is not None for one in right))
    return [Section(title="Before and after", elements=[run.tables()["prompts"]])]


def headline(run: Run) -> str:
    """How many prompts came out right."""
    found = run.read_json("results.json")
    return f"{found['succeeded']} of {found['judged']} prompts succeeded." if "judged" in found else "Not edited yet."


def shown(single: SingleEdit, pre: Sequence[str], post: Sequence[str]) -> str:
    """A block a prompt, then which of them succeeded."""
    blocks, judged, succeeded = [], 0, []
    for number, (asked, before, after) in enumerate(zip(single.prompts, pre, post, strict=True), start=1):
        lines = [f"{number}. [Prompt]     {asked.prompt}", f"   [Pre-Edit]   {before}", f"   [Post-Edit]  {after}"]
        right = asked.succeeded(after)
        if asked.rule is not None:
            rule = f"{asked.rule.replace('_', ' ')} {' or '.join(map(repr, asked.texts))}"
            lines.append(f"   [Succeeded]  {'yes' if right else 'no'}: {rule}{'' if right else ' was asked for'}")
            judged += 1
            succeeded += [str(number)] * bool(right)
        blocks.append("\n".join(lines))
    which = f": {', '.join(succeeded)}" if succeeded else ""
    return "\n\n".join([*blocks, f"{len(succeeded)} of {judged} succeeded{which}"])


if __name__ == "__main__":
    script(main)
