"""Locate facts in language models by causal tracing, edit them, and measure what the edit did.

    model = workbench.load_model("smollm2")
    trace = workbench.trace(model, "Eiffel Tower is located in the city of", "Eiffel Tower")
    edit = workbench.edit(model, "Eiffel Tower is located in the city of", "Eiffel Tower", "Rome")
    workbench.evaluate(model, edit, paraphrases=["Eiffel Tower stands in the city of"])
    with edit.applied(model):
        workbench.generate(model, ["..."], max_new_tokens=8)

The long forms beneath are `trace_fact`, `find_layer` with `make_editor`, and `measuring.evaluate`.

What stands here is what most scripts need, each imported when it is first used; `dir(workbench)` lists it. The rooms
hold the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.editors.plugins import load_plugin as load_plugin
    from workbench.editors.registry import EDITORS as EDITORS
    from workbench.edits.edit import Edit as Edit
    from workbench.edits.sequence import sequence as sequence
    from workbench.figures.editors import editor_figure as editor_figure
    from workbench.figures.effects import average_effect_figure as average_effect_figure
    from workbench.figures.effects import trace_heatmap as trace_heatmap
    from workbench.figures.lens import lens_figure as lens_figure
    from workbench.measuring.evaluate import score_state as score_state
    from workbench.measuring.summaries import summarise as summarise
    from workbench.models.generation import generate as generate
    from workbench.models.loading import load_model as load_model
    from workbench.models.model import Model as Model
    from workbench.models.scoring import score_targets as score_targets
    from workbench.records.course import read_single_edit as read_single_edit
    from workbench.records.facts import EditRequest as EditRequest
    from workbench.records.facts import Fact as Fact
    from workbench.records.facts import Record as Record
    from workbench.records.reading import read_facts as read_facts
    from workbench.records.reading import read_records as read_records
    from workbench.report.write import write_report as write_report
    from workbench.runs.run import Run as Run
    from workbench.studies.calls import edit as edit
    from workbench.studies.calls import evaluate as evaluate
    from workbench.studies.calls import trace as trace
    from workbench.studies.defaults import records_path as records_path
    from workbench.studies.defaults import requests_path as requests_path
    from workbench.studies.edit import make_editor as make_editor
    from workbench.studies.locate import find_layer as find_layer
    from workbench.tables.scores import generation_table as generation_table
    from workbench.tables.scores import main_table as main_table
    from workbench.tracing.averages import average_effects as average_effects
    from workbench.tracing.averages import mediating_layer as mediating_layer
    from workbench.tracing.fact import trace_fact as trace_fact
    from workbench.tracing.lens import logit_lens as logit_lens
    from workbench.tracing.sweep import trace_facts as trace_facts
    from workbench.tracing.trace import CausalTrace as CausalTrace

__version__ = "0.1.0"

_HOMES = {
    "edits.edit": ("Edit",),
    "edits.sequence": ("sequence",),
    "editors.plugins": ("load_plugin",),
    "editors.registry": ("EDITORS",),
    "figures.editors": ("editor_figure",),
    "figures.effects": ("average_effect_figure", "trace_heatmap"),
    "figures.lens": ("lens_figure",),
    "measuring.evaluate": ("score_state",),
    "measuring.summaries": ("summarise",),
    "models.generation": ("generate",),
    "models.loading": ("load_model",),
    "models.model": ("Model",),
    "models.scoring": ("score_targets",),
    "records.course": ("read_single_edit",),
    "records.reading": ("read_facts", "read_records"),
    "records.facts": ("EditRequest", "Fact", "Record"),
    "report.write": ("write_report",),
    "runs.run": ("Run",),
    "studies.calls": ("edit", "evaluate", "trace"),
    "studies.defaults": ("records_path", "requests_path"),
    "studies.edit": ("make_editor",),
    "studies.locate": ("find_layer",),
    "tables.scores": ("generation_table", "main_table"),
    "tracing.averages": ("average_effects", "mediating_layer"),
    "tracing.fact": ("trace_fact",),
    "tracing.lens": ("logit_lens",),
    "tracing.sweep": ("trace_facts",),
    "tracing.trace": ("CausalTrace",),
}
"""By module, the names that are offered here; importing all of them takes seconds, so each waits until it is used."""
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"workbench has no {name!r}; it offers {', '.join(sorted(_HOME))}")
    value = getattr(import_module(f"workbench.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])
