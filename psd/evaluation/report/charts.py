"""Two kinds of chart as SVG text: curves over steps, and bars with intervals.  They read on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

PALETTE = ("#d1495b", "#2e86ab", "#3b8e5a", "#e08e1b", "#7b52ab", "#8c6d46", "#4f5d75", "#c05299")
INK = "#808080"
WIDTH, PANEL, LEFT, LINE = 760, 220, 60, 20

CurvePoints = Sequence[tuple[float, float]]


def draw_curves(panels: Mapping[str, Mapping[str, CurvePoints]], *, across: str) -> str:
    """Panels side by side by title, in each a curve by name (the same colour in every panel), and a legend below.

    Curves are (x, y) points; ``across`` names x.
    """
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    colour = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    width = WIDTH / len(panels)
    body = []
    for index, (title, lines) in enumerate(panels.items()):
        points = [point for curve in lines.values() for point in curve]
        x_of = linear_scale([x for x, _ in points], index * width + LEFT, (index + 1) * width - 10)
        y_of = linear_scale([y for _, y in points], PANEL - 30, 26)
        body.append(svg_text(index * width + LEFT, 14, title, weight="bold"))
        for value in ticks_within([y for _, y in points]):
            y = y_of(value)
            body.append(f'<path d="M{index * width + LEFT:.1f} {y:.1f}H{(index + 1) * width - 10:.1f}" {STROKE}/>')
            body.append(svg_text(index * width + LEFT - 6, y + 4, f"{value:g}", anchor="end"))
        for value in ticks_within([x for x, _ in points]):
            body.append(svg_text(x_of(value), PANEL - 12, f"{value:g}", anchor="middle"))
        for name, curve in lines.items():
            path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in curve)
            body.append(f'<path d="M{path}" fill="none" stroke="{colour[name]}" stroke-width="2"/>')
    body.append(svg_text(WIDTH / 2, PANEL + 6, across, anchor="middle"))
    columns = 3
    for i, name in enumerate(names):
        x, y = LEFT + i % columns * (WIDTH - LEFT) / columns, PANEL + 30 + i // columns * LINE
        body.append(f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="14" height="10" fill="{colour[name]}"/>')
        body.append(svg_text(x + 20, y, name))
    return svg_page(PANEL + 30 + -(-len(names) // columns) * LINE, body)


def draw_intervals(rows: Mapping[str, tuple[float, float, float]], *, title: str) -> str:
    """One row a name: a dot at the value on a line from low to high, and a rule at 0.  Rows are (value, low, high)."""
    left, top = 190, 34
    x_of = linear_scale([0.0, *(v for row in rows.values() for v in row)], left, WIDTH - 20)
    bottom = top + len(rows) * LINE
    body = [svg_text(left, 14, title, weight="bold"), f'<path d="M{x_of(0):.1f} {top - 8}V{bottom}" {STROKE}/>']
    for i, (name, (value, low, high)) in enumerate(rows.items()):
        y = top + i * LINE + 4
        tint = PALETTE[2] if low > 0 else PALETTE[0] if high < 0 else INK
        body.append(svg_text(left - 10, y + 4, name, anchor="end"))
        body.append(f'<path d="M{x_of(low):.1f} {y}H{x_of(high):.1f}" stroke="{tint}" stroke-width="3"/>')
        body.append(f'<circle cx="{x_of(value):.1f}" cy="{y}" r="5" fill="{tint}"/>')
    for value in ticks_within([0.0, *(v for row in rows.values() for v in row)]):
        body.append(svg_text(x_of(value), bottom + 14, f"{value:g}", anchor="middle"))
    return svg_page(bottom + 22, body)


STROKE = f'stroke="{INK}" stroke-opacity="0.35"'


def linear_scale(values: Sequence[float], start: float, end: float):
    """A linear map that takes the least value to ``start`` and the largest to ``end``."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def ticks_within(values: Sequence[float]) -> list[float]:
    """A few round numbers within the values."""
    low, high = min(values), max(values)
    if low == high:
        return [low]
    rough = (high - low) / 4
    power = 10.0 ** len(str(int(1 / rough))) if rough < 1 else 10.0 ** -(len(str(int(rough))) - 1)
    step = next(size / power for size in (1, 2, 5, 10) if size / power >= rough)
    first = -int(-low // step) if low < 0 else int(-(-low // step))
    return [round(i * step, 10) for i in range(first, int(high // step) + 1) if low <= i * step <= high]


def svg_text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'


def svg_page(height: float, body: Sequence[str]) -> str:
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}"'
    style = f'font-family="sans-serif" font-size="12" fill="{INK}">'
    return "\n".join([f"{opening} {style}", *body, "</svg>", ""])
