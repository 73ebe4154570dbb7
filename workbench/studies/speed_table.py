"""The rows of the table of tracing's speed, and what its caption says of a precision."""

import statistics
from collections.abc import Sequence
from typing import Any

from workbench.models.model import SITES
from workbench.studies.tracing_speed import TOGETHER


def summed(rows: Sequence[dict[str, Any]], label: str) -> dict[str, float]:
    """The row of the table for what is restored: means over facts and repeats, medians of the ratios of each pair."""
    times = {engine: [t for row in rows for t in row["times"][label][engine]] for engine in rows[0]["times"][label]}
    published, plain, fast = times["published"], times["plain"], times["fast"]
    sites = len(SITES) if label == TOGETHER else 1
    found = {
        "published": statistics.mean(published),
        "plain": statistics.mean(plain),
        "fast": statistics.mean(fast),
        "ratio": statistics.median(slow / quick for slow, quick in zip(plain, fast, strict=True)),
        "over_published": statistics.median(slow / quick for slow, quick in zip(published, fast, strict=True)),
        "plain_flop": sites * statistics.mean(row["plain_flop"] for row in rows),
        "fast_flop": statistics.mean(row["fast_flop"][label] for row in rows),
    }
    if label == TOGETHER:
        for way in ("published", "plain", "fast"):
            found[f"{way}_launches"] = statistics.mean(row["launches"][way] for row in rows)
            found[f"{way}_bytes"] = max(row["bytes"][way] for row in rows)
    if batched := times.get("plain batched"):
        found["batched"] = statistics.median(slow / quick for slow, quick in zip(batched, fast, strict=True))
    return found


def shown(row: dict[str, float], label: str, rate: float) -> dict[str, str]:
    """A row of the table."""
    return {
        "Site": label,
        "Published s": f"{row['published']:.3f}",
        "Plain s": f"{row['plain']:.3f}",
        "Fast s": f"{row['fast']:.3f}",
        "Ratio, published": f"{row['over_published']:.1f}",
        "Ratio": f"{row['ratio']:.1f}",
        "Ratio, plain batched": f"{row['batched']:.1f}" if "batched" in row else "-",
        "Plain GFLOP": f"{row['plain_flop'] / 1e9:,.0f}",
        "Fast GFLOP": f"{row['fast_flop'] / 1e9:,.0f}",
        "Plain rate": f"{100 * row['plain_flop'] / row['plain'] / rate:.0f} %",
        "Fast rate": f"{100 * row['fast_flop'] / row['fast'] / rate:.0f} %",
        "Launches (published, plain, fast)": _three(row, "launches", 1, 0),
        "MiB (published, plain, fast)": _three(row, "bytes", 2**20, 1),
    }


def _three(row: dict[str, float], what: str, unit: int, digits: int) -> str:
    ways = [row.get(f"{way}_{what}") for way in ("published", "plain", "fast")]
    return " / ".join("-" if each is None else f"{each / unit:,.{digits}f}" for each in ways) if any(ways) else "-"


def against_float32(rows: Sequence[dict[str, Any]]) -> str:
    """What the precision changes; nothing where it is float32."""
    some = [row["to_float32"] for row in rows if "to_float32" in row]
    if not some:
        return ""
    most, same = max(one["difference"] for one in some), sum(one["same_layer"] for one in some)
    return (
        f" Against float32: probabilities differ by at most {most:.1e}, and the layer located is the same for {same} "
        f"of {len(some)} facts."
    )
