"""Files that are not what they should be, made of sound ones; each must be read, or refused in one line."""

import copy
import itertools
import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from known_schemas import KNOWN, RECORDS, SINGLE

from workbench.machine.jsonl import dumps
from workbench.records.course import read_requests, read_single_edit
from workbench.records.reading import read_facts, read_records

LINE = 2_500
"""Characters of the longest line that refuses a file."""


def nested(depth: int) -> list[Any]:
    """A list in a list in a list ..."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


STRANGE = (
    *(None, True, 0, -1, 7, 2**63, -(10**30), 10**400, 1.5, float("nan"), float("inf")),
    *("", " ", "{}", "{} {}", "a {} b", "\ud800", "\x00", "a\nb", "../../x", "/etc/x", "=1+1", "[/red]", "x" * 9000),
    *([], {}, [[]], [None], [""], ["a", 3], {"str": 3}, {"str": "a"}, {"prompt": "p"}, {"a": {"b": {}}}, {"": ""}),
    nested(40),
)
"""Values that stand where others are expected."""


def disturbed(value: Any, draw: random.Random, times: int = 1) -> Any:
    """A copy in which some values are strange, missing, doubled, or another's."""
    whole = [copy.deepcopy(value)]
    for _ in range(times):
        holder, name = draw.choice(_places(whole))
        others = _places(whole)
        match draw.randrange(5):
            case 0 if isinstance(holder, dict) or len(holder) > 1:
                del holder[name]
            case 1:
                other, key = draw.choice(others)
                holder[name] = copy.deepcopy(other[key])
            case 2 if isinstance(holder, dict):
                holder[draw.choice((1, 2.5, None, True, "", "\ud800", "case_id", "portability", "meta", "kind"))] = (
                    holder.pop(name)
                )
            case 3 if isinstance(holder, list) and len(holder) < 20:
                holder.insert(name, copy.deepcopy(holder[name]))
            case _:
                holder[name] = copy.deepcopy(draw.choice(STRANGE))
    return whole[0] if whole else None


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every value within another, by what holds it and where."""
    names = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for name in list(names) for place in [(value, name), *_places(value[name])]]


def record_file(folder: Path, draw: random.Random) -> Path:
    """A file of records that is mostly not quite one: in JSON, JSON Lines or YAML; disturbed in values or in bytes."""
    records: Any = [copy.deepcopy(draw.choice((*RECORDS, KNOWN)))] * draw.choice((1, 2, 3))
    content = disturbed(draw.choice((records, records, SINGLE)), draw, draw.randrange(4))
    kind = draw.choice(("json", "jsonl", "yaml"))
    if kind == "yaml":
        text = yaml.dump(content, allow_unicode=True) if draw.random() < 0.8 else draw.choice(YAML)
    elif kind == "jsonl" and isinstance(content, list):
        text = "\n".join(json.dumps(each) for each in content)
    else:
        text = json.dumps(content)
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw.choice((0, 0, 0, 1, 3))):
        place = draw.randrange(len(data)) if data else 0
        data[place : place + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
    if draw.random() < 0.05:
        data = bytearray(draw.choice((b"[" * 50_000, b'[{"a":' * 20_000, b"[" + b"9" * 5000 + b"]", b"", b"\xff\xfe")))
    path = folder / f"records.{kind}"
    path.write_bytes(data)
    return path


_LETTERS = "abcdefghi"
YAML = (
    "a: &a [x]\n"
    + "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise(_LETTERS)),
    "- &a [*a]\n",
    "- {2020-01-01: x, 7: y, null: z}\n",
    "- case_id: 2020-13-45\n",
    "- case_id: 0x" + "f" * 6000 + "\n",
    "- case_id: " + "9" * 6000 + "\n",
    "- !!python/object/apply:os.system [ls]\n",
    '- "\\ud800"\n',
    "? [a, b]\n: c\n",
    "[" * 200,
)
"""What only YAML can hold."""


def check_reader(path: Path, read: Callable[[Path], Any]) -> str:
    """How a file was met, "read" or "refused"; AssertionError for anything but one line of a ValueError."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = read(path)
        except ValueError as error:
            check_line(str(error), path)
            return "refused"
        finally:
            for one in said:
                check_line(str(one.message), path)
    dumps(found if isinstance(found, list) else [found]).encode()  # what a run writes down
    return "read"


def check_line(line: str, path: Path) -> None:
    assert "\n" not in line and len(line) <= LINE and str(path) in line, line
    line.encode()


READERS = (read_records, read_facts, read_requests, read_single_edit)
