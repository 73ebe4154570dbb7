"""Causal traces to look at in a browser: an HTML fragment that holds its data, style and script and needs nothing else.

The script makes the view in a shadow tree, so that neither the page's style reaches the view nor the view's the page.
"""

import base64
import io
import json
import math
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from workbench.figures.plotting import SITE_STYLES, visible
from workbench.tracing.averages import AverageEffect
from workbench.tracing.trace import CausalTrace

_FOLDER = Path(__file__).parent


def trace_view(
    traces: Sequence[CausalTrace],
    *,
    after: Sequence[CausalTrace | None] | None = None,
    planted: range | None = None,
) -> str:
    """Heat maps (tokens by layers) of causal traces, to point at or to walk through with the keyboard.

    A single trace has no chooser of facts. Numbers are rounded to four digits; what is not finite, and tokens that were
    not traced, are shown as not measured. ValueError for no traces, and for a trace after an edit that is not of the
    same tokens, positions, sites and layers.

    Args:
        after: For each trace that of the same prompt after an edit, or None; both and their difference can be shown.
        planted: The layers that the model was trained to recall in, marked below the map.
    """
    if not traces:
        raise ValueError("trace_view needs at least one trace, got none")
    edited = [None] * len(traces) if after is None else list(after)
    if len(edited) != len(traces):
        raise ValueError(
            f"after needs one entry a trace, None where there is none: got {len(edited)} for {len(traces)} traces"
        )
    sites = {site: None for trace in traces for site in (*trace.restored, trace.severed) if site}
    data = {
        "labels": {site: SITE_STYLES[site].label if site in SITE_STYLES else site for site in sites},
        "planted": None if planted is None else [planted.start, planted.stop],
        "traces": [_payload(trace, then) for trace, then in zip(traces, edited, strict=True)],
    }
    first = traces[0]
    fallback = (
        f"{first.fact.prompt} → {visible(first.answer)}: {first.clean:.3f} clean, {first.corrupted:.3f} corrupted. "
        "The causal trace needs JavaScript; a notebook must be trusted."
    )
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("trace_view.html.j2").render(
        fallback=fallback,
        style=Markup((_FOLDER / "trace_view.css").read_text(encoding="utf-8")),
        data=Markup(_script_json(data)),
        script=Markup(_script()),
    )


def script_source() -> str:
    """The view's script as a source of a Content-Security-Policy: this text may run, no other."""
    return f"'sha256-{base64.b64encode(sha256(_script().encode()).digest()).decode()}'"


def average_view(average: AverageEffect) -> str:
    """The figure of an average effect as an HTML image that holds its pixels."""
    from workbench.figures.study import average_effect_figure  # slow to import, and only notebooks need it

    file = io.BytesIO()
    average_effect_figure([average]).savefig(file, format="png", dpi=150)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    alt = f"Average indirect effect of {average.site} over {average.facts} facts, by token role and layer"
    return f'<img src="{source}" alt="{escape(alt)}" style="max-width: 100%; width: 850px; background: #fff">'


@cache
def _script() -> str:
    """Both files in one function, so that several views share no names with each other or with the page."""
    texts = [(_FOLDER / name).read_text(encoding="utf-8") for name in ("trace_numbers.js", "trace_view.js")]
    return "(() => {\n" + "".join(texts) + "})();\n"


def _payload(trace: CausalTrace, after: CausalTrace | None) -> dict[str, Any]:
    payload = _run(trace) | {
        "prompt": trace.fact.prompt,
        "tokens": trace.tokens,
        "subject": trace.subject,
        "window": trace.window,
        "span": trace.span,
        "severed": trace.severed,
        "metric": trace.metric,
    }
    if after is not None:
        for name in ("tokens", "subject", "positions", "window", "span", "severed", "metric"):
            if getattr(after, name) != getattr(trace, name):
                raise ValueError(
                    f"{trace.fact.prompt!r}: {name} must be the same before and after the edit, got "
                    f"{getattr(trace, name)!r} and {getattr(after, name)!r}"
                )
        shapes = [{site: tuple(values.shape) for site, values in one.restored.items()} for one in (trace, after)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{trace.fact.prompt!r}: sites and layers must be the same before and after the edit, got "
                f"{shapes[0]} and {shapes[1]}"
            )
        payload["after"] = _run(after)
    return payload


def _run(trace: CausalTrace) -> dict[str, Any]:
    """What an edit changes of a trace."""
    return {
        "answer": trace.answer,
        "foil": trace.foil,
        "clean": _short(trace.clean),
        "corrupted": _short(trace.corrupted),
        "sites": {site: _rows(trace, site) for site in trace.restored},
    }


def _rows(trace: CausalTrace, site: str) -> list[list[float | None]]:
    """A row a token of the prompt; None where it was not traced."""
    values = trace.restored[site].float()
    rows: list[list[float | None]] = [[None] * values.shape[1] for _ in trace.tokens]
    for pos, row in zip(trace.positions, values.tolist(), strict=True):
        rows[pos] = [_short(value) for value in row]
    return rows


def _short(value: float) -> float | None:
    """Four significant digits; None, which JSON can hold, for what is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _script_json(value: Any) -> str:
    """JSON in which no text can end or open an element of HTML."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
