"""Remake the embedded default: `python -m workbench.atlas {records,known,train,card}`.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from workbench.atlas.world import TRACE_WINDOW, World
from workbench.machine.paths import ATLAS, CHECKOUT_DATA, DATA
from workbench.records.facts import Record

console = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
CONTROL = Path("runs/atlas_control")
SMOLLM2 = ATLAS.with_name("smollm2")
app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Remake the embedded default.",
)  # fmt: skip
Control = Annotated[Path, typer.Option("--control", help="Folder of the control model.")]


@app.callback()
def in_a_checkout() -> None:
    """What a build has put into the package is not written to."""
    if DATA != CHECKOUT_DATA:
        raise typer.BadParameter(f"the embedded default in {DATA} belongs to an installed package: work in a checkout")


class Trained(StrEnum):
    """What is trained."""

    MODEL = "model"
    CONTROL = "control"


@app.command("records")
def write_records() -> None:
    """Write records and requests into data/atlas.

    They are records_train.json, records_evaluation.json and course_80.json, made from the tables.
    """
    from workbench.atlas.records import atlas_records

    world = World.load()
    save_records(world, atlas_records(world), ATLAS)


@app.command("known")
def write_known() -> None:
    """Write them into data/smollm2, of the facts that SmolLM2 knows.

    Its templates suit it; `workbench fetch smollm2` comes first.
    """
    from workbench.atlas.known import known_facts
    from workbench.atlas.records import known_records
    from workbench.models.loading import load_model

    world = World.load(templates=SMOLLM2 / "templates.yaml")
    known = known_facts(load_model("smollm2"), world)
    save_records(world, known_records(world, known), SMOLLM2)


def save_records(world: World, parts: tuple[list[Record], list[Record]], folder: Path) -> None:
    """(train, evaluation) records, each also as questions, and the course experiments' request file of the latter."""
    from workbench.atlas.questions import question_records
    from workbench.atlas.records import course_records
    from workbench.records.counterfact import write_counterfact
    from workbench.records.course import write_requests
    from workbench.records.zsre import write_zsre

    for name, records in zip(("train", "evaluation"), parts, strict=True):
        write_counterfact(records, folder / f"records_{name}.json")
        write_zsre(question_records(world, records), folder / f"questions_{name}.json")
        console.print(f"{len(records):,} records: {folder / f'records_{name}.json'}, and as questions beside it")
    requests = course_records(world, parts[1])
    write_requests(requests, folder / "course_80.json")
    console.print(f"{len(requests)} requests: {folder / 'course_80.json'}")


@app.command("train")
def train_both(
    device: Annotated[str, typer.Option("--device", help="Where to train: cpu or cuda.")] = "cpu",
    control: Control = CONTROL,
    only: Annotated[Trained | None, typer.Option("--only", help="Train one of the two.")] = None,
) -> None:
    """Train the model and its control.

    The model goes to data/atlas/model; the control has the same schedule.
    """
    from workbench.atlas.training import Progress, Recipe, control_of, save, train

    world, model_folder = World.load(), ATLAS / "model"

    def report(line: Progress) -> None:
        console.print(
            f"{line.seconds:6.0f} s  step {line.step:5d}  {line.subjects} subjects  loss {line.language_loss:.3f} + "
            f"{line.intervention_loss:.3f}  interventions {line.intervention_accuracy:.2f}  recall {line.recall:.2f}  "
            f"held out {line.recall_held_out:.2f}"
        )

    if only != Trained.CONTROL:
        save(*train(world, Recipe(), device=device, report=report), model_folder)
        console.print(f"model: {model_folder}")
    if only != Trained.MODEL:
        info = json.loads((model_folder / "training.json").read_text(encoding="utf-8"))
        save(*train(world, control_of(Recipe(), info), device=device, report=report), control)
        console.print(f"control: {control}")


@app.command("card")
def write_card(control: Control = CONTROL) -> None:
    """Measure both models, for the model card.

    Written are data/atlas/MODEL_CARD.md and the control's traces.
    """
    from workbench.atlas import card
    from workbench.models.loading import load_model

    world = World.load()
    info = json.loads((ATLAS / "model" / "training.json").read_text(encoding="utf-8"))
    model, beside = load_model("atlas"), load_model(str(control))
    found, found_beside = (card.trace_world(each, world, TRACE_WINDOW) for each in (model, beside))
    card.save_traces(found_beside, ATLAS / "control_traces")
    recall = card.share(beside, card.statements(world, world.evaluation_subjects, held_out=True))
    text = card.card(model, world, info, found, found_beside, recall)
    (ATLAS / "MODEL_CARD.md").write_text(text, encoding="utf-8")
    console.print(text)


if __name__ == "__main__":
    app(prog_name="python -m workbench.atlas")
