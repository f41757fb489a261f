"""Small SVG charts, drawn without a browser: they print, need no script, and take their colors from the page."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import final

from innerspace.report.numerals import Estimate, number

WIDTH, NARROW, HEIGHT = 340, 260, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 26, 36


@dataclass(frozen=True)
class Scale:
    """Where values lie on an axis, from 0 to 1; ``names`` make it an axis of categories.

    An axis whose low end is the larger number, and that is not logarithmic, runs backwards.
    """

    low: float
    high: float
    log: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def over(cls, values: Iterable[float | None], *, log: bool = False, include: float | None = None) -> "Scale":
        """An axis over all that is known, with a little room at both ends."""
        known = [value for value in values if value is not None and not (log and value <= 0)]
        known += [] if include is None else [include]
        if not known:
            return cls(0.1 if log else 0.0, 1.0, log)
        low, high = min(known), max(known)
        if log:
            return cls(low / 1.3, high * 1.3, log)
        room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
        return cls(low - room, high + room)

    @classmethod
    def of(cls, names: Sequence[str]) -> "Scale":
        """An axis of categories at 0, 1, 2 and so on."""
        return cls(-0.5, len(names) - 0.5, names=tuple(names))

    def at(self, value: float) -> float:
        """The place of a value between the ends of the axis."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Round values within the axis, about ``count`` of them, and how they are written."""
        if self.names:
            return [(float(i), name) for i, name in enumerate(self.names)]
        values = self._log_ticks() if self.log else self._linear_ticks(count)
        return [(value, _short(value)) for value in values]

    def _linear_ticks(self, count: int) -> list[float]:
        low, high = sorted((self.low, self.high))
        rough = (high - low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]

    def _log_ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        spread = math.log10(self.high / self.low)
        factors = (1,) if spread > 3 else (1, 3) if spread > 1.2 else (1, 2, 5)
        values = [factor * 10.0**decade for decade in decades for factor in factors]
        values = [value for value in values if self.low <= value <= self.high]
        # within one decade round steps say more than powers
        return values if len(values) > 1 else [value for value in self._linear_ticks(4) if value > 0]


@final
class Chart:
    """A chart under construction: marks are added from back to front, ``svg`` closes it."""

    def __init__(
        self,
        x: Scale,
        y: Scale,
        *,
        x_label: str,
        y_label: str = "",
        left: int = LEFT,
        width: int = WIDTH,
        height: int = HEIGHT,
    ) -> None:
        self.x, self.y, self.left, self.width, self.height = x, y, left, width, height
        self._marks = list[str]()
        self._labels = (x_label, y_label)

    def shade(self, low: float, high: float) -> None:
        """Tint a range of the horizontal axis."""
        x, end = self._x(low), self._x(high)
        box = f'y="{TOP}" width="{_round(end - x)}" height="{self.height - TOP - BOTTOM}"'
        self._marks.append(f'<rect class="range" x="{_round(x)}" {box}/>')

    def band(
        self, xs: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None], style: str
    ) -> None:
        """The interval around a line; missing where either end is."""
        known = [(x, a, b) for x, a, b in zip(xs, lows, highs, strict=True) if self._drawn(a) and self._drawn(b)]
        if len(known) < 2:
            return
        there = [self._point(x, b) for x, _, b in known]
        back = [self._point(x, a) for x, a, _ in reversed(known)]
        self._marks.append(f'<path class="band {style}" d="M{"L".join(there + back)}Z"/>')

    def line(self, xs: Sequence[float], ys: Sequence[float | None], style: str, run: str = "") -> None:
        """A line through the known values, broken where one is missing; ``run`` is what pointing at it tells."""
        path, pen = "", "M"
        for x, y in zip(xs, ys, strict=True):
            if self._drawn(y):
                path, pen = path + pen + self._point(x, y), "L"
            else:
                pen = "M"
        called = f' data-run="{escape(run)}"' if run else ""
        self._marks.append(f'<path class="line {style}" d="{path}"{called}/>')

    def steps(self, edges: Sequence[float], heights: Sequence[float], style: str, tip: str) -> None:
        """The outline of a histogram over an axis that holds 0; the tip shows anywhere below it."""
        corners = [self._point(x, y) for i, y in enumerate(heights) for x in edges[i : i + 2]]
        first, last = self._point(edges[0], 0.0), self._point(edges[-1], 0.0)
        self._marks.append(f'<path class="steps {style}" d="M{"L".join([first, *corners, last])}" {_tip(tip)}/>')

    def rule(self, at: float, style: str, *, upright: bool = True) -> None:
        """A line across the whole chart at a value of the horizontal axis, or of the vertical one."""
        if upright:
            path = f"M{_round(self._x(at))} {TOP}V{self.height - BOTTOM}"
        else:
            path = f"M{self.left} {_round(self._y(at))}H{self.width - RIGHT}"
        self._marks.append(f'<path class="line {style}" d="{path}"/>')

    def cross(self, x: Estimate, y: Estimate, style: str) -> None:
        """The intervals of a point in both directions, as far as they lie within the axes."""
        if x.mean is None or y.mean is None:
            return
        for (_, low, high), scale, upright in ((x, self.x, False), (y, self.y, True)):
            if low is None or high is None:
                continue
            a, b = max(low, scale.low), min(high, scale.high)
            ends = ((x.mean, a), (x.mean, b)) if upright else ((a, y.mean), (b, y.mean))
            self._marks.append(f'<path class="line {style}" d="M{"L".join(self._point(*end) for end in ends)}"/>')

    def dots(self, xs: Sequence[float], ys: Sequence[float | None], tips: Sequence[str], style: str) -> None:
        """A dot for every known value that tells its number when it is pointed at."""
        for x, y, tip in zip(xs, ys, tips, strict=True):
            if y is not None and self._drawn(y):
                place = f'cx="{_round(self._x(x))}" cy="{_round(self._y(y))}"'
                self._marks.append(f'<circle class="dot {style}" {place} r="2.4" {_tip(tip)}/>')

    def whisker(self, low: float | None, high: float | None, y: float, style: str) -> None:
        """A horizontal interval."""
        if low is not None and high is not None:
            self._marks.append(f'<path class="line {style}" d="M{self._point(low, y)}L{self._point(high, y)}"/>')

    @property
    def frame(self) -> str:
        """What a script needs to tell values from places: both axes (low, high, logarithmic) and the box between."""
        axes = {name: [scale.low, scale.high, scale.log] for name, scale in (("x", self.x), ("y", self.y))}
        return json.dumps(axes | {"box": [self.left, TOP, self.width - RIGHT, self.height - BOTTOM]})

    def svg(self, label: str, *, readable: bool = False) -> str:
        """The whole drawing; ``label`` says what it shows to those who do not see it.

        A ``readable`` one carries its axes, so that a script can read values from its lines.
        """
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        parts = list[str]()
        for value, text in self.y.ticks(4):
            y = _round(self._y(value))
            zero = ' class="zero"' if value == 0 and not self.y.names else ""
            parts.append(f'<path{zero} d="M{self.left} {y}H{right}"/>')
            parts.append(f'<text class="y" x="{self.left - 6}" y="{y}" dy=".32em">{escape(text)}</text>')
        for value, text in self.x.ticks(5):
            x = _round(self._x(value))
            zero = ' class="zero"' if value == 0 and not self.x.names else ""
            parts.append(f'<path{zero} d="M{x} {bottom if not zero else TOP}V{bottom + 4}"/>')
            parts.append(f'<text class="x" x="{x}" y="{bottom + 16}">{escape(text)}</text>')
        x_label, y_label = map(escape, self._labels)
        parts.append(f'<text class="name x" x="{(self.left + right) / 2:g}" y="{self.height - 4}">{x_label}</text>')
        parts.append(f'<text class="name" x="0" y="11">{y_label}</text>')
        axes = f' data-axes="{escape(self.frame)}"' if readable else ""
        size = f'viewBox="0 0 {self.width} {self.height}"'
        head = f'<svg class="chart" {size} role="img" aria-label="{escape(label)}"{axes}>'
        return f'{head}<g class="axes">{"".join(parts)}</g>{"".join(self._marks)}</svg>'

    def _x(self, value: float) -> float:
        return self.left + self.x.at(value) * (self.width - self.left - RIGHT)

    def _y(self, value: float) -> float:
        share = self.y.at(value)
        # categories read from the top
        return TOP + (share if self.y.names else 1 - share) * (self.height - TOP - BOTTOM)

    def _point(self, x: float, y: float | None) -> str:
        assert y is not None
        return f"{_round(self._x(x))} {_round(self._y(y))}"

    def _drawn(self, y: float | None) -> bool:
        return y is not None and not (self.y.log and y <= 0)


def _tip(text: str) -> str:
    return f'data-tip="{escape(text)}"'


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _short(value: float) -> str:
    """A tick's number, without trailing zeros."""
    if 0 < abs(value) < 1e-3 or abs(value) >= 1e5:
        return f"{value:.0e}".replace("e-0", "e−").replace("e+0", "e").replace("-", "−")
    return number(value, 12).rstrip("0").rstrip(".") if value % 1 else number(int(value))
