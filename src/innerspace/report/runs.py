"""Trained dictionaries, as the sections on them name, order and average them.

Every entry of a section that belongs to one trained dictionary, a *run*, says which one by the same fields:

* ``kind``: how it was trained, such as ``local``, ``e2e``, ``e2e+ds``; each kind has one color on the whole page;
* ``coefficient``: what was varied within a kind; a number is a weight λ of the sparsity, a string stands as it is
  (``k 32``), ``null`` if nothing was;
* ``seed``: a whole number;
* ``site``, optional: where its hidden states come from.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from innerspace.measure.estimate import over_seeds
from innerspace.report.blocks import Cell
from innerspace.report.numerals import Estimate, estimate, interval, number

Run = Mapping[str, Any]

SHADES = 5
"""How many shades of a kind's color tell its coefficients apart."""


class Setting(NamedTuple):
    """What a run was trained as, apart from its seed."""

    site: str
    kind: str
    coefficient: float | str | None

    @classmethod
    def of(cls, run: Run) -> "Setting":
        """The setting of a run."""
        return cls(run.get("site", ""), run["kind"], run.get("coefficient"))

    @property
    def strength(self) -> str:
        """The coefficient in words: ``λ 3``, ``k 32``; empty where there is none."""
        if self.coefficient is None or isinstance(self.coefficient, str):
            return self.coefficient or ""
        return f"λ {level(self.coefficient)}"

    @property
    def words(self) -> str:
        """``e2e · λ 3``, opened by the site where one is given."""
        return " · ".join(filter(None, (self.site, self.kind, self.strength)))


def level(value: float) -> str:
    """A number that was chosen, not measured: without trailing zeros."""
    return number(float(value), 6).rstrip("0").rstrip(".")


def run_words(run: Run) -> str:
    """``e2e · λ 3 · seed 0``."""
    return f"{Setting.of(run).words} · seed {run['seed']}"


def counted(count: int, what: str) -> str:
    """``1 run``, ``All 36 runs``: the words behind which a table is folded."""
    return f"All {count} {what}s" if count > 1 else f"1 {what}"


def by_setting(runs: Iterable[Run]) -> dict[Setting, list[Run]]:
    """The runs that differ by their seed only; sites and kinds in the order given, coefficients from small to large."""
    groups = dict[Setting, list[Run]]()
    for run in runs:
        groups.setdefault(Setting.of(run), []).append(run)
    families = list(dict.fromkeys(family(key) for key in groups))

    def place(key: Setting) -> tuple[int, bool, float]:
        value = key.coefficient
        return families.index(family(key)), isinstance(value, str), value if isinstance(value, int | float) else 0.0

    return {key: groups[key] for key in sorted(groups, key=place)}


def family(key: Setting) -> tuple[str, str]:
    """What shares one color: site and kind."""
    return key.site, key.kind


def families(groups: Iterable[Setting]) -> dict[tuple[str, str], list[Setting]]:
    """Settings by site and kind."""
    found = dict[tuple[str, str], list[Setting]]()
    for key in groups:
        found.setdefault(family(key), []).append(key)
    return found


def shade(key: Setting, own: Sequence[Setting]) -> str:
    """The style class of a setting within its family: from light to dark."""
    last = max(len(own) - 1, 1)
    return f"shade-{round((SHADES - 1) * own.index(key) / last) if len(own) > 1 else SHADES - 1}"


def mean(items: Iterable[object]) -> Estimate:
    """The mean over seeds with its interval; what only one run gives keeps the interval that it came with."""
    known = [value for item in items if (value := estimate(item)).mean is not None]
    values = [value.mean for value in known if value.mean is not None]
    if len(known) < 2:
        return known[0] if known else Estimate(None)
    if len(set(values)) == 1:
        # what no seed changes, such as the loss of the network itself, has no spread to tell of
        return Estimate(values[0])
    found = over_seeds(values)
    return Estimate(found.mean, found.low, found.high)


def entry(item: object, digits: int = 3, sign: bool = False) -> Cell:
    """A table's cell of an estimate: the number, below it the interval."""
    value = item if isinstance(item, Estimate) else estimate(item)
    # counts stay whole
    text = number(item) if isinstance(item, int) else number(value.mean, digits, sign)
    return Cell(text, interval(value, digits, sign))


def present(fields: Mapping[str, str], runs: Sequence[Run]) -> dict[str, str]:
    """Those of the fields that any run holds."""
    return {key: title for key, title in fields.items() if any(run.get(key) is not None for run in runs)}


def prefix(values: Iterable[float | None]) -> tuple[float, str]:
    """The power of a thousand in which the largest value is written, and its letter: ``(1e6, "M")``."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    steps = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return next(((step, letter) for step, letter in steps if largest >= step), (1.0, ""))
