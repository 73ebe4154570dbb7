"""What a drawn figure shows."""

from matplotlib.figure import Figure
from matplotlib.text import Text


def texts(figure: Figure) -> list[Text]:
    """All that is written in it."""
    found = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def outside(figure: Figure) -> list[str]:
    """Texts that leave the figure; numbers do not count, since tick labels beyond an axis exist but are not drawn."""
    figure.draw_without_rendering()
    renderer, box = figure._get_renderer(), figure.bbox  # type: ignore[attr-defined]
    places = {text.get_text(): text.get_window_extent(renderer) for text in texts(figure)}
    return [
        text
        for text, at in places.items()
        if not text.lstrip("\N{MINUS SIGN}").replace(".", "").isdigit()
        and (at.x0 < -1 or at.y0 < -1 or at.x1 > box.width + 1 or at.y1 > box.height + 1)
    ]
