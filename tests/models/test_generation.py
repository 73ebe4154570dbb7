"""Generation with padding and a cache against an argmax loop with neither."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_hf

from workbench.models.generation import generate, generate_apart
from workbench.models.hooks import ForwardPass
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.sampler import Sampler


@torch.no_grad()
def argmax_loop(model: Model, hf: Any, prompt: str, steps: int) -> list[int]:
    """Greedy continuation without padding and without a cache."""
    ids = model.tokenize([prompt]).ids
    start = ids.shape[1]
    for _ in range(steps):
        ids = torch.cat([ids, hf(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, start:].tolist()


@pytest.mark.parametrize("batch_size", [2, 64])
def test_greedy_generation_is_the_argmax_loop(
    family_model: Model, family_hf: Any, batch_size: int, texts: list[str]
) -> None:
    found = generate(family_model, texts, max_new_tokens=8, batch_size=batch_size)
    for text, continuation in zip(texts, found, strict=True):
        new = argmax_loop(family_model, family_hf, text, 8)
        if 1 in new:
            new = new[: new.index(1)]
        ids = family_model.tokenize([text]).ids[0].tolist() + new
        assert text + continuation == family_model.tokenizer.decode(ids, skip_special_tokens=True)


@torch.no_grad()
def test_cached_steps_give_the_uncached_logits(family_model: Model, texts: list[str]) -> None:
    tokens = family_model.tokenize(texts, padding_side="left")
    expected, length = family_model.logits(tokens), tokens.ids.shape[1]
    first, cache = length - int(tokens.mask.sum(dim=1).min()) + 1, None
    for start, end in ((0, first), *((place, place + 1) for place in range(first, length))):
        which = ForwardPass(mask=tokens.mask[:, :end], offset=start, prompt_ends=tokens.prompt_ends)
        logits, cache = family_model.step(tokens.ids[:, start:end], which, cache)
        torch.testing.assert_close(logits[:, -1], expected[:, end - 1], atol=1e-5, rtol=0)


def test_a_space_that_ends_a_prompt_is_left_to_what_follows(tiny_gpt2: Model) -> None:
    """Where answers are scored it is part of their first token; with it alone at the end no word is begun."""
    prompt = "The capital of France is"
    (plain,) = generate(tiny_gpt2, [prompt], max_new_tokens=4)
    together = generate(tiny_gpt2, [f"{prompt} ", prompt], max_new_tokens=4)
    assert plain.startswith(" ") and together == [plain[1:], plain]
    apart = generate_apart(tiny_gpt2, [[f"{prompt} "], [prompt]], max_new_tokens=[4, 4], samplers=[Sampler()] * 2)
    assert apart == [[plain[1:]], [plain]]
    with pytest.raises(ValueError, match=r"prompts: expected a list of texts, got 'The capital.*: put it in \[ \]"):
        generate(tiny_gpt2, prompt, max_new_tokens=2)


def test_sampling_depends_on_its_generator_alone(family_model: Model, texts: list[str]) -> None:
    def sample(seed: int, global_seed: int) -> list[str]:
        torch.manual_seed(global_seed)
        generator = torch.Generator().manual_seed(seed)
        return generate(family_model, texts, max_new_tokens=6, temperature=1.0, top_k=20, generator=generator)

    state = torch.get_rng_state()
    assert sample(1, 5) == sample(1, 6) != sample(2, 5)
    torch.set_rng_state(state)
    generate(family_model, texts, max_new_tokens=2, temperature=1.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_top_1_is_greedy(tiny_gpt2: Model) -> None:
    prompts = ["The capital of Portugal is", "In Iceland"]
    generator = torch.Generator().manual_seed(0)
    greedy = generate(tiny_gpt2, prompts, max_new_tokens=6)
    assert generate(tiny_gpt2, prompts, max_new_tokens=6, temperature=1.0, top_k=1, generator=generator) == greedy
    assert greedy[0].startswith(" Lisbon")


def test_generation_is_cut_at_the_end_of_text(checkpoints: dict[str, Path], tmp_path: Path, texts: list[str]) -> None:
    shutil.copytree(checkpoints["gpt2"], tmp_path, dirs_exist_ok=True)
    model = load_model(str(tmp_path), device="cpu")
    new = argmax_loop(model, load_hf(tmp_path), texts[0], 6)
    end = new[3]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    model = load_model(str(tmp_path), device="cpu")
    before = new[: new.index(end)]
    ids = model.tokenize([texts[0]]).ids[0].tolist()
    assert texts[0] + generate(model, texts[:1], max_new_tokens=6)[0] == model.tokenizer.decode(ids + before)
    gone_on = generate(model, texts[:1], max_new_tokens=6, past_ends=True)
    assert texts[0] + gone_on[0] == model.tokenizer.decode(ids + new)
    (apart,) = generate_apart(model, [texts[:1]], max_new_tokens=[6], samplers=[Sampler()], past_ends=True)
    assert apart == gone_on


def test_bad_generation(tiny_gpt2: Model) -> None:
    with pytest.raises(ValueError, match=r"do not fit into the context of 64 .*lower max_new_tokens"):
        generate(tiny_gpt2, ["The capital of Portugal is"], max_new_tokens=60)
    with pytest.raises(ValueError, match="needs generator="):
        generate(tiny_gpt2, ["Rome"], max_new_tokens=1, temperature=0.5)
    with pytest.raises(ValueError, match="expected max_new_tokens >= 1, got 0"):
        generate(tiny_gpt2, ["Rome"], max_new_tokens=0)
    with pytest.raises(ValueError, match="expected temperature >= 0"):
        generate(tiny_gpt2, ["Rome"], max_new_tokens=1, temperature=-1.0)
    with pytest.raises(ValueError, match=r"top_k >= 1 or None, got 0\.0 and 0"):
        generate(tiny_gpt2, ["Rome"], max_new_tokens=1, top_k=0)


def test_a_model_that_gives_nan_writes_no_empty_text(tiny_gpt2: Model) -> None:
    weight = tiny_gpt2.weight(1, "W_out")
    before = weight.clone()
    with torch.no_grad():
        weight.mul_(torch.nan)
    try:
        with pytest.raises(ValueError, match="gives NaN for the next token: look at its weights and dtype"):
            generate(tiny_gpt2, ["The capital of France is"], max_new_tokens=3)
    finally:
        with torch.no_grad():
            weight.copy_(before)
