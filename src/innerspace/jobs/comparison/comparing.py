"""One decomposition judged by all measures, and what several seeds of it come to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from innerspace.decompose.base import Decomposition
from innerspace.jobs.comparison.entrants import Made
from innerspace.jobs.comparison.grounds import Sample
from innerspace.measure.coding_cost import CodingCost, coding_cost
from innerspace.measure.estimate import Estimate, over_seeds
from innerspace.measure.isolation import Isolation, Steerable, Variable, isolation, steerability
from innerspace.measure.part_labels import Reading
from innerspace.measure.rate import Curve, Passes, order_parts, rate_distortion
from innerspace.measure.readability import Readable, codes, readability
from innerspace.measure.stability import Stability, stability
from innerspace.value import Value


@dataclass(frozen=True)
class Measuring(Value):
    """How decompositions are judged.

    A coordinate is told in ``bits`` bits; the output's divergence is compared where ``budget`` bits are spent on a
    token. ``held_out`` states serve to read labels, ``judged`` sequences (or agents) to tell divergences, ``ordering``
    batches to fit to to order the parts, of which the ``ablated`` with the most variance are tried one by one. A
    variable is exchanged by ``exchanged`` parts at most.
    Intervals come from ``replicates`` resamples.
    """

    bits: int = 8
    budget: float = 128.0
    held_out: int = 4000
    judged: int = 64
    ordering: int = 1
    ablated: int = 16
    exchanged: int = 32
    steps: int = 8
    replicates: int = 300
    reading: Reading = Reading(splits=5, most=2000)

    def __post_init__(self) -> None:
        for name in ("bits", "judged", "ordering", "ablated", "exchanged"):
            if getattr(self, name) < 1:
                raise ValueError(f"measuring: {name} should be at least 1, it is {getattr(self, name)}")
        if self.budget <= 0 or self.held_out < 100 or self.steps < 2 or self.replicates < 20:
            raise ValueError(f"measuring: budget, held_out, steps or replicates are too small: {self}")


@final
@dataclass(frozen=True, eq=False)
class Judged:
    """What was found of one decomposition."""

    parts: int
    coordinates: int
    largest: int
    on: float
    curve: Curve
    readable: list[Readable]
    steerable: list[Steerable]
    isolated: list[Isolation]
    cost: CodingCost
    seconds: float | None


def judge(
    made: Made,
    fit: Sample,
    held: Sample,
    passes: Passes,
    ordering: Passes,
    choosing: Sequence[Variable],
    judging: Sequence[Variable],
    measuring: Measuring,
) -> Judged:
    """Judge one decomposition, which was fitted to ``fit``, and of which parts are chosen there or by ``choosing``."""
    what = made.what.eval()
    center = codes(what, fit.states).double().mean(0).to(what.directions)
    order = order_parts(what, ordering, center, measuring.ablated)
    return Judged(
        parts=len(what.parts),
        coordinates=len(what.directions),
        largest=max(part.stop - part.start for part in what.parts),
        on=float(codes(what, held.states).count_nonzero(1).double().mean()),
        curve=rate_distortion(
            what,
            order,
            fit.states,
            passes,
            bits=measuring.bits,
            budget=measuring.budget,
            steps=measuring.steps,
            replicates=measuring.replicates,
        ),
        readable=_each_label(what, held, measuring.reading),
        steerable=steerability(what, choosing, judging) if len(judging) > 1 else [],
        isolated=isolation(what, choosing, judging, measuring.exchanged) if len(judging) > 1 else [],
        cost=coding_cost(what, held.states[:1024]),
        seconds=made.seconds,
    )


def stable(made: Sequence[Decomposition], held: Sample) -> list[Stability]:
    """Every two seeds next to each other."""
    alive = [codes(one, held.states).any(0) for one in made]
    pairs = [(i, j) for i in range(len(made)) for j in range(i)]
    return [stability(made[i], made[j], alive[i], alive[j]) for i, j in pairs]


def _each_label(what: Decomposition, held: Sample, reading: Reading) -> list[Readable]:
    """Every label that has two classes on both sides of every split, which hangs on the labels alone."""
    found = list[Readable]()
    for name, ids in held.labels.items():
        try:
            found += readability(what, held.states, {name: ids}, held.documents, reading=reading)
        except ValueError as error:
            if "fewer than two classes" not in str(error):
                raise
    return found


@final
@dataclass(frozen=True, eq=False)
class Findings:
    """What several seeds of an entrant come to."""

    name: str
    kind: str
    seeds: list[Judged]
    stability: list[Stability]

    def to_json(self) -> dict[str, Any]:
        """As ``report.compare.comparison`` shows it."""
        first = self.seeds[0]
        return {
            "name": self.name,
            "kind": self.kind,
            "seeds": len(self.seeds),
            "parts": first.parts,
            "coordinates": first.coordinates,
            "largest": first.largest,
            "on": sum(one.on for one in self.seeds) / len(self.seeds),
            "measures": {name: found.to_json() for name, found in self.measures().items() if found is not None},
            "curve": [point.to_json() for point in first.curve.points],
            "labels": [
                {
                    "name": one.label,
                    "chance": one.chance,
                    **{
                        key: self._over(lambda s, i=i, key=key: getattr(s.readable[i], key)).to_json()
                        for key in ("best", "together", "whole")
                    },
                    "needed": over_seeds([s.readable[i].needed for s in self.seeds]).to_json(),
                    "reached": sum(s.readable[i].reached for s in self.seeds) / len(self.seeds),
                }
                for i, one in enumerate(first.readable)
            ],
            "steered": [
                {
                    "name": one.variable,
                    **{
                        key: self._over(lambda s, i=i, key=key: getattr(s.steerable[i], key)).to_json()
                        for key in ("slope", "r2", "side", "random")
                    },
                }
                for i, one in enumerate(first.steerable)
            ],
            "isolated": [
                {
                    "name": one.variable,
                    "parts": sum(len(s.isolated[i].parts) for s in self.seeds) / len(self.seeds),
                    "coordinates": sum(s.isolated[i].coordinates for s in self.seeds) / len(self.seeds),
                    **{
                        key: self._over(lambda s, i=i, key=key: getattr(s.isolated[i], key)).to_json()
                        for key in ("cause", "isolate", "disentangle")
                    },
                }
                for i, one in enumerate(first.isolated)
            ],
            "chance_angle": sum(one.chance for one in self.stability) / len(self.stability) if self.stability else None,
        }

    def measures(self) -> dict[str, Estimate | None]:
        """One number for each measure: means over labels or variables, then over seeds.

        Divergences and seconds, which differ by factors, are averaged geometrically over seeds.
        """
        angles = [one.angle for one in self.stability]
        known = [one.seconds for one in self.seeds if one.seconds is not None]
        return {
            "divergence": self._over(lambda s: s.curve.at_budget, geometric=True),
            "best_part": _share(self._mean(lambda s: [one.best for one in s.readable])),
            "needed": self._mean(lambda s: [Estimate(one.needed) for one in s.readable]),
            "slope": self._mean(lambda s: [one.slope for one in s.steerable]),
            "linearity": _share(self._mean(lambda s: [one.r2 for one in s.steerable])),
            "side": _share(self._mean(lambda s: [one.side for one in s.steerable])),
            "cause": _share(self._mean(lambda s: [one.cause for one in s.isolated])),
            "isolate": _share(self._mean(lambda s: [one.isolate for one in s.isolated])),
            "disentangle": _share(self._mean(lambda s: [one.disentangle for one in s.isolated])),
            "angle": None if not angles else angles[0] if len(angles) == 1 else over_seeds([a.mean for a in angles]),
            "seconds": _geometric(known) if known else None,
            "microseconds": _scaled(self._over(lambda s: s.cost.milliseconds), 1e3),
            "flops": Estimate(self.seeds[0].cost.flops),
        }

    def _over(self, read: Callable[[Judged], Estimate], *, geometric: bool = False) -> Estimate:
        """Over seeds; of a single one its own interval."""
        found = [read(one) for one in self.seeds]
        if len(found) == 1:
            return found[0]
        means = [one.mean for one in found]
        return _geometric(means) if geometric else over_seeds(means)

    def _mean(self, read: Callable[[Judged], Sequence[Estimate]]) -> Estimate | None:
        """The mean over labels or variables; its interval is over seeds, or of a single one that of their sum."""
        if not read(self.seeds[0]):
            return None
        return self._over(lambda s: _averaged(read(s)))


def _geometric(values: Sequence[float]) -> Estimate:
    """The geometric mean, whose interval is positive too; the plain one where a value is not."""
    if min(values) <= 0:
        return over_seeds(values)
    found = over_seeds([math.log(value) for value in values])
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Estimate(math.exp(found.mean), low, high)


def _share(item: Estimate | None) -> Estimate | None:
    """A share, whose interval does not leave 0 to 1."""
    if item is None or item.low is None or item.high is None:
        return item
    return Estimate(item.mean, max(item.low, 0.0), min(item.high, 1.0))


def _scaled(item: Estimate, factor: float) -> Estimate:
    low, high = (None if end is None else end * factor for end in (item.low, item.high))
    return Estimate(item.mean * factor, low, high)


def _averaged(items: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates: half-widths add up as squares do."""
    mean = sum(one.mean for one in items) / len(items)
    halves = [(one.high - one.low) / 2 for one in items if one.low is not None and one.high is not None]
    if len(halves) < len(items):
        return Estimate(mean)
    half = sum(h**2 for h in halves) ** 0.5 / len(items)
    return Estimate(mean, mean - half, mean + half)
