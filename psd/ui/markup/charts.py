"""Line charts and heat maps as SVG: pure functions of fixed proportions, so that a page redraws them in place.

Gradio patches the page's elements one by one where HTML is sent anew, so a growing line moves and nothing else does.
Every series has a colour and a dash of its own, and its newest value is in the legend, so colour carries nothing alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from psd.config.glossary import explain_term
from psd.ui.markup.html import format_number
from psd.ui.state.view import Curve

# After Okabe and Ito (told apart with any colour vision), shifted to a contrast of 3 on white and on dark slate.
COLOURS = ("#2f8fcc", "#d55e00", "#009e73", "#cc79a7", "#808080", "#a6761d", "#8c78d8", "#5f8f2f")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "1 2", "12 4", "4 4", "9 2 2 2 2 2")
Place = Callable[[float, float], tuple[float, float]]  # step and value -> x and y
WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 28
# Cividis, read from dark to light by every colour vision (Nunez, Anderton and Renslow 2018).
CIVIDIS = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56))


def line_chart(
    title: str,
    unit: str,
    series: Mapping[str, Curve],
    *,
    steps: int,
    rules: Iterable[tuple[int, str]] = (),
    bounds: tuple[float, float] | None = None,
    places: Mapping[str, int] | None = None,
) -> str:
    """A figure of ``series`` over steps 0 .. ``steps``; ``rules`` are vertical lines, each with its text.

    ``bounds`` fixes the vertical range; otherwise it follows the values in round numbers.  ``places`` gives each series
    its colour and dash (`line_style`), by default its place among them.
    """
    lines = {name: list(curve.points()) for name, curve in series.items()}
    values = [value for line in lines.values() for _, value in line]
    ticks = round_ticks(*(bounds or ((min(values), max(values)) if values else (0.0, 1.0))))
    low, high = ticks[0], ticks[-1]
    across, up = (WIDTH - LEFT - RIGHT) / max(steps, 1), (HEIGHT - TOP - BOTTOM) / (high - low)

    def place_point(step: float, value: float) -> tuple[float, float]:
        return LEFT + step * across, HEIGHT - BOTTOM - (value - low) * up

    drawn = [_draw_grid(ticks, steps, place_point)]
    for step, text in rules:
        x, _ = place_point(step, low)
        drawn.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
                     f"<title>step {step}: {html.escape(text)}</title></line>")  # fmt: skip
    legend = []
    for place, (name, line) in enumerate(lines.items()):
        colour, dash = line_style(place if places is None else places[name])
        shown = format_number(line[-1][1]) if line else "–"
        points = " ".join([f"{LEFT + step * across:.1f},{HEIGHT - BOTTOM - (value - low) * up:.1f}"
                           for step, value in line])  # fmt: skip
        if len(line) == 1:  # a line of one point draws nothing
            x, y = place_point(*line[0])
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"></circle>')
        drawn.append(f'<polyline points="{points}" stroke="{colour}" stroke-dasharray="{dash}"></polyline>')
        sign = swatch_html(place if places is None else places[name])
        legend.append(f'<li>{sign}{html.escape(name)} <b>{shown}</b><i class="at"></i></li>')
    ends = "; ".join(
        f"{name} {format_number(line[0][1])} to {format_number(line[-1][1])}" for name, line in lines.items() if line
    )
    meaning = explain_term(title)
    hover = (
        f' <abbr tabindex="0" title="{html.escape(meaning)}" aria-label="{html.escape(meaning)}">?</abbr>'
        if meaning
        else ""
    )
    summary = html.escape(f"{title} over steps: {ends or 'no values yet'}")
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)} <small>{html.escape(unit)}</small>{hover}</figcaption>'
        f'<svg class="lines" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-steps="{max(steps, 1)}" '
        f'data-low="{low:.9g}" data-high="{high:.9g}" aria-label="{summary}">{"".join(drawn)}'
        f'<line class="cross" y1="{TOP}" y2="{HEIGHT - BOTTOM}"></line></svg>'
        f'<ul class="legend">{"".join(legend) or "<li>no values yet</li>"}</ul></figure>'
    )


def line_style(place: int) -> tuple[str, str]:
    """Colour and dash of the line in this place of a list."""
    return COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]


def swatch_html(place: int) -> str:
    """A short piece of the line in this place, as a sign beside its name."""
    colour, dash = line_style(place)
    return (
        '<svg class="swatch" viewBox="0 0 22 6" aria-hidden="true"><line x1="0" x2="22" y1="3" y2="3" '
        f'stroke="{colour}" stroke-dasharray="{dash}"></line></svg>'
    )


def _draw_grid(ticks: Sequence[float], steps: int, place: Place) -> str:
    parts = []
    for value in ticks:
        _, y = place(0, value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"></line>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{format_number(value)}</text>'
        )
    for step in round_ticks(0, max(steps, 1)):
        if step <= max(steps, 1) and step == int(step):
            x, y = place(step, ticks[0])
            anchor = "middle" if x < WIDTH - RIGHT - 12 else "end"  # a number at the edge would be cut
            parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="{anchor}">{int(step)}</text>')
    return "".join(parts)


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` + 1 round numbers, the first at or below ``low`` and the last at or above ``high``."""
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):
        middle = abs(low) or 1.0
        low, high = low - 0.5 * middle, high + 0.5 * middle
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    stride = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first, last = math.floor(low / stride + 1e-9), math.ceil(high / stride - 1e-9)
    return [index * stride for index in range(first, last + 1)]


def heat_map(rows: Sequence[tuple[str, Sequence[float]]], steps: Sequence[int], unit: str) -> str:
    """A table of colours: one row a name, one column a step, from 0 (dark) to the largest value (light)."""
    most = max((value for _, values in rows for value in values), default=0.0) or 1.0
    height, width = 22, WIDTH - LEFT - RIGHT
    cell = width / max(len(steps), 1)
    parts = []
    for index, (name, values) in enumerate(rows):
        y = TOP + height * index
        parts.append(f'<text x="{LEFT + 36}" y="{y + 15}" text-anchor="end">{html.escape(name[:14])}'
                     f"<title>{html.escape(name)}</title></text>")  # fmt: skip
        for column, (step, value) in enumerate(zip(steps, values, strict=True)):
            x, wide = LEFT + 42 + column * (cell * (width - 42) / width), cell * (width - 42) / width
            title = f"{html.escape(name)}, step {step}: {format_number(value)}"
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{wide + 0.4:.1f}" height="{height - 2}" '
                         f'fill="{cividis_colour(value / most)}"><title>{title}</title></rect>')  # fmt: skip
    tall = max(HEIGHT, TOP + height * len(rows) + 22)  # nothing below it moves when the first rows come
    ends = ""
    if steps:
        low = TOP + height * len(rows) + 14
        ends = (f'<text x="{LEFT + 42}" y="{low}">step {steps[0]}</text>'
                f'<text x="{WIDTH - RIGHT}" y="{low}" text-anchor="end">step {steps[-1]}</text>')  # fmt: skip
    ramp = "".join(f'<i style="background:{cividis_colour(i / 8)}"></i>' for i in range(9))
    newest = "; ".join(f"{name} {format_number(values[-1])}" for name, values in rows)
    summary = html.escape(f"drift of each token now: {newest}")
    return (
        f'<figure class="chart"><figcaption>Drift of each token <small>{html.escape(unit)}</small></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {tall}" role="img" aria-label="{summary}">'
        f"{''.join(parts)}{ends}</svg>"
        f'<div class="ramp"><span>0</span>{ramp}<span>{format_number(most)}</span></div></figure>'
    )


def cividis_colour(share: float) -> str:
    """The colour at ``share`` of the scale, in [0, 1]."""
    place = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    index = min(int(place), len(CIVIDIS) - 2)
    mixed = [a + (b - a) * (place - index) for a, b in zip(CIVIDIS[index], CIVIDIS[index + 1])]
    return "#" + "".join(f"{round(channel):02x}" for channel in mixed)
