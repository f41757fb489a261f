"""Ways of training compared at equal sparsity, or at equal damage: fronts, interpolated.

A *front* is what one way of training reaches with one seed: points of L0 and damage, one for each coefficient. Between
its points it is taken as straight in the logarithms of both; beyond them it is not known, and nothing is compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from innerspace.measure.estimate import Estimate, over_seeds
from innerspace.value import Value

Front = Sequence[tuple[float, float]]
"""Points (what is held equal, what is compared), all positive."""


@dataclass(frozen=True)
class Ratio(Value):
    """What one kind has at a level, what the reference has there, and their quotient, over seeds."""

    level: float
    own: Estimate
    reference: Estimate
    ratio: Estimate


@dataclass(frozen=True)
class Comparison(Value):
    """The ratios at several levels, and their geometric mean over the levels, over seeds."""

    ratios: tuple[Ratio, ...]
    overall: Estimate


def compare_fronts(own: Mapping[int, Front], reference: Mapping[int, Front], levels: int = 5) -> Comparison | None:
    """Compare fronts by seed at levels that all of them reach, at equal distances in the logarithm.

    Seeds are paired. Gives None where the fronts have no level in common.

    Raises:
        ValueError: if the two have no seed in common, or a point is not positive, naming it.
    """
    seeds = sorted(set(own) & set(reference))
    if not seeds:
        raise ValueError(f"no seed in common: {sorted(own)} and {sorted(reference)}")
    fronts = [front[seed] for front in (own, reference) for seed in seeds]
    for front in fronts:
        if bad := [point for point in front if not min(point) > 0]:
            raise ValueError(f"the logarithm of {bad[0]} cannot be taken; a front has positive points")
    low, high = max(min(x for x, _ in front) for front in fronts), min(max(x for x, _ in front) for front in fronts)
    if low > high:
        return None
    places = np.geomspace(low, high, levels) if high > low else np.array([low])
    # the ends are met exactly, whatever the rounding of the logarithms
    places = places.clip(low, high)
    mine = np.array([[_at(own[seed], level) for level in places] for seed in seeds])
    theirs = np.array([[_at(reference[seed], level) for level in places] for seed in seeds])
    quotient = mine / theirs
    ratios = tuple(
        Ratio(float(level), _over(mine[:, i]), _over(theirs[:, i]), _over(quotient[:, i]))
        for i, level in enumerate(places)
    )
    return Comparison(ratios, _over(np.exp(np.log(quotient).mean(1))))


def _at(front: Front, level: float) -> float:
    points = sorted(front)
    x, y = np.log([point[0] for point in points]), np.log([point[1] for point in points])
    return math.exp(float(np.interp(math.log(level), x, y)))


def _over(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Estimate:
    return over_seeds([float(value) for value in values])
