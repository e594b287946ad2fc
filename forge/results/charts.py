"""Charts as SVG, made here: a page draws them without a script, prints and exports them, and its
style sheet colours them for light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeGuard

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 44
POINTS = 400  # of a line; more would not be seen
COLOURS = 8
LISTED = 2_000
Range: TypeAlias = tuple[float, float]  # of an axis, its ends
To: TypeAlias = Callable[[float], float]  # from a value to its place


@dataclass
class Line:
    """A line through points, or points alone; where there is a band, its ends."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    colour: int = 0
    dashed: bool = False
    thin: bool = False  # one of those that another line is the mean of
    dots: bool = False
    joined: bool = True
    links: Sequence[str] = ()
    labels: Sequence[str] = ()  # of the points
    listed: bool = True


@dataclass
class Rule:
    """A level, across the plane."""

    name: str
    y: float
    dashed: bool = True


@dataclass
class Plane:
    """What is drawn, and what its axes are called; `names` stand on the x axis for 0, 1, …"""

    x_label: str
    y_label: str
    lines: list[Line] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    names: Sequence[str] = ()
    log_x: bool = False
    bottom: float | None = None  # of the y axis, where it is fixed
    top: float | None = None


def svg(plane: Plane, height: int = HEIGHT) -> Markup:
    """The chart, with its legend; an empty text without any finite point."""
    for line in plane.lines:
        _thinned(line)
    xs = [_x(plane, x) for line in plane.lines for x in line.x if _drawn(plane, x)]
    ys = [v for line in plane.lines for v in (*line.y, *line.low, *line.high) if _finite(v)]
    if not xs or not ys:
        return Markup("")
    ys += [rule.y for rule in plane.rules]
    x0, x1 = (-0.5, len(plane.names) - 0.5) if plane.names else _ends(xs, 0)
    y0, y1 = _ends([v for v in ys if v is not None], 0.06)
    y0, y1 = (
        plane.bottom if plane.bottom is not None else y0,
        y1 if plane.top is None else plane.top,
    )

    def px(x: float) -> float:
        return round(LEFT + (_x(plane, x) - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT), 1)

    def py(y: float) -> float:
        return round(height - BOTTOM - (y - y0) / (y1 - y0) * (height - TOP - BOTTOM), 1)

    parts = _axes(plane, (x0, x1), (y0, y1), px, py, height)
    for rule in plane.rules:
        dash = "rule dashed" if rule.dashed else "rule"
        parts.append(
            f'<line class="{dash}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(rule.y)}" '
            f'y2="{py(rule.y)}"/><text class="rule-name" x="{WIDTH - RIGHT - 4}" '
            f'y="{py(rule.y) - 5}" text-anchor="end">{escape(rule.name)}</text>'
        )
    for line in sorted(plane.lines, key=lambda line: not line.thin):
        parts += _line(plane, line, px, py)
    label = escape(f"{plane.y_label} over {plane.x_label}")
    return Markup(
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>{_legend(plane)}</figure>'
    )


def _finite(value: float | None) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _drawn(plane: Plane, x: float | None) -> bool:
    return _finite(x) and (not plane.log_x or (x or 0) > 0)


def _x(plane: Plane, x: float) -> float:
    return math.log10(x) if plane.log_x else x


def _ends(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    apart = (high - low) or abs(high) or 1.0
    if high == low:
        return low - apart / 2, high + apart / 2
    return low - margin * apart, high + margin * apart


def _thinned(line: Line) -> None:
    """Leave evenly spaced points of a line that has more than can be seen, the last among them."""
    stride = -(-len(line.x) // POINTS)
    if stride > 1 and not line.dots:
        for name in ("x", "y", "low", "high"):
            values = list(getattr(line, name))
            setattr(line, name, values[::stride] + (values[-1:] if values[::stride] else []))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    for factor in (1, 2, 2.5, 5, 10):
        if (high - low) / (step * factor) <= count:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Short, as an axis has room for."""
    size = abs(value)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if letter == 'k' else unit):.4g}{letter}"
    return f"{value:.0e}" if 0 < size < 1e-3 else f"{value:.4g}"


def _axes(plane: Plane, across: Range, up: Range, px: To, py: To, height: int) -> list[str]:
    """Grid, ticks, names of the axes."""
    parts, floor = [], height - BOTTOM
    for y in ticks(*up):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y)}" y2="{py(y)}"/>'
            f'<text x="{LEFT - 8}" y="{py(y) + 4}" text-anchor="end">{number(y)}</text>'
        )
    if plane.names:
        room = max(4, int(560 / len(plane.names) / 6.5))
        marks = [(float(i), _cut(name, room)) for i, name in enumerate(plane.names)]
    elif plane.log_x:
        powers = range(math.ceil(across[0] - 1e-9), math.floor(across[1] + 1e-9) + 1)
        places = [10.0**p for p in powers] if len(powers) > 1 else [10**a for a in across]
        marks = [(place, number(place)) for place in places]
    else:
        marks = [(x, number(x)) for x in ticks(across[0], across[1], 7)]
    for x, name in marks:
        parts.append(
            f'<line class="tick" x1="{px(x)}" x2="{px(x)}" y1="{floor}" y2="{floor + 4}"/>'
            f'<text x="{px(x)}" y="{floor + 17}" text-anchor="middle">{escape(name)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        *parts,
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>',
        f'<text class="axis-name" x="{middle}" y="{height - 8}" text-anchor="middle">'
        f"{escape(plane.x_label)}</text>",
        f'<text class="axis-name" transform="translate(13 {(TOP + floor) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(_cut(plane.y_label, 42))}</text>',
    ]


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _line(plane: Plane, line: Line, px: To, py: To) -> list[str]:
    colour = f"c{line.colour % COLOURS}"
    parts, band = [], []
    pairs = list(zip(line.x, line.low, line.high, strict=False)) if line.low else []
    band = [(x, a, b) for x, a, b in pairs if _drawn(plane, x) and _finite(a) and _finite(b)]
    if band and line.joined:
        edge = [(px(x), py(b)) for x, _, b in band] + [(px(x), py(a)) for x, a, _ in band[::-1]]
        parts.append(f'<polygon class="band {colour}" points="{_points(edge)}"/>')
    elif band:
        for x, a, b in band:
            at, low, high = px(x), py(a), py(b)
            parts.append(
                f'<path class="bar {colour}" d="M{at} {low}V{high}M{at - 5} {low}h10M{at - 5} '
                f'{high}h10"/>'
            )
    known = [
        (i, x, y)
        for i, (x, y) in enumerate(zip(line.x, line.y, strict=True))
        if _drawn(plane, x) and _finite(y)
    ]
    if line.joined and len(known) > 1:
        style = f"line {colour}{' thin' if line.thin else ''}{' dashed' if line.dashed else ''}"
        values = ";".join(f"{x:.6g},{y:.6g}" for _, x, y in known)
        parts.append(
            f'<polyline class="{style}" data-name="{escape(line.name)}" data-values="{values}" '
            f'points="{_points([(px(x), py(y)) for _, x, y in known])}"/>'
        )
    if line.dots or len(known) == 1:
        for i, x, y in known:
            label = line.labels[i] if line.labels else f"{line.name}: {y:.6g} at {x:.6g}"
            size = 3.2 if line.thin else 5
            aside = 9 if line.thin and line.links else 0  # of a run, beside its mean
            dot = (
                f'<circle class="dot {colour}{" thin" if line.thin else ""}" cx="{px(x) - aside}" '
                f'cy="{py(y)}" r="{size}"><title>{escape(label)}</title></circle>'
            )
            link = escape(line.links[i]) if line.links else ""
            parts.append(
                f'<a href="{link}" aria-label="{escape(label)}">{dot}</a>' if link else dot
            )
    return parts


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in pairs)


def _legend(plane: Plane) -> str:
    """Names of the lines, where there are several."""
    shown = [line for line in plane.lines if line.listed and not line.thin and line.name]
    if len(shown) < 2:
        return ""
    entries = (
        f'<li><span class="key c{line.colour % COLOURS}{" dashed" if line.dashed else ""}"></span>'
        f"{escape(line.name)}</li>"
        for line in shown
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def numbers(plane: Plane) -> list[tuple[str, str, str]]:
    """The chart as lines of a table: line, x, y; of long ones the first `LISTED`."""
    pairs = [(line.name, *at) for line in plane.lines for at in zip(line.x, line.y, strict=True)]
    return [(name, f"{x:.6g}", f"{y:.6g}") for name, x, y in pairs if y is not None][:LISTED]


def mean(name: str, members: Sequence[tuple[list[float], list[float]]], colour: int) -> Line:
    """The mean of several curves (x, y) where all are, with a band of a standard deviation."""
    low, high = max(at[0] for at, _ in members), min(at[-1] for at, _ in members)
    grid = sorted({a for at, _ in members for a in at if low <= a <= high}) or [low]
    grid = grid[:: max(1, len(grid) // POINTS)]
    values = np.array([np.interp(grid, at, y) for at, y in members])
    middle, std = values.mean(0), values.std(0, ddof=1)
    return Line(
        f"{name}, mean of {len(members)}",
        grid,
        middle.tolist(),
        (middle - std).tolist(),
        (middle + std).tolist(),
        colour,
    )
