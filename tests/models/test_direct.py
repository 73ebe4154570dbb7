"""By its blocks alone a model scores and writes what it does itself."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from known_kinds import Steers

from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.models import direct
from workbench.models.generation import generate
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.scoring import TargetScore, score_targets
from workbench.models.tokens import TokenRow
from workbench.records.facts import EditRequest

PROMPTS = ["The capital of France is", "In Japan, people speak", "Rome", "One word after another, and once more"]
PAIRS = [(prompt, target) for prompt in PROMPTS for target in ("Paris", "the red house")]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many tokens each pass by blocks was given; launches pay on this device within the test."""
    monkeypatch.setattr("workbench.machine.graphs.pays", lambda device: True)
    monkeypatch.setattr("workbench.models.kernels.LINEAR_KERNEL", None)  # modules run themselves, as on a GPU
    yield watched(monkeypatch)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with how many positions each pass by blocks is given."""
    given: list[int] = []
    forward = direct.forward

    def counted(blocks: Any, ids: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        given.append(ids.shape[1])
        return forward(blocks, ids, *arguments, **options)

    monkeypatch.setattr(direct, "forward", counted)
    return given


def assert_same(model: Model, monkeypatch: pytest.MonkeyPatch, given: list[int]) -> None:
    texts, scores = generate(model, PROMPTS, max_new_tokens=6), score_targets(model, PAIRS)
    assert given.count(1) >= 5 and max(given) > 10  # token by token after the prompts; whole texts
    with monkeypatch.context() as patch:
        patch.setattr("workbench.machine.graphs.pays", lambda device: False)
        assert generate(model, PROMPTS, max_new_tokens=6) == texts
        for ours, theirs in zip(scores, score_targets(model, PAIRS), strict=True):
            assert (ours.tokens, ours.prompt_tokens) == (theirs.tokens, theirs.prompt_tokens)
            torch.testing.assert_close(ours.next_log_probs, theirs.next_log_probs, atol=2e-4, rtol=0)
            torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=2e-4, rtol=0)


def test_every_family(family_model: Model, monkeypatch: pytest.MonkeyPatch, passes: list[int]) -> None:
    assert_same(family_model, monkeypatch, passes)


@pytest.mark.parametrize(
    "kind", ["gemma3", "opt", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("mistral", "gemma2"))]
)
def test_windows_and_caps(kind: str, checkpoints: Any, monkeypatch: pytest.MonkeyPatch, passes: list[int]) -> None:
    assert_same(load_model(str(checkpoints[kind]), device="cpu"), monkeypatch, passes)


def test_edits_of_weights_are_seen(tiny_gpt2: Model, passes: list[int]) -> None:
    before = score_targets(tiny_gpt2, PAIRS)[0].log_probs
    left, right = torch.ones(tiny_gpt2.d_mlp, 1), torch.linspace(-1, 1, tiny_gpt2.d_model)[None]
    edit = WeightEdit(
        updates=(WeightUpdate(layer=2, left=left, right=right),), method="test", requests=(), provenance={}
    )
    with edit.applied(tiny_gpt2):
        assert (score_targets(tiny_gpt2, PAIRS)[0].log_probs - before).abs().max() > 1e-3
    torch.testing.assert_close(score_targets(tiny_gpt2, PAIRS)[0].log_probs, before, atol=0, rtol=0)
    assert passes


def test_hooks_of_edits_are_not_passed_by(tiny_gpt2: Model, passes: list[int]) -> None:
    edit = Steers()(tiny_gpt2, [EditRequest(template="{} is", subject="Rome", target_new="Oslo")])
    with edit.applied(tiny_gpt2):
        score_targets(tiny_gpt2, PAIRS)
        generate(tiny_gpt2, PROMPTS, max_new_tokens=2)
    assert not passes


def test_a_model_whose_parts_are_unknown_runs_itself(monkeypatch: pytest.MonkeyPatch, passes: list[int]) -> None:
    model = load_model(str(GOLDEN / "tiny-gpt2"), device="cpu")
    monkeypatch.setattr(model, "_found", {direct._known: None})
    assert len(generate(model, PROMPTS, max_new_tokens=2)) == len(PROMPTS) and not passes


ASKED = [f"One word, then: {prompt}" for prompt in ("Rome is", "In Japan, people speak", "Rome")]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3", "opt", pytest.param("mistral", marks=pytest.mark.slow)])
def test_a_passage_that_all_texts_begin_with_is_run_once(
    kind: str, checkpoints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any device, with the numbers of whole texts; also where a window ends within it."""
    model, given = load_model(str(checkpoints[kind]), device="cpu"), watched(monkeypatch)
    monkeypatch.setattr(direct, "PASSAGE", 8)
    pairs = [(prompt, target) for prompt in ASKED for target in ("Paris", "the red house")]
    texts, scores = generate(model, ASKED, max_new_tokens=6), score_targets(model, pairs)
    assert given[0] > 8 and given[0] in given[1:]  # once to write and once to score
    with monkeypatch.context() as patch:
        patch.setattr(direct, "PASSAGE", 10_000)
        assert generate(model, ASKED, max_new_tokens=6) == texts
        for ours, theirs in zip(scores, score_targets(model, pairs), strict=True):
            assert (ours.tokens, ours.chosen, ours.prompt_tokens) == (
                theirs.tokens,
                theirs.chosen,
                theirs.prompt_tokens,
            )
            torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=2e-4, rtol=0)
            torch.testing.assert_close(ours.next_log_probs, theirs.next_log_probs, atol=2e-4, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_a_passage_that_is_kept_is_not_run_again(kind: str, checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what another that begins so shares with it; and it is forgotten where weights may have changed."""
    model, given = load_model(str(checkpoints[kind]), device="cpu"), watched(monkeypatch)
    monkeypatch.setattr(direct, "PASSAGE", 8)
    longer = [f"{ASKED[0]} and {prompt}" for prompt in ("Rome", "Japan")]

    def asked() -> list[TargetScore]:
        pairs = [[(prompt, "Paris") for prompt in some] for some in (ASKED, longer, ASKED)]
        return [score for some in pairs for score in score_targets(model, some)]

    for _ in range(2):
        given.clear()
        apart, passage, run = asked(), given[0], sum(given)
        given.clear()
        with direct.keeping_passage():
            together = asked()
        assert given[0] == passage and sum(given) == run - 2 * passage
        for ours, theirs in zip(together, apart, strict=True):
            torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=2e-4, rtol=0)
        with torch.no_grad():
            model.weight(0).mul_(1.5)


@pytest.mark.parametrize(
    ("texts", "keep", "shared"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5]], 1, 3),
        ([[1, 2, 3, 4], [1, 2, 3, 5]], 2, 2),
        ([[1, 2, 3], [1, 2, 3, 4, 5]], 1, 2),
        ([[1, 2], [1, 2]], 2, 0),
        ([[1, 2, 3]], 1, 0),
        ([[9, 2, 3], [1, 2, 3]], 1, 0),
    ],
)
def test_what_texts_share(tiny_gpt2: Model, texts: list[list[int]], keep: int, shared: int) -> None:
    rows = [TokenRow(text="", ids=tuple(text), offsets=tuple((0, 0) for _ in text)) for text in texts]
    assert direct.shared_passage(tiny_gpt2.pad(rows, padding_side="left"), keep=keep) == shared


def test_full_memory_says_nothing_of_the_blocks(monkeypatch: pytest.MonkeyPatch, passes: list[int]) -> None:
    model = load_model(str(GOLDEN / "tiny-gpt2"), device="cpu")

    def full(*_: Any) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        patch.setattr("workbench.models.blocks_check.difference", full)
        score_targets(model, PAIRS)
    score_targets(model, PAIRS)
    assert passes
