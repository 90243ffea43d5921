"""A chart as SVG: curves, axes with round numbers, and a dashed line where a phase begins. Text only."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 900, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 48, 70  # margins
TRAINING, VALIDATION = "#1f6fb4", "#d9632b"
STYLE = "font-family: sans-serif; font-size: 13px; fill: #444"


def render(
    title: str,
    curves: Sequence[tuple[str, str, Sequence[Point]]],
    phases: Sequence[tuple[float, str]],
    right: float,
    top: float,
    x_ticks: Sequence[float],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str = "update",
) -> str:
    """The SVG file's text.

    curves   name, color and points (x, y) of each
    phases   where each phase but the first begins, and its name
    right    end of the x axis, which begins at 0
    top      end of the y axis, which begins at 0
    y_ticks  height and label of each
    x_label  what the x axis counts
    """

    def x(value: float) -> str:
        return f"{LEFT + value / right * (WIDTH - LEFT - RIGHT):.1f}"

    def y(value: float) -> str:
        return f"{HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM):.1f}"

    def text(at_x: str | float, at_y: str | float, words: str, anchor: str = "middle", more: str = "") -> str:
        return f'<text x="{at_x}" y="{at_y}" text-anchor="{anchor}"{more}>{escape(_visible(words))}</text>'

    def line(x1: str, y1: str, x2: str, y2: str, more: str) -> str:
        return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {more}/>'

    floor, ceiling, end = y(0), y(top), x(right)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" style="{STYLE}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 28, title, more=' font-size="17"'),
    ]
    for height, label in y_ticks:
        parts.append(line(x(0), y(height), end, y(height), 'stroke="#ddd"'))
        parts.append(text(LEFT - 8, float(y(height)) + 4, label, "end"))
    for value in x_ticks:
        parts.append(line(x(value), floor, x(value), str(float(floor) + 5), 'stroke="#888"'))
        parts.append(text(x(value), float(floor) + 20, f"{value:g}"))
    for at, name in phases:
        parts.append(line(x(at), floor, x(at), ceiling, 'stroke="#888" stroke-dasharray="4,4"'))
        parts.append(text(x(at), float(ceiling) - 6, name, "start"))
    parts.append(line(x(0), floor, end, floor, 'stroke="#888"'))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, float(floor) + 40, x_label))
    for number, (name, color, points) in enumerate(curves):
        path = " ".join(f"{x(px)},{y(py)}" for px, py in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        if len(points) < 60:
            parts += [f'<circle cx="{x(px)}" cy="{y(py)}" r="2" fill="{color}"/>' for px, py in points]
        at = LEFT + 150 * number
        parts.append(f'<rect x="{at}" y="{HEIGHT - 18}" width="12" height="4" fill="{color}"/>')
        parts.append(text(at + 20, HEIGHT - 11, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _visible(words: str) -> str:
    """The text with "?" for unprintable characters: XML forbids control characters and lone surrogates."""
    return "".join(letter if letter.isprintable() else "?" for letter in words)
