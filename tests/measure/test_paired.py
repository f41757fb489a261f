"""Resamples that all methods share."""

import math

import pytest
import torch

from innerspace.measure.paired import Resamples, summary

GROUPS = torch.arange(40).repeat_interleave(3)


def test_the_first_copy_is_the_data_as_they_are() -> None:
    values = torch.randn(120)
    copies = Resamples(GROUPS, 50).mean(values)
    assert len(copies) == 51
    assert float(copies[0]) == pytest.approx(float(values.double().mean()))
    found = summary(copies)
    assert found.mean == pytest.approx(float(values.mean()), rel=1e-5)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high


def test_groups_are_drawn_whole_and_as_many_as_there_are() -> None:
    times = Resamples(GROUPS, 50, seed=1).times
    assert torch.equal(times[:, ::3], times[:, 1::3])
    assert torch.equal(times.sum(1), torch.full((51,), 120.0, dtype=torch.float64))
    assert not torch.equal(times, Resamples(GROUPS, 50, seed=2).times)
    assert torch.equal(times, Resamples(GROUPS, 50, seed=1).times)
    # numbers of groups need not be successive
    assert torch.equal(times, Resamples(GROUPS * 7 + 3, 50, seed=1).times)


def test_resamples_are_means_of_drawn_rows() -> None:
    values = torch.randn(120, dtype=torch.float64)
    resamples = Resamples(GROUPS, 5)
    for times, mean in zip(resamples.times, resamples.mean(values), strict=True):
        drawn = [value for value, count in zip(values.tolist(), times.tolist(), strict=True) for _ in range(int(count))]
        assert float(mean) == pytest.approx(sum(drawn) / len(drawn))


def test_what_is_hard_for_both_cancels_out() -> None:
    hard = 100 * torch.randn(40, dtype=torch.float64).repeat_interleave(3)
    gain = 1 + 0.01 * torch.randn(120, dtype=torch.float64)
    resamples = Resamples(GROUPS)
    one, other = resamples.mean(hard), resamples.mean(hard - gain)
    difference = summary(one - other)
    assert difference.low is not None
    assert difference.high is not None
    assert 0.99 < difference.low < difference.mean < difference.high < 1.01
    spread = summary(one)
    assert spread.high is not None
    assert spread.low is not None
    assert spread.high - spread.low > 20


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(200):
        shared = torch.randn(40, generator=generator).repeat_interleave(3)
        found = summary(Resamples(GROUPS, 200, seed).mean(shared + 0.1 * torch.randn(120, generator=generator)))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert 175 <= covered <= 198


def test_rows_that_are_not_known_do_not_count() -> None:
    values = torch.tensor([1.0, math.nan, 3.0, math.nan])
    resamples = Resamples(torch.tensor([0, 0, 1, 1]), 20)
    copies = resamples.mean(values)
    assert float(copies[0]) == 2
    assert set(copies.tolist()) <= {1.0, 2.0, 3.0}
    assert resamples.mean(torch.full((4,), math.nan)).isnan().all()


def test_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="resamples of no row"):
        Resamples(torch.zeros(0, dtype=torch.int64))
