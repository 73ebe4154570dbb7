"""Second moments of an MLP's keys over text: several layers in one pass, or read from a cache."""

import functools
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from workbench.editors.shared.moment import Partial, SecondMoment, partial_path, read_moment, write_moment
from workbench.edits.ledger import state_fingerprint
from workbench.machine.hashing import digest
from workbench.machine.processes import Workers
from workbench.models.model import Model
from workbench.models.tokens import TokenRow
from workbench.records.texts import LONGEST, cut

_FORMAT = 2
_TEXTS_AT_ONCE, _CHARACTERS_AT_ONCE = 1024, 2**19
"""How much text is tokenised at once, which takes some hundred bytes a character."""


def second_moments(
    model: Model,
    layers: Sequence[int],
    texts: Sequence[str],
    *,
    max_tokens: int | None = None,
    batch_size: int = 32,
    cache: Path | None = None,
    progress: bool = False,
    workers: Workers[Model] | None = None,
) -> dict[int, SecondMoment]:
    """Second moment of the keys of each layer over all tokens of `texts` (or the first `max_tokens`).

    Every text is a sequence of its own, cut where it exceeds the context or `Model.budget`, with a warning, and before
    into what is tokenised at once (`texts.cut`); blank texts are left out. With a `cache` folder, what is there for
    these weights, texts and `max_tokens` is read, and the rest is computed and written; a damaged cache file is
    computed anew, with a warning. Sums are saved there once a minute, so that a pass that was stopped goes on.
    `progress` shows a bar, and prints tokens a second. `workers`, of the same model, each sum over some of the texts.

    IndexError for a layer out of range; ValueError if there is no text, or a key is not finite.
    """
    layers = sorted(set(layers))
    names = {layer: model.hook_name("mlp_key", layer) for layer in layers}
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    texts = [piece for text in texts if text.strip() for piece in ([text] if len(text) <= LONGEST else cut(text))]
    if not texts:
        raise ValueError("second moments need at least one text that is not blank")

    found: dict[int, SecondMoment] = {}
    paths: dict[int, Path] = {}
    if cache is not None:
        paths = _cache_paths(model, layers, texts, max_tokens, cache)
        found = {layer: moment for layer in layers if (moment := read_moment(paths[layer], layer, model.d_mlp))}
    missing = {layer: name for layer, name in names.items() if layer not in found}
    # Of a model that one device does not hold, nor does it hold many sums.
    passes = [{layer: name} for layer, name in missing.items()] if model.spread else [missing] if missing else []
    for missing in passes:
        partial = Partial(
            sums=_zeros(model, missing), path=partial_path([paths[layer] for layer in missing if layer in paths])
        )
        computed = _compute(model, missing, texts, max_tokens, batch_size, progress, partial, workers)
        for layer, moment in computed.items():
            if layer in paths:
                write_moment(paths[layer], moment)
        partial.remove()
        found |= computed
    return {layer: found[layer] for layer in layers}


def _zeros(model: Model, layers: Iterable[int]) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    # Apple's GPUs have no float64.
    device = torch.device("cpu") if model.device.type == "mps" else model.device
    return {layer: torch.zeros(model.d_mlp, model.d_mlp, dtype=torch.float64, device=device) for layer in layers}


def _compute(
    model: Model,
    names: dict[int, str],
    texts: Sequence[str],
    max_tokens: int | None,
    batch_size: int,
    progress: bool,
    partial: Partial,
    workers: Workers[Model] | None,
) -> dict[int, SecondMoment]:
    partial.resume()
    before, began = partial.count, time.perf_counter()

    def rate() -> str:
        return f"{(partial.count - before) / (time.perf_counter() - began):,.0f}"

    columns = (TextColumn("second moments"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, disable=not progress, transient=True) as bar:
        task = bar.add_task("", total=len(texts), completed=partial.texts)
        given: deque[tuple[int, int]] = deque()  # texts and tokens of what was given to workers

        def lots() -> Iterator[list[TokenRow]]:
            room = None if max_tokens is None else max_tokens - partial.count
            for some in _lots(texts[partial.texts :]):
                if room == 0:
                    return
                rows = _rows(model, some, room)
                count = sum(len(row.ids) for row in rows)
                room = None if room is None else room - count
                given.append((len(some), count))
                yield rows

        if workers is None:  # into the same sums
            done = (_add_(partial.sums, names, batch_size, model, rows) for rows in lots())
        else:
            done = workers.map(functools.partial(_sums, names, batch_size), lots(), ahead=1)  # sums are large
        for sums in done:
            if workers is not None:
                for layer, total in partial.sums.items():
                    total += sums[layer].to(total.device)
            some, count = given.popleft()
            partial.count += count
            partial.texts += some
            partial.save()
            bar.update(task, completed=partial.texts, description=f"{rate()} tokens a second")
    sums, count = partial.sums, partial.count
    if progress and count > before:
        layers = ", ".join(map(str, names))
        console.print(f"second moments of layers {layers}: {count:,} tokens, {rate()} a second")
    for layer, total in sums.items():
        if not total.diagonal().isfinite().all():  # squares, than which no other sum of products is larger
            raise ValueError(f"keys of layer {layer} of {model.name} are not finite; check its weights or use float32")
    return {
        layer: SecondMoment(layer=layer, matrix=total.div_(count).cpu(), count=count) for layer, total in sums.items()
    }


def _add_(
    sums: dict[int, Tensor], names: dict[int, str], batch_size: int, model: Model, rows: Sequence[TokenRow]
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """The sums by layer, with those of k k^T over these tokens added to them."""
    for batch in model.batches(rows, batch_size, keep=1):
        tokens = model.pad([rows[index] for index in batch])
        keys = model.activations(tokens, list(names.values()))
        real = tokens.mask.bool()
        for layer, name in names.items():
            total = sums[layer]
            k = keys[name][real].to(device=total.device, dtype=torch.float64)
            total.addmm_(k.T, k)
    return sums


def _sums(
    names: dict[int, str], batch_size: int, model: Model, rows: Sequence[TokenRow]
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """A worker's part, on the CPU."""
    return {layer: total.cpu() for layer, total in _add_(_zeros(model, names), names, batch_size, model, rows).items()}


def _lots(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in lots that are tokenised at once."""
    lot: list[str] = []
    size = 0
    for text in texts:
        if lot and (len(lot) == _TEXTS_AT_ONCE or size + len(text) > _CHARACTERS_AT_ONCE):
            yield lot
            lot, size = [], 0
        lot.append(text)
        size += len(text)
    if lot:
        yield lot


def _rows(model: Model, texts: Sequence[str], room: int | None) -> list[TokenRow]:
    """The texts' tokens, in pieces that fit into the context and the memory, together at most `room` tokens."""
    rows: list[TokenRow] = []
    for row in model.pieces(texts, keep=1):
        if room is not None:
            # The model is causal: cutting a text's end leaves the keys before it as they are.
            row = replace(row, ids=row.ids[:room], offsets=row.offsets[:room])
            room -= len(row.ids)
        if row.ids:
            rows.append(row)
    return rows


def _cache_paths(
    model: Model, layers: Sequence[int], texts: Sequence[str], max_tokens: int | None, cache: Path
) -> dict[int, Path]:
    encoded = [text.encode() for text in texts]
    read = [len(each).to_bytes(8, "little") + each for each in encoded]
    # The ids too, since two tokenizers may share weights and texts.
    ids = json.dumps([row.ids for row in _rows(model, texts[:16], None)])
    key = {"format": _FORMAT, "model": state_fingerprint(model), "texts": digest(*read, ids), "tokens": max_tokens}
    paths = {}
    for layer in layers:
        name = digest(json.dumps(key | {"layer": layer}, sort_keys=True))
        paths[layer] = Path(cache) / f"second_moment-{layer}-{name[:32]}.safetensors"
    return paths
