"""Comparisons of layers in words: why facts were left out, and what stands beside a gain."""

import dataclasses

import numpy as np
from known_traces import make_trace

from workbench.machine.intervals import Estimate
from workbench.measuring.layer_choice import comparable
from workbench.measuring.regression import Explained
from workbench.studies.layer_report import by_chance, caveats, left_out


def test_reasons_for_leaving_facts_out_are_told_apart() -> None:
    at_end = make_trace(subject=(4, 7), corrupted=0.88)  # the noise hardly lowers it either
    weak = make_trace(corrupted=0.88)
    assert not any(map(comparable, (at_end, weak)))
    said = left_out([weak, at_end, weak])
    assert "1 whose prompt ends with its subject" in said and "2 of which the noise takes less than 0.05" in said
    assert "noise" not in left_out([at_end]) and "ends" not in left_out([weak])
    assert left_out([]) == ""
    assert said in caveats([weak, at_end, weak])[0]


def test_a_gain_is_shown_beside_chance_and_less_it() -> None:
    share = Estimate(value=0.011, n=30)
    one = Explained(facts=30, effect=share, layer=share, both=share, gain=share, chance=0.034, p_value=0.91)
    assert by_chance(one) == {"By chance": "0.034 (p = 0.910)", "Less chance": "-0.023"}
    unknown = dataclasses.replace(one, gain=Estimate(value=np.nan, n=30), p_value=np.nan)
    assert by_chance(unknown) == {"By chance": "-", "Less chance": "-"}
