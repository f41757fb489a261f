"""Fronts: power laws are interpolated exactly, levels lie where all fronts are known, seeds are paired."""

import pytest

from innerspace.measure.fronts import compare_fronts


def law(factor: float, places: list[float]) -> list[tuple[float, float]]:
    return [(x, factor * x**-1.5) for x in places]


def test_the_ratio_of_two_power_laws_is_found_at_every_level() -> None:
    own = {0: law(0.5, [10, 40, 90]), 1: law(0.6, [12, 50, 80])}
    reference = {0: law(1.0, [5, 30, 100]), 1: law(1.0, [20, 60, 70])}
    found = compare_fronts(own, reference)
    assert found is not None
    assert [item.level for item in found.ratios] == pytest.approx([20 * 3.5 ** (i / 4) for i in range(5)])
    for item in found.ratios:
        assert item.ratio.mean == pytest.approx(0.55)
        assert item.reference.mean == pytest.approx(item.level**-1.5)
        assert item.ratio.low is not None
        assert item.ratio.low < 0.5
    assert found.overall.mean == pytest.approx(0.55)


def test_seeds_are_paired() -> None:
    own = {0: law(0.5, [10, 90]), 1: law(5.0, [10, 90])}
    reference = {0: law(1.0, [10, 90]), 1: law(10.0, [10, 90])}
    found = compare_fronts(own, reference)
    assert found is not None
    assert found.overall.low == pytest.approx(0.5)
    assert found.overall.high == pytest.approx(0.5)


def test_the_measure_that_is_held_equal_may_be_the_damage() -> None:
    own = {0: [(y, x) for x, y in law(0.5, [10, 90])]}
    reference = {0: [(y, x) for x, y in law(1.0, [10, 90])]}
    found = compare_fronts(own, reference)
    assert found is not None
    assert found.overall.mean == pytest.approx(0.5 ** (1 / 1.5))


def test_fronts_apart_are_not_compared() -> None:
    assert compare_fronts({0: law(1, [10, 20])}, {0: law(1, [30, 40])}) is None
    with pytest.raises(ValueError, match=r"no seed in common: \[0\] and \[1\]"):
        compare_fronts({0: law(1, [10, 20])}, {1: law(1, [10, 20])})
    with pytest.raises(ValueError, match=r"logarithm of \(10.0, -0.1\)"):
        compare_fronts({0: [(10.0, -0.1), (20.0, 0.1)]}, {0: law(1, [10, 20])})
