"""What a drawn figure shows."""

from matplotlib.text import Text


def inside(figure) -> bool:
    figure.draw_without_rendering()
    renderer, box = figure._get_renderer(), figure.bbox
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    extents = [t.get_window_extent(renderer) for t in texts if not t.get_text()[-3:].replace(".", "").isdigit()]
    return all(e.x0 >= -1 and e.y0 >= -1 and e.x1 <= box.width + 1 and e.y1 <= box.height + 1 for e in extents)
