"""The logit lens ends at the model's own logits, starts alike before and after an edit; its figure."""

import numpy as np
import pytest
import torch
from drawn import outside

from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.figures.lens import lens_figure
from workbench.models.loading import load_model
from workbench.models.unembedding import Unembedding
from workbench.records.facts import EditRequest, Fact
from workbench.studies.tiny_models import CONFIGS
from workbench.tracing.lens import PLACES, LensError, average_lens, logit_lens

REQUEST = EditRequest(
    template="The capital of {} is", subject="Portugal", target_new="Moscow", target_true="Berlin", relation="P36"
)
TARGETS = ("Berlin", "Moscow")
OFTEN = ("gpt2", "llama", "gemma2", "cohere", "granite")
"""The families of which the test is not slow: plain ones, and those that scale or bend their logits."""


def random_edit(model, *, layer: int) -> WeightEdit:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*shape, generator=generator) for shape in ((model.d_mlp, 1), (1, model.d_model)))
    update = WeightUpdate(layer=layer, left=left, right=right)
    return WeightEdit(updates=(update,), method="random", requests=(REQUEST,), provenance={"model": model.name})


@pytest.mark.parametrize(
    "family", [pytest.param(each, marks=[] if each in OFTEN else pytest.mark.slow) for each in CONFIGS]
)
def test_the_last_layer_reads_the_models_own_logits(family, checkpoints):
    model = load_model(str(checkpoints[family]), device="cpu")
    fact = Fact(subject="the Tower", template="People see {} in", object="Paris")
    lens = logit_lens(model, fact, ["Paris", "Rome", "5"])
    logits = model.logits(model.tokenize([fact.prompt]))[0].double()
    ids = [model.tokenize([f"{fact.prompt} {target}"]).ids[0] for target in ("Paris", "Rome", "5")]
    ids = [int(row[len(logits)]) for row in ids]
    subject_end = len(model.tokenize(["People see the Tower"]).ids[0]) - 1
    for place, pos in zip(PLACES, (subject_end, -1), strict=True):
        row = PLACES.index(place)
        torch.testing.assert_close(
            lens.probability[row, -1].double(), logits[pos].softmax(dim=-1)[ids], rtol=1e-4, atol=1e-7
        )
        expected = [1 + int((logits[pos] > logits[pos, token]).sum()) for token in ids]
        assert lens.rank[row, -1].tolist() == expected
    assert lens.probability.shape == (2, model.n_layers, 3)
    assert lens.targets == ("Paris", "Rome", "5")
    assert lens.tokens == tuple(model.token_strings(torch.tensor(ids)))


def test_a_family_that_scales_its_logits_in_its_own_way_is_refused(tiny_gpt2, monkeypatch):
    monkeypatch.setattr(Unembedding, "__call__", lambda self, resid: 0.5 * self._head(self._norm(resid)))
    with pytest.raises(LensError, match="does not know how GPT2LMHeadModel makes logits"):
        logit_lens(tiny_gpt2, REQUEST, TARGETS)


def test_a_known_answer_ends_at_rank_one(tiny_gpt2):
    fact = Fact(subject="Germany", template="The capital of {} is", object="Berlin")
    lens = logit_lens(tiny_gpt2, fact, TARGETS)
    assert lens.rank[PLACES.index("last"), -1, 0] == 1
    assert lens.probability[PLACES.index("last"), -1, 0] > 0.9
    assert lens.rank[PLACES.index("last"), 0, 0] > 1  # not recalled yet


def test_an_edit_changes_its_layer_and_those_above(tiny_gpt2):
    before = logit_lens(tiny_gpt2, REQUEST, TARGETS)
    with random_edit(tiny_gpt2, layer=3).applied(tiny_gpt2):
        after = logit_lens(tiny_gpt2, REQUEST, TARGETS)
    assert torch.equal(before.probability[:, :3], after.probability[:, :3])
    assert not torch.isclose(before.probability[:, 3:], after.probability[:, 3:], rtol=1e-3).all(dim=-1).any()
    assert torch.equal(before.probability, logit_lens(tiny_gpt2, REQUEST, TARGETS).probability)


def test_a_subject_at_the_end_is_both_places(tiny_gpt2):
    lens = logit_lens(tiny_gpt2, Fact(subject="Portugal", template="{}", object="x"), ["Berlin"])
    torch.testing.assert_close(lens.probability[0], lens.probability[1])


def test_bad_input_is_named(tiny_gpt2):
    with pytest.raises(ValueError, match="at least one answer to follow, got none"):
        logit_lens(tiny_gpt2, REQUEST, [])
    merging = Fact(subject="Spain", template="People in {} speak Span", object="ish", separator="")
    with pytest.raises(ValueError, match="'ish' has no token of its own behind 'People in Spain speak Span'"):
        logit_lens(tiny_gpt2, merging, ["ish"])
    before = tiny_gpt2.snapshot()
    try:
        with torch.no_grad():
            tiny_gpt2.weight(5)[0, 0] = float("nan")
        with pytest.raises(ValueError, match="NaN probabilities"):
            logit_lens(tiny_gpt2, REQUEST, TARGETS)
    finally:
        tiny_gpt2.restore_(before)


def test_figure_shows_probabilities_and_ranks_before_and_after(tiny_gpt2):
    before = logit_lens(tiny_gpt2, REQUEST, TARGETS)
    with random_edit(tiny_gpt2, layer=2).applied(tiny_gpt2):
        after = logit_lens(tiny_gpt2, REQUEST, TARGETS)
    figure = lens_figure(before, after)
    assert outside(figure) == []
    for column in range(2):
        for row, field in enumerate(("probability", "rank")):
            lines = {line.get_label(): np.asarray(line.get_ydata()) for line in figure.axes[2 * row + column].lines}
            assert len(lines) == 4
            for index, target in enumerate(TARGETS):
                for lens, when in ((before, "before"), (after, "after")):
                    (drawn,) = [y for label, y in lines.items() if str(label).startswith(target) and when in str(label)]
                    np.testing.assert_allclose(drawn, getattr(lens, field)[column, :, index])
    with pytest.raises(ValueError, match="one prompt and the same answers"):
        lens_figure(before, logit_lens(tiny_gpt2, REQUEST, TARGETS[:1]))


def test_an_average_is_the_mean_probability_and_the_geometric_mean_rank(tiny_gpt2):
    facts = [Fact(subject=s, template="The capital of {} is", object="Berlin") for s in ("Germany", "Portugal")]
    lenses = [logit_lens(tiny_gpt2, fact, TARGETS) for fact in facts]
    mean = average_lens(lenses, prompt="both", targets=("old", "new"))
    expected = (lenses[0].probability + lenses[1].probability) / 2
    torch.testing.assert_close(mean.probability, expected)
    torch.testing.assert_close(mean.rank, (lenses[0].rank * lenses[1].rank).sqrt())
    with pytest.raises(ValueError, match="lenses of 1 answers each, got 2"):
        average_lens(lenses, prompt="both", targets=("old",))
    with pytest.raises(ValueError, match="got 0 lenses"):
        average_lens([], prompt="none", targets=("old",))
