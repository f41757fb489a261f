"""The building blocks of a page: sections of figures, tables and remarks, and the color of every feature."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

HUES = {"speed": 0, "acceleration": 1, "direction": 2, "agent": 3}
"""The features of motion keep their colors on every page."""

HUE_COUNT = 8

_NUMBER = re.compile(r"[+−]?[\d.\u202f]+(e[−+]?\d+)?( %)?|–")


@dataclass(frozen=True)
class Palette:
    """One hue for each feature, the same in every figure."""

    hues: dict[str, str]

    @classmethod
    def of(cls, features: Iterable[str]) -> "Palette":
        """Known features take their own hue, the others what is free, in the order of their appearance."""
        names = list(dict.fromkeys(features))
        taken = {HUES[name] for name in names if name in HUES}
        free = [hue for hue in range(HUE_COUNT) if hue not in taken] or list(range(HUE_COUNT))
        others = [name for name in names if name not in HUES]
        chosen = {name: free[i % len(free)] for i, name in enumerate(others)}
        return cls({name: f"hue-{HUES.get(name, chosen.get(name))}" for name in names})

    def __getitem__(self, name: str) -> str:
        """The style class of a feature; none for what is no feature."""
        return self.hues.get(name, "")


@dataclass(frozen=True)
class Cell:
    """One entry of a table: its text, a smaller second line, what hovering tells, and how it is tinted.

    An entry of many words may ``wrap``; others stay on one line.
    """

    text: str
    note: str = ""
    tip: str = ""
    hue: str = ""
    heat: float | None = None
    marked: bool = False
    wrap: bool = False

    @property
    def percent(self) -> str:
        """How much of the hue is mixed in; at most 55 %, so that the ink stays readable in light and dark."""
        return f"{55 * min(max(self.heat or 0.0, 0.0), 1.0):.0f}%"


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first cell of each row names it. A ``fold`` hides it behind those words on screen."""

    caption: str
    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    kind: Literal["plain", "heat", "matrix"] = "plain"
    fold: str = ""
    template: Literal["table"] = "table"

    def numeric(self, column: int) -> bool:
        """Whether a column holds nothing but numbers, so that they are set flush right."""
        texts = [row[column].text for row in self.rows if row[column].text]
        return bool(texts) and all(_NUMBER.fullmatch(text) for text in texts)


@dataclass(frozen=True)
class Panel:
    """One chart of a figure: its title, its numbers in a line, and the drawing."""

    title: str
    svg: str
    note: str = ""
    hue: str = ""


@dataclass(frozen=True)
class Figure:
    """Charts side by side under one caption; ``key`` explains the marks: (class of the swatch, words)."""

    caption: str
    panels: tuple[Panel, ...]
    title: str = ""
    hue: str = ""
    key: tuple[tuple[str, str], ...] = ()
    template: Literal["figure"] = "figure"


@dataclass(frozen=True)
class Tables:
    """Tables side by side under one caption."""

    caption: str
    tables: tuple[Table, ...]
    template: Literal["tables"] = "tables"


@dataclass(frozen=True)
class Facts:
    """Names and what they hold, nested; a ``fold`` hides them behind those words on screen."""

    entries: tuple[tuple[str, "str | Facts"], ...]
    fold: str = ""
    template: Literal["facts"] = "facts"


@dataclass(frozen=True)
class Remarks:
    """Plain sentences."""

    sentences: tuple[str, ...]
    title: str = ""
    template: Literal["remarks"] = "remarks"


@dataclass(frozen=True)
class StaticScene:
    """A scene on paper: columns of (title, hue, drawings), each drawing with its temperature."""

    words: str
    columns: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]


@dataclass(frozen=True)
class Stage:
    """The forecasts that the reader steers: maps to reuse, data for the script, and the same on paper."""

    caption: str
    maps: str
    data: str
    static: tuple[StaticScene, ...]
    template: Literal["stage"] = "stage"


@dataclass(frozen=True)
class Verdict:
    """A claim, what was found, and what follows; ``answer`` is the word on which it ends."""

    answer: Literal["holds", "fails", "open"]
    claim: str
    found: str
    words: str
    hue: str = ""


@dataclass(frozen=True)
class Verdicts:
    """Claims that were tested."""

    entries: tuple[Verdict, ...]
    template: Literal["verdicts"] = "verdicts"


@dataclass(frozen=True)
class Toggles:
    """One row of a legend that shows and hides marks: (their style class, the class of the swatch, words)."""

    title: str
    entries: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Curves:
    """Charts of many lines, which a legend shows and hides."""

    figure: Figure
    legend: tuple[Toggles, ...]
    template: Literal["curves"] = "curves"


@dataclass(frozen=True)
class Atlas:
    """A map of features with a list beside it: the drawing, what the script reads, and the legend of its clouds."""

    caption: str
    svg: str
    data: str
    legend: Toggles
    template: Literal["atlas"] = "atlas"


@dataclass(frozen=True)
class Strip:
    """An example on paper: its label, parts as (text, whether it stands for space, tint, number), and a drawing."""

    label: str
    parts: tuple[tuple[str, bool, str, str], ...]
    drawing: str = ""


@dataclass(frozen=True)
class StillFeature:
    """A feature on paper."""

    title: str
    hue: str
    facts: str
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Browser:
    """The features that the reader leafs through: data for the script, and the first of them on paper."""

    caption: str
    data: str
    static: tuple[StillFeature, ...]
    template: Literal["browser"] = "browser"


@dataclass(frozen=True)
class Preimages:
    """States alike in one part, which the reader searches: data for the script, and the first query on paper."""

    caption: str
    data: str
    static: tuple[StillFeature, ...]
    template: Literal["preimages"] = "preimages"


Block = Table | Tables | Figure | Facts | Remarks | Stage | Verdicts | Curves | Atlas | Browser | Preimages


@dataclass(frozen=True)
class Section:
    """A chapter of the page."""

    name: str
    title: str
    lead: str
    blocks: tuple[Block, ...]
