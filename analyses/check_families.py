"""Does everything hold in every family? Logits, fast traces, promises of edits and exports, on tiny random models.

    python analyses/check_families.py                         # all families of workbench/studies/tiny_models.py
    python analyses/check_families.py --families gemma2,olmo2  # these only

Each model has 3 layers x 32, random weights (norms and biases too), a context of 48 and, where the family has them,
windows of 8, so that the traced prompt is longer than they are. It is compared with Hugging Face's own implementation
under left padding, traced by both engines, edited by ROME, saved and loaded again. What is shown are the largest
deviations: rounding, where all is well.
"""

from workbench.cli.early_help import help_first

help_first(__name__, __file__)

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

from workbench.cli import options
from workbench.cli.session import analysis, given, one_of, script
from workbench.machine.failures import FAILURES
from workbench.machine.progress import track
from workbench.report.elements import Paragraph, Section
from workbench.runs.run import Run
from workbench.studies.family_checks import check_family
from workbench.studies.tiny_models import CONFIGS, make_checkpoint


def main(
    families: Annotated[
        list[str] | None, options.several("--families", str, "Families; an unknown one lists all. [default: all]")
    ] = None,
    seed: options.Seed = 0,
    out: options.Out = None,
) -> None:
    """Check family by family, and write the table and the report."""
    families = families or list(CONFIGS)
    for family in families:
        one_of("--families", family, CONFIGS)
    settings = given(families=families)
    with analysis(out, settings, title="Families of models", headline=headline) as page:
        page.show = lambda: show(page.run)
        finished = page.run.done("families", "family")
        todo = [family for family in families if family not in finished]
        for family in track(todo, "families", len(todo)):
            page.run.append("families", {"family": family} | checked(family, seed))


def checked(family: str, seed: int) -> dict[str, Any]:
    """The numbers of a family, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            make_checkpoint(family, Path(folder), seed=seed)
            found = check_family(Path(folder))
        except FAILURES as error:
            return {"error": str(error)}
    return asdict(found) | {"faults": found.faults()}


def show(run: Run) -> list[Section]:
    """The table of the families so far, and how it is to be read."""
    rows = {row["family"]: row for row in run.rows("families")}
    if not rows:
        return []
    run.note(families=len(rows), faulty=[family for family, row in rows.items() if row.get("error") or row["faults"]])
    plain = ", ".join(family for family, row in rows.items() if row.get("fast", 0) is None) or "none"
    run.save_table(
        "families",
        table(list(rows.values())),
        caption="Tiny random models of each family: largest difference of logits from Hugging Face's own under left "
        "padding, of the fast engine's traces from the plain one's (nats; - where only the plain engine runs), the "
        "share of the promised log-likelihood that a ROME edit misses at the subject's last token, and the largest "
        "difference of logits after saving and loading the edited model.",
    )
    return [
        Section(title="What holds", elements=[
            run.tables()["families"],
            Paragraph(text=f"Traced by the plain engine alone, of itself and with a warning: {plain}."),
            Paragraph(text="Mixtures of experts, state-space models and encoder-decoders are refused when they are "
                      "loaded; of checkpoints that read images too, the text part is loaded."),
        ]),
    ]  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A line a family."""
    columns = {"logits": "logits = HF", "fast": "fast = plain", "promise": "ROME's promise", "export": "export reloads"}
    lines = []
    for row in rows:
        loads = {"family": row["family"], "loads": "no" if row.get("error") else "yes"}
        lines.append(loads | {title: _number(row.get(name)) for name, title in columns.items()})
    return pd.DataFrame(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}" if value else "0"


def headline(run: Run) -> str:
    """How many families hold, in a sentence."""
    found = run.read_json("results.json")
    if "families" not in found:
        return "The check is not finished."
    n, faulty = found["families"], found["faulty"]
    return f"{n - len(faulty)} of {n} families hold in everything; not: {', '.join(faulty) or 'none'}."


if __name__ == "__main__":
    script(main)
