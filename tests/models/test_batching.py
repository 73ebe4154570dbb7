"""Batches and texts are cut to a budget of memory, and what comes out is the same."""

import warnings

import pytest
import torch
import transformers
from conftest import GOLDEN
from known_scores import all_top, scored

from workbench.editors.ft import FT
from workbench.editors.shared.keys import subject_states
from workbench.editors.shared.second_moments import second_moments
from workbench.editors.shared.tuning import in_parts
from workbench.machine.allocator import peak_memory
from workbench.measuring.perplexity import perplexity
from workbench.models import batching
from workbench.models.batching import consecutive
from workbench.models.generation import generate
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.tokens import TokenRow
from workbench.records.facts import EditRequest, Fact
from workbench.tracing.known import known_answers

MEMORY = 0.02
"""GiB, far below what one long text or all short ones would take."""
SLACK = 1.1
"""What may be held beside the forward passes: ids, offsets, results."""


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random GPT-2 with a context of 4,096 tokens."""
    folder = tmp_path_factory.mktemp("long")
    config = transformers.GPT2Config.from_pretrained(GOLDEN / "tiny-gpt2", n_positions=4096, n_layer=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(GOLDEN / "tiny-gpt2").save_pretrained(folder)
    return load_model(str(folder), device="cpu")


def within(model: Model, work) -> object:
    """What `work` returns; it holds no more than the budget."""
    model.budget = MEMORY
    found, peak = peak_memory(work, model.device)
    assert peak <= MEMORY * 2**30 * SLACK, f"{peak / 2**20:.0f} MiB"
    return found


def test_batches_end_where_they_would_not_fit() -> None:
    def fits(rows: int, pos: int, keep: int | None) -> bool:
        return rows * pos <= 10

    assert consecutive([2, 3, 3, 9, 20, 1], [1] * 6, at_most=9, fits=fits) == [
        range(0, 3), range(3, 4), range(4, 5), range(5, 6)
    ]  # fmt: skip
    assert consecutive([1] * 5, [1] * 5, at_most=2, fits=fits) == [range(0, 2), range(2, 4), range(4, 5)]
    assert consecutive([], [], at_most=2, fits=fits) == []
    with pytest.raises(ValueError, match="batch_size >= 1"):
        consecutive([1], [1], at_most=0, fits=fits)


@pytest.mark.slow
def test_one_enormous_line_stays_within_the_budget_and_is_said_once(long_model: Model) -> None:
    line = "the capital of France is Paris, " * 800
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        moment = within(long_model, lambda: second_moments(long_model, [1], [line, "short", line]))[1]  # type: ignore
        within(long_model, lambda: perplexity(long_model, [line[:6000], "a b"]))
    cut = [str(one.message) for one in said if "are cut" in str(one.message)]
    assert len(cut) == 2 and "fits into 0.02 GiB" in cut[0], "once for each of the two"
    ids = long_model.tokenizer(line)["input_ids"]
    assert moment.count == 2 * len(ids) + len(long_model.tokenizer("short")["input_ids"]), "no token is lost"


def test_a_context_is_where_texts_are_cut(tiny_gpt2: Model) -> None:
    tiny_gpt2.budget = 2.0
    with pytest.warns(UserWarning, match="more than 64 tokens .* its context, are cut"):
        rows = tiny_gpt2.pieces(["Paris " * 80, "Paris"], keep=1)
    assert max(len(row.ids) for row in rows) == 64
    ids = tiny_gpt2.tokenizer("Paris " * 80)["input_ids"]
    assert [token for row in rows[:-1] for token in row.ids] == ids


@pytest.mark.slow
def test_many_prompts_stay_within_the_budget_and_score_the_same(long_model: Model) -> None:
    prompts = [f"{number}: {'In Rome, ' * (6 * (number % 8))}number {number} is the city of" for number in range(16)]

    def found() -> tuple:
        return (
            scored(long_model, prompts, ["Paris"] * 16),
            all_top(long_model, prompts, ["Paris"] * 16),
            generate(long_model, prompts, max_new_tokens=2),
            subject_states(long_model, long_model.hook_name("mlp_key", 1), ["{} is"] * 16, prompts),
            known_answers(long_model, [Fact(template="{} in", subject=prompt, object="a") for prompt in prompts]),
        )

    low = within(long_model, found)
    long_model.budget = 2.0
    high, peak = peak_memory(found, long_model.device)
    assert peak > MEMORY * 2**30 * SLACK, "all at once would not have fitted"
    for one, other in zip(low, high, strict=True):  # type: ignore[arg-type]
        if torch.is_tensor(one) or torch.is_tensor(one[0]):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        else:
            assert one == other


def test_fine_tuning_in_parts_is_fine_tuning_at_once(tiny_gpt2: Model) -> None:
    asked = [EditRequest(template="The capital of {} is", subject=s, target_new="Rome") for s in ("Japan", "Egypt")]
    editor = FT(layers=(2,), steps=3)
    tiny_gpt2.budget = 2.0
    assert len(in_parts(tiny_gpt2, tuple(asked), objective="target", kl_template=None)) == 1
    whole = editor(tiny_gpt2, asked)
    tiny_gpt2.budget = 1e-6
    try:
        assert len(in_parts(tiny_gpt2, tuple(asked), objective="target", kl_template=None)) == 2
        parts = editor(tiny_gpt2, asked)
    finally:
        tiny_gpt2.budget = 2.0
    torch.testing.assert_close(whole.updates[0].dense(), parts.updates[0].dense(), atol=1e-6, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("rows", "pos", "keep"), [(1, 40, None), (1, 48, 1), (16, 8, 1), (30, 40, 1), (30, 40, None)])
def test_a_footprint_is_not_below_what_is_measured(family_model: Model, rows: int, pos: int, keep: int | None) -> None:
    tokens = family_model.pad([TokenRow(text="", ids=(5,) * pos, offsets=((0, 0),) * pos)] * rows)
    _, peak = peak_memory(lambda: family_model.logits(tokens, keep_last=keep), family_model.device)
    assert peak <= family_model.footprint.size(rows, pos, keep=keep) * SLACK + 2**17


def test_texts_that_begin_alike_are_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "PASSAGE", 4)
    one, other = [1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5]
    texts = [
        [*one, 7],
        [3, 3, 3, 3, 3, 3],
        [*other, 1],
        [*one, 8],
        [*other, 2],
        [1, 2, 3, 4, 9, 9, 9],
        [5],
        [*one, 7, 7],
    ]
    assert [sorted(group) for group in batching.by_passage(texts)] == [[1, 5, 6], [0, 3, 7], [2, 4]]
    assert batching.by_passage([[1, 2], [1, 2], [3]]) == [[0, 1, 2]]
    assert batching.by_passage([]) == [[]]
    assert sorted(map(sorted, batching.by_passage([one, one]))) == [[0, 1]]


@pytest.mark.parametrize(("free", "expected"), [(80, 10), (12, 2), (4, 2), (3, 1.5), (0.5, 0.25)])
def test_a_budget_is_at_most_half_of_what_a_gpu_has_free(
    free: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "free_memory", lambda device: int(free * 2**30))
    assert batching.budget(torch.device("cuda")) == expected
    assert batching.budget(torch.device("cpu")) == batching.BUDGET
