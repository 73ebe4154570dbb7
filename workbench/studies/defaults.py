"""What a study uses unless told: records, texts, windows, by the model."""

import json
from pathlib import Path

from workbench.atlas.world import TRACE_WINDOW
from workbench.machine.paths import ATLAS
from workbench.models.model import Model
from workbench.records.facts import Record
from workbench.records.reading import read_records

PUBLISHED_WINDOW = 10
"""Layers restored together for MLPs and attention (Meng et al. 2022)."""
RECORDS = {"atlas": ATLAS, "smollm2": ATLAS.with_name("smollm2")}
"""Folders of the records that come with the workbench, by the model that knows their facts."""


def records_path(name: str, part: str = "evaluation") -> Path:
    """The file of records that a name stands for: "atlas" or "smollm2" for its evaluation (or its "train") records,
    "atlas_questions" or "smollm2_questions" for the same edits asked for by questions, else a path."""
    of, _, form = name.partition("_")
    if of in RECORDS and form in ("", "questions"):
        return RECORDS[of] / f"{form or 'records'}_{part}.json"
    return Path(name)


def requests_path(name: str) -> Path:
    """The course experiments' request file that a name stands for: "atlas" or "smollm2" for its own, else a path."""
    return RECORDS[name] / "course_80.json" if name in RECORDS else Path(name)


def default_records(model: str) -> str:
    """The records used unless told: the embedded model's own for it, else those worded as pretrained models speak."""
    return "atlas" if model == "atlas" else "smollm2"


def benchmark_records(model: str) -> str:
    """The records that a model is timed on: its own, or the embedded model's, whatever it knows of them."""
    return model if model in RECORDS else "atlas"


def training_records(model: Model) -> list[Record]:
    """The training records beside the model's default records; their subjects are none of the evaluation records'."""
    return read_records(records_path(default_records(model.name), "train"))


def default_text(model: Model) -> str:
    """What `statistics_texts` reads for a model unless told: without a hub for the models at hand, else wikitext."""
    return {"atlas": "atlas", "smollm2": "self"}.get(model.name, "wikitext")


def default_window(model: Model) -> int:
    """Ten layers as published for GPT2-XL and GPT-J; fewer on the embedded model, which has ten in all."""
    return TRACE_WINDOW if model.name == "atlas" else PUBLISHED_WINDOW


def planted_layers(model: Model) -> range | None:
    """The layers that the embedded model was trained to recall in; None for any other model."""
    if model.name != "atlas":
        return None
    planted = json.loads((ATLAS / "model" / "training.json").read_text(encoding="utf-8"))["recipe"]["planted"]
    return range(planted[0], planted[-1] + 1)
