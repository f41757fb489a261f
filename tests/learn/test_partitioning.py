"""The presets say what was published, and both find parts that were planted and hidden by a rotation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from families import CASES
from innerspace.decompose.base import Home
from innerspace.decompose.subspaces import Subspaces, random_rotation
from innerspace.harvest.store import Store, write_store
from innerspace.learn.callbacks import Checkpoint
from innerspace.learn.fit import FitConfig
from innerspace.learn.merge_rules import PublishedThreshold
from innerspace.learn.neighbor_distance import NeighborDistance
from innerspace.learn.partitioning import PUBLISHED, Merges, Partitioning, find_subspaces
from innerspace.network.site import Where


def _planted(rows: int, sizes: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """In each part one of a few directions, with some strength or absent; and the rotation that hides them."""
    generator, states = torch.Generator().manual_seed(seed), list[Tensor]()
    for size in sizes:
        directions = F.normalize(torch.randn(4 * size, size, generator=generator), dim=-1)
        value = torch.randint(len(directions), (rows,), generator=generator)
        strength = torch.rand(rows, generator=generator) * (torch.rand(rows, generator=generator) < 0.5)
        states.append(directions[value] * strength[:, None])
    hidden = random_rotation(sum(sizes), generator)
    return torch.cat(states, dim=1) @ hidden + 3.0, hidden


def _purity(what: Subspaces, hidden: Tensor, sizes: tuple[int, ...]) -> float:
    """The least share of a part found that lies in one planted part."""
    shared = (what.rotation.detach() @ hidden.T).square()
    return min(
        max(float(block.sum()) / len(shared[place]) for block in shared[place].split(sizes, dim=1))
        for place in what.parts
    )


def _fast(unit: int, steps: int) -> Partitioning:
    settings = Partitioning.fast(12, unit, steps)
    return replace(settings, queries=64, merges=None, fit=replace(settings.fit, log_every=steps))


def test_the_presets_are_the_published_ones() -> None:
    found = PUBLISHED["gpt2-small"]
    assert (found.unit, found.queries, found.keys, found.reuse, found.chart) == (32, 128, 25 * 16384, 1, "exponential")
    assert found.term == NeighborDistance("linear-equal", 1, "euclidean")
    assert (found.fit.rate, found.fit.betas, found.fit.clip) == (3e-4, (0.9, 0.999), 100)
    for name, numbers in {
        "gpt2-small": (32, 100_000, 0.04, 20_000, 8_000),
        "qwen2.5-1.5b": (64, 100_000, 0.02, 20_000, 8_000),
        "gemma-2-2b": (72, 150_000, 0.01, 10_000, 4_000),
    }.items():
        one = PUBLISHED[name]
        assert one.merges is not None
        assert isinstance(one.merges.rule, PublishedThreshold)
        assert not one.merges.transport
        merges = (one.merges.rule.threshold, one.merges.start, one.merges.every)
        assert (one.unit, one.fit.steps, *merges) == numbers
        assert {one.fit.rate_at(step) for step in (0, 1, one.fit.steps // 2, one.fit.steps - 1)} == {3e-4}
        assert Partitioning.from_json(one.to_json()) == one
    assert Partitioning.from_json(Partitioning.fast(64).to_json()) == Partitioning.fast(64)


def test_planted_parts_are_found_from_nearby() -> None:
    rows, hidden = _planted(1000, (4, 4, 4))
    noise = 0.25 * torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    begins = Subspaces(torch.linalg.matrix_exp(noise.tril(-1) - noise.tril(-1).T) @ hidden, [4, 4, 4])
    assert _purity(begins, hidden, (4, 4, 4)) < 0.8
    what = find_subspaces(rows, _fast(4, 150), begins=begins, home=Home("abc", "resid.0")).what
    assert _purity(what, hidden, (4, 4, 4)) > 0.999
    assert what.home == Home("abc", "resid.0")
    product = what.rotation.detach() @ what.rotation.detach().T
    assert (product - torch.eye(12)).abs().max() <= 1e-6


def test_the_published_way_goes_downhill_and_merges() -> None:
    rows, _ = _planted(600, (4, 4))
    settings = replace(Partitioning.paper(4), keys=400, fit=FitConfig(steps=60, rate=1e-2, warmup=0, cooldown=0))
    settings = replace(settings, merges=Merges(PublishedThreshold(0.0), 30, 10, spare=10))
    found = find_subspaces(rows, settings)
    assert found.what.sizes == (8,)
    assert found.what.chart == "exponential"
    assert any(record.get("merged") == "0+1" for record in found.history)


def test_another_partition_is_where_it_begins() -> None:
    rows, hidden = _planted(1000, (4, 2))
    settings = _fast(3, 1)
    nothing = replace(settings, fit=replace(settings.fit, rate=1e-9))
    begins = Subspaces(hidden, [4, 2])
    found = find_subspaces(rows, nothing, begins=begins).what
    assert found.sizes == (4, 2)
    torch.testing.assert_close(found.rotation, begins.rotation, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="divides width 6, the rows have width 5"):
        find_subspaces(rows[:, :5], settings, begins=begins)


def test_duplicates_are_told() -> None:
    rows, _ = _planted(300, (3, 3))
    alone = find_subspaces(rows, _fast(3, 5)).history[-1]
    twice = find_subspaces(torch.cat((rows, rows)), _fast(3, 5)).history[-1]
    # an absent variable is a duplicate only up to rounding
    assert alone["zero_distances"] < 0.7 < twice["zero_distances"] == 1
    assert (alone["keys"], twice["keys"]) == (300, 600)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    case, generator = CASES["blocks"](), torch.Generator().manual_seed(4)
    x = torch.randn(100, 5, 3, generator=generator)
    batch = {"x": x, "valid": torch.ones(100, 5).bool()}
    return write_store(case.model, [batch], ["first"], Where("valid"), tmp_path / "store")


def test_a_store_will_do_and_a_fit_goes_on(store: Store, tmp_path: Path) -> None:
    settings = replace(_fast(4, 12), apart=True)
    whole = find_subspaces(store, settings, site="first")
    assert 300 < float(whole.history[-1]["keys"]) <= 419
    path = tmp_path / "snapshot"
    find_subspaces(store, settings, site="first", callbacks=[Checkpoint(path, 5)])
    again = find_subspaces(store, settings, site="first", callbacks=[Checkpoint(path, 5)])
    assert torch.equal(again.what.rotation, whole.what.rotation)


def test_what_cannot_be_partitioned_is_refused(store: Store) -> None:
    rows, settings = _planted(100, (3, 3))[0], _fast(3, 5)
    damaged = rows.clone()
    damaged[7, 1] = torch.nan
    with pytest.raises(ValueError, match="rows should be finite: row 7"):
        find_subspaces(damaged, settings)
    with pytest.raises(ValueError, match="rows should differ"):
        find_subspaces(torch.ones(100, 6), settings)
    with pytest.raises(ValueError, match="have 1 … 6 dimensions, not 7"):
        find_subspaces(rows, replace(settings, unit=7))
    with pytest.raises(ValueError, match="64 queries and 50 keys are more than the 50 rows"):
        find_subspaces(rows[:50], settings)
    with pytest.raises(ValueError, match="takes the documents of the rows"):
        find_subspaces(rows, replace(settings, apart=True))
    with pytest.raises(ValueError, match="documents were given, but the settings do not keep them apart"):
        find_subspaces(rows, settings, documents=torch.zeros(100).long())
    with pytest.raises(ValueError, match=r"rows in memory have no sites, 'resid\.0' was"):
        find_subspaces(rows, settings, site="resid.0")
    with pytest.raises(ValueError, match="a store knows the documents of its rows"):
        find_subspaces(store, settings, site="first", documents=torch.zeros(500).long())
