# SPDX-License-Identifier: LGPL-2.1-or-later
"""A log-log plot as SVG, for a handful of lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 720, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 190, 40, 60
_LINE_HEIGHT = 15
_COLOURS = ("#1b6ca8", "#7a7a7a", "#c8553d", "#588157", "#8e6c8a", "#b08900")


class _Scale:
    """From a value to a coordinate, whole decades from end to end."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self.low = math.floor(math.log10(min(values)))
        self.high = max(math.ceil(math.log10(max(values))), self.low + 1)
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)

    def decades(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#d5d5d5"/>'


def _grid(x: _Scale, y: _Scale) -> list[str]:
    parts = []
    for value in x.decades():
        parts.append(_line(x(value), y.begin, x(value), y.end))
        parts.append(_text(x(value), y.begin + 18, f"{value:,.0f}"))
    for value in y.decades():
        parts.append(_line(x.begin, y(value), x.end, y(value)))
        parts.append(_text(x.begin - 8, y(value) + 4, f"{value:,g}", "end"))
    return parts


def _label_heights(lines: Mapping[str, Points], y: _Scale) -> dict[str, float]:
    """Return the positions of the lines' names: at the ends of the lines, without overlaps."""
    heights: dict[str, float] = {}
    lowest = -math.inf
    for name in sorted(lines, key=lambda name: -lines[name][-1][1]):
        lowest = heights[name] = max(y(lines[name][-1][1]) + 4, lowest + _LINE_HEIGHT)
    return heights


def _series(name: str, points: Points, colour: str, height: float, x: _Scale, y: _Scale) -> list[str]:
    places = [(x(a), y(b)) for a, b in points]
    path = " ".join(f"{a},{b}" for a, b in places)
    dots = [f'<circle cx="{a}" cy="{b}" r="3" fill="{colour}"/>' for a, b in places]
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    return [line, *dots, _text(places[-1][0] + 8, height, name, "start", f' fill="{colour}"')]


def draw(title: str, x_label: str, y_label: str, lines: Mapping[str, Points]) -> str:
    """Draw lines by name, each labelled at its right end; return the SVG's text."""
    everything = [point for points in lines.values() for point in points]
    x = _Scale([a for a, _ in everything], _LEFT, _WIDTH - _RIGHT)
    y = _Scale([b for _, b in everything], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text((x.begin + x.end) / 2, 24, title, more=' font-size="15"'),
        *_grid(x, y),
        _text((x.begin + x.end) / 2, _HEIGHT - 18, x_label),
        _text(18, _HEIGHT / 2, y_label, more=f' transform="rotate(-90 18 {_HEIGHT / 2})"'),
    ]
    heights = _label_heights(lines, y)
    for (name, points), colour in zip(lines.items(), _COLOURS, strict=False):
        parts += _series(name, points, colour, heights[name], x, y)
    return "\n".join([*parts, "</svg>", ""])
