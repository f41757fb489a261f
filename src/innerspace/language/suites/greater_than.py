"""Greater-than: a span of years must end later than it began.

"The war lasted from the year 1732 to 17" is to be continued by a number above 32. What GPT-2 small does is known (Hanna
et al. 2023, arXiv 2305.00586): it brings the start year's last two digits, YY, to the end, and favors what is above.
"""

import random
from dataclasses import dataclass
from typing import Any

from innerspace.language.circuits import Case, Suite
from innerspace.language.suites.prompts import Inexpressible, Writer, attempted, enough

_NOUNS = (
    "alliance approach assault attack battle blockade boycott building campaign challenge rationing collaboration "
    "competition confinement conflict conquest construction consultation contest contract correspondence custody "
    "crisis crusade debate decline defense deployment depression development dictatorship dispute domination drought "
    "dynasty effort embargo empire epidemic era excavation exchange exile expansion expedition exploration famine "
    "feud fighting friendship government growth hostility hunt illness imprisonment industry influence inquiry "
    "insurgency invasion investigation journey kingdom lawsuit leadership march marriage migration mission monarchy "
    "movement negotiation observation occupation operation partnership peace persecution pilgrimage plague plan "
    "practice presidency process program progress project protest quarrel quest raid rebellion recession recovery "
    "reform regime reign relationship research resistance retreat revolt revolution rise rivalry rule sanction "
    "settlement shortage siege slump stagnation strike struggle study survey trade training transition treaty trial "
    "truce turmoil unrest uprising voyage war work".replace("rationing", "rationing").replace("custody", "custody")
)
NOUNS: tuple[str, ...] = tuple(_NOUNS.split())
_TEMPLATE = "The {noun} lasted from the year {year} to {century}"
_FIRST, _LAST = 11, 17


@dataclass(frozen=True)
class _Century:
    """The years of a century that a tokenizer splits into century and year: YY → its token."""

    name: int
    years: dict[int, int]


def greater_than(tokenizer: Any, *, count: int = 1000, seed: int = 0, bos: bool = True) -> Suite:
    """The test of greater-than: YY at the end of the prompt, against the year XX01; its site is that of GPT-2 small.

    The metric is Σ p(y′) over the two-digit tokens y′ > YY with which the century can go on. Years of the centuries 11
    to 17 count that are two tokens, XX and YY; they begin at 02 and leave out the last, for which no answer is left.
    Cases of one noun are one group.

    Raises:
        ValueError: if no century is left, or there is nothing to count.
    """
    if count < 1:
        raise ValueError(f"there should be one prompt or more, not {count}")
    writer = Writer(tokenizer, bos=bos)
    found, missing = list[_Century](), list[str]()
    for century in range(_FIRST, _LAST + 1):
        years, unknown = attempted(range(100), lambda yy, xx=century: (yy, _token(writer, xx, yy)))
        missing += unknown
        if 1 in dict(years) and len(years) > 4:
            found.append(_Century(century, dict(years)))
    enough(found, 1, "centuries of years that are two tokens", missing)
    draw = random.Random(seed)
    drawn = [(draw.choice(NOUNS), draw.choice(found)) for _ in range(count)]
    years = [(noun, century, draw.choice(_starts(century))) for noun, century in drawn]
    cases, unwritten = attempted(years, lambda one: _case(writer, *one))
    enough(cases, 1, "prompts", unwritten)
    missed = (*missing, *unwritten)
    variable = "the last two digits of the first year"
    return Suite("greater-than", variable, "resid.9", "mass", tuple(cases), missed, writer.padding)


def _token(writer: Writer, xx: int, yy: int) -> int:
    """The token of YY in the year XXYY."""
    century, year = writer.tokens(f"{xx}", after="year"), writer.tokens(f"{xx}{yy:02}", after="year")
    if len(century) != 1 or len(year) != 2 or year[:1] != century:
        raise Inexpressible(f"the year {xx}{yy:02} is not the two tokens {xx} and {yy:02}")
    return year[1]


def _starts(century: _Century) -> list[int]:
    return [yy for yy in sorted(century.years)[:-1] if yy > 1]


def _case(writer: Writer, noun: str, century: _Century, yy: int) -> Case:
    words = {"noun": noun, "century": f"{century.name}"}
    clean, other = writer.twins(
        _TEMPLATE, {**words, "year": f"{century.name}{yy:02}"}, {**words, "year": f"{century.name}01"}
    )
    above = tuple(token for later, token in century.years.items() if later > yy)
    return Case(clean.ids, other.ids, (len(clean.ids) - 1,), above, (), noun)
