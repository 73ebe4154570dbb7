"""What makes a run the one that it was begun as: its settings, the content of what they name, and versions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONTENT = "content"
"""The setting that holds digests of what the others name."""
GOING_ON = "going_on.json"
"""The file of the options that are no settings: a run goes on with others."""
AFRESH = "choose another --out, or start again with --fresh"
"""The way out where another is asked for."""


def release(version: str | None) -> str | None:
    """A version without what it was built for: a run may go on with another `--device`."""
    return version and version.partition("+")[0]


def together(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Options with which a run was begun and with which it goes on; of several methods those of both, and the larger
    limit of records."""
    found = {**before, **now}
    if limits := [each["limit"] for each in (before, now) if each.get("limit") is not None]:
        found["limit"] = max(limits)
    for name, value in before.items():
        if isinstance(value, list) and isinstance(found[name], list):
            found[name] = list(dict.fromkeys([*value, *found[name]]))
    return found


def changed_contents(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is named by both or by one of them, and does not hold what it held."""
    return [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]


def refuse_other_settings(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """ValueError for other settings, or another content of what they name, than those a run was begun with."""
    missing = "(not set)"
    differing = [
        f"{key} was {old.get(key, missing)!r} and is now {new.get(key, missing)!r}"
        for key in sorted((old.keys() | new.keys()) - {CONTENT})
        if old.get(key) != new.get(key)  # an option that is not given is None
    ]
    if differing:
        raise ValueError(f"'{folder}' holds a run with other settings ({'; '.join(differing)}): {AFRESH}")
    if changed := changed_contents(old.get(CONTENT, {}), new.get(CONTENT, {})):
        raise ValueError(f"'{folder}' was begun with another content of {', '.join(changed)}: {AFRESH}")
