"""Fidelity on rows: closed forms, and agreement of the record with the functions."""

import math

import pytest
import torch

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import ReLU, TopK
from innerspace.decompose.sparse import Sparse
from innerspace.measure.fidelity import (
    FiringHistogram,
    Histogram,
    RowFidelity,
    active,
    alive,
    explained_variance,
    fired,
    firing_histogram,
    frequency,
    l0,
    l0_histogram,
    l0_quantiles,
    row_fidelity,
    shrinkage,
)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(300, 5) * torch.arange(1, 6) + 40


def test_explained_variance_of_a_copy_the_mean_and_a_known_error(x: torch.Tensor) -> None:
    mean = x.mean(0).expand_as(x)
    assert explained_variance(x, x) == 1
    assert explained_variance(x, mean) == pytest.approx(0, abs=1e-6)
    assert explained_variance(x, x + (x - mean)) == pytest.approx(0, abs=1e-6)
    assert explained_variance(x, mean + 0.5 * (x - mean)) == pytest.approx(0.75, abs=1e-6)


def test_fidelity_does_not_change_with_scale_place_or_repetition(x: torch.Tensor) -> None:
    x_hat = x + torch.randn_like(x)
    for measure in (explained_variance, shrinkage):
        assert measure(9 * x + 3, 9 * x_hat + 3) == pytest.approx(measure(x, x_hat), abs=1e-5)
        assert measure(torch.cat((x, x)), torch.cat((x_hat, x_hat))) == pytest.approx(measure(x, x_hat), abs=1e-12)


def test_shrinkage_is_what_codes_lack(x: torch.Tensor) -> None:
    mean = x.mean(0)
    assert shrinkage(x, x) == pytest.approx(0)
    assert shrinkage(x, mean + 0.8 * (x - mean)) == pytest.approx(0.2, abs=1e-5)
    assert shrinkage(x, mean + 1.5 * (x - mean)) == pytest.approx(-0.5, abs=1e-5)
    still = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert math.isnan(shrinkage(still, still.mean(0).expand_as(still)))


def test_counts_of_a_known_code() -> None:
    z = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 3.0, 0.0, 0.0]])
    assert l0(z) == 1.5
    assert alive(z) == 0.5
    assert fired(z).tolist() == [False, True, True, False]
    assert l0(z.view(1, 2, 4)) == 1.5


def test_the_record_agrees_with_the_functions_for_any_chunk(x: torch.Tensor) -> None:
    what = Dictionary.normalized_for(x, 40, TopK(2), seed=3)
    found = row_fidelity(what, x)
    assert what.training
    assert what.silent.sum() == 0
    code = what.eval().encode(x)
    x_hat = what.decode(code.z)
    expected = RowFidelity(300, explained_variance(x, x_hat), l0(code.z), alive(code.z), shrinkage(x, x_hat))
    assert 0 < expected.alive < 1
    for measured in (found, row_fidelity(what, x, chunk=7), row_fidelity(what, x.double(), chunk=1)):
        for name in ("rows", "explained_variance", "l0", "alive", "shrinkage"):
            assert getattr(measured, name) == pytest.approx(getattr(expected, name), abs=1e-6)
    assert RowFidelity.from_json(found.to_json()) == found


def test_an_identity_explains_everything() -> None:
    what = Dictionary(2, 4, ReLU())
    both = torch.cat((torch.eye(2), -torch.eye(2)))
    with torch.no_grad():
        what.encoder.copy_(both)
        what.decoder.copy_(both)
    found = row_fidelity(what, torch.randn(50, 2))
    assert found.explained_variance == pytest.approx(1)
    assert found.l0 == 2
    assert found.alive == 1
    assert found.shrinkage == pytest.approx(0, abs=1e-6)


def test_rows_that_cannot_be_judged_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="all alike"):
        explained_variance(torch.ones(4, 2), torch.ones(4, 2))
    bad = x.clone()
    bad[11] = torch.inf
    with pytest.raises(ValueError, match="row 11 is the first of 1"):
        row_fidelity(Dictionary(5, 8, ReLU()), bad)
    with pytest.raises(ValueError, match="have width 5, the dictionary reads width 6"):
        row_fidelity(Dictionary(6, 8, ReLU()), x)


def test_histograms_of_known_codes() -> None:
    rows = torch.tensor([0, 0, 5, 0, 3, 1, 1])
    assert l0_histogram(rows) == Histogram((2.0, 3.0, 4.0, 5.0, 6.0, 7.0), (5, 0, 3, 1, 1))
    assert l0_histogram(rows, bins=2) == Histogram((2.0, 5.0, 8.0), (8, 2))
    assert l0_quantiles(rows, (0.05, 0.5, 0.51, 0.8, 0.81, 1.0)) == (2, 2, 4, 4, 5, 6)
    found = firing_histogram(torch.tensor([0, 1, 9, 10, 99, 100, 0]), 100, step=1.0)
    assert found == FiringHistogram((-2.0, -1.0, 0.0, 1.0), (2, 2, 1), 2)
    z = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, -3.0, 0.0, 0.0]])
    for code in (z, Dictionary(2, 500, TopK(3)).eval().code(torch.randn(90, 2)).z):
        dense = code if isinstance(code, torch.Tensor) else code.dense()
        assert active(code).tolist() == (dense != 0).sum(1).tolist()
        assert frequency(code).tolist() == (dense != 0).sum(0).tolist()
        assert torch.equal(fired(code), dense.any(0))
        assert l0(code) == pytest.approx(active(dense).double().mean().item())
    assert isinstance(code, Sparse)
