"""Position 0 and principal directions: closed forms in a linear network, and an outlier that nothing reads."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.measure.first_position import Resample, first_position
from innerspace.network.model import Model
from innerspace.network.site import Site, Where
from innerspace.network.trace import Trace, Visit
from linear import WIDTH, LinearFamily, network

D = torch.float64


class Tokens(LinearFamily):
    """The same network, which reads three of its six coordinates, each of the last token only."""

    def forward(self, module: torch.nn.Module, batch: Any) -> Mapping[str, Tensor]:
        linear: Any = module
        return {"y": (linear.hidden(batch)[:, -1] @ linear.weight.T)[:, :3]}


def planted(rows: int = 300, tokens: int = 4) -> tuple[Model, Tensor, Tensor]:
    """States with an outlier at position 0 along variable 5, which nothing reads and which varies most everywhere."""
    plain, rotation = network(3)
    scale = torch.tensor([2.0, 1, 0.5, 0.4, 0.3, 4], dtype=D)
    z = torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(1), dtype=D) * scale
    z[:, 0, 5] += 100
    return Model(plain.module, Tokens()), rotation, z @ rotation


def test_an_outlier_that_nothing_reads() -> None:
    model, rotation, x = planted()
    only = Subspaces(rotation, [1] * WIDTH).double()
    found = first_position(model, [x[:150], x[150:]], "x", {"whole": only}, directions=3, replicates=20)
    assert found.norm_at_first > 90
    assert found.norm_beyond < 10
    first = found.all[0]
    assert first.outlier > 0.999
    assert first.divergence.mean < 1e-3
    # variances 16 of 16 + 4 + 1 + 0.25 + 0.16 + 0.09
    assert first.variance == pytest.approx(16 / 21.5, rel=0.05)
    # without position 0 the order is that of the other variances, here the same
    assert [round(axis.variance, 1) for axis in found.beyond] == [0.7, 0.2, 0.0]
    # half the squared distance of two independent draws of variance σ² along an axis that is read: σ²
    second = found.beyond[1]
    assert second.divergence.mean == pytest.approx(4, rel=0.15)
    told = first.followed["whole"]
    assert told.beyond == pytest.approx(1)
    assert told.at_first == pytest.approx(1)
    assert told.gain_at_first == pytest.approx(1)
    assert told.aligned == pytest.approx(1 / WIDTH)
    assert told.nearest > 0.999
    assert len(found.random) == 5
    assert found.from_json(found.to_json()) == found


def test_what_a_dictionary_does_not_follow() -> None:
    model, rotation, x = planted()

    class Deaf(Subspaces):  # pyright: ignore[reportGeneralTypeIssues]
        """Says a constant along the last axis beyond a length, half of it below."""

        def decode(self, z: Any) -> Tensor:
            return super().decode(z * torch.tensor([1.0, 1, 1, 1, 1, 0.0]))

    deaf = Deaf(rotation, [1] * WIDTH).double()
    found = first_position(model, [x], "x", {"deaf": deaf}, directions=1, replicates=5)
    told = found.all[0].followed["deaf"]
    assert told.beyond is not None
    assert abs(told.beyond) < 0.2
    assert abs(told.gain_at_first) < 0.05
    # where the same token begins every sequence there is nothing to correlate
    x[:, 0] = x[0, 0]
    same = first_position(model, [x], "x", {"deaf": deaf}, directions=1, replicates=5)
    assert same.all[0].followed["deaf"].at_first is None


def test_resampling_exchanges_one_component_and_leaves_position_0() -> None:
    _, rotation, x = planted(5)
    direction = 3 * rotation[1]
    site = Site("x", "hidden", WIDTH)
    other = Resample(direction, Where("valid", skip=1), seed=4)(x, Visit(site, None, Trace(), lambda: None))
    assert torch.equal(other[:, 0], x[:, 0])
    unit = rotation[1]
    torch.testing.assert_close((other - x) - ((other - x) @ unit)[..., None] * unit, torch.zeros_like(x))
    before, after = ((states[:, 1:] @ unit).flatten().sort().values for states in (x, other))
    torch.testing.assert_close(before, after)
    assert not math.isclose(float((other - x).abs().max()), 0)
