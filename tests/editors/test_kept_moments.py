"""Second moments in folders: as published files hold them, as ours are exported, and those of others refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import TINY, run

from workbench.editors.shared.kept_moments import (
    holds_moments,
    import_published,
    keep_moments,
    kept_content,
    kept_path,
    read_kept,
)
from workbench.editors.shared.second_moments import second_moments
from workbench.models.model import Model
from workbench.studies.contents import contents
from workbench.studies.edit import make_editor, statistics_texts

TEXTS = [f"The capital of {name} is" for name in ("Peru", "Spain", "Iran", "Japan", "Egypt", "Portugal")] * 8
NAME = "transformer.h.2.mlp.c_proj_float32_mom2_100000.npz"


def publish(path: Path, sums: Any, count: Any) -> Path:
    """A file as the published code writes it: numpy arrays by the statistic's name and the field's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    constructor = np.array("util.runningstats.SecondMoment()")
    np.savez(path, **{"mom2.constructor": constructor, "mom2.count": count, "mom2.mom2": sums, "sample_size": 100000})
    return path


@pytest.fixture
def published(tiny_gpt2: Model, tmp_path: Path) -> Path:
    moment = second_moments(tiny_gpt2, [2], TEXTS)[2]
    sums = (moment.matrix * moment.count).float().numpy()
    return publish(tmp_path / "stats" / "tiny-gpt2" / "wikipedia_stats" / NAME, sums, moment.count)


def test_a_published_file_is_the_moment_over_its_texts(tiny_gpt2: Model, published: Path, tmp_path: Path):
    computed = second_moments(tiny_gpt2, [2], TEXTS)[2]
    moment, source = import_published(tiny_gpt2, published)
    assert (moment.layer, moment.count) == (2, computed.count)
    torch.testing.assert_close(moment.matrix, computed.matrix, rtol=1e-6, atol=1e-9)
    assert source["model"] == "tiny-gpt2" and source["texts"] == "wikipedia_stats"
    folder = tmp_path / "kept"
    keep_moments(tiny_gpt2, {2: moment}, folder, source=source)
    again = read_kept(tiny_gpt2, [2], folder)[2]
    assert torch.equal(again.matrix, moment.matrix) and again.count == moment.count
    editor: Any = make_editor(
        tiny_gpt2, "rome", layer=2, text=str(folder), preset_of="gpt2-xl", contexts=("{}",), steps=2
    )
    assert torch.equal(editor.second_moment.matrix, moment.matrix)
    assert contents({"text": str(folder)}) == {f"text {folder}": kept_content(folder)}
    with pytest.raises(ValueError, match="texts are needed here"):
        statistics_texts(tiny_gpt2, str(folder), seed=0)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        (f"gpt2-xl/wikipedia_stats/{NAME}", "is of the model gpt2-xl, not of"),
        (f"tiny-gpt2/{NAME}", "does not say of which model"),
        (f"tiny-gpt2/wikipedia_stats/{NAME.replace('.2.', '.17.')}", "W_out of layer 17 .* is no such layer"),
        (f"tiny-gpt2/wikipedia_stats/{NAME.replace('c_proj', 'c_fc')}", r"is transformer\.h\.2\.mlp\.c_proj"),
        (f"tiny-gpt2/wikipedia_stats/{NAME.replace('mom2', 'mean')}", "not named as a published file"),
    ],
)
def test_files_of_others_are_refused_by_their_names(
    where: str, why: str, tiny_gpt2: Model, published: Path, tmp_path: Path
):
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(published.read_bytes())
    with pytest.raises(ValueError, match=why) as raised:
        import_published(tiny_gpt2, path)
    assert path.name in str(raised.value)


def test_what_is_no_second_moment_is_refused(tiny_gpt2: Model, published: Path):
    d = tiny_gpt2.d_mlp
    lopsided = np.eye(d, dtype=np.float32)
    lopsided[0, 1] = 1
    for sums, count, why in (
        (np.eye(d + 1), 3, "larger than|over 3 tokens"),
        (np.eye(d - 1), 3, "over 3 tokens"),
        (np.eye(d), 0, "over 0 tokens"),
        (np.full((d, d), np.nan), 3, "not finite"),
        (lopsided, 3, "not symmetric"),
        (np.array([print], dtype=object), 3, "Object arrays cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=why):
            import_published(tiny_gpt2, publish(published, sums, count))
    np.savez(published, other=np.eye(d))
    with pytest.raises(ValueError, match=r"mom2\.mom2"):
        import_published(tiny_gpt2, published)
    published.write_bytes(b"PK")
    with pytest.raises(ValueError, match="holds no sums"):
        import_published(tiny_gpt2, published)


def test_kept_moments_of_another_model_layer_or_damaged(tiny_gpt2: Model, tmp_path: Path):
    assert not holds_moments(tmp_path)
    keep_moments(tiny_gpt2, second_moments(tiny_gpt2, [2], TEXTS), tmp_path, source={})
    assert holds_moments(tmp_path)
    with pytest.raises(ValueError, match=r"no second moment of layer 3, it has second_moment-2"):
        read_kept(tiny_gpt2, [3], tmp_path)
    whole = kept_path(tmp_path, 2).read_bytes()
    kept_path(tmp_path, 3).write_bytes(whole)
    with pytest.raises(ValueError, match=r"is of layer 2 .* not of layer 3"):
        read_kept(tiny_gpt2, [3], tmp_path)
    kept_path(tmp_path, 2).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="is damaged"):
        read_kept(tiny_gpt2, [2], tmp_path)
    kept_path(tmp_path, 2).write_bytes(whole)
    moments, before = second_moments(tiny_gpt2, [2], TEXTS), tiny_gpt2.snapshot()
    try:
        with torch.no_grad():
            tiny_gpt2.weight(1).mul_(1.5)
        with pytest.raises(ValueError, match=r"is of .* with other weights: choose another folder"):
            keep_moments(tiny_gpt2, moments, tmp_path, source={})
        assert kept_path(tmp_path, 2).read_bytes() == whole
        with pytest.raises(ValueError, match=re.escape("import or export it again for this model")):
            read_kept(tiny_gpt2, [2], tmp_path)
    finally:
        tiny_gpt2.restore_(before)


@pytest.mark.usefixtures("cache")
def test_from_the_command_line(tiny_gpt2: Model, published: Path, text: Path, tmp_path: Path):
    whole = run("moments", "export", "--model", TINY, "--layers", 2, "--text", text, "--out", tmp_path / "own")
    assert whole.exit_code == 0 and "layer 2, " in whole.output
    assert read_kept(tiny_gpt2, [2], tmp_path / "own")[2].count > 1000
    assert run("moments", "import", published, "--model", TINY, "--out", tmp_path / "theirs").exit_code == 0
    assert read_kept(tiny_gpt2, [2], tmp_path / "theirs")
    other = run("moments", "import", published.rename(published.with_name("other.npz")), "--model", TINY, "--out", "x")
    assert other.exit_code == 1 and "is not named as a published file" in other.output
