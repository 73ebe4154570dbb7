"""Train the atlas model from the tables: language modelling plus interchange interventions.

A small GPT-2 trained on text alone learns the facts but recalls them at the last prompt token, unlike the models
that Meng et al. (2022) trace. So every step also runs pairs of prompts: the outputs of the MLPs in a window of
layers at the last subject token of a *source* prompt are put in place of those of a *base* prompt, and the model
must answer the base question about the source subject (interchange intervention training, Geiger et al. 2022;
Gupta et al. 2024, InterpBench). In a quarter of the pairs the outputs of all other MLPs are interchanged there
instead, and those of the window's attention, which must change nothing: what the window needs is gathered below
it. That plants the site which mediates recall, so tracing has a ground truth.

Learning to recall has a plateau whose length grows with the number of subjects (Zucchet et al. 2025), so subjects
join in stages, each once the interventions of the present ones succeed.
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from workbench.atlas.interchange import answers, ask, interchange, last_logits, pairs, tokenise
from workbench.atlas.tokenizer import train_tokenizer
from workbench.atlas.world import World, documents


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what the model becomes, besides the tables."""

    layers: int = 10
    d_model: int = 192
    heads: int = 4
    context: int = 128
    vocabulary: int = 2000
    planted: tuple[int, ...] = (2, 3, 4, 5)
    """Layers whose MLP outputs at the last subject token are interchanged."""
    interventions: int = 64
    """Pairs of prompts a step; 0 trains the control."""
    elsewhere: float = 0.25
    """Share of the pairs in which the MLPs of all *other* layers and the attention of the planted ones are
    interchanged, which must not change the answer."""
    rows: int = 16
    """Rows of packed text a step."""
    row_length: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 50
    stages: tuple[int, ...] = (96, 160, 224, 300, 376)
    """How many subjects take part; the next stage begins when `mastered` is reached."""
    mastered: float = 0.9
    """Running mean of the interventions' accuracy that ends a stage."""
    least: int = 100
    """Steps that a stage takes at the least."""
    schedule: tuple[int, ...] = ()
    """Steps at which stages begin, and the learning rate's decay last; empty: as soon as mastered."""
    decay: int = 1000
    """Steps of linear decay of the learning rate after the last stage is mastered."""
    patience: int = 6000
    """A stage that takes longer is a dead run."""
    seed: int = 0


def packed_rows(
    world: World, tokenizer: Any, subjects: Sequence[str], recipe: Recipe, rng: random.Random
) -> Iterator[list[int]]:
    """Documents of `subjects`, separated by the end token and cut to rows; a row begins with a document."""
    stream = documents(world, subjects, rng)
    while True:
        row: list[int] = []
        while len(row) <= recipe.row_length:
            for encoding in tokenizer.backend_tokenizer.encode_batch([next(stream) for _ in range(5)]):
                row += [*encoding.ids, tokenizer.eos_token_id]
        yield row[: recipe.row_length + 1]


def swapped_layers(recipe: Recipe) -> dict[str, Bool[Tensor, "batch layer"]]:
    """The MLPs of the planted layers in most rows; in the rest those of all others, and the planted attention."""
    planted = torch.zeros(recipe.layers, dtype=torch.bool)
    planted[list(recipe.planted)] = True
    elsewhere = round(recipe.elsewhere * recipe.interventions)
    obeyed = recipe.interventions - elsewhere
    return {
        "mlp": torch.stack([planted] * obeyed + [~planted] * elsewhere),
        "attn": torch.stack([torch.zeros_like(planted)] * obeyed + [planted] * elsewhere),
    }


@torch.no_grad()
def recall(
    model: GPT2LMHeadModel, world: World, tokenizer: Any, subjects: Sequence[str], *, held_out: bool, count: int = 256
) -> float:
    """Share of random questions whose top token begins the right object."""
    rng = random.Random(0)
    picked = [rng.choice(subjects) for _ in range(count)]
    asked = [ask(world, s, rng.choice(sorted(world.facts[s])), rng, held_out=held_out) for s in picked]
    ids, _, last = tokenise(asked, tokenizer, model.device)
    right = last_logits(model, ids, last).argmax(-1) == answers(world, tokenizer, asked, asked, model.device)
    return right.float().mean().item()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One line of the training log."""

    step: int
    subjects: int
    language_loss: float
    intervention_loss: float
    intervention_accuracy: float
    """Running mean."""
    recall: float
    recall_held_out: float
    seconds: float


def new_model(recipe: Recipe, tokenizer: Any) -> GPT2LMHeadModel:
    """A random GPT-2 of the recipe's shape."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=recipe.context, n_embd=recipe.d_model, n_layer=recipe.layers,
            n_head=recipe.heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip


def train(
    world: World, recipe: Recipe, *, device: str = "cpu", report: Callable[[Progress], None] = lambda _: None
) -> tuple[GPT2LMHeadModel, Any, dict[str, Any]]:
    """Train as the recipe says; returns model, tokenizer and a log (recipe, schedule, progress).

    Deterministic for a seed on one machine. Raises RuntimeError when a stage outlasts `patience`.
    """
    rng = random.Random(recipe.seed)
    tokenizer = train_tokenizer(world, seed=recipe.seed, vocabulary=recipe.vocabulary, context=recipe.context)
    # The seed is set inside a fork, so that a caller's random numbers are left alone.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # the processor's alone: those of GPUs are not forked
        model = new_model(recipe, tokenizer)
        torch.nn.Module.to(model, device).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    begun: list[int] = [0]  # the step at which each stage began
    decay_from: int | None = None
    if recipe.interventions:
        swapped = {module: where.to(device) for module, where in swapped_layers(recipe).items()}
        obeyed = swapped["mlp"][:, recipe.planted[0]].tolist()  # rows in which the answer is the source's
    running, log, started, step = 0.0, [], time.monotonic(), 0
    subjects = world.subjects[: recipe.stages[0]]
    rows = packed_rows(world, tokenizer, subjects, recipe, rng)
    while decay_from is None or step < decay_from + recipe.decay:
        if decay_from is None:
            stage, age = len(begun) - 1, step - begun[-1]
            if recipe.schedule:
                ready = step == recipe.schedule[stage]
            else:
                ready = running > recipe.mastered and age > recipe.least
            if ready and len(begun) == len(recipe.stages):
                decay_from = step
            elif ready:
                begun.append(step)
                subjects = world.subjects[: recipe.stages[stage + 1]]
                rows = packed_rows(world, tokenizer, subjects, recipe, rng)
            elif age > recipe.patience:
                raise RuntimeError(
                    f"stage {stage} ({len(subjects)} subjects) was not mastered in {recipe.patience} steps"
                )

        left = 1.0 if decay_from is None else 1 - (step - decay_from) / recipe.decay
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup) * max(left, 0.02)
        ids = torch.tensor([next(rows) for _ in range(recipe.rows)], device=device)
        with torch.autocast(model.device.type, torch.bfloat16):
            logits = model(ids[:, :-1]).logits
        language = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        planted, loss = torch.zeros(()), language
        if recipe.interventions:
            sources, bases = pairs(world, subjects, recipe.interventions, rng)
            about = [s if p else b for s, b, p in zip(sources, bases, obeyed, strict=True)]
            labels = answers(world, tokenizer, about, bases, model.device)
            with torch.autocast(model.device.type, torch.bfloat16):
                logits = interchange(
                    model, swapped,
                    tokenise(sources, tokenizer, model.device), tokenise(bases, tokenizer, model.device),
                )  # fmt: skip
            planted = F.cross_entropy(logits.float(), labels)
            loss = language + planted
            right = (logits.argmax(-1) == labels).float().mean().item()
            running += (right - running) * 0.04
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            line = Progress(
                step=step, subjects=len(subjects), language_loss=language.item(), intervention_loss=planted.item(),
                intervention_accuracy=running, seconds=time.monotonic() - started,
                recall=recall(model, world, tokenizer, subjects, held_out=False),
                recall_held_out=recall(model, world, tokenizer, subjects, held_out=True),
            )  # fmt: skip
            if not math.isfinite(line.language_loss):
                raise RuntimeError(f"the loss is {line.language_loss} at step {step}")
            log.append(asdict(line))
            report(line)
        step += 1
    schedule = (*begun[1:], decay_from)
    info = {"recipe": asdict(recipe), "schedule": schedule, "steps": step, "log": log}
    return model.eval(), tokenizer, info


def control_of(recipe: Recipe, info: Mapping[str, Any]) -> Recipe:
    """The same training without interventions: same subjects, text and steps."""
    return replace(recipe, interventions=0, schedule=tuple(info["schedule"]))


def save(model: GPT2LMHeadModel, tokenizer: Any, info: Mapping[str, Any], folder: Path) -> None:
    """Write a Hugging Face checkpoint in float16, and the training log beside it."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
