"""Faults of all kinds, many of each: `make torture`, which takes about an hour; fewer by options. Prints its figures.

    python tests/torture.py --files 10000 --faults 2000 --kills 200
    python tests/torture.py --files 500 --faults 50 --kills 20 --seed 1

files: of records and of edits, disturbed in values or in bytes; each is read, or refused in one line.
faults: in any file of a finished run of `workbench edit`, of its scores and of its records: bytes flipped or added,
files cut, emptied, swapped or deleted. The same commands again leave the same results, or refuse in one line.
kills: of the same commands at random times, most of them SIGKILL; begun again until they end, no row is lost or
doubled.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from command import TINY, run
from fuzzing import READERS, check_reader, record_file
from harming import check_edit, check_run, edit_file, harm, run_folder, sound_edits
from known_records import RECORDS
from matplotlib.figure import Figure

from workbench.editors.setup import presets
from workbench.edits.edit import Edit
from workbench.machine import paths
from workbench.models import loading
from workbench.models.model import Model
from workbench.records.counterfact import write_counterfact
from workbench.runs.run import Run

PRESET = {"tiny-gpt2": {"source": "torture", "fields": {"around": [0], "steps": 2}}}
BLANK = b"\x89PNG\r\n\x1a\n"
"""What figures are: drawing takes most of a small run's time."""
CASES = sorted(record.case_id for record in RECORDS)


def commands(folder: Path) -> list[list[Any]]:
    """What makes the folders of a run and of its scores."""
    edit = ["edit", "--model", TINY, "--records", folder / "records.json", "--method", "ft", "--layers", 2,
            "--out", folder / "edits"]  # fmt: skip
    return [edit, ["evaluate", folder / "edits", "--fluency", 0, "--out", folder / "scores"]]


def results(folder: Path) -> dict[str, Any]:
    """What counts of both runs, without times."""
    edits = {path.name: Edit.load(path).digest for path in sorted((folder / "edits" / "edits").iterdir())}
    rows = sorted(Run.open(folder / "scores").rows("evaluations"), key=lambda row: row["case_id"])
    return {"edits": edits, "rows": json.dumps([{**row, "seconds": 0} for row in rows], sort_keys=True)}


def faulty(folder: Path, draw: random.Random) -> str:
    """Do harm to one file; what was done."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return harm(draw.choice(files), folder, draw)


def inject(number: int, folder: Path, draw: random.Random) -> collections.Counter[str]:
    """Faults one by one in copies of a finished run, each followed by the same commands."""
    whole, found = folder / "whole", collections.Counter()
    for _ in range(number):
        again = folder / "run"  # where it was made, which its settings name
        shutil.rmtree(again)
        shutil.copytree(whole, again)
        what = faulty(again, draw)
        done = [run(*command) for command in commands(again)]
        for one in done:
            if one.exit_code not in (0, 3) and (one.exit_code != 1 or "error: " not in one.output):
                found["crash"] += 1
                print("crash:", what, one.output[-300:], repr(one.exception))
        if any(one.exit_code for one in done):
            found["refused in one line"] += 1
        elif results(again) == results(whole):
            found["same results"] += 1
        else:
            found["SILENT WRONG RESULT"] += 1
            print("silent:", what)
    return found


def killed(number: int, folder: Path, draw: random.Random) -> collections.Counter[str]:
    """Kill the commands at random times until there were so many kills; count what finished runs lost or doubled."""
    whole, again, found = folder / "whole", folder / "run", collections.Counter()
    began = time.monotonic()
    shutil.rmtree(again)
    again.mkdir()
    shutil.copy(whole / "records.json", again)
    for command in commands(again):
        run(*command)
    lasts = 1.3 * (time.monotonic() - began)
    while found["kills"] < number:
        shutil.rmtree(again)
        again.mkdir()
        shutil.copy(whole / "records.json", again)
        for tries in itertools.count():
            child = os.fork()
            if not child:
                _as_child(again)
            code = _ended(child, draw.uniform(0, lasts * (1 + tries / 10)))  # the machine may have become slower
            if code is None:
                os.kill(child, draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            elif code:  # by itself
                found["refused"] += 1
                break
            if code == 0:
                break
            found["kills"] += 1
        if code:
            continue
        found["runs finished"] += 1
        rows = [row["case_id"] for row in Run.open(again / "scores").rows("evaluations")]
        found["rows lost"] += len(set(CASES) - set(rows))
        found["rows doubled"] += len(rows) - len(set(rows))
        found["other results"] += results(again) != results(whole)
    return found


def _ended(child: int, within: float) -> int | None:
    """The exit code of a child that ends within so many seconds; None for one that does not."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _as_child(folder: Path) -> None:
    """Both commands in a forked process, the second if the first ends well; the process ends with them."""
    code = 1
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            for command in commands(folder):
                if code := run(*command).exit_code:
                    break
    finally:
        os._exit(code)


def fuzzed(number: int, folder: Path, model: Model, draw: random.Random) -> collections.Counter[str]:
    """Two files of records for one of an edit and one run's folder."""
    found, edits = collections.Counter(), sound_edits(model)
    for place in range(number):
        if place % 4 == 3:
            run_folder(folder / "fuzzed", draw)
            found[f"runs {check_run(folder / 'fuzzed')}"] += 1
        elif place % 4:
            path = record_file(folder, draw)
            found[f"records {check_reader(path, draw.choice(READERS))}"] += 1
        else:
            edit_file(folder / "edit.safetensors", draw, draw.choice(edits))
            found[f"edits {check_edit(folder / 'edit.safetensors', model)}"] += 1
    return found


@contextlib.contextmanager
def workplace() -> Iterator[tuple[Path, Model]]:
    """A folder with a finished run in `whole`, and the model, loaded once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "presets").mkdir()
        (folder / "presets" / "ft.json").write_text(json.dumps(PRESET))
        presets.PRESETS, paths.CACHE = folder / "presets", folder / "cache"  # pyright: ignore
        Figure.savefig = lambda _, buffer, **__: buffer.write(BLANK)  # pyright: ignore
        model = loading.load_model(str(TINY), device="cpu")
        loading.load_model = lambda *_, **__: model
        (folder / "run").mkdir()
        write_counterfact(RECORDS, folder / "run" / "records.json")
        for command in commands(folder / "run"):
            done = run(*command)
            assert done.exit_code == 0, done.output
        shutil.copytree(folder / "run", folder / "whole")
        yield folder, model


def main(arguments: Sequence[str]) -> int:
    """Print what came of each kind; 1 if anything was lost, doubled, silently wrong, or no one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, number in {"files": 10_000, "faults": 2_000, "kills": 200, "seed": 0}.items():
        parser.add_argument(f"--{option}", type=int, default=number)
    asked = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    failed = 0
    with workplace() as (folder, model):
        for what, work in {
            "files": lambda draw: fuzzed(asked.files, folder, model, draw),
            "faults": lambda draw: inject(asked.faults, folder, draw),
            "kills": lambda draw: killed(asked.kills, folder, draw),
        }.items():
            began = time.monotonic()
            found = work(random.Random(f"{what} {asked.seed}"))
            told = ", ".join(f"{name} {count:,}" for name, count in sorted(found.items()))
            print(f"{what} ({getattr(asked, what):,}, {time.monotonic() - began:,.0f} s): {told}", flush=True)
            bad = ("crash", "SILENT WRONG RESULT", "refused", "rows lost", "rows doubled", "other results")
            failed += sum(found[name] for name in bad)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
