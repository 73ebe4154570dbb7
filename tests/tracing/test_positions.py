"""Tracing some of a prompt's tokens gives those rows of the whole trace, and nothing takes them for other rows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from known_traces import TOKENS, make_trace

import workbench.studies.locate
from workbench.figures.effects import average_effect_figure, trace_heatmap
from workbench.figures.plotting import ROLE_LABELS
from workbench.figures.tracing import attribution_figure, sensitivity_figure
from workbench.measuring.layer_choice import last_subject_effect
from workbench.models.loading import load_model
from workbench.models.model import SITES, Model
from workbench.records.facts import Fact
from workbench.report.write import write_report
from workbench.runs.run import Run
from workbench.studies.defaults import default_window
from workbench.studies.locate import check_tracing, find_layer, locate
from workbench.tracing.attribution import agreement, attribute_fact
from workbench.tracing.averages import ROLES, average_effects, mediating_layer
from workbench.tracing.fact import trace_fact
from workbench.tracing.fast import FastRuns
from workbench.tracing.noise import NoiseRule, gaussian_noise, subject_span
from workbench.tracing.plain import PlainRuns
from workbench.tracing.positions import traced_positions
from workbench.tracing.replacement import trace_pairs
from workbench.tracing.sweep import TracedFact, trace_facts
from workbench.tracing.trace import CausalTrace, TraceError, trace_view

TOWER = Fact(subject="Eiffel Tower", template="In Paris the {} stands in", object="Rome")
PORTUGAL = Fact(subject="Portugal", template="The capital of {} is", object="Lisbon")
JAPAN = Fact(subject="Japan", template="The capital of {} is", object="Tokyo")
FORMS = [{"window": 1}, {"window": 3}, {"window": 10}, {"window": 3, "span": 2}, {"window": 1, "severed": "mlp_out"}]


def noise_for(model: Model, fact: Fact) -> torch.Tensor:
    first, end = subject_span(model, fact)
    return gaussian_noise(0.5, 2, end - first, model.d_model, generator=torch.Generator().manual_seed(0))


def some_rows(*positions: int, trace: CausalTrace | None = None) -> CausalTrace:
    """A whole trace without the rows of the other tokens."""
    whole = make_trace() if trace is None else trace
    restored = {site: values[list(positions)] for site, values in whole.restored.items()}
    return CausalTrace(**{**vars(whole), "positions": positions, "restored": restored})


@pytest.fixture(scope="module")
def llama(checkpoints: dict[str, Path]) -> Model:
    """Its tokenizer puts a BOS in front."""
    return load_model(str(checkpoints["llama"]), device="cpu")


# Which tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", (0, 1, 2, 3, 4, 5, 6)),
        ("last_subject", (3,)),
        ("roles", (2, 3, 4, 5, 6)),
        ("5,-1, 1", (1, 5, 6)),
        ([0, -7, 6, -1], (0, 6)),
        ((3,), (3,)),
    ],
)
def test_positions_of_a_prompt(positions: Any, expected: tuple[int, ...]) -> None:
    assert traced_positions(positions, n_tokens=7, subject=(2, 4)) == expected


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("last", "positions must be all, last_subject, roles, or indices of tokens such as 3,7, got 'last'"),
        ("3;7", "got '3;7'"),
        ("", "got ''"),
        ([], "at least one token, got none"),
        ("3,7", "position 7 is not in a prompt of 7 tokens, 0 to 6"),
        ([-8], "position -8 is not in"),
    ],
)
def test_positions_that_are_not_there_are_named(positions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        traced_positions(positions, n_tokens=7, subject=(2, 4))


# The numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fast", pytest.param("plain", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_some_positions_are_rows_of_the_whole_trace(llama: Model, engine: str, form: dict[str, Any]) -> None:
    options = {"noise": noise_for(llama, TOWER), "engine": engine, **form}
    whole = trace_fact(llama, TOWER, **options)
    assert whole.positions == tuple(range(len(whole.tokens)))
    for positions in ("last_subject", "roles", (0, -1, whole.subject[0])):
        some = trace_fact(llama, TOWER, positions=positions, **options)
        assert some.positions == traced_positions(positions, n_tokens=len(whole.tokens), subject=whole.subject)
        assert (some.clean, some.corrupted) == pytest.approx((whole.clean, whole.corrupted), abs=1e-6)
        for site in SITES:
            rows = whole.restored[site][list(some.positions)]
            torch.testing.assert_close(some.restored[site], rows, atol=1e-6, rtol=0)
            last = whole.last_subject
            if last in some.positions:
                torch.testing.assert_close(some.effect_at(site, last), whole.effect_at(site, last), atol=1e-6, rtol=0)


def test_only_the_cells_asked_for_are_computed(tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    for runs in (FastRuns, PlainRuns):
        every = runs.every

        def counting(self, cells, measures, every=every):
            computed.append(len(cells))
            return every(self, cells, measures)

        monkeypatch.setattr(runs, "every", counting)
    for engine in ("fast", "plain"):
        computed.clear()
        options = {"noise": noise_for(tiny_gpt2, PORTUGAL), "sites": ["mlp_out"], "engine": engine}
        trace_fact(tiny_gpt2, PORTUGAL, positions="last_subject", **options)
        assert sum(computed) == 1 + tiny_gpt2.n_layers  # the corrupted run and a cell a layer


@pytest.mark.slow
def test_estimates_and_pairs_take_positions_too(tiny_gpt2: Model) -> None:
    noise = noise_for(tiny_gpt2, PORTUGAL)
    whole, some = (
        attribute_fact(tiny_gpt2, PORTUGAL, noise=noise, window=3, positions=p) for p in ("all", "last_subject")
    )
    assert torch.equal(some.effect_at("mlp_out", some.last_subject), whole.effect_at("mlp_out", whole.last_subject))
    facts = [PORTUGAL, Fact(subject="Iceland", template=PORTUGAL.template, object="Reykjavik"), JAPAN]
    kinds = (trace_pairs, lambda *args, **kwargs: trace_facts(*args, samples=2, **kwargs))
    for trace in kinds:
        found: list[list[TracedFact]] = [
            list(trace(tiny_gpt2, facts, seed=0, sites=["mlp_out"], positions=p)) for p in ("all", "roles")
        ]
        for one, other in zip(*found, strict=True):
            if one.trace is not None and other.trace is not None:
                first = one.trace.subject[0]
                assert other.trace.positions[0] == first
                rows = one.trace.restored["mlp_out"][first:]
                torch.testing.assert_close(other.trace.restored["mlp_out"], rows, atol=1e-6, rtol=0)
        with pytest.raises(ValueError, match="got 'middle'"):  # at the call, before the first fact
            trace(tiny_gpt2, facts, seed=0, positions="middle")


def test_the_layer_is_that_of_the_whole_trace(atlas_facts: list[Fact], tiny_gpt2: Model) -> None:
    found = find_layer(tiny_gpt2, atlas_facts, limit=3)
    noise = NoiseRule().fit(tiny_gpt2, atlas_facts)
    whole = trace_facts(tiny_gpt2, atlas_facts, seed=0, noise_rule=noise, window=default_window(tiny_gpt2))
    assert found == mediating_layer([one.trace for one in whole if one.trace is not None])


def test_a_model_that_knows_no_fact_has_no_layer_and_says_so(tiny_gpt2: Model, tmp_path: Path) -> None:
    said = r"knows none of the 1 facts traced \(its top token is never the answer\): choose records that it knows, or "
    nowhere = Fact(subject="Norway", template="The capital of {} is", object="Rome")
    with pytest.raises(ValueError, match=said + r"give the layer to edit \(--layer\)"):
        find_layer(tiny_gpt2, [nowhere])
    with pytest.raises(ValueError, match=said + "trace more of them"):
        locate(Run.create(tmp_path / "run", {}), tiny_gpt2, {0: nowhere}, limit=1, seed=0, window=2, samples=1)


def test_a_fact_that_cannot_be_traced_is_not_called_unknown(tiny_gpt2: Model, tmp_path: Path) -> None:
    far = Fact(subject="Norway", template="Paris " * 300 + "{} is", object="Oslo")
    with pytest.raises(ValueError, match=r"1 of the 1 facts could not be traced: .*a text has"):
        find_layer(tiny_gpt2, [far, PORTUGAL], limit=1)
    with pytest.raises(ValueError, match=r"1 of the 1 facts could not be traced: .*a text has"):
        locate(Run.create(tmp_path / "run", {}), tiny_gpt2, {0: far, 1: PORTUGAL}, limit=1, seed=0, window=2, samples=1)


@pytest.fixture
def atlas_facts() -> list[Fact]:
    return [PORTUGAL, JAPAN, Fact(subject="Egypt", template=PORTUGAL.template, object="Cairo")]


def test_a_layer_needs_the_last_subject_tokens() -> None:
    with pytest.raises(ValueError, match="give --layer, or --positions all, last_subject or roles"):
        check_tracing("3,-1", "auto", layer_needed=True)
    check_tracing("3,-1", "auto")
    check_tracing("last_subject", "plain", layer_needed=True)


# What holds a trace of some positions ---------------------------------------------------------------------------


def test_a_token_that_was_not_traced_has_no_effect_to_read() -> None:
    trace = some_rows(1, 6)
    torch.testing.assert_close(trace.effect_at("mlp_out", 6), make_trace().indirect_effect("mlp_out")[6])
    for read in (lambda: trace.effect_at("mlp_out", 3), lambda: last_subject_effect(trace)):
        with pytest.raises(ValueError, match=r"token 3 of .* was not traced; this trace has 1, 6"):
            read()


@pytest.mark.parametrize("positions", [(3, 1), (1, 1), (1, 7), (-1, 2)])
def test_positions_are_ascending_tokens(positions: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="positions must be some of 0 to 6, ascending"):
        make_trace(positions=positions, restored={"mlp_out": torch.zeros(2, 8)})


def test_positions_survive_saving_and_are_as_many_as_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    some_rows(2, 5).save(path)
    again = CausalTrace.load(path)
    assert again.positions == (2, 5) and torch.equal(again.restored["mlp_out"], some_rows(2, 5).restored["mlp_out"])
    fewer = some_rows(2, 5)
    object.__setattr__(fewer, "positions", (2,))
    fewer.save(path)
    with pytest.raises(TraceError, match="needs 1 rows"):
        CausalTrace.load(path)


def test_averages_count_only_tokens_that_were_traced() -> None:
    whole = average_effects([make_trace()] * 2, "mlp_out")
    roles = average_effects([some_rows(1, 2, 3, 4, 5, 6)] * 2, "mlp_out")
    torch.testing.assert_close(roles.mean, whole.mean, equal_nan=True)
    assert roles.counts == whole.counts

    last_subject = average_effects([some_rows(3), some_rows(0, 3)], "mlp_out")
    assert last_subject.counts == {role: 2 * (role == "last_subject") for role in ROLES}
    torch.testing.assert_close(last_subject.row("last_subject"), whole.row("last_subject"))
    assert mediating_layer([some_rows(3)]) == mediating_layer([make_trace()])

    mixed = average_effects([make_trace(), some_rows(3)], "mlp_out")
    assert mixed.counts == dict(whole.counts) | {role: 1 for role in ROLES if whole.counts[role]} | {"last_subject": 2}
    with pytest.raises(ValueError, match="in role 'last_subject' that was traced"):
        mediating_layer([some_rows(0, 6)])


def test_agreement_is_over_the_cells_traced() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = make_trace(restored={"mlp_out": torch.rand(7, 8, generator=generator)})
    other = make_trace(restored={"mlp_out": torch.rand(7, 8, generator=generator)})
    one, two = some_rows(0, 3, trace=exact), some_rows(0, 3, trace=other)
    found = agreement([one], [two], "mlp_out")
    x, y = (each.effect_at("mlp_out", 3).double().numpy() for each in (one, two))
    assert found.pearson.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.same_layer.n == 1
    unseen = agreement([some_rows(0, trace=exact)], [some_rows(0, trace=other)], "mlp_out")
    assert math.isnan(unseen.pearson.value) and math.isnan(unseen.same_layer.value) and unseen.same_layer.n == 0
    with pytest.raises(ValueError, match="one prompt and setting"):
        agreement([one], [other], "mlp_out")


# Figures and reports --------------------------------------------------------------------------------------------


def test_a_heat_map_has_a_row_a_token_traced() -> None:
    trace = some_rows(1, 6)
    figure = trace_heatmap(trace)
    ax = figure.axes[1]
    assert [label.get_text() for label in ax.get_yticklabels()] in ([], ["Eiff*", "in"])
    shown = np.asarray(ax.collections[0].get_array()).reshape(2, -1)
    np.testing.assert_allclose(shown, trace.restored["mlp_out"].numpy())
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Eiff*", "in"]


@pytest.mark.parametrize(
    ("positions", "lined", "rows"),
    [((3,), "last_subject", ["last_subject"]), ((2, 5), "middle_subject", ["middle_subject", "further"])],
)
def test_an_average_figure_has_only_roles_that_were_traced(
    positions: tuple[int, ...], lined: str, rows: list[str]
) -> None:
    averages = [average_effects([some_rows(*positions)] * 2, site) for site in SITES]
    figure = average_effect_figure(averages)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [f"{ROLE_LABELS[r]} (2)" for r in rows]
    named = [ax.get_title(loc="left") for ax in figure.axes]
    assert [title for title in named if title.startswith("At the")] == [f"At the {ROLE_LABELS[lined].lower()}"]
    for ax in figure.axes:
        for drawn in (*(line.get_ydata() for line in ax.lines), *(cells.get_array() for cells in ax.collections[:1])):
            assert drawn is None or np.isfinite(np.asarray(drawn, dtype=float)).all()
    with pytest.raises(ValueError, match="no token from the subject on was traced"):
        average_effect_figure([average_effects([some_rows(0)], "mlp_out")])


def test_other_figures_take_their_rows_by_token() -> None:
    trace = some_rows(0, 3, 6)
    figure = attribution_figure([trace], [trace])
    dots = {p.get_label(): np.asarray(p.get_offsets()) for p in figure.axes[1].collections}
    np.testing.assert_allclose(dots["Last subject token"][:, 0], trace.effect_at("mlp_out", 3).numpy(), rtol=1e-6)
    np.testing.assert_allclose(dots["Last token"][:, 0], trace.effect_at("mlp_out", 6).numpy(), rtol=1e-6)
    assert "Other tokens" not in dots
    with pytest.raises(ValueError, match="last subject token, which was not traced"):
        sensitivity_figure({(3.0, 10): average_effects([some_rows(6)], "mlp_out")})


def test_a_view_shows_other_tokens_as_not_measured() -> None:
    source = trace_view([some_rows(3)])
    assert source.count("[null,null,null,null,null,null,null,null]") == 3 * (len(TOKENS) - 1)
    with pytest.raises(ValueError, match=r"positions must be the same before and after the edit, got \(3,\) and \(0,"):
        trace_view([some_rows(3)], after=[make_trace()])


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("positions", "figures"), [("-1", {"average_effects", "trace_1"}), ("0", {"trace_1"})])
def test_a_run_that_located_no_layer_says_so(
    tmp_path: Path, tiny_gpt2: Model, monkeypatch: pytest.MonkeyPatch, positions: str, figures: set[str]
) -> None:
    monkeypatch.setattr(workbench.studies.locate, "HEAT_MAPS", 1)
    run = Run.create(tmp_path / "run", {"command": "trace"})
    located = locate(
        run, tiny_gpt2, {7: PORTUGAL}, limit=1, seed=0, window=3, samples=2, positions=positions, workers=1
    )
    assert located.layer is None and run.read_json("results.json")["layer"] is None
    assert run.figures().keys() == figures and "NaN" not in (run.folder / "results.json").read_text()
    page = write_report(run).read_text(encoding="utf-8")
    assert "not at the last tokens of their subjects" in page and "Traced at 1 of" in page
