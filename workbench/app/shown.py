"""What the page shows of edits and comparisons, as HTML; whatever looks like markup in a text is shown as it is."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from workbench.app.bench import SCORES, Comparison, Standing, Text
from workbench.edits import described
from workbench.machine.shown import percent
from workbench.tracing.trace import CausalTrace, trace_view

_KINDS = {
    "rewrite": "The prompt",
    "paraphrase": "In other words",
    "neighborhood": "About others",
    "portability": "What follows",
}
_LACKING = {
    "ES": "needs the old answer",
    "PS": "needs a paraphrase and the old answer",
    "NS": "needs a neighbor and the old answer",
    "S": "needs the three above",
    "generated.portability.new": "needs a consequence",
}


def trace_html(trace: CausalTrace) -> str:
    """The heat map to point at, as in reports and notebooks, as text that `page.js` puts in place."""
    return str(Markup('<div class="kept" hidden>{}</div><div class="shown"></div>').format(trace_view([trace])))


def line_html(text: str, *, wrong: bool = False) -> str:
    """One line that says what is going on, or what went wrong; empty for no text."""
    if not text:
        return ""
    kind = "wrong" if wrong else "note"
    return str(Markup('<p class="line {}" role="{}">{}</p>').format(kind, "alert" if wrong else "status", text))


def stack_html(stack: Sequence[Standing]) -> str:
    """The edits that stand, oldest first."""
    rows = [
        Markup("<li><b>{}</b> {} → <b>{}</b> <span>{}</span></li>").format(
            each.edit.method, each.record.request.prompt, each.record.request.target_new, described.changes(each.edit)
        )
        for each in stack
    ]
    return str(Markup('<ol class="stack">{}</ol>').format(Markup("").join(rows))) if rows else ""


def comparison_html(found: Comparison) -> str:
    """The scores, then every prompt with what the model says before and after."""
    scores = [_score(name, *values) for name, values in found.scores.items()]
    texts = [_text(each) for each in found.texts]
    return str(
        Markup('<table class="scores"><thead><tr><th>Score</th><th>Before</th><th>After</th></tr></thead>')
        + Markup("<tbody>{}</tbody></table>").format(Markup("").join(scores))
        + Markup('<div class="texts">{}</div>').format(Markup("").join(texts))
    )


def _score(name: str, before: float, after: float) -> Markup:
    short = "" if "." in name else name
    says = SCORES[name] if not math.isnan(after) else f"{SCORES[name].split(':')[0]}: {_LACKING[name]}"
    row = Markup("<tr><th scope=row><b>{}</b> {}</th><td>{}</td><td>{}</td></tr>")
    return row.format(short, says, percent(before), percent(after))


def _text(text: Text) -> Markup:
    row = Markup(
        '<article><p class="asked"><span>{}</span> {}</p><div class="both"><p><span>Before</span>{}</p>'
        '<p class="after{}"><span>After</span>{}</p></div></article>'
    )
    changed = " changed" if text.before != text.after else ""
    return row.format(_KINDS[text.kind], text.prompt, _said(text.before), changed, _said(text.after))


def _said(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"
