"""Progress bars, whose titles are plain text."""

from collections.abc import Iterable
from typing import Any, TypeVar

from rich import progress
from rich.markup import escape

T = TypeVar("T")


def track(some: Iterable[T], title: str, total: int | None = None, **options: Any) -> Iterable[T]:
    """`rich.progress.track` with a title that may hold [brackets], as paths and names do."""
    return progress.track(some, escape(title), total, **options)
