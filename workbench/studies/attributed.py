"""Where the neurons that KN moves lie, beside the layers that tracing finds."""

from collections.abc import Iterable

import numpy as np

from workbench.edits.edit import Edit
from workbench.figures.neurons import neuron_figure
from workbench.models.model import SITES, Model
from workbench.records.facts import Record
from workbench.runs.run import Run
from workbench.studies.located import Located
from workbench.tracing.averages import ROLES


def show_neurons(run: Run, model: Model, located: Located, edits: Iterable[tuple[Record, Edit]]) -> None:
    """The neurons that the edits name in their provenance, by layer, as a figure of the run.

    None for a method whose edits name none, nor where no fact was traced at the last tokens of its subject.
    """
    kept = []
    for _, edit in edits:
        named = [one["neurons"] for one in edit.provenance.get("optimisation", ()) if "neurons" in one]
        if not named or located.layer is None:
            return
        kept += [np.bincount([layer for layer, _ in neurons], minlength=model.n_layers) for neurons in named]
    if not kept:
        return
    mlp = located.averages[SITES.index("mlp_out")]
    figure = neuron_figure(
        np.array(kept),
        mlp.row("last_subject").numpy(),
        mlp.half_width[ROLES.index("last_subject")].numpy(),
        window=mlp.window,
        located=located.layer,
    )
    run.save_figure(
        "neurons",
        figure,
        caption=f"Knowledge neurons kept for {len(kept)} edits, by layer, beside the average indirect effect of "
        f"restoring MLPs at the last subject token, over {mlp.counts['last_subject']} facts. Attribution is at the "
        "prompt's last token, tracing at the subject's: they need not agree.",
    )
