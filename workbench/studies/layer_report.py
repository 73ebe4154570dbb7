"""Comparisons of editors at every layer in words: tables and sentences, from `LayerComparison`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.machine.intervals import Estimate
from workbench.measuring.layer_choice import CHOICES, LEAST_TOTAL_EFFECT, NEAR, LayerComparison
from workbench.measuring.regression import Explained
from workbench.measuring.scores import Evaluation
from workbench.measuring.summaries import summarise
from workbench.runs.run import Run
from workbench.tracing.averages import ROLES, AverageEffect
from workbench.tracing.trace import CausalTrace

SCORES = ("S", "ES", "PS", "NS")
"""Scores shown by layer and by choice."""


def layer_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """A row a layer."""
    lines = {"Layer": sorted(set(tidy["layer"]))}
    for measure, scale, digits in [("effect", 1.0, 3), *((score, 100.0, 1) for score in SCORES)]:
        rows = tidy.query("measure == @measure").sort_values(by="layer")[["value", "low", "high"]].to_numpy()
        column = "Effect" if measure == "effect" else measure
        found = [Estimate(value=value, low=low, high=high, n=0) for value, low, high in rows.tolist()]
        lines[column] = [shown(one, scale=scale, digits=digits) for one in found]
    return pd.DataFrame(lines)


def choice_table(found: Mapping[str, LayerComparison]) -> pd.DataFrame:
    """A row a method and a way to choose its layer."""
    return pd.DataFrame([
        {"Editor": name, "Layer chosen": CHOICES[choice]}
        | {score: shown(one.choices.scores[choice][score]) for score in SCORES}
        | {
            "Against random": "-" if choice == "random" else shown(one.choices.against_random[choice], sign="+"),
            "Against best": "-" if choice == "best" else shown(one.choices.against_best[choice], sign="+"),
        }
        for name, one in found.items()
        for choice in CHOICES
    ])  # fmt: skip


def explained_table(found: Mapping[str, LayerComparison]) -> pd.DataFrame:
    """A row a method and score."""
    return pd.DataFrame([
        {"Editor": name, "Score": outcome.capitalize()}
        | {label: shown(getattr(one.explained[outcome], key), scale=1.0, digits=3)
           for key, label in {"effect": "Effect", "layer": "Layer", "both": "Both", "gain": "Gain"}.items()}
        | by_chance(one.explained[outcome])
        | {"Rank correlation": shown(one.ranks[outcome], scale=1.0, digits=2)}
        for name, one in found.items()
        for outcome in one.explained
    ])  # fmt: skip


def by_chance(one: Explained) -> dict[str, str]:
    """Beside the gain what chance gives, and the one less the other."""
    if np.isnan(one.p_value):
        return {"By chance": "-", "Less chance": "-"}
    return {"By chance": f"{one.chance:.3f} (p = {one.p_value:.3f})", "Less chance": f"{one.beyond_chance:+.3f}"}


def shown(estimate: Estimate, *, scale: float = 100.0, digits: int = 1, sign: str = "", unit: str = "") -> str:
    """As `98.0 (95.1 to 99.8)`, or with a sign and a unit as `+2.0 points (+0.5 to +3.5)`."""
    if np.isnan(estimate.value):
        return "-"
    value, low, high = (f"{scale * part:{sign}.{digits}f}" for part in (estimate.value, estimate.low, estimate.high))
    return f"{value}{unit}" if np.isnan(estimate.low) else f"{value}{unit} ({low} to {high})"


def results(one: LayerComparison) -> dict[str, Any]:
    """The few numbers of one method that the headline says."""
    rewrite, choices = one.explained.get("rewrite"), one.choices
    return {
        "best_layer": choices.best,
        "near_best": list(choices.near),
        "S": {choice: choices.scores[choice]["S"].to_dict() for choice in CHOICES},
        "against_random": {choice: estimate.to_dict() for choice, estimate in choices.against_random.items()},
        "against_best": {choice: estimate.to_dict() for choice, estimate in choices.against_best.items()},
        "r_squared": None if rewrite is None or np.isnan(rewrite.p_value) else {
            key: getattr(rewrite, key).to_dict() for key in ("effect", "layer", "both", "gain")
        } | {"chance": rewrite.chance, "beyond_chance": rewrite.beyond_chance, "p_value": rewrite.p_value},
        "rank_correlation": one.ranks["rewrite"].to_dict() if rewrite else None,
    }  # fmt: skip


def headline(run: Run) -> str:
    """What locating bought, in a sentence a method."""
    found = run.read_json("results.json")
    if "methods" not in found:
        return "The comparison is not finished."
    return " ".join(sentence(name, one, found["located"]) for name, one in found["methods"].items())


def sentence(name: str, one: Mapping[str, Any], located: int) -> str:
    """What locating bought one method, in short."""
    text = f"{name}: editing the located layer ({located}) gives S = {value(one['S']['located'])}, "
    text += f"{differences(one, located)}; {near(one)}."
    shares = one["r_squared"]
    if not shares:
        return text
    return (
        f"{text} Beyond the choice of the layer, a fact's own trace explains {value(shares['gain'])} % of the variance "
        f"of its rewrite score, where chance gives {100 * shares['chance']:.1f} %."
    )


def bought(name: str, one: Mapping[str, Any], located: int) -> str:
    """The same in full."""
    own = one["S"]["own"]["value"] - one["S"]["located"]["value"]
    text = (
        f"{name}: editing the layer that tracing locates ({located}) gives S = {value(one['S']['located'])}, a random "
        f"layer {value(one['S']['random'])} on average, the best one, {one['best_layer']}, which only the edits "
        f"themselves tell, {value(one['S']['best'])}. What locating bought: {differences(one, located)}; {near(one)}. "
        f"Locating each fact for itself gives {value(one['S']['own'])}, {100 * own:+.1f} against one layer for all."
    )
    shares = one["r_squared"]
    if not shares:
        return text
    rank = shown(Estimate.from_dict(one["rank_correlation"]), scale=1.0, digits=2)
    return (
        f"{text} Fact by fact, the tracing effect alone explains R² = {shares['effect']['value']:.2f} of the rewrite "
        f"score, the layer alone {shares['layer']['value']:.2f}, both {shares['both']['value']:.2f}: beyond the choice "
        f"of the layer, tracing explains {shares['gain']['value']:.3f}, where the traces of other facts explain "
        f"{shares['chance']:.3f} (p = {shares['p_value']:.3f}). Over the layers of a fact, effect and rewrite score "
        f"have a mean rank correlation of {rank}."
    )


def differences(one: Mapping[str, Any], located: int) -> str:
    """S of the located layer against a random one and the best one."""
    random, best = (Estimate.from_dict(one[key]["located"]) for key in ("against_random", "against_best"))
    text = f"{shown(random, sign='+', unit=' points')} against a random layer"
    if located == one["best_layer"]:
        return f"{text}, and no layer does better"
    return f"{text} and {shown(best, sign='+', unit=' points')} against the best ({one['best_layer']})"


def near(one: Mapping[str, Any]) -> str:
    """How many layers are about as good as the best one."""
    *most, last = map(str, one["near_best"])
    layers = f"layers {', '.join(most)} and {last} come" if most else f"only layer {last} comes"
    return f"{layers} within {100 * NEAR:g} points of the best"


def value(estimate: Mapping[str, Any]) -> str:
    """A share as a percentage, without its interval."""
    return f"{100 * estimate['value']:.1f}"


def by_layer(
    mlp: AverageEffect, layers: Sequence[int], evaluations: Mapping[tuple[int, int], Evaluation], seed: int
) -> pd.DataFrame:
    """Tidy: layer, measure (`effect`, `S`, `ES`, `PS`, `NS`), value, low, high; `mlp` is of the facts evaluated."""
    role = ROLES.index("last_subject")
    found = []
    for layer in layers:
        mean, half = float(mlp.mean[role, layer]), float(mlp.half_width[role, layer])
        found.append({"layer": layer, "measure": "effect", "value": mean, "low": mean - half, "high": mean + half})
        post = summarise([scored for (at, _), scored in evaluations.items() if at == layer], seed=seed).post
        found += [
            {"layer": layer, "measure": s, "value": post[s].value, "low": post[s].low, "high": post[s].high}
            for s in SCORES
        ]
    return pd.DataFrame(found)


def caveats(left: Sequence[CausalTrace]) -> list[str]:
    """What the numbers are not; `left` are the facts traced, but not comparable with their edits."""
    return [
        f"Only facts that the model knows are edited, and a fact's own trace stands beside its edits{left_out(left)}.",
        "A high effect says that a state carries the fact, not that its weights are the best to change: these are two "
        "questions, and Hase et al. found the answer to the one to say little about the other.",
        "R² is that of the fit itself; a line each layer always gains a little over a mean each layer, which is why "
        "the gain by chance stands beside it. Scores near 0 or 1 at whole layers leave little that could be explained "
        "within a layer.",
    ]


def left_out(left: Sequence[CausalTrace]) -> str:
    """How many facts were left out, and why."""
    at_end = sum(trace.subject[1] == len(trace.tokens) for trace in left)
    reasons = {
        "whose prompt ends with its subject (recall cannot be told from read-out there)": at_end,
        f"of which the noise takes less than {LEAST_TOTAL_EFFECT:g} in probability": len(left) - at_end,
    }
    said = " and ".join(f"{count} {why}" for why, count in reasons.items() if count)
    return f". Left out of the facts traced: {said}" if left else ""
