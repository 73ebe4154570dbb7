"""Files of edits and folders of runs to which something has happened; each must be refused in one line, or be right."""

import random
import shutil
import warnings
from pathlib import Path

import torch
from fuzzing import check_line, disturbed

from workbench.editors.ike import InContextEdit
from workbench.edits.codebook import Rules
from workbench.edits.codebook_edit import CodebookEdit
from workbench.edits.edit import _FORMAT as EDIT_FORMAT
from workbench.edits.edit import Edit
from workbench.edits.ledger import state_fingerprint
from workbench.edits.neurons import NeuronEdit, Neurons
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.machine.sealed import load_sealed, save_sealed
from workbench.models.model import Model
from workbench.models.scoring import score_targets
from workbench.records.facts import EditRequest
from workbench.runs.run import Run

ROWS = [{"case_id": case, "text": "a \u6771 [x]", "value": case / 3} for case in range(4)]
NOTES = {"layer": 3, "scores": {"ES": 0.5, "PS": None}}


def run_folder(folder: Path, draw: random.Random) -> None:
    """A run's folder in which something has happened to a file."""
    shutil.rmtree(folder, ignore_errors=True)
    run = Run.create(folder, {"seed": 1})
    for row in ROWS:
        run.append("rows", row)
    run.note(**NOTES)
    for _ in range(draw.choice((0, 1, 1, 3))):
        harm(draw.choice(sorted(path for path in folder.iterdir() if path.is_file())), folder, draw)


def harm(path: Path, folder: Path, draw: random.Random) -> str:
    """Do what disks and people do to a file of a folder; what was done."""
    others = [other for other in sorted(folder.rglob("*")) if other.is_file() and other.suffix == path.suffix]
    data, kind = bytearray(path.read_bytes()), draw.choice(HARMS)
    if kind in ("flip", "flips") and data:
        for _ in range(1 if kind == "flip" else 20):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[draw.randrange(len(data) + 1) :]
    elif kind == "add":
        data += draw.randbytes(draw.randrange(1, 50))
    elif kind == "swap":
        data = bytearray(draw.choice(others).read_bytes())
    path.write_bytes(b"" if kind == "empty" else data)
    if kind == "delete":
        path.unlink()
    return f"{kind} {path.relative_to(folder)}"


HARMS = ("flip", "flip", "flips", "cut", "empty", "swap", "delete", "add")


def check_run(folder: Path) -> str:
    """How a run's folder was met that its command is given again for: gone on with, or refused in one line.

    AssertionError for anything else, and for rows and results that are not what was written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run = Run.create(folder, {"seed": 1})
            rows, notes = run.rows("rows"), run.read_json("results.json")
        except ValueError as error:
            assert str(folder) in str(error) and "\n" not in str(error), error
            return "refused"
    assert all(row in ROWS for row in rows) and len(rows) <= len(ROWS), rows
    assert all(notes.get(name, value) == value for name, value in NOTES.items()), notes
    return "gone on with"


def sound_edits(model: Model) -> list[Edit]:
    """One small edit of every kind that needs no training."""
    request = EditRequest(template="The capital of {} is", subject="Japan", target_new="Rome", target_true="Tokyo")
    common = {"method": "made up", "requests": (request,), "provenance": {"model": "x", "n": [1, 2.5, None]}}
    d_model, d_mlp = model.d_model, model.d_mlp
    numbers = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=numbers)

    update = WeightUpdate(layer=1, left=some(d_mlp, 2), right=some(2, d_model))
    neurons = Neurons(keys=some(3, d_model), values=some(3, d_model), biases=some(3))
    return [
        WeightEdit(updates=(update,), carried={"keys.1": some(d_mlp, 1)}, **common),
        NeuronEdit(layer=1, neurons=neurons, **common),
        CodebookEdit(rules=Rules(layer=1), keys=some(1, d_mlp), values=some(1, d_model), labels=((5, (7,)),), **common),
        InContextEdit(demonstrations=(("a", "b"),), question="{}", variant="paper", answer_tokens=4, **common),
    ]


DTYPES = (torch.float16, torch.bool, torch.int64, torch.uint8, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2)


def edit_file(path: Path, draw: random.Random, edit: Edit) -> None:
    """A file that is sealed as one of an edit, but of which something is mostly not what it should be."""
    edit.save(path)
    if draw.random() < 0.3:  # what a disk does
        data = bytearray(path.read_bytes())
        for _ in range(draw.choice((1, 1, 4))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data[: draw.choice((len(data), len(data), draw.randrange(len(data))))])
        return
    tensors, content = load_sealed(path, format=EDIT_FORMAT)
    content = disturbed(content, draw, draw.choice((0, 1, 1, 2)))
    for name in list(tensors):
        match draw.randrange(8):
            case 0:
                tensors[name] = tensors[name].to(draw.choice(DTYPES))
            case 1:
                whole = tensors[name]
                tensors[name] = draw.choice((whole[:1], whole[..., :-1], whole[None], torch.tensor(1.0)))
            case 2:
                tensors[name] = tensors[name] * draw.choice((1e30, float("nan"), float("inf"), 0.0))
            case 3:
                tensors[draw.choice((f"{name}x", "0.left", "keys"))] = tensors.pop(name)
    try:
        save_sealed(path, tensors, content, format=EDIT_FORMAT)
    except (ValueError, TypeError, OverflowError):  # no JSON
        edit.save(path)


def check_edit(path: Path, model: Model, prompt: str = "The capital of Japan is") -> str:
    """How the file of an edit was met: refused as it is read, or as it is applied, or in force and taken back.

    AssertionError for anything but one line of a ValueError (or, of a layer that is not there, an IndexError), and for
    a model that is not as it was.
    """
    before = state_fingerprint(model)
    try:
        edit = Edit.load(path)
    except ValueError as error:
        check_line(str(error), path)
        return "refused"
    try:
        with edit.applied(model):
            assert torch.isfinite(score_targets(model, [(prompt, "Tokyo")])[0].log_probs).all()
        found = "applied"
    except (ValueError, IndexError) as error:
        assert "\n" not in str(error), error
        found = "refused"
    assert state_fingerprint(model) == before and not model.edits
    return found
