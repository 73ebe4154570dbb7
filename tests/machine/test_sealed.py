"""Files of tensors hold what was written into them, or are refused."""

from pathlib import Path

import pytest
import torch

from workbench.machine.sealed import Damaged, load_sealed, save_sealed

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2]), "half": torch.ones(3, dtype=torch.bfloat16)}
CONTENT = {"name": "東京", "values": [1, 0.1, None], "nested": {"z": 1, "a": [True]}}


def test_what_is_saved_comes_back_and_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_sealed(tmp_path / name, TENSORS, CONTENT, format="test-1")
    save_sealed(tmp_path / "three", dict(reversed(TENSORS.items())), dict(reversed(CONTENT.items())), format="test-1")
    assert len({(tmp_path / name).read_bytes() for name in ("one", "two", "three")}) == 1
    tensors, content = load_sealed(tmp_path / "one", format="test-1")
    assert content == CONTENT and tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in tensors
    )


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_sealed(path, TENSORS, CONTENT, format="test-1")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        try:
            tensors, content = load_sealed(path, format="test-1")
        except Damaged:
            continue
        # What is left over is the padding of the header.
        assert content == CONTENT and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS), place
        assert whole[place : place + 1] == b" ", place


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04K\x01."])
def test_what_is_no_such_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(Damaged):
        load_sealed(tmp_path / "file", format="test-1")
    save_sealed(tmp_path / "other", TENSORS, CONTENT, format="test-2")
    with pytest.raises(Damaged, match="its format is 'test-2', not 'test-1'"):
        load_sealed(tmp_path / "other", format="test-1")
