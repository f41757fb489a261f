"""Numbers as people and as machines read them: estimates with intervals, rounded words, plain JSON."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from innerspace.value import Value

MISSING = "–"


class Estimate(NamedTuple):
    """A number and its 95 % interval; ``None`` where it is not known."""

    mean: float | None
    low: float | None = None
    high: float | None = None


def estimate(item: object) -> Estimate:
    """An estimate from ``{mean, low, high}``, from a bare number, or from nothing.

    Raises:
        ValueError: for anything else.
    """
    match item:
        case None:
            return Estimate(None)
        case int() | float():
            return Estimate(_finite(item))
        case {"mean": mean, **ends} if not set(ends) - {"low", "high", "class"}:
            return Estimate(_finite(mean), _finite(ends.get("low")), _finite(ends.get("high")))
        case _:
            raise ValueError(f"an estimate is a number or {{mean, low, high}}, not {item!r}")


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number in words: ``digits`` significant ones, a true minus, thousands apart, a dash where there is none."""
    return _write(value, _decimals(value, digits), sign)


def interval(item: Estimate, digits: int = 3, sign: bool = False) -> str:
    """``low to high``, as precise as the estimate itself is written; empty where it is not known."""
    if item.low is None or item.high is None:
        return ""
    decimals = min((_decimals(value, digits) for value in item if value), default=0)
    return f"{_write(item.low, decimals, sign)} to {_write(item.high, decimals, sign)}"


def phrase(item: Estimate, unit: str = "", digits: int = 3, sign: bool = False) -> str:
    """``0.873 (0.851 to 0.892)``, with a unit after each part that needs one."""
    unit = f" {unit}" if unit else ""
    ends = interval(item, digits, sign)
    return number(item.mean, digits, sign) + unit + (f" ({ends})" if ends else "")


def spoken(name: str) -> str:
    """A name from the code, as one says it."""
    return name.replace("_", " ")


def bound(words: str) -> str:
    """Words whose numbers stay on one line with what follows them: a percent sign, the next three digits."""
    return re.sub(r"(?<=\d) (?=%|\d{3}\b)", "\u00a0", words)


def average(values: Sequence[float | None]) -> float | None:
    """The mean of what is known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def plain(item: object, where: str = "report") -> Any:
    """What JSON can hold: numbers of seven significant digits, ``null`` for those that are not finite.

    Settings become mappings and arrays become lists.

    Raises:
        ValueError: for an entry that is neither, naming its place.
    """
    match item:
        case None | bool() | int() | str():
            return item
        case float():
            return float(f"{item:.7g}") if math.isfinite(item) else None
        case Path():
            return str(item)
        case np.ndarray() | np.generic():
            return plain(item.tolist(), where)
        case Value():
            return plain(item.to_json(), where)
        case Mapping():
            entries = cast(Mapping[Any, Any], item)
            return {str(key): plain(entry, f"{where}.{key}") for key, entry in entries.items()}
        case [float(), *_] if all(type(entry) is float for entry in cast(Sequence[Any], item)):
            # a report is mostly lists of numbers, or of tokens
            return [float(f"{x:.7g}") if math.isfinite(x) else None for x in cast(Sequence[float], item)]
        case [str(), *_] if all(type(entry) is str for entry in cast(Sequence[Any], item)):
            return list(cast(Sequence[str], item))
        case list() | tuple():
            return [plain(entry, f"{where}[{i}]") for i, entry in enumerate(cast(Sequence[Any], item))]
        case _:
            raise ValueError(f"{where} is a {type(item).__name__}; a report holds numbers, strings, lists and mappings")


def _finite(value: Any) -> float | None:
    if value is None:
        return None
    return float(value) if math.isfinite(value) else None


def _decimals(value: float | None, digits: int) -> int:
    if value is None or value == 0 or isinstance(value, int):
        return 0
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def _write(value: float | None, decimals: int, sign: bool) -> str:
    if value is None:
        return MISSING
    form = ("+" if sign and value != 0 else "") + (",.1e" if 0 < abs(value) < 1e-4 else f"z,.{decimals}f")
    # a narrow space parts thousands in every locale, a true minus is as wide as a plus
    return format(value, form).replace(",", "\u202f").replace("-", "−")
