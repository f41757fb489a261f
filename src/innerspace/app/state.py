"""What a tab shows, as a part of the page's address: a frozen value to and from a query string.

The address holds the state of all tabs, ``?tab=forecasts&forecasts.scene=3&forecasts.tau=speed:-0.4``: a reload
restores it, and a link shares it. Fields at their defaults are left out. An address comes from outside and is not
trusted.
"""

import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote

from innerspace.value import Value

LONGEST = 8000
"""How many characters of an address are read."""

V = TypeVar("V", bound="View")

Amounts = tuple[tuple[str, float], ...]
"""Names with a number each: ``speed:-0.4,direction:0.2``."""


@dataclass(frozen=True)
class View(Value):
    """What a tab shows; fields are strings, numbers, or tuples of strings, integers or named numbers.

    All fields need defaults. A subclass says in ``__post_init__`` what cannot be.
    """

    def query(self, tab: str) -> str:
        """The fields that are not at their defaults, as a part of an address."""
        changed = [field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        return "&".join(f"{tab}.{field.name}={_quoted(getattr(self, field.name))}" for field in changed)

    def mark(self, tab: str) -> str:
        """An element that is not seen and tells the page's script what its address should remember."""
        return f'<i hidden data-tab="{escape(tab)}" data-address="{escape(self.query(tab))}"></i>'

    @classmethod
    def of(cls: type[V], query: str, tab: str) -> V:
        """The view that an address asks for; what it does not say is at its default.

        Raises:
            ValueError: for an address that is too long, a field that there is not or that is given twice, or a value
                of another type, naming what is possible.
        """
        hints = typing.get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        given = dict[str, Any]()
        for key, text in entries(query):
            owner, _, name = key.rpartition(".")
            if owner != tab:
                continue
            if name not in names:
                raise ValueError(f"the address names {key[:80]!r}; fields of {tab} are {', '.join(names)}")
            if name in given:
                raise ValueError(f"the address names {key!r} twice")
            given[name] = _read(hints[name], text, key)
        return cls(**given)


def entries(query: str) -> list[tuple[str, str]]:
    """The keys and values of an address, with or without its question mark.

    Raises:
        ValueError: for an address that is too long, or holds bytes that are no text.
    """
    if len(query) > LONGEST:
        raise ValueError(f"the address has {len(query):,} characters; at most {LONGEST:,} are read")
    try:
        return parse_qsl(query.removeprefix("?"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise ValueError("the address holds what is no text in UTF-8, or too many fields") from None


def tab_of(query: str, tabs: Sequence[str]) -> str:
    """The tab that an address opens, by default the first.

    Raises:
        ValueError: for a tab that there is not, naming those there are.
    """
    named = dict(entries(query)).get("tab", tabs[0])
    if named not in tabs:
        raise ValueError(f"there is no tab {named[:80]!r} here; there are {', '.join(tabs)}")
    return named


def _quoted(value: Any) -> str:
    match value:
        case float():
            return f"{value:.12g}"
        case tuple():
            return ",".join(_entry(entry) for entry in value)
        case _:
            return quote(str(value), safe="")


def _entry(value: Any) -> str:
    if isinstance(value, tuple):
        name, amount = value
        return f"{_entry(name)}:{_quoted(amount)}"
    # a comma parts entries
    assert "," not in str(value), value
    return _quoted(value)


def _read(hint: Any, text: str, key: str) -> Any:
    if hint is str:
        return text
    if hint is int:
        return _whole(text, key)
    if hint is float:
        return _number(text, key)
    parts = [part for part in text.split(",") if part]
    if hint == tuple[str, ...]:
        return tuple(parts)
    if hint == tuple[int, ...]:
        return tuple(_whole(part, key) for part in parts)
    assert hint == Amounts, hint
    pairs = [part.rpartition(":") for part in parts]
    if bare := [amount for name, _, amount in pairs if not name]:
        raise ValueError(f"{key}: {bare[0][:80]!r} should be a name and a number, such as speed:-0.4")
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{key} names something twice: {', '.join(names)[:80]}")
    return tuple((name, _number(amount, key)) for name, _, amount in pairs)


def _whole(text: str, key: str) -> int:
    # int() reads digits of all scripts and underscores, too
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 10):
        raise ValueError(f"{key} should be a whole number, not {text[:80]!r}")
    return int(text)


def _number(text: str, key: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{key} should be a finite number, not {text[:80]!r}")
    return value
