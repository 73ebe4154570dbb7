"""Second moments: the published numbers, padding and splitting that change nothing, a damaged cache."""

import re
import warnings
from contextlib import nullcontext

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file, save_file

import workbench.editors.shared.moment
import workbench.editors.shared.second_moments
from workbench.editors.setup import self_texts
from workbench.editors.shared.moment import _PARTIAL, factorise
from workbench.editors.shared.second_moments import second_moments
from workbench.machine.allocator import peak_memory
from workbench.machine.sealed import load_sealed, save_sealed
from workbench.models.model import Model
from workbench.models.tokens import TokenRow

TEXTS = ["The capital of Peru is Lima.", "In Spain, most people speak Spanish.", "Iran", "Peru and Iran"]


def keys(model: Model, layer: int, text: str) -> torch.Tensor:
    name = model.hook_name("mlp_key", layer)
    return model.activations(model.tokenize([text]), [name])[name][0].double()


def test_golden_second_moments(tiny_gpt2: Model):
    texts = (GOLDEN / "tiny-gpt2" / "corpus.txt").read_text(encoding="utf-8").splitlines()
    moments = second_moments(tiny_gpt2, range(tiny_gpt2.n_layers), texts, batch_size=128)
    reference = load_file(GOLDEN / "rome.safetensors")
    for layer, moment in moments.items():
        expected = reference[f"second_moment.{layer}"].double()
        assert moment.count == 37_512 and moment.layer == layer
        assert (moment.matrix - expected).norm() / expected.norm() < 1e-5


def test_it_is_the_mean_of_outer_products_whatever_the_batch(tiny_gpt2: Model):
    k = torch.cat([keys(tiny_gpt2, 3, text) for text in TEXTS])
    for batch_size in (1, 2, 100):
        moment = second_moments(tiny_gpt2, [3], TEXTS, batch_size=batch_size)[3]
        assert moment.count == len(k) and moment.matrix.dtype == torch.float64
        torch.testing.assert_close(moment.matrix, k.T @ k / len(k), rtol=1e-4, atol=1e-7)


def test_max_tokens_counts_exactly_so_many(tiny_gpt2: Model):
    k = torch.cat([keys(tiny_gpt2, 0, text) for text in TEXTS])
    for count in (1, 5, len(k) - 1):
        moment = second_moments(tiny_gpt2, [0], TEXTS, max_tokens=count)[0]
        assert moment.count == count
        torch.testing.assert_close(moment.matrix, k[:count].T @ k[:count] / count, rtol=1e-4, atol=1e-7)
    assert second_moments(tiny_gpt2, [0], TEXTS, max_tokens=10**6)[0].count == len(k)


def test_a_text_longer_than_the_context_is_split(tiny_gpt2: Model):
    text = " ".join(TEXTS * 10)
    tokens = len(tiny_gpt2.tokenizer(text)["input_ids"])
    assert tokens > 2 * tiny_gpt2.n_ctx
    assert second_moments(tiny_gpt2, [0], [text])[0].count == tokens


def test_bad_requests(tiny_gpt2: Model):
    with pytest.raises(IndexError, match="17"):
        second_moments(tiny_gpt2, [17], TEXTS)
    with pytest.raises(ValueError, match="at least one text"):
        second_moments(tiny_gpt2, [0], ["", " "])
    with pytest.raises(ValueError, match="max_tokens"):
        second_moments(tiny_gpt2, [0], TEXTS, max_tokens=0)


def test_keys_that_are_not_finite(tiny_gpt2: Model):
    before = tiny_gpt2.snapshot()
    try:
        tiny_gpt2.weight(0, "W_in").fill_(float("nan"))
        with pytest.raises(ValueError, match="not finite"):
            second_moments(tiny_gpt2, [0], TEXTS)
    finally:
        tiny_gpt2.restore_(before)


def never(*_: object, **__: object) -> None:
    raise AssertionError("computed although it was in the cache")


def test_the_cache_is_read(tiny_gpt2: Model, tmp_path, monkeypatch):
    first = second_moments(tiny_gpt2, [0, 2], TEXTS, cache=tmp_path)
    monkeypatch.setattr(tiny_gpt2, "activations", never)
    again = second_moments(tiny_gpt2, [2, 0], TEXTS, cache=tmp_path, batch_size=1)
    for layer in (0, 2):
        assert torch.equal(first[layer].matrix, again[layer].matrix)
        assert first[layer].count == again[layer].count


def test_another_text_count_layer_or_model_is_not_taken_from_the_cache(tiny_gpt2: Model, tmp_path):
    second_moments(tiny_gpt2, [0], TEXTS, cache=tmp_path)
    second_moments(tiny_gpt2, [1], TEXTS, cache=tmp_path)
    second_moments(tiny_gpt2, [0], TEXTS[::-1], cache=tmp_path)
    second_moments(tiny_gpt2, [0], TEXTS, cache=tmp_path, max_tokens=7)
    assert len(list(tmp_path.iterdir())) == 4
    before = tiny_gpt2.snapshot()
    try:
        tiny_gpt2.weight(5).mul_(2.0)
        second_moments(tiny_gpt2, [0], TEXTS, cache=tmp_path)
    finally:
        tiny_gpt2.restore_(before)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit", "other matrix", "other layer", "text"])
def test_a_damaged_cache_is_computed_again_with_a_warning(tiny_gpt2: Model, tmp_path, damage: str):
    expected = second_moments(tiny_gpt2, [0], TEXTS, cache=tmp_path)[0]
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "bit":
            path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        case "other matrix":
            save_file({"matrix": torch.eye(tiny_gpt2.d_mlp)}, path)
        case "other layer":
            second_moments(tiny_gpt2, [1], TEXTS, cache=tmp_path / "other")
            path.write_bytes(next((tmp_path / "other").iterdir()).read_bytes())
        case "text":
            path.write_text("not a tensor")
    with pytest.warns(UserWarning, match="damaged"):
        again = second_moments(tiny_gpt2, [0], TEXTS, cache=tmp_path)[0]
    assert torch.equal(again.matrix, expected.matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second_moments(tiny_gpt2, [0], TEXTS, cache=tmp_path)
    assert torch.equal(load_file(path)["matrix"], expected.matrix)


@pytest.mark.parametrize("damaged", ["", "torn", "lacks a layer"])
def test_a_pass_that_was_stopped_goes_on(tiny_gpt2: Model, tmp_path, monkeypatch, damaged: str):
    monkeypatch.setattr(workbench.editors.shared.second_moments, "_TEXTS_AT_ONCE", 1)
    monkeypatch.setattr(workbench.editors.shared.moment, "_SAVED_EVERY", 0.0)
    whole = second_moments(tiny_gpt2, [0, 2], TEXTS)
    activations, calls = tiny_gpt2.activations, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == len(TEXTS):
            raise KeyboardInterrupt
        return activations(*arguments)

    monkeypatch.setattr(tiny_gpt2, "activations", stopped)
    with pytest.raises(KeyboardInterrupt):
        second_moments(tiny_gpt2, [0, 2], TEXTS, cache=tmp_path)
    (partial,) = tmp_path.iterdir()
    if damaged == "torn":
        partial.write_bytes(partial.read_bytes()[:-9])
    elif damaged:
        tensors, counted = load_sealed(partial, format=_PARTIAL)
        save_sealed(partial, {"0": tensors["0"]}, counted, format=_PARTIAL)
    with pytest.warns(UserWarning, match="are damaged") if damaged else nullcontext():
        resumed = second_moments(tiny_gpt2, [0, 2], TEXTS, cache=tmp_path)
    again = len(calls) - len(TEXTS)
    assert again == (len(TEXTS) if damaged else 1), "only what was missing is computed"
    for layer in (0, 2):
        assert torch.equal(resumed[layer].matrix, whole[layer].matrix)
        assert resumed[layer].count == whole[layer].count
    assert not partial.exists()


def test_progress_tells_tokens_a_second(tiny_gpt2: Model, capsys):
    counted = second_moments(tiny_gpt2, [0, 2], TEXTS, progress=True)[0].count
    assert re.search(rf"second moments of layers 0, 2: {counted:,} tokens, [\d,]+ a second", capsys.readouterr().err)


def test_factorise_solves_and_refuses_what_has_no_inverse(tiny_gpt2: Model):
    matrix = load_file(GOLDEN / "rome.safetensors")["second_moment.2"].double()
    key = torch.randn(len(matrix), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = torch.cholesky_solve(key[:, None], factorise(matrix, 2))[:, 0]
    torch.testing.assert_close(matrix @ u, key)
    with pytest.raises(ValueError, match="singular"):
        factorise(second_moments(tiny_gpt2, [2], TEXTS)[2].matrix, 2)
    with pytest.raises(ValueError, match="singular"):
        factorise(torch.zeros(4, 4), 2)
    with pytest.raises(ValueError, match="not finite"):
        factorise(torch.full((4, 4), float("nan")), 2)


@pytest.mark.parametrize("least", [10_000, 1])
def test_a_model_makes_up_as_many_tokens_as_its_keys_need(
    tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """Fewer than a key has dimensions give a second moment without an inverse."""
    counts: list[int] = []
    monkeypatch.setattr(self_texts, "SELF_TOKENS", least)
    monkeypatch.setattr(self_texts, "_sampled", lambda model, seed, count: counts.append(count) or [])
    self_texts.self_texts(tiny_gpt2, seed=0)
    assert counts == [max(least, 3 * tiny_gpt2.d_mlp) // self_texts.SELF_LENGTH]


def test_no_second_matrix_of_their_size_is_held(tiny_gpt2: Model, monkeypatch):
    """Of a large model it has GiBs."""
    d, pos = 512, 6
    k = torch.randn(1, pos, d, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(tiny_gpt2, "d_mlp", d)
    monkeypatch.setattr(tiny_gpt2, "activations", lambda tokens, names: dict.fromkeys(names, k))
    monkeypatch.setattr(
        tiny_gpt2, "pieces", lambda texts, keep: [TokenRow(text="", ids=tuple(range(pos)), offsets=((0, 0),) * pos)]
    )
    moments, peak = peak_memory(lambda: second_moments(tiny_gpt2, [1], TEXTS[:1]), torch.device("cpu"))
    torch.testing.assert_close(moments[1].matrix, k[0].double().T @ k[0].double() / pos)
    assert peak < 1.5 * 8 * d**2
