"""Causal traces to look at in a browser: an HTML fragment that holds its data, style and script and needs nothing else.

The script makes the view in a shadow tree, so that neither the page's style reaches the view nor the view's the page.
"""

import base64
import json
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_FOLDER = files("workbench.tracing")


def view_html(data: Mapping[str, Any], *, fallback: str) -> str:
    """The view of what `trace.trace_view` gathers; `fallback` is shown where no script may run."""
    environment = Environment(
        loader=PackageLoader("workbench.tracing", package_path=""), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("trace_view.html.j2").render(
        fallback=fallback,
        style=Markup((_FOLDER / "trace_view.css").read_text(encoding="utf-8")),
        data=Markup(_script_json(data)),
        script=Markup(_script()),
    )


def script_source() -> str:
    """The view's script as a source of a Content-Security-Policy: this text may run, no other."""
    return f"'sha256-{base64.b64encode(sha256(_script().encode()).digest()).decode()}'"


@cache
def _script() -> str:
    """Both files in one function, so that several views share no names with each other or with the page."""
    texts = [(_FOLDER / name).read_text(encoding="utf-8") for name in ("trace_numbers.js", "trace_view.js")]
    return "(() => {\n" + "".join(texts) + "})();\n"


def _script_json(value: Any) -> str:
    """JSON in which no text can end or open an element of HTML."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
