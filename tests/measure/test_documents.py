"""Intervals from sums that are kept by document, against what is known of means."""

import pytest
import torch

from innerspace.measure.documents import Draws, Ledger


def test_intervals_are_those_of_the_mean_of_documents() -> None:
    generator, ledger = torch.Generator().manual_seed(0), Ledger()
    values = torch.randn(400, generator=generator)
    ledger.add("a", torch.arange(400).repeat(3), {"b": values.repeat(3)})
    found = Draws(ledger, 2000, 0).mean("a.b")
    assert found.mean == pytest.approx(values.mean().item(), abs=1e-6)
    half = 1.96 * values.std().item() / 20
    assert found.low == pytest.approx(found.mean - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.1 * half)
