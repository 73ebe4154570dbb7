"""Values of many requests at once are those of one request at a time over the whole network."""

from typing import Any

import pytest
import torch

from workbench.editors.search.fast_values import Search, optimise_values
from workbench.editors.search.rows import in_batches, rows_of
from workbench.editors.search.values import optimise_value
from workbench.editors.shared.subject import in_contexts
from workbench.models.blocks import Blocks, BlocksError
from workbench.models.model import Model
from workbench.records.facts import EditRequest

REQUESTS = (
    EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow"),
    EditRequest(template="{}'s capital city is", subject="Japan", target_new="Rome"),
    EditRequest(template="In {}, most people speak", subject="Argentina", target_new="Polish and Thai"),
    EditRequest(template="People speak Greek in {}", subject="Greece", target_new="and Cairo"),
)
CONTEXTS = ("{}", "It is known that {}", "Therefore, {}")
TEMPLATES = [in_contexts(request.template, CONTEXTS) for request in REQUESTS]
OPTIONS: dict[str, Any] = {
    "site": "mlp_out", "layer": 1, "steps": 12, "learning_rate": 0.3, "weight_decay": 0.1, "clamp": 2.0,
    "kl_weight": 0.06, "kl_template": "{} is a", "loss_layer": None,
}  # fmt: skip


def assert_same(model: Model, **changed: Any) -> None:
    options = OPTIONS | changed
    together = optimise_values(model, REQUESTS, TEMPLATES, **options)
    for request, templates, found in zip(REQUESTS, TEMPLATES, together, strict=True):
        alone = optimise_value(model, request, templates, **options)
        torch.testing.assert_close(found.initial, alone.initial, atol=1e-5, rtol=1e-5)
        assert (found.delta - alone.delta).norm() <= 1e-4 * alone.delta.norm()
        assert len(found.losses) == len(alone.losses)
        assert [loss.total for loss in found.losses] == pytest.approx([loss.total for loss in alone.losses], abs=1e-4)


@pytest.mark.parametrize("site", ["mlp_out", "resid_post"])
def test_the_same_as_alone_in_every_family(family_model: Model, site: str) -> None:
    assert_same(family_model, site=site)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"loss_layer": 3}, marks=pytest.mark.slow),
        pytest.param({"layer": 4}, marks=pytest.mark.slow),
        {"layer": 0},
        {"steps": 1},
    ],
    ids=str,
)
def test_the_same_at_other_layers(tiny_gpt2: Model, changed: dict[str, Any]) -> None:
    assert_same(tiny_gpt2, **changed)


@pytest.mark.slow
def test_requests_stop_early_on_their_own(tiny_gpt2: Model) -> None:
    known = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Lisbon")
    requests, templates = [REQUESTS[0], known, REQUESTS[2]], [TEMPLATES[0], TEMPLATES[0], TEMPLATES[2]]
    options: dict[str, Any] = OPTIONS | {"weight_decay": 0.0}
    together = optimise_values(tiny_gpt2, requests, templates, **options)
    assert [len(found.losses) < options["steps"] for found in together] == [False, True, False]
    for request, each, found in zip(requests, templates, together, strict=True):
        alone = optimise_value(tiny_gpt2, request, each, **options)
        assert len(found.losses) == len(alone.losses)
        torch.testing.assert_close(found.delta, alone.delta, atol=1e-4, rtol=1e-4)


class InPlace(torch.autograd.Function):
    """A value that lies in a buffer; its gradient is that of the original."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        return buffer.view_as(buffer)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None


def test_captured_steps_find_the_same(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has ended stays as it was, though it goes on being computed, and would not end where it is by then."""
    requests = [*REQUESTS, EditRequest(template="The capital of {} is", subject="Egypt", target_new="Lisbon")]
    templates = [*TEMPLATES, TEMPLATES[0]]
    options: dict[str, Any] = OPTIONS | {"clamp": 50.0}  # which holds nothing back

    def one_a_step(self: Search, *terms: torch.Tensor) -> torch.Tensor:
        vars(self)["looks"] = vars(self).get("looks", -1) + 1
        return terms[-1] == vars(self)["looks"]  # each at the step of its number, and at no other

    monkeypatch.setattr(Search, "_reached", one_a_step)
    expected = optimise_values(tiny_gpt2, requests, templates, **options)
    assert [len(found.losses) for found in expected] == [1, 2, 3, 4, 5]
    shapes: list[int] = []

    def captured(function: Any, sample: torch.Tensor) -> Any:
        shapes.append(len(sample))
        held = [torch.empty_like(each) for each in function(sample)]

        def overwriting(delta: torch.Tensor) -> list[torch.Tensor]:
            """As a graph does it: every call's results are where the last call's were."""
            found = function(delta)
            for buffer, each in zip(held, found, strict=True):
                buffer.copy_(each.detach())
            return [InPlace.apply(each, buffer) for each, buffer in zip(found, held, strict=True)]

        return overwriting

    monkeypatch.setattr("workbench.machine.graphs.pays", lambda device: True)
    monkeypatch.setattr("workbench.machine.graphs.captured", captured)
    for found, one in zip(optimise_values(tiny_gpt2, requests, templates, **options), expected, strict=True):
        assert len(found.losses) == len(one.losses)
        torch.testing.assert_close(found.delta, one.delta, atol=1e-5, rtol=1e-4)
    assert shapes == [5, 2, 1]  # only once half of them have ended are the others captured anew


@pytest.mark.slow
@pytest.mark.parametrize("target", ["pan", "pan is in Rome"])
def test_a_subject_that_shares_a_token_with_the_answer_is_refused(tiny_gpt2: Model, target: str) -> None:
    """Its value would be searched at a token that is not the one its key is read at."""
    request = EditRequest(template="In {}", subject="Ja", target_new=target, separator="")
    with pytest.raises(ValueError, match="the last token of 'Ja' also holds the beginning of the answer in 'In Japan"):
        rows_of(tiny_gpt2, request, ["In {}", "{} is a"])


def test_a_batch_too_large_for_the_memory_splits(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    together = optimise_values(tiny_gpt2, REQUESTS, TEMPLATES, **OPTIONS)
    rows = [rows_of(tiny_gpt2, request, (*each, "{} is a")) for request, each in zip(REQUESTS, TEMPLATES, strict=True)]
    assert in_batches(tiny_gpt2, rows, 1) == [[0, 1, 2, 3]]
    monkeypatch.setattr(tiny_gpt2, "budget", 1e-9)
    assert in_batches(tiny_gpt2, rows, 1) == [[0], [1], [2], [3]]
    for found, split in zip(together, optimise_values(tiny_gpt2, REQUESTS, TEMPLATES, **OPTIONS), strict=True):
        torch.testing.assert_close(found.delta, split.delta, atol=1e-5, rtol=1e-4)


def test_a_model_of_another_shape_is_optimised_with_a_warning(
    tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = optimise_values(tiny_gpt2, REQUESTS[:1], TEMPLATES[:1], **OPTIONS)[0]

    def refuse(self: Blocks, model: Model) -> None:
        raise BlocksError("the blocks cannot be run part by part")

    monkeypatch.setattr(tiny_gpt2, "_found", {})
    monkeypatch.setattr(Blocks, "__init__", refuse)
    with pytest.warns(UserWarning, match="over the whole network"):
        found = optimise_values(tiny_gpt2, REQUESTS[:1], TEMPLATES[:1], **OPTIONS)[0]
    torch.testing.assert_close(found.delta, expected.delta, atol=1e-5, rtol=1e-4)


def test_a_value_that_diverges_names_its_request(tiny_gpt2: Model) -> None:
    options: dict[str, Any] = OPTIONS | {"learning_rate": float("inf")}
    with pytest.raises(ValueError, match=r"'The capital of Portugal is' -> 'Moscow' diverged at step 1.*learning_rate"):
        optimise_values(tiny_gpt2, REQUESTS, TEMPLATES, **options)
