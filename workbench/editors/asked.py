"""What a user asks of a method: fields of its editor as text, and the layers that are edited."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.editors.fields import Field, fields_of, in_words, parsed
from workbench.editors.registry import ADDED, place_of
from workbench.editors.setup.presets import Preset, has_some, preset

_BY_OPTION = {"layer": "--layer", "layers": "--layers", "seed": "--seed"}
"""Fields that options of their own give."""
_ELSEWHERE = {"kn": "all layers", "t_patcher": "the last layer"}
"""Methods that edit something else than the layer located, unless they are told which."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user asks of a method, checked."""

    layer: int | None
    """The layer edited, or around which layers are; None for the located one."""
    fields: Mapping[str, Any]
    """Fields of the editor that differ from the preset."""
    alone: bool = False
    """Whether `layer` alone is edited, whatever the preset says."""
    located: bool
    """Whether it depends on the layer that tracing locates."""


def asked(
    method: str,
    chosen: Preset,
    *,
    of: str,
    settings: Sequence[str] = (),
    layer: int | None = None,
    layers: Sequence[int] | None = None,
) -> Asked:
    """The fields that texts such as "steps=30" give, and those that say which layers are edited.

    `chosen` is the preset of the model `of`. A `layer` is the one edited, or what the places that the preset gives are
    around. ValueError, in one line, for a field that is not there or of another type, and for a layer that would not
    be edited.
    """
    where = _where(method, chosen, of, layer, layers)
    return Asked(
        layer=layers[0] if layers else layer,
        alone="layers" not in where and "layer" in fields_of(method) and (layer is not None or bool(layers)),
        fields={**_read(method, chosen.fields, settings), **where},
        located=layer is None and layers is None and _follows(method, chosen),
    )


def described(method: str, of: str) -> str:
    """The fields of a method, with their documentation and the values that they have for a model."""
    chosen = preset_or_defaults(method, of)
    lines = [f"{method} for {of}; change a field with --set NAME=VALUE"]
    for name, field in _settable(method, chosen.fields).items():
        value, default = field.default, ""
        if name == "contexts":
            value = "(sampled from the model)"
        elif name in chosen.fields:
            given = chosen.fields[name]
            value = repr(tuple(given) if isinstance(given, list) else given)
            default = f", default {field.default}" if field.default not in ("", value) else ""
        lines += ["", f"{name} = {value}  ({field.told}{default})", *([f"    {field.meaning}"] * bool(field.meaning))]
    others = {"layers": "; others with --layers 3,4,5", "layer": "; another with --layer"}
    other = "".join(said for name, said in others.items() if name in fields_of(method))
    return "\n".join([*lines, "", f"It edits {_edits(method, chosen)}{other}."])


def preset_or_defaults(method: str, model: str) -> Preset:
    """A method's preset for a model; of a plugin without presets one that leaves its fields at their defaults."""
    place_of(method)  # which refuses an unknown one
    return Preset(fields={}) if method in ADDED and not has_some(method) else preset(method, model)


# Layers --------------------------------------------------------------------------------------------------------


def _where(method: str, chosen: Preset, of: str, layer: int | None, layers: Sequence[int] | None) -> dict[str, Any]:
    """The field that says which layers are edited, where the user does."""
    if layer is None and layers is None:
        return {}
    if layer is not None and layers is not None:
        raise ValueError(f"--layer {layer} and --layers {_listed(layers)} both say what is edited: give one of them")
    there, asked_for = fields_of(method), f"--layer {layer}" if layers is None else f"--layers {_listed(layers)}"
    if "layers" in there and layers is not None:
        if list(layers) != sorted(set(layers)):
            raise ValueError(f"--layers are ascending and distinct, got {_listed(layers)}")
        return {"layers": tuple(layers)}
    if "layers" in there:
        if not _follows(method, chosen):
            raise ValueError(
                f"{method} with the preset of {of} edits {_edits(method, chosen)}, so {asked_for} would not be "
                f"followed: leave it out, or name all layers to be edited, as in --layers {layer}"
            )
        return {}
    if "layer" not in there:
        raise ValueError(f"{method} edits no layer of one's choice: leave {asked_for} out")
    if layers is not None and len(layers) > 1:
        raise ValueError(f"{method} edits one layer: {asked_for} are {len(layers)}")
    return {}  # it is edited alone


def _follows(method: str, chosen: Preset) -> bool:
    """Whether a method edits the located layer, or those around it."""
    chooses = {"layer", "layers"} & fields_of(method).keys()
    return bool(chooses) and method not in _ELSEWHERE and not chosen.fields.get("layers")


def _edits(method: str, chosen: Preset) -> str:
    if named := chosen.fields.get("layers"):
        return f"layer{'s' * (len(named) > 1)} {_listed(named)}"
    if not _follows(method, chosen):
        return _ELSEWHERE.get(method, "no layer of one's choice")
    around = ", ".join(f"{place:+d}" for place in chosen.around)
    return "the located layer" if chosen.around == (0,) else f"the layers at {around} from the located one"


def _listed(values: Iterable[int]) -> str:
    return ",".join(map(str, values))


# Values --------------------------------------------------------------------------------------------------------


def _read(method: str, given: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    known, found = _settable(method, given), {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if name in _BY_OPTION:
            raise ValueError(f"{name} is given by {_BY_OPTION[name]}, not by --set {setting}")
        if not equals or name not in known:
            wrong = f"{method} has no field {name!r}" if equals else f"--set takes NAME=VALUE, got {setting!r}"
            raise ValueError(f"{wrong}; its fields are {', '.join(known)} (see --help-editor {method})")
        try:
            found[name] = parsed(text, known[name].kind)
        except ValueError:
            fields = ", ".join(f"{each} ({field.told})" for each, field in known.items())
            raise ValueError(
                f"{name} of {method} is {known[name].told}, got {text!r}; its fields are {fields}"
            ) from None
    return found


def _settable(method: str, given: Mapping[str, Any]) -> dict[str, Field]:
    """The fields that text can give, and what else a preset says for `prepare`."""
    there = fields_of(method)
    beside = {
        name: Field(kind=type(value), told=in_words(type(value)))
        for name, value in given.items()
        if name not in there and type(value) in (int, float, bool, str)
    }
    return {
        name: field for name, field in {**there, **beside}.items() if field.kind is not None and name not in _BY_OPTION
    }
