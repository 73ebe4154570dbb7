"""Files that are sealed as edits but hold what no edit does are refused as they are read, in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from harming import EDIT_FORMAT, sound_edits

from workbench.edits.edit import Edit
from workbench.machine.sealed import load_sealed, save_sealed
from workbench.models.model import Model

WEIGHTS, NEURONS, CODEBOOK, IN_CONTEXT = range(4)


def refused(path: Path, tensors: dict[str, torch.Tensor], content: Any) -> str:
    save_sealed(path, tensors, content, format=EDIT_FORMAT)
    with pytest.raises(ValueError) as caught:
        Edit.load(path)
    said = str(caught.value)
    assert said.startswith(f"'{path}' is not an edit that can be read: ") and "\n" not in said
    return said


@pytest.fixture
def parts(tiny_gpt2: Model, tmp_path: Path) -> Any:
    """The path, tensors and content of a sound edit's file."""

    def saved(kind: int) -> tuple[Path, dict[str, torch.Tensor], Any]:
        path = tmp_path / "edit.safetensors"
        sound_edits(tiny_gpt2)[kind].save(path)
        return path, *load_sealed(path, format=EDIT_FORMAT)

    return saved


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bool, torch.complex64, torch.int64])
@pytest.mark.parametrize(("kind", "name"), [(WEIGHTS, "0.left"), (NEURONS, "values"), (CODEBOOK, "keys")])
def test_numbers_that_are_no_floats(parts: Any, kind: int, name: str, dtype: torch.dtype) -> None:
    path, tensors, content = parts(kind)
    tensors[name] = tensors[name].to(dtype)
    refused(path, tensors, content)


def test_a_product_that_is_infinite(parts: Any) -> None:
    path, tensors, content = parts(WEIGHTS)
    tensors |= {name: tensors[name] * 1e30 for name in ("0.left", "0.right")}
    assert "the update of W_out in layer 1, left @ right, is infinite in torch.float32" in refused(
        path, tensors, content
    )
    path, tensors, content = parts(WEIGHTS)
    tensors["0.right"] = tensors["0.right"].half()
    assert "left and right are of one type, got torch.float32 and torch.float16" in refused(path, tensors, content)


@pytest.mark.parametrize(
    ("kind", "place", "value", "said"),
    [
        (WEIGHTS, ("settings", "updates", 0, "layer"), "1", "updates[0].layer should be int, got 1"),
        (WEIGHTS, ("settings", "updates", 0, "layer"), True, "updates[0].layer should be int, got True"),
        (WEIGHTS, ("settings", "updates", 0, "layer"), 1.5, "updates[0].layer should be int, got 1.5"),
        (WEIGHTS, ("settings", "updates", 0, "matrix"), None, "updates[0].matrix should be str, got None"),
        (WEIGHTS, ("settings", "updates"), 3, "not iterable"),
        (WEIGHTS, ("settings",), None, "not subscriptable"),
        (WEIGHTS, ("method",), 7, "method should be str, got 7"),
        (WEIGHTS, ("requests",), [{}], "missing"),
        (WEIGHTS, ("requests", 0, "relation"), 7, "requests[0].relation should be str, got 7"),
        (WEIGHTS, ("requests", 0, "subject"), 7, "'int' object has no attribute 'strip'"),
        (WEIGHTS, ("provenance",), [1], "provenance must be JSON values"),
        (WEIGHTS, ("kind",), ["x"], ""),
        (NEURONS, ("settings", "layer"), "1", "layer should be int, got 1"),
        (CODEBOOK, ("settings", "rules", "layer"), None, "rules.layer should be int, got None"),
        (CODEBOOK, ("settings", "labels"), [[5, ["x"]]], "labels[0][1][0] should be int, got x"),
        (IN_CONTEXT, ("settings", "answer_tokens"), "4", "answer_tokens should be int, got 4"),
        (IN_CONTEXT, ("settings", "demonstrations"), [[1]], "demonstrations[0][0] should be str, got 1"),
    ],
)
def test_broken_metadata(parts: Any, kind: int, place: tuple[Any, ...], value: Any, said: str) -> None:
    path, tensors, content = parts(kind)
    holder = content
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = value
    found = refused(path, tensors, content)
    assert said in found or "type" in found  # under the tests' own checks, by these
