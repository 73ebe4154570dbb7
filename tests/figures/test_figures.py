"""Figures show the numbers they are given, keep their text inside, and leave no global state behind."""

import math
import warnings
from dataclasses import replace
from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from drawn import outside, texts
from known_traces import N_LAYERS, make_trace
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.figures.editors import editor_figure
from workbench.figures.effects import average_effect_figure, trace_heatmap
from workbench.figures.layers import layer_comparison_figure
from workbench.figures.neurons import neuron_figure
from workbench.figures.plotting import AFTER, ROLE_LABELS, SCORE_STYLES, SITE_STYLES, heatmap
from workbench.figures.scores import score_figure
from workbench.machine.intervals import Estimate
from workbench.measuring.summaries import Summary
from workbench.models.tokens import visible
from workbench.records.facts import Fact
from workbench.tracing.averages import ROLES, AverageEffect, average_effects
from workbench.tracing.trace import CausalTrace


def random_trace(template: str = "The {} is in the city of", n_layers: int = N_LAYERS, seed: int = 0) -> CausalTrace:
    generator = torch.Generator().manual_seed(seed)
    tokens = ("The", " Space", " Need", "le", " is", " in", " the", " city", " of")
    return make_trace(
        fact=Fact(subject="Space Needle", template=template, object="Seattle"),
        tokens=tokens,
        answer=" Seattle",
        restored={site: 0.1 + 0.8 * torch.rand(len(tokens), n_layers, generator=generator) for site in SITE_STYLES},
    )


def make_averages(n_layers: int = N_LAYERS) -> list[AverageEffect]:
    traces = [random_trace(n_layers=n_layers, seed=seed) for seed in range(4)]
    return [average_effects(traces, site) for site in SITE_STYLES]


def make_summary(**changes: float) -> Summary:
    def estimates(values: dict[str, float]) -> dict[str, Estimate]:
        return {k: Estimate(value=v, low=max(0.0, v - 0.1), high=min(1.0, v + 0.1), n=20) for k, v in values.items()}

    pre = {"S": 0.1, "ES": 0.05, "PS": 0.1, "NS": 0.95, "generated.rewrite.new": 0.0}
    post = {"S": 0.9, "ES": 1.0, "PS": 0.8, "NS": 0.9, "generated.rewrite.new": 0.97} | changes
    return Summary(n=20, level=0.95, resamples=100, pre=estimates(pre), post=estimates(post))


def make_layers(scores: list[float], effects: list[float]) -> pd.DataFrame:
    rows = [
        {"layer": layer, "measure": measure, "value": value, "low": value - 0.05, "high": value + 0.05}
        for measure, values in (("S", scores), ("effect", effects))
        for layer, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


KEPT = np.array([[0, 3, 1], [1, 2, 0]])

FIGURES = {
    "trace": lambda: trace_heatmap(random_trace()),
    "long prompt": lambda: trace_heatmap(random_trace("In a letter that nobody ever read, " * 6 + "the {} is in")),
    "deep model": lambda: trace_heatmap(random_trace(n_layers=48)),
    "averages": lambda: average_effect_figure(make_averages(), planted=range(2, 5)),
    "deep averages": lambda: average_effect_figure(make_averages(48), title="A deep model"),
    "scores": lambda: score_figure({"ROME": make_summary(), "MEMIT": make_summary(NS=0.99)}),
    "layers": lambda: layer_comparison_figure(make_layers([0.2, 0.9, 0.5], [0.1, 0.5, 0.2]), window=10, located=1),
    "neurons": lambda: neuron_figure(KEPT, np.array([0.1, 0.3, 0.2]), np.full(3, 0.05), window=3, located=1),
}


def panel(figure: Figure, title: str) -> Axes:
    return next(ax for ax in figure.axes if ax.get_title(loc="left") == title)


@pytest.mark.parametrize("name", FIGURES)
def test_all_text_lies_inside_the_figure(name: str) -> None:
    figure = FIGURES[name]()
    assert len(texts(figure)) > 10
    assert outside(figure) == []


@pytest.mark.parametrize("name", FIGURES)
def test_no_global_state(name: str) -> None:
    matplotlib.use("agg")  # a backend that nobody chose yet counts as another one
    before = matplotlib.rcParams.copy()
    FIGURES[name]()
    assert plt.get_fignums() == []
    assert before == matplotlib.rcParams


def test_heat_map_shows_the_trace() -> None:
    trace = random_trace()
    figure = trace_heatmap(trace)
    for site, style in SITE_STYLES.items():
        cells = panel(figure, style.label).collections[0]
        shown = np.asarray(cells.get_array()).reshape(len(trace.tokens), N_LAYERS)
        np.testing.assert_allclose(shown, trace.restored[site].numpy())
        assert cells.get_clim() == (trace.corrupted, trace.clean)


def test_small_probabilities_are_told_apart() -> None:
    figure = trace_heatmap(replace(random_trace(), corrupted=0.001, clean=0.004))
    assert "0.001 with the subject* corrupted, 0.004 clean" in figure.get_suptitle()


def test_the_bar_has_a_tip_where_values_leave_a_scale_that_ends_at_zero() -> None:
    ax = Figure().subplots()
    assert heatmap(ax, np.full((1, 2), -0.06), "viridis", Normalize(-0.02, 0.0)).extend == "min"
    assert heatmap(ax, np.full((1, 2), -0.01), "viridis", Normalize(-0.02, 0.0)).extend == "neither"


def test_heat_map_stars_the_subject_and_names_answer_and_window() -> None:
    figure = trace_heatmap(random_trace())
    labels = [label.get_text() for label in panel(figure, "Hidden state").get_yticklabels()]
    assert labels == ["The", "Space*", "Need*", "le*", "is", "in", "the", "city", "of"]
    heading = figure.get_suptitle()
    assert heading.startswith("The Space Needle is in the city of → Seattle") and "p(Seattle)" in heading
    assert panel(figure, "Hidden state").get_xlabel() == "Layer"
    assert panel(figure, "MLP").get_xlabel() == "Layer (window of 3)"


def test_heat_map_says_what_is_restored_and_where_the_noise_helps() -> None:
    plain = trace_heatmap(random_trace()).get_suptitle()
    assert "with one state restored to its clean value" in plain and "noise" not in plain
    trace = replace(random_trace(), span=2, severed="mlp_out", clean=0.2, corrupted=0.35)
    figure = trace_heatmap(trace)
    said = " ".join(figure.get_suptitle().split())
    assert "2 tokens' states together (mlp_out of later layers kept corrupted) restored" in said
    assert "0.35 with the subject* corrupted, 0.20 clean, so that the noise takes nothing away" in said
    assert panel(figure, "MLP").collections[0].get_clim() == (0.2, 0.35)
    assert outside(figure) == []


def test_dollar_signs_are_not_mathematics() -> None:
    figure = trace_heatmap(random_trace("$x_1$ and ${}^2 cost"))
    figure.draw_without_rendering()
    assert "$x_1$ and $Space Needle^2 cost" in figure.get_suptitle()


@pytest.mark.parametrize(("token", "shown"), [(" Seattle", "Seattle"), ("\n", r"\n"), (" ", "␣"), ("", "∅")])
def test_white_space_is_visible(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_a_trace_without_effect_is_drawn() -> None:
    trace = random_trace()
    flat = {site: torch.full_like(values, 0.1) for site, values in trace.restored.items()}
    fields = {**vars(trace), "clean": 0.1, "restored": flat}
    trace_heatmap(CausalTrace(**fields)).draw_without_rendering()


def test_average_figure_shows_means_bands_and_planted_layers() -> None:
    averages = make_averages()
    figure = average_effect_figure(averages, planted=range(2, 5))
    for average in averages:
        cells = panel(figure, SITE_STYLES[average.site].label).collections[0]
        shown = np.ma.filled(np.ma.asarray(cells.get_array()).reshape(average.mean.shape), np.nan)
        np.testing.assert_allclose(shown, average.mean.numpy())
    for role in ("last_subject", "last"):
        ax = panel(figure, f"At the {ROLE_LABELS[role].lower()}")
        lines = [drawn for line in ax.lines if len(drawn := np.asarray(line.get_ydata())) == N_LAYERS]
        for drawn, average in zip(lines, averages, strict=True):
            np.testing.assert_allclose(drawn, average.row(role).numpy())
        (shade,) = ax.patches
        assert isinstance(shade, Rectangle) and (shade.get_x(), shade.get_width()) == (1.5, 3)


@pytest.mark.slow
def test_roles_that_no_fact_has_are_left_white() -> None:
    averages = make_averages()
    holed = averages[0].mean.clone()
    holed[ROLES.index("middle_subject")] = torch.nan
    changed = AverageEffect(**{**vars(averages[0]), "mean": holed})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        average_effect_figure([changed]).draw_without_rendering()


def test_averages_are_needed() -> None:
    with pytest.raises(ValueError, match="at least one AverageEffect"):
        average_effect_figure([])


def test_colour_maps_are_legible_in_greyscale() -> None:
    for style in SITE_STYLES.values():
        colors = matplotlib.colormaps[style.cmap](np.linspace(0, 1, 64))[:, :3]
        lightness = colors @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(lightness) < 0).all()


@pytest.mark.parametrize("styles", [SITE_STYLES, SCORE_STYLES])
def test_lines_differ_without_colour(styles: dict) -> None:
    assert len({style.marker for style in styles.values()}) == len(styles)
    assert len({style.dashes for style in styles.values()}) == len(styles)
    assert len({look["marker"] for look in AFTER}) == len(AFTER)


def test_layer_comparison_gives_the_correlation() -> None:
    scores, effects = [0.1, 0.4, 0.3, 0.9], [0.0, 0.3, 0.1, 0.2]
    figure = layer_comparison_figure(make_layers(scores, effects), located=3, random_layer=0.425)
    r = np.corrcoef(scores, effects)[0, 1]
    assert panel(figure, f"S against effect, r = {r:.2f}")
    line = panel(figure, "Editing at the layer").lines[0]
    np.testing.assert_allclose(np.asarray(line.get_ydata()), [10, 40, 30, 90])
    assert panel(figure, "Tracing: restoring the MLP").get_ylabel() == "Average indirect effect"


def test_layer_comparison_says_that_an_effect_is_of_a_window() -> None:
    frame = make_layers([0.2, 0.9, 0.5], [0.1, 0.5, 0.2])
    figure = layer_comparison_figure(frame, window=3)
    assert panel(figure, "Tracing: restoring MLPs").get_xlabel() == "Centre of a window of 3 layers"
    assert panel(figure, "Editing at the layer").get_xlabel() == "Layer"
    assert panel(layer_comparison_figure(frame), "Tracing: restoring the MLP").get_xlabel() == "Layer"


def test_layers_whose_dots_lie_together_share_a_label() -> None:
    effects = [0.141, 0.155, 0.154, 0.164, 0.167, 0.172, 0.102, 0.076, 0.073, 0.022, 0.0]
    scores = [0.927, 0.956, 0.95, 0.946, 0.952, 0.952, 0.939, 0.925, 0.837, 0.787, 0.622]
    figure = layer_comparison_figure(make_layers(scores, effects))
    figure.draw_without_rendering()
    against = figure.axes[-1]
    labels = {text.get_text(): text.get_window_extent() for text in against.texts}
    assert set(labels) == {"0", "1-5", "6", "7", "8", "9", "10"}
    assert not any(one.overlaps(other) for one, other in combinations(labels.values(), 2))


def test_dots_of_many_layers_are_told_apart_by_color() -> None:
    scores = [0.6 + 0.3 * math.sin(layer / 8) for layer in range(48)]
    effects = [0.1 + 0.08 * math.cos(layer / 9) for layer in range(48)]
    figure = layer_comparison_figure(make_layers(scores, effects), located=20)
    against = panel(figure, f"S against effect, r = {np.corrcoef(scores, effects)[0, 1]:.2f}")
    assert {text.get_text() for text in against.texts} == {"20", str(int(np.argmax(scores)))}
    assert np.array_equal(np.asarray(against.collections[0].get_array()), np.arange(48))
    assert outside(figure) == []


def test_layer_comparison_without_spread_has_no_correlation() -> None:
    assert panel(
        layer_comparison_figure(make_layers([0.5, 0.5, 0.5], [0.1, 0.2, 0.3])), "S against effect, too few layers for r"
    )


def test_layer_comparison_names_what_is_missing() -> None:
    frame = make_layers([0.5], [0.5])
    with pytest.raises(ValueError, match="measure 'effect', got none"):
        layer_comparison_figure(make_layers([0.5], []))
    with pytest.raises(ValueError, match="measure 'PS', got none"):
        layer_comparison_figure(frame, score="PS")


def test_score_figure_shows_estimates_and_leaves_out_what_is_unknown() -> None:
    figure = score_figure({"ROME": make_summary(NS=float("nan"))})
    ax = panel(figure, "Teacher-forced: the likelier answer")
    labels = [label.get_text()[:2].strip() for label in ax.get_yticklabels()]
    assert labels == ["S", "ES", "PS"]
    points = sorted(float(np.asarray(line.get_xdata())[0]) for line in ax.lines if line.get_linestyle() == "None")
    np.testing.assert_allclose(points, [5, 10, 10, 80, 90, 100])


def test_headings_say_how_many_records_and_whether_there_are_intervals() -> None:
    def heading(*counts: int) -> str:
        summaries = {str(n): replace(make_summary(), n=n) for n in counts}
        said = [draw(summaries).get_suptitle() for draw in (score_figure, editor_figure)]
        assert said[0] == said[1].replace(", one edit at a time", "")
        return said[0]

    assert heading(20, 200) == "20 to 200 records; lines are 95 % bootstrap intervals"
    assert heading(2, 20) == "2 to 20 records; lines are 95 % bootstrap intervals, none of fewer than 10"
    assert heading(1) == "1 record; no intervals below 10"


def test_summaries_are_needed() -> None:
    with pytest.raises(ValueError, match="at least one editor"):
        score_figure({})


def test_neurons_are_averaged_over_facts_beside_the_effect() -> None:
    effect = np.array([0.1, 0.3, 0.2])
    figure = neuron_figure(KEPT, effect, np.full(3, 0.05))
    bars = [
        bar for bar in panel(figure, "Attribution, at the last token (2 facts)").patches if isinstance(bar, Rectangle)
    ]
    np.testing.assert_allclose([bar.get_height() for bar in bars], [0.5, 2.5, 0.5])
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx([0, 1, 2])
    traced = panel(figure, "Tracing, at the last subject token")
    np.testing.assert_allclose(np.asarray(traced.lines[0].get_ydata()), effect)
    assert traced.get_xlabel() == "Layer"
    for kept in (KEPT[:0], KEPT[:, :2]):
        with pytest.raises(ValueError, match="facts of a model of 3 layers, got kept of"):
            neuron_figure(kept, effect, effect)
