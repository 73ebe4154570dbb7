"""How long second moments take: of several layers in one pass, and in a pass each."""

import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.editors.shared.second_moments import second_moments
from workbench.models.model import Model
from workbench.runs.run import Run
from workbench.studies.benchmarking import seconds
from workbench.studies.edit import statistics_texts


def measure_moments(run: Run, model: Model, name: str) -> None:
    """Time second moments of three layers, one pass for each and one pass for all, a row a repeat."""
    done = {(row["model"], row["repeat"]) for row in run.rows("moments")}
    texts, tokens = statistics_texts(model, "atlas", seed=0), run.settings["tokens"]
    middle = model.n_layers // 2
    layers = list(range(middle - 1, middle + 2))
    for repeat in range(run.settings["repeats"]):
        if (name, repeat) in done:
            continue
        counted: list[int] = []

        def collect(some: Sequence[int], counted: list[int] = counted) -> None:
            counted.append(next(iter(second_moments(model, some, texts, max_tokens=tokens).values())).count)

        together = seconds(lambda: collect(layers), model.device)
        apart = sum(seconds(lambda layer=layer: collect([layer]), model.device) for layer in layers)
        row = {"model": name, "repeat": repeat, "layers": layers, "tokens": counted[0]}
        run.append("moments", row | {"together": together, "apart": apart})


def moment_table(run: Run) -> pd.DataFrame:
    """A row a model: tokens a second."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in run.rows("moments"):
        rows.setdefault(row["model"], []).append(row)
    lines = []
    for name, some in rows.items():
        together, apart = (statistics.median(row[key] for row in some) for key in ("together", "apart"))
        lines.append(
            {
                "Model": name,
                "Layers": ", ".join(map(str, some[0]["layers"])),
                "Tokens": f"{some[0]['tokens']:,}",
                "One pass: tokens a second": f"{some[0]['tokens'] / together:,.0f}",
                "A pass each": f"{some[0]['tokens'] / apart:,.0f}",
                "Ratio": f"{apart / together:.1f}",
            }
        )
    return pd.DataFrame(lines)
