"""A run's folder: settings, provenance, records one by one, figures and tables; readable at any moment."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure

from workbench.machine.environment import environment, now
from workbench.machine.failures import FAILURES, reason, sentence
from workbench.machine.files import TEMPORARY, write_whole
from workbench.machine.hashing import digest
from workbench.machine.jsonl import append_line, dumps, load_json, read_lines, sweep_lines
from workbench.measuring.scores import Evaluation
from workbench.runs.artifacts import SavedFigure, SavedTable, figures_in, save_figure, save_table, tables_in
from workbench.runs.folder import check_folder, end_clearing
from workbench.runs.identity import AFRESH, refuse_other_settings, release
from workbench.tables.table import Table

Status = Literal["running", "interrupted", "complete"]
_CHECK = "sha256"
"""The entry of results.json that is a checksum of the others."""
_MEASURED = {field.name for field in fields(Evaluation)} - {"case_id"}
"""Of an evaluation's row, what its metrics tell."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The folder of one run: made or reopened by `Run.create`, read by `Run.open`."""

    folder: Path
    settings: Mapping[str, Any]
    """Everything the results depend on (model, records, seed, ...), as JSON values."""

    @classmethod
    def create(cls, folder: str | Path, settings: Mapping[str, Any]) -> "Run":
        """Start a run in a new or empty folder, or resume the one there if its settings are the same.

        ValueError names the setting or the package's version that differs, or says that the folder holds something
        else.
        """
        folder, settings = Path(folder), json.loads(dumps(dict(settings)))  # as it will be read back
        check_folder(folder)
        end_clearing(folder)
        if (folder / "settings.json").exists():
            run = cls.open(folder)
            refuse_other_settings(folder, run.settings, settings)
            run._note_restart()
            run._sweep()
            return run
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder=folder, settings=settings)
        run.write_json("environment.json", environment())
        run._set_status("running")
        run.write_json("settings.json", settings)  # last: a folder with settings.json is a whole run folder
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """The run in `folder`, to read it; FileNotFoundError if there is none."""
        path = Path(folder) / "settings.json"
        if not path.exists():
            raise FileNotFoundError(f"'{folder}' is not a run folder: it has no settings.json")
        return cls(folder=Path(folder), settings=load_json(path))

    def __repr__(self) -> str:
        return f"Run('{self.folder}': {self.settings.get('command', 'run')}, {self.status})"

    # State ------------------------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """'running' (also after a kill that left no time to say so), 'interrupted' or 'complete'."""
        return self.read_json("status.json").get("state", "running")

    @contextmanager
    def running(self) -> Iterator["Run"]:
        """Mark the run 'running' inside the block, then 'complete', or 'interrupted' if the block raises."""
        self._set_status("running")
        try:
            yield self
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            reason = str(error) or "Ctrl-C" if stopped else f"{type(error).__name__}: {error}"
            self._set_status("interrupted", reason)
            raise
        self._set_status("complete")

    def check_model(self, fingerprint: str) -> None:
        """Note the weights' fingerprint in environment.json; ValueError if the run was begun with others."""
        noted = self.read_json("environment.json")
        before = noted.setdefault("model_fingerprint", fingerprint)
        if before != fingerprint:
            raise ValueError(
                f"'{self.folder}' was begun with model weights {before[:12]}, these are {fingerprint[:12]}: {AFRESH}"
            )
        self.write_json("environment.json", noted)

    def check_presets(self, digests: Mapping[str, str]) -> None:
        """Note what presets hold in environment.json; ValueError if the run has used one that held something else."""
        noted = self.read_json("environment.json")
        before = noted.setdefault("presets", {})
        if changed := [name for name, found in digests.items() if before.setdefault(name, found) != found]:
            raise ValueError(f"'{self.folder}' was begun with another {', '.join(changed)}: {AFRESH}")
        self.write_json("environment.json", noted)

    def _set_status(self, state: Status, reason: str = "") -> None:
        process = {"process": os.getpid()} if state == "running" else {}
        self.write_json("status.json", {"state": state, "reason": reason, "changed": now(), **process})

    def _sweep(self) -> None:
        """Remove temporary files that a kill has left, lines of records that are damaged, and damaged results."""
        for path in self.folder.rglob(".*"):
            if path.is_file() and TEMPORARY.fullmatch(path.name):
                path.unlink()
        for path in self.folder.glob("*.jsonl"):
            sweep_lines(path, seal=self._seal)
        try:
            self.read_json("results.json")
        except ValueError as error:
            warnings.warn(f"{error}; its numbers are noted again", stacklevel=4)
            (self.folder / "results.json").unlink()

    @cached_property
    def _seal(self) -> str:
        """By which the records of a run are known to be its own: by what it is, not by where it lies."""
        return digest(dumps(self.settings))

    def _note_restart(self) -> None:
        noted, current = self.read_json("environment.json"), environment()
        if others := [
            f"{package} {at_start} (now {current['versions'].get(package)})"
            for package, at_start in noted.get("versions", {}).items()
            if release(current["versions"].get(package)) != release(at_start)
        ]:
            raise ValueError(f"'{self.folder}' was begun with {', '.join(others)}: install that again, or {AFRESH}")
        noted.setdefault("resumed", []).append(current["date"])
        self.write_json("environment.json", noted)

    # Records ----------------------------------------------------------------------------------------------

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one record to `<name>.jsonl`; it is on the disk when this returns."""
        append_line(self.folder / f"{name}.jsonl", row, seal=self._seal)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The records of `<name>.jsonl`, none if there is no such file; see `jsonl.read_lines`."""
        return read_lines(self.folder / f"{name}.jsonl", seal=self._seal)

    def frame(self, name: str) -> pd.DataFrame:
        """The records of `<name>.jsonl`, a row each; of evaluations the metrics, "before.ES" to "after.kl".

        Nested values are columns with a dot ("request.subject"); those of evaluations stay in `rows`.
        """
        rows = []
        for row in self.rows(name):
            if {"pre", "post"} <= row.keys():
                found = Evaluation.from_dict(row)
                row = {key: value for key, value in row.items() if key not in _MEASURED} | {
                    f"{when}.{metric}": value
                    for when, metrics in zip(("before", "after"), found.metrics(), strict=True)
                    for metric, value in metrics.items()
                }
            rows.append(row)
        return pd.json_normalize(rows)

    @contextmanager
    def keeping(self, case_id: int, *, of: int, what: str = "record", method: str = "") -> Iterator[None]:
        """Note a record (or other `what`) as failed in failures.jsonl if the block raises one of `FAILURES`, and go on.

        `of` is how many there are, `method` where several are compared. Ctrl-C and a full disk still end the run.
        """
        try:
            yield
        except FAILURES as error:
            self.fail(case_id, reason(error), of=of, what=what, method=method)

    def fail(self, case_id: int, why: str, *, of: int, what: str = "record", method: str = "") -> None:
        """Note a failure, see `keeping`."""
        self.append("failures", {"case_id": case_id, "what": what, "method": method, "of": of, "reason": why})

    def failed(self, *, what: str = "record", method: str = "") -> set[int]:
        """What has failed, and is not tried again before `retry`."""
        return {row["case_id"] for row in self.rows("failures") if (row["what"], row["method"]) == (what, method)}

    def retry(self) -> None:
        """Forget all failures, so that they are tried again."""
        (self.folder / "failures.jsonl").unlink(missing_ok=True)

    def done(self, name: str, key: str) -> set[Any]:
        """The values of `key` among the records of `name`: what need not be done again."""
        return {row[key] for row in self.rows(name)}

    # Files ------------------------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the run whole or not at all."""
        write_whole(self.folder / name, text.encode())
        return self.folder / name

    def write_json(self, name: str, value: Any) -> Path:
        return self.write_text(name, dumps(value) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the run, empty if there is no such file; ValueError if it is damaged."""
        path = self.folder / name
        found = load_json(path) if path.exists() else {}
        if (check := found.pop(_CHECK, None)) not in (None, digest(dumps(found))):
            raise ValueError(f"'{path}' is damaged, it has not the checksum {check!r}: {AFRESH}")
        return found

    def note(self, **results: Any) -> None:
        """Add to results.json, the run's few headline numbers (`workbench.report` reads them)."""
        self._write_results(self.read_json("results.json") | results)

    def _write_results(self, results: Mapping[str, Any]) -> None:
        plain = json.loads(dumps(dict(results)))
        self.write_json("results.json", plain | {_CHECK: digest(dumps(plain))})

    def save_figure(self, name: str, figure: Figure, *, caption: str = "") -> Path:
        """Save `figures/<name>.png` and `.pdf` with a caption beside them; the PNG's path."""
        self.write_text(f"figures/{name}.txt", caption)
        return save_figure(figure, self.folder / "figures" / name)

    def save_table(self, name: str, table: Table | pd.DataFrame, *, caption: str = "") -> Path:
        """Save `tables/<name>` as CSV, Markdown and LaTeX, see `artifacts.save_table`; the CSV's path.

        Its caption also says what has failed.
        """
        told = sentence(self.rows("failures"))
        table = replace(table, caption=table.caption + told) if isinstance(table, Table) else table
        caption += told
        return save_table(table, self.folder / "tables" / name, caption=caption)

    def figures(self) -> dict[str, SavedFigure]:
        """The figures saved so far, by name."""
        return figures_in(self.folder / "figures")

    def tables(self) -> dict[str, SavedTable]:
        """The tables saved so far, by name."""
        return tables_in(self.folder / "tables")
