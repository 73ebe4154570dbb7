"""Progress bars whose titles are shown as they are: no name of a model or a method is taken for markup or emojis."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def progress_bar(*, disable: bool = False) -> Progress:
    """Bars that tell what is done and the time that is left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(elapsed_when_finished=True),
        disable=disable,
    )


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar that tells how many of them are done, but none where the `total` is 0; it is to be given
    for items that have no length."""
    with progress_bar(disable=total == 0) as progress:
        yield from progress.track(items, total=total, description=title)
