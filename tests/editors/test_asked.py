"""Fields of editors from text and from their sources, and the layers that a user asks for."""

from dataclasses import fields
from typing import Any, cast

import pytest

from workbench.editors.asked import Asked, asked, described, preset_or_defaults
from workbench.editors.fields import fields_of, parsed
from workbench.editors.registry import EDITORS


def ask(method: str, *settings: str, of: str = "atlas", **where) -> Asked:
    return asked(method, preset_or_defaults(method, of), of=of, settings=settings, **where)


@pytest.mark.parametrize("method", EDITORS)
def test_fields_read_from_the_source_are_those_of_the_class(method: str) -> None:
    told, editor = fields_of(method), cast(Any, EDITORS[method])
    assert set(told) == {field.name for field in fields(editor)}
    for field in fields(editor):
        assert told[field.name].meaning
        if told[field.name].default and isinstance(field.default, int | float | str):
            assert told[field.name].default == repr(field.default) or float(told[field.name].default) == field.default


def test_settings_are_typed_by_the_fields() -> None:
    found = ask("memit", "steps=30", "clamp=2", "loss_layer=none").fields
    assert found == {"steps": 30, "clamp": 2.0, "loss_layer": None} and type(found["clamp"]) is float
    assert ask("lora", "matrices=W_in,W_out").fields == {"matrices": ("W_in", "W_out")}
    assert ask("t_patcher", "memory_size=7").fields == {"memory_size": 7}
    assert parsed("true", bool) is True
    with pytest.raises(ValueError, match=r"memit has no field 'stepps'; its fields are contexts, steps, learning_rate"):
        ask("memit", "stepps=3")
    with pytest.raises(ValueError, match=r"steps of memit is a whole number, got '3.5'; its fields are"):
        ask("memit", "steps=3.5")
    with pytest.raises(ValueError, match="r_rome has no field 'key_denominator'"):
        ask("r_rome", "key_denominator=prompt")
    with pytest.raises(ValueError, match="layers is given by --layers"):
        ask("memit", "layers=3")


def test_no_layer_is_asked_for_in_vain() -> None:
    assert ask("memit", layers=[3, 4]).fields == {"layers": (3, 4)}
    assert ask("memit").located and ask("memit", layer=4).layer == 4
    assert ask("grace", layer=2).alone and ask("rome", layers=[2]).layer == 2
    for method in ("ike", "kn", "grace", "t_patcher"):
        assert not ask(method).located, "nothing that it edits depends on the located layer"
    with pytest.raises(ValueError, match="gpt2-xl edits layers 13,14,15,16,17, so --layer 5 would not be followed"):
        ask("memit", of="gpt2-xl", layer=5)
    with pytest.raises(ValueError, match="ike edits no layer of one's choice"):
        ask("ike", layer=5)
    with pytest.raises(ValueError, match="rome edits one layer"):
        ask("rome", layers=[3, 4])
    with pytest.raises(ValueError, match="give one of them"):
        ask("memit", layer=3, layers=[3, 4])


def test_help_tells_the_values_of_the_preset() -> None:
    shown = described("rome", "gpt2-medium")
    assert "steps = 20  (a whole number)\n    How many losses" in shown
    assert "clamp = 15.0  (a number, default 4.0)" in described("rome", "atlas")
    assert "It edits layers 13,14,15,16,17; others with --layers" in described("memit", "gpt2-xl")
