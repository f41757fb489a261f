"""Tokens side by side, shaded by a number of each, as HTML for the page and as SVG for files."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import final

from innerspace.app.palette import LIGHT
from innerspace.report.features import visible
from innerspace.report.numerals import number

WIDTH, ROW, LETTER = 900, 24, 8.2
"""Of pictures: their width, the height of a row of tokens and the width of a letter, in pixels."""


@dataclass(frozen=True)
class Strip:
    """Pieces of text with a number each, and the number that is shaded most; ``mark`` is the one that is meant."""

    pieces: tuple[str, ...]
    values: tuple[float, ...]
    largest: float
    mark: int | None = None


@dataclass(frozen=True)
class Change:
    """A token whose probability changed, before and after."""

    token: str
    before: float
    after: float


def strip(shown: Strip, hue: str = "hue-0") -> str:
    """Tokens in a line that breaks; a number shows on pointing, those below zero are in another color."""
    parts = list[str]()
    for i, (piece, value) in enumerate(zip(shown.pieces, shown.values, strict=True)):
        heat = _heat(value, shown.largest)
        kinds = " ".join(
            name for name, there in (("on", heat), ("under", value < 0), ("meant", i == shown.mark)) if there
        )
        style = f' style="--heat:{100 * heat:.0f}%"' if heat else ""
        kind = f' class="{kinds}"' if kinds else ""
        parts.append(f'<span{kind}{style} title="{escape(number(value))}">{_written(piece)}</span>')
    return f'<p class="strip {hue}" dir="auto">{"".join(parts)}</p>'


def token(piece: str) -> str:
    """A token by itself, with what would not be seen."""
    parts = (f"<i>{escape(part)}</i>" if blank else escape(part) for part, blank in visible(piece))
    return f"<code>{''.join(parts)}</code>"


def plain_token(piece: str) -> str:
    """The same without marks of its own."""
    return "".join(part for part, _ in visible(piece))


def changes(rows: Sequence[Change], caption: str, ends: tuple[str, str] = ("before", "after")) -> str:
    """A table of tokens, with a bar from the probability before to that after."""
    most = max((max(row.before, row.after) for row in rows), default=1.0) or 1.0
    lines = list[str]()
    for row in rows:
        low, high = sorted((row.before, row.after))
        kind = "gain" if row.after > row.before else "loss"
        bar = (
            f'<i class="base" style="width:{100 * low / most:.1f}%"></i>'
            f'<i class="{kind}" style="width:{100 * (high - low) / most:.1f}%"></i>'
        )
        lines.append(
            f'<tr><th scope="row">{token(row.token)}</th><td>{share(row.before)}</td><td>{share(row.after)}</td>'
            f'<td class="bar" aria-hidden="true">{bar}</td></tr>'
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("token", *ends))
    return (
        f'<table class="changes"><caption>{escape(caption)}</caption><thead><tr>{head}<td></td></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def share(value: float) -> str:
    """A probability in percent."""
    return f"{100 * value:.1f} %" if value >= 0.0005 else "< 0.1 %" if value > 0 else "0 %"


@final
class Picture:
    """An SVG file that needs nothing else: headings, strips and tables, from the top down."""

    def __init__(self) -> None:
        self._parts, self._y = list[str](), 16.0

    def heading(self, text: str) -> None:
        """A line in bold, broken where it is too long."""
        self._lines(text, 16, 'font-weight="600"', LIGHT["ink"])

    def note(self, text: str) -> None:
        """A line in gray."""
        self._lines(text, 14, "", LIGHT["soft"])

    def strip(self, shown: Strip, hue: str = "hue-0") -> None:
        """Tokens, shaded as on the page."""
        x, self._y = 16.0, self._y + 4
        for i, (piece, value) in enumerate(zip(shown.pieces, shown.values, strict=True)):
            text = piece if piece.strip() or "\n" not in piece else plain_token(piece)
            width = LETTER * max(len(text), 1)
            if x + width > WIDTH - 16 and x > 16:
                x, self._y = 16.0, self._y + ROW
            color = LIGHT["hue-7" if value < 0 else hue]
            if heat := _heat(value, shown.largest):
                self._box(x, self._y, width, ROW - 4, f'fill="{color}" fill-opacity="{heat:.2f}"')
            if i == shown.mark:
                self._box(x, self._y, width, ROW - 4, f'fill="none" stroke="{LIGHT["ink"]}"')
            # whatever font there is, a token is as wide as its box
            look = f'font-size="13.6" style="font-family:monospace" textLength="{width:g}" fill="{LIGHT["ink"]}"'
            self._text(x, self._y + 15, text, f'{look} lengthAdjust="spacingAndGlyphs"')
            x += width
        self._y += ROW + 6

    def changes(self, rows: Sequence[Change]) -> None:
        """Tokens with their probabilities before and after."""
        for row in rows:
            color = LIGHT["hue-2" if row.after > row.before else "hue-1"]
            words = f"{share(row.before)} → {share(row.after)}"
            self._text(16, self._y + 15, plain_token(row.token), f'font-size="14" fill="{LIGHT["ink"]}"')
            self._text(220, self._y + 15, words, f'font-size="14" fill="{LIGHT["ink"]}"')
            low, high = sorted((row.before, row.after))
            self._box(400, self._y + 4, 470 * low, 13, f'fill="{LIGHT["other"]}"')
            self._box(400 + 470 * low, self._y + 4, 470 * (high - low), 13, f'fill="{color}"')
            self._y += ROW
        self._y += 6

    def drawing(self, svg: str, width: float, height: float) -> None:
        """A drawing of its own, at its size."""
        place = f'x="16" y="{self._y:g}" width="{width:g}" height="{height:g}"'
        self._parts.append(svg.replace("<svg ", f"<svg {place} ", 1))
        self._y += height + 12

    def svg(self, style: str = "") -> str:
        """The file."""
        height = self._y + 12
        ground = f'<rect width="{WIDTH}" height="{height:g}" fill="{LIGHT["paper"]}"/>'
        rules = f"<style>text {{ white-space: pre; font-family: sans-serif }}\n{style}</style>"
        size = f'width="{WIDTH}" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}"'
        body = "".join(self._parts)
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{rules}{ground}{body}</svg>\n'

    def _lines(self, text: str, size: int, more: str, color: str) -> None:
        line, room = "", int((WIDTH - 32) / (0.53 * size))
        for word in text.split():
            if line and len(line) + len(word) + 1 > room:
                self._line(line, size, more, color)
                line = word
            else:
                line = f"{line} {word}".strip()
        self._line(line, size, more, color)

    def _line(self, line: str, size: int, more: str, color: str) -> None:
        self._text(16, self._y + size, line, f'font-size="{size}" {more} fill="{color}"')
        self._y += 1.5 * size

    def _text(self, x: float, y: float, text: str, more: str) -> None:
        self._parts.append(f'<text x="{x:g}" y="{y:g}" {more} xml:space="preserve">{_clean(text)}</text>')

    def _box(self, x: float, y: float, width: float, height: float, more: str) -> None:
        self._parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" {more}/>')


def _heat(value: float, largest: float) -> float:
    """How much of the hue is mixed in, at most 0.6, so that the ink stays readable."""
    return 0.0 if not value else 0.08 + 0.52 * min(abs(value) / (largest or 1.0), 1.0)


def _written(piece: str) -> str:
    """A piece among others: spaces are seen as such, and what else would not be seen is marked."""
    parts = (escape(part) if part == " " or not blank else f"<i>{escape(part)}</i>" for part, blank in _marked(piece))
    return "".join(parts) or "<i>∅</i>"


def _marked(piece: str) -> list[tuple[str, bool]]:
    return [(" ", True) if part == "·" and blank else (part, blank) for part, blank in visible(piece)]


def _clean(text: str) -> str:
    """Text without characters that XML cannot hold."""
    return escape("".join(letter if letter >= " " else "␣" for letter in text))
