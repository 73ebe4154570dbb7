"""Noise rules: the published default, what each draws, their short forms, bad input."""

import pytest
import torch

from workbench.models.loading import load_model
from workbench.records.facts import Fact
from workbench.tracing.corruption import Corruption
from workbench.tracing.fact import trace_fact
from workbench.tracing.noise import NoiseRule, embedding_gaussian, embedding_noise_std, gaussian_noise, subject_span

FACTS = [
    Fact(subject="Portugal", template="The capital of {} is", object="Lisbon"),
    Fact(subject="Iceland", template="People in {} speak", object="Icelandic"),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(model, text, *, samples=10, tokens=3, seed=0):
    return NoiseRule.parse(text).fit(model, FACTS).draw(samples, tokens, generator=seeded(seed))


def embedding_matrix(model) -> torch.Tensor:
    """The rows of the tokens that the tokenizer has."""
    weights = {name: value for name, value in model.parameters.items() if "wte" in name or "embed" in name}
    return next(iter(weights.values())).detach()[: len(model.tokenizer)]


@pytest.fixture
def nan_embeddings(tiny_gpt2):
    before = tiny_gpt2.snapshot()
    with torch.no_grad():
        next(value for name, value in tiny_gpt2.parameters.items() if name.endswith("wte.weight")).fill_(float("nan"))
    yield tiny_gpt2
    tiny_gpt2.restore_(before)


# What rules draw


def test_the_default_is_the_published_noise(tiny_gpt2):
    std = 3 * embedding_noise_std(tiny_gpt2, FACTS)
    expected = gaussian_noise(std, 10, 3, tiny_gpt2.d_model, generator=seeded())
    default = NoiseRule().fit(tiny_gpt2, FACTS)
    assert not default.replace
    assert torch.equal(default.draw(10, 3, generator=seeded()), expected)
    assert torch.equal(draw(tiny_gpt2, "s3"), expected)
    assert torch.equal(draw(tiny_gpt2, "0.2"), gaussian_noise(0.2, 10, 3, tiny_gpt2.d_model, generator=seeded()))


def test_uniform_noise_fills_its_width(tiny_gpt2):
    noise = draw(tiny_gpt2, "u0.4", samples=50)
    assert noise.abs().max().item() == pytest.approx(0.4, rel=0.01)
    assert noise.abs().max() <= 0.4
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(0.4 / 3**0.5, rel=0.02)
    std = embedding_noise_std(tiny_gpt2, FACTS)
    torch.testing.assert_close(draw(tiny_gpt2, "us3"), draw(tiny_gpt2, "u1") * 3 * std)


def test_multivariate_noise_has_the_moments_of_the_embeddings(tiny_gpt2):
    embeddings = embedding_matrix(tiny_gpt2)
    mean, root = embedding_gaussian(tiny_gpt2)
    torch.testing.assert_close(mean, embeddings.mean(dim=0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(root @ root, torch.cov(embeddings.T), atol=1e-6, rtol=1e-4)
    noise = draw(tiny_gpt2, "m", samples=20000, tokens=1)[:, 0]
    scale = embeddings.var(dim=0).max().item()
    torch.testing.assert_close(noise.mean(dim=0), mean, atol=0.05 * scale**0.5, rtol=0)
    torch.testing.assert_close(torch.cov(noise.T), root @ root, atol=0.05 * scale, rtol=0)
    torch.testing.assert_close(draw(tiny_gpt2, "m0.5"), 0.5 * draw(tiny_gpt2, "m"))


def test_moments_of_every_family(family_model):
    mean, root = embedding_gaussian(family_model)
    embeddings = embedding_matrix(family_model)
    torch.testing.assert_close(mean, embeddings.mean(dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(root @ root, torch.cov(embeddings.T), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("text", ["s3", "replace:m"])
def test_noise_is_as_wide_as_the_embeddings(checkpoints, text):
    """OPT-350m's are projected to the width of the model."""
    model = load_model(str(checkpoints["opt_350m"]), device="cpu")
    assert (model.d_embed, model.d_model) == (16, 32)
    noise = draw(model, text, samples=2, tokens=subject_span(model, FACTS[0])[1] - subject_span(model, FACTS[0])[0])
    found = trace_fact(model, FACTS[0], noise=noise, replace=text.startswith("replace"), engine="plain")
    assert noise.shape[-1] == 16 and found.total_effect != 0


@pytest.mark.parametrize("text", ["s3", "0.2", "us3", "u0.2", "m", "replace:m"])
def test_draws_follow_their_generator(tiny_gpt2, text):
    noise = draw(tiny_gpt2, text)
    assert noise.shape == (10, 3, tiny_gpt2.d_model)
    assert torch.equal(noise, draw(tiny_gpt2, text))
    assert not torch.allclose(noise, draw(tiny_gpt2, text, seed=1))


@pytest.mark.parametrize("text", ["s0", "0", "us0", "u0", "m0"])
def test_zero_noise_draws_nothing(tiny_gpt2, text):
    assert not draw(tiny_gpt2, text).any()


def test_replacement_puts_the_noise_in_place_of_the_embeddings(tiny_gpt2):
    noise = NoiseRule.parse("replace:s1").fit(tiny_gpt2, FACTS)
    drawn = noise.draw(2, 3, generator=seeded())
    embeddings = torch.randn(2, 5, tiny_gpt2.d_model, generator=seeded(1))
    corrupted = Corruption(first=1, noise=drawn, replace=noise.replace)(embeddings)
    assert torch.equal(corrupted[:, 1:4], drawn)
    assert torch.equal(corrupted[:, [0, 4]], embeddings[:, [0, 4]])


# Short forms


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("s3", NoiseRule()),
        ("s2.5", NoiseRule(scale=2.5)),
        ("0.2", NoiseRule(scale=0.2, relative=False)),
        ("us3", NoiseRule(kind="uniform")),
        ("u0.2", NoiseRule(kind="uniform", scale=0.2, relative=False)),
        ("m", NoiseRule(kind="multivariate", scale=1.0, relative=False)),
        ("m2", NoiseRule(kind="multivariate", scale=2.0, relative=False)),
        ("replace:s3", NoiseRule(replace=True)),
        ("replace:m", NoiseRule(kind="multivariate", scale=1.0, relative=False, replace=True)),
    ],
)
def test_short_forms_and_back(text, rule):
    assert NoiseRule.parse(text) == rule
    assert str(rule) == text


@pytest.mark.parametrize("text", ["", "s", "u", "s-1", "-0.1", "snan", "inf", "t3", "x", "mm", "replace:", "add:s3"])
def test_other_forms_are_refused(text):
    with pytest.raises(ValueError, match=r"noise must be s3 .* or m .*, got"):
        NoiseRule.parse(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": -1.0}, "scale of noise must be a finite number of at least 0, got -1.0"),
        ({"scale": float("nan")}, "got nan"),
        ({"kind": "multivariate"}, "relative=False"),
    ],
)
def test_bad_rules_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NoiseRule(**fields)


@pytest.mark.parametrize("text", ["s3", "u1", "m"])
def test_a_draw_needs_samples_and_tokens(tiny_gpt2, text):
    for shape in ({"samples": 0}, {"tokens": 0}):
        with pytest.raises(ValueError, match="at least 1 sample and 1 subject token"):
            draw(tiny_gpt2, text, **shape)


def test_embeddings_that_are_not_finite_are_refused(nan_embeddings):
    for text in ("s3", "m"):
        with pytest.raises(ValueError, match="embeddings that are NaN"):
            draw(nan_embeddings, text)
