"""Targets scored together give what each alone gives, and what the published code gave."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.models.model import Model
from workbench.models.scoring import score_targets


@pytest.mark.parametrize("batch_size", [2, 64])
def test_pairs_that_share_rows_score_as_each_alone(family_model: Model, batch_size: int) -> None:
    prompts = ["The capital of France is", "The Eiffel Tower stands", "東京は", "Steve"]
    targets = ["Paris", "Paris, and Rome", "Rome", "a", "日本", "Icelandic in Japan"]
    pairs = [(prompt, target) for prompt in prompts for target in targets]
    scores = score_targets(family_model, pairs, batch_size=batch_size)
    alone = [score_targets(family_model, [pair])[0] for pair in pairs]  # with no other to share a row with
    for score, expected in zip(scores, alone, strict=True):
        torch.testing.assert_close(score.log_probs, expected.log_probs, rtol=1e-4, atol=1e-4)
    assert [score.top for score in scores] == [expected.top for expected in alone]
    for prompt in prompts:
        tokens = family_model.tokenize([prompt])
        after = family_model.logits(tokens)[0, -1].log_softmax(dim=-1)
        shared = scores[pairs.index((prompt, "Rome"))]
        if shared.prompt_tokens == tokens.ids.shape[1]:  # no token spans prompt and target
            torch.testing.assert_close(shared.next_log_probs, after, rtol=1e-4, atol=1e-4)


def test_targets_after_a_prompt_share_its_row(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    logits = tiny_gpt2.logits

    def counted(tokens: Any, **options: Any) -> Tensor:
        rows.append(len(tokens.ids))
        return logits(tokens, **options)

    monkeypatch.setattr(tiny_gpt2, "logits", counted)
    prompts = ["The capital of France is", "In Argentina, most people speak"]
    targets = ["Spanish", "Arabic", "German", "Roman"]  # one token each
    score_targets(tiny_gpt2, [(prompt, target) for prompt in prompts for target in targets])
    assert rows == [2]


def test_a_model_that_gives_nan_is_an_error_not_a_missing_value(
    tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = tiny_gpt2.logits
    monkeypatch.setattr(tiny_gpt2, "logits", lambda tokens, **options: logits(tokens, **options) * math.nan)
    with pytest.raises(ValueError, match="gives NaN after 'The capital of France is'"):
        score_targets(tiny_gpt2, [("The capital of France is", "Paris")])


def test_a_prompt_without_a_token_of_its_own_is_refused(tiny_gpt2: Model) -> None:
    with pytest.raises(ValueError, match="blank"):
        score_targets(tiny_gpt2, [(" ", "Paris")])
