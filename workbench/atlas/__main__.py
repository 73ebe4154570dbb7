"""Remake the embedded default: `python -m workbench.atlas {records,known,train,card}`.

records  writes data/atlas/records_{train,evaluation}.json, questions_{...}.json and course_80.json from the tables
known    writes the same into data/smollm2 of the facts that SmolLM2 knows (after `workbench fetch smollm2`)
train    trains model and control; the model goes to data/atlas/model, the control to runs/atlas_control
card     measures both and writes data/atlas/MODEL_CARD.md and the control's traces
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from workbench.atlas.world import TRACE_WINDOW, World
from workbench.machine.paths import ATLAS
from workbench.records.facts import Record

CONTROL = Path("runs/atlas_control")
SMOLLM2 = ATLAS.with_name("smollm2")


def main() -> None:
    """Parse the command line and remake what it names."""
    parser = argparse.ArgumentParser(prog="python -m workbench.atlas", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("what", choices=("records", "known", "train", "card"))
    parser.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    parser.add_argument("--control", type=Path, default=CONTROL, help="folder of the control model")
    parser.add_argument("--only", choices=("model", "control"), help="train one of the two")
    arguments = parser.parse_args()
    commands = {"records": write_records, "known": write_known, "train": train_both, "card": write_card}
    commands[arguments.what](arguments)


def write_records(arguments: argparse.Namespace) -> None:
    """CounterFact-style records, split by subject, and the request file of the course experiments."""
    from workbench.atlas.records import atlas_records

    world = World.load()
    save_records(world, atlas_records(world), ATLAS)


def write_known(arguments: argparse.Namespace) -> None:
    """The same of the facts that a real model knows, in templates that suit it."""
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
        Console().print(f"{len(records):,} records: {folder / f'records_{name}.json'}, and as questions beside it")
    requests = course_records(world, parts[1])
    write_requests(requests, folder / "course_80.json")
    Console().print(f"{len(requests)} requests: {folder / 'course_80.json'}")


def train_both(arguments: argparse.Namespace) -> None:
    """The model, then the control with the same schedule."""
    from workbench.atlas.training import Progress, Recipe, control_of, save, train

    console, world, model_folder = Console(), World.load(), ATLAS / "model"

    def report(line: Progress) -> None:
        console.print(
            f"{line.seconds:6.0f} s  step {line.step:5d}  {line.subjects} subjects  loss {line.language_loss:.3f} + "
            f"{line.intervention_loss:.3f}  interventions {line.intervention_accuracy:.2f}  recall {line.recall:.2f}  "
            f"held out {line.recall_held_out:.2f}"
        )

    if arguments.only != "control":
        save(*train(world, Recipe(), device=arguments.device, report=report), model_folder)
        console.print(f"model: {model_folder}")
    if arguments.only != "model":
        info = json.loads((model_folder / "training.json").read_text(encoding="utf-8"))
        save(*train(world, control_of(Recipe(), info), device=arguments.device, report=report), arguments.control)
        console.print(f"control: {arguments.control}")


def write_card(arguments: argparse.Namespace) -> None:
    """Trace and test both models."""
    from workbench.atlas import card
    from workbench.models.loading import load_model

    world, console = World.load(), Console()
    info = json.loads((ATLAS / "model" / "training.json").read_text(encoding="utf-8"))
    model, control = load_model("atlas"), load_model(str(arguments.control))
    found, beside = (card.trace_world(each, world, TRACE_WINDOW) for each in (model, control))
    card.save_traces(beside, ATLAS / "control_traces")
    recall = card.share(control, card.statements(world, world.evaluation_subjects, held_out=True))
    text = card.card(model, world, info, found, beside, recall)
    (ATLAS / "MODEL_CARD.md").write_text(text, encoding="utf-8")
    console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
