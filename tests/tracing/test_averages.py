"""CausalTrace on disk, token roles, averages by role and the mediating layer."""

import dataclasses
import math
import os
from pathlib import Path

import pytest
import torch
from known_traces import trace_of
from safetensors.torch import save_file

from workbench.records.facts import Fact
from workbench.tracing.averages import ROLES, average_effects, mediating_layer, token_roles
from workbench.tracing.trace import CausalTrace, TraceError

FACT = Fact(subject="Björk's “Ω”", template="The label of {} is", object="One Little", relation="label")


def made(n_tokens=7, subject=(2, 5), *, n_layers=4, corrupted=0.1, effect=None, **changes):
    """A trace whose `mlp_out` has the indirect effect given, [pos, layer]."""
    effect = torch.zeros(n_tokens, n_layers) if effect is None else effect
    restored = {"resid_post": torch.rand(n_tokens, n_layers), "mlp_out": effect + corrupted}
    fields = {"fact": FACT, "restored": restored} | changes
    return trace_of(effect, corrupted=corrupted, subject=subject, **fields)


# One trace


def test_effects_are_differences_from_the_corrupted_run():
    effect = torch.rand(7, 4)
    trace = made(effect=effect)
    assert trace.total_effect == pytest.approx(0.8)
    torch.testing.assert_close(trace.indirect_effect("mlp_out"), effect)
    with pytest.raises(ValueError, match="'attn_out' was not traced; this trace has resid_post, mlp_out"):
        trace.indirect_effect("attn_out")


def test_a_trace_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().clean = 0.5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("subject", [(3, 3), (-1, 2), (5, 8)])
def test_a_subject_outside_the_prompt_is_refused(subject):
    with pytest.raises(ValueError, match="within the 7 tokens"):
        made(subject=subject)


def test_wrong_rows_and_windows_are_refused():
    with pytest.raises(ValueError, match="needs 7 rows, one a token traced, got 6"):
        made(restored={"mlp_out": torch.zeros(6, 4)})
    with pytest.raises(ValueError, match="at least 1 layer"):
        made(window=0)


def test_saving_is_exact(tmp_path):
    trace = made(clean=math.pi / 4, corrupted=1e-17)
    path = tmp_path / "new" / "trace.safetensors"
    trace.save(path)
    again = CausalTrace.load(path)
    for field in dataclasses.fields(CausalTrace):
        if field.name != "restored":
            assert getattr(again, field.name) == getattr(trace, field.name)
    assert list(again.restored) == list(trace.restored)
    for site, values in trace.restored.items():
        assert again.restored[site].dtype == values.dtype
        assert torch.equal(again.restored[site], values)
    assert [file.name for file in path.parent.iterdir()] == ["trace.safetensors"]


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "trace.safetensors"
    made(clean=0.9).save(path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        made(clean=0.5).save(path)
    assert CausalTrace.load(path).clean == 0.9
    assert len(list(tmp_path.iterdir())) == 1


def test_unreadable_traces_are_named(tmp_path):
    missing = tmp_path / "missing.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no trace at .*missing"):
        CausalTrace.load(missing)
    good, cut, other = tmp_path / "good", tmp_path / "cut", tmp_path / "other"
    made().save(good)
    cut.write_bytes(good.read_bytes()[:-20])
    with pytest.raises(TraceError, match=r"cut: damaged trace, trace the fact again"):
        CausalTrace.load(cut)
    save_file({"w": torch.zeros(2)}, other)
    with pytest.raises(TraceError, match=r"other: damaged trace, .*its format is None, not 'workbench.causal_trace.2'"):
        CausalTrace.load(other)
    empty: Path = tmp_path / "empty"
    empty.touch()
    with pytest.raises(TraceError, match="empty: damaged"):
        CausalTrace.load(empty)


# Roles


@pytest.mark.parametrize(
    ("n_tokens", "subject", "expected"),
    [
        (9, (1, 5), [None, "first_subject", *["middle_subject"] * 2, "last_subject", "first_subsequent"]
            + ["further"] * 2 + ["last"]),
        (5, (0, 2), ["first_subject", "last_subject", "first_subsequent", "further", "last"]),
        (4, (1, 2), [None, "last_subject", "first_subsequent", "last"]),
        (3, (1, 2), [None, "last_subject", "last"]),
        (3, (0, 3), ["first_subject", "middle_subject", "last"]),
        (1, (0, 1), ["last"]),
    ],
)  # fmt: skip
def test_every_token_has_one_role(n_tokens, subject, expected):
    assert list(token_roles(n_tokens, subject)) == expected


# Averages


def test_tokens_of_a_role_are_averaged_within_the_fact_first():
    long, short = torch.zeros(8, 4), torch.zeros(6, 4)
    long[2:5, 1] = torch.tensor([0.1, 0.2, 0.3])  # three middle tokens, mean 0.2
    short[2, 1] = 0.6  # one middle token
    traces = [made(8, (1, 6), effect=long), made(6, (1, 4), effect=short)]
    average = average_effects(traces, "mlp_out")
    assert average.row("middle_subject")[1].item() == pytest.approx(0.4)
    assert average.counts == {role: 0 if role == "further" else 2 for role in ROLES}


def test_intervals_are_student_t_over_facts():
    values = [0.1, 0.4, 0.7]
    traces = []
    for value in values:
        effect = torch.zeros(7, 4)
        effect[4, 2] = value
        traces.append(made(effect=effect, clean=value + 0.2))
    average = average_effects(traces, "mlp_out")
    row = ROLES.index("last_subject")
    assert average.mean[row, 2].item() == pytest.approx(0.4)
    assert average.half_width[row, 2].item() == pytest.approx(4.302653 * 0.3 / math.sqrt(3), rel=1e-5)
    assert average.half_width[row, 0].item() == pytest.approx(0, abs=1e-6)
    assert average.total == pytest.approx(0.5)
    assert average.total_half_width == pytest.approx(4.302653 * 0.3 / math.sqrt(3), rel=1e-5)
    assert (average.facts, average.window, average.site) == (3, 3, "mlp_out")


def test_few_facts_give_no_interval():
    average = average_effects([made(4, (1, 2))], "mlp_out")
    assert average.half_width.isnan().all()
    assert math.isnan(average.total_half_width)
    assert average.counts["middle_subject"] == 0
    assert average.row("middle_subject").isnan().all()
    assert not average.row("last_subject").isnan().any()


def test_the_hidden_state_is_always_single():
    traces = [made(window=3), made(window=5)]
    assert average_effects(traces, "resid_post").window == 1
    with pytest.raises(ValueError, match=r"must agree in \(layers, window, metric\), got \[\(4, 3,"):
        average_effects(traces, "mlp_out")


def test_averages_refuse_what_they_cannot_average():
    with pytest.raises(ValueError, match="at least one trace, got none"):
        average_effects([], "mlp_out")
    with pytest.raises(ValueError, match="'attn_out' was not traced"):
        average_effects([made()], "attn_out")
    with pytest.raises(ValueError, match="must agree"):
        average_effects([made(), made(n_layers=5)], "mlp_out")
    with pytest.raises(ValueError, match="role must be one of first_subject"):
        average_effects([made()], "mlp_out").row("subject")


# The layer


def test_the_mediating_layer_is_the_peak_at_the_last_subject_token():
    effect = torch.zeros(7, 4)
    effect[4] = torch.tensor([0.1, 0.2, 0.5, 0.1])
    effect[6, 0] = 0.9  # a greater effect at the last token does not count
    assert mediating_layer([made(effect=effect)]) == 2
    assert mediating_layer([made(effect=effect)], role="last") == 0
    weak = torch.zeros(7, 4)
    weak[4, 1] = 0.05
    assert mediating_layer([made(effect=effect), made(effect=weak)]) == 2


def test_no_mediating_layer_without_a_last_subject_token():
    with pytest.raises(ValueError, match="none of the 1 traces has a token in role 'last_subject'"):
        mediating_layer([made(3, (0, 3))])
    with pytest.raises(ValueError, match="got none"):
        mediating_layer([])
