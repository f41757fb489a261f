"""Alignment: the subspace that decides is found from random starts, frames stay orthonormal, whole effects are aims."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from innerspace.learn.alignment import Frame, Interchange, align, exchanged
from innerspace.learn.trials import local
from innerspace.measure.patching import Contrast, Exchange, patching
from innerspace.network.model import Family, Model
from innerspace.network.site import Site, Where
from innerspace.network.trace import Trace

WIDTH = 12


class Decider(nn.Module):
    """Its output is decided by a plane of the state: in which quadrant of the plane the state lies."""

    def __init__(self, plane: Tensor) -> None:
        super().__init__()
        self.state, self.plane = nn.Identity(), nn.Parameter(plane)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self.state(x)[:, -1] @ self.plane.T).unbind(-1)
        return 3 * a.tanh() * b.tanh()


class DeciderFamily(Family):
    def sites(self, module: nn.Module) -> list[Site]:
        return [Site("state", "state", WIDTH)]

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        return {"y": module(batch)}


def orthonormal(size: int, seed: int) -> Tensor:
    noise = torch.randn(WIDTH, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(noise)[0].T.float()


def contrasts(model: Model, count: int, seed: int) -> list[Contrast[Tensor]]:
    """Random inputs and counterfactuals with the opposite answer."""
    generator, found = torch.Generator().manual_seed(seed), list[Contrast[Tensor]]()
    while len(found) < count:
        x, other = torch.randn(2, 400, 2, WIDTH, generator=generator)
        with torch.no_grad():
            answer, counter = model.run(x).output["y"], model.run(other).output["y"]
        kept = ((answer * counter < 0) & (answer.abs() > 0.5) & (counter.abs() > 0.5)).nonzero().flatten()[:64]
        sign = answer[kept].sign()
        metric = lambda trace, sign=sign: trace.output["y"] * sign  # noqa: E731
        found.append(Contrast(x[kept], other[kept], Where("last"), metric))
    return found


def output(trace: Trace) -> Tensor:
    return trace.output["y"]


def sines(one: Tensor, other: Tensor) -> Tensor:
    """Of the principal angles between two subspaces."""
    return (one - one @ other.T @ other).norm(dim=-1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_plane_that_decides_is_found(seed: int) -> None:
    plane = orthonormal(2, seed + 10)
    model = Model(Decider(plane), DeciderFamily())
    pairs = [Contrast(c.clean, c.other, c.positions, output) for c in contrasts(model, 6, seed)]
    found = align(model, pairs[:4], pairs[4:], "state", 2, goal="whole", steps=80, turn=0.25, seed=seed)
    assert sines(plane, found.frame.basis.detach()).max() < 0.03
    assert abs(found.share.mean - 1) < 0.03
    assert found.accuracy is None
    # in units of the whole effect the loss begins near one
    assert found.history[-1]["loss"] < 1e-3
    # its subspaces are the bound for others
    judged = patching(model, contrasts(model, 2, 50), "state", found.frame.to_subspaces(), replicates=5)
    assert judged.parts[0].size == 2
    assert judged.parts[0].sufficiency.mean > 0.97
    assert judged.parts[0].necessity.mean > 0.97


def test_answers_are_taken_along() -> None:
    plane = orthonormal(2, 10)
    model = Model(Decider(plane), DeciderFamily())
    learned, held_out = contrasts(model, 6, 0), contrasts(model, 3, 100)
    found = align(model, learned, held_out, "state", 2, steps=50, turn=0.35)
    # to go beyond the counterfactual's answer pays as well, so the plane is not quite the aim
    assert sines(plane, found.frame.basis.detach()).max() < 0.15
    assert found.accuracy is not None
    assert found.accuracy_whole is not None
    assert found.accuracy_whole.mean == 1
    assert found.accuracy.mean > 0.97
    short = align(model, learned, held_out, "state", 1, steps=50, turn=0.35)
    assert short.accuracy is not None
    assert 0.4 < short.accuracy.mean < found.accuracy.mean


@pytest.mark.parametrize("size", [1, 5, WIDTH])
def test_frames_stay_on_their_manifold(size: int) -> None:
    frame = Frame.random(WIDTH, size, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(frame.parameters(), lr=0.1)
    target = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))
    for _ in range(60):
        optimizer.zero_grad()
        (frame.basis @ target @ frame.basis.T).square().sum().backward()
        before = frame.basis.grad.clone() if frame.basis.grad is not None else torch.zeros(())
        frame.project_gradient()
        assert frame.basis.grad is not None
        # what is invariant under turns within the frame has a gradient without such turns but for rounding
        torch.testing.assert_close(before @ frame.basis.T, (before @ frame.basis.T).T, rtol=1e-3, atol=1e-3)
        assert (frame.basis.grad @ frame.basis.T).abs().max() < 1e-3 * max(1.0, float(before.abs().max()))
        optimizer.step()
        frame.retract()
    assert (frame.basis @ frame.basis.T - torch.eye(size)).abs().max() < 1e-6


def test_a_frame_is_a_decomposition_and_makes_subspaces() -> None:
    rows = torch.randn(3, WIDTH)
    frame, x = Frame(rows), torch.randn(5, WIDTH)
    z, dz = frame.encode(x).z, torch.randn(5, 3)
    torch.testing.assert_close(frame.decode(z + dz) - frame.decode(z), frame.lift(dz))
    torch.testing.assert_close(frame.encode(frame.decode(z)).z, z)
    # the rows span what was given
    torch.testing.assert_close(rows @ frame.basis.T @ frame.basis, rows, rtol=1e-5, atol=1e-5)
    subspaces = frame.to_subspaces()
    assert subspaces.sizes == (3, WIDTH - 3)
    torch.testing.assert_close(subspaces.basis(0), frame.basis)
    assert Frame(orthonormal(WIDTH, 0)).to_subspaces().sizes == (WIDTH,)


def test_a_stream_of_exchanges_goes_on_where_it_stood() -> None:
    model = Model(Decider(orthonormal(2, 10)), DeciderFamily())
    exchanges = [Exchange(model, contrast, "state") for contrast in contrasts(model, 3, 0)]
    frame, one, other = Frame(orthonormal(2, 3)), exchanged(exchanges, 5), exchanged(exchanges, 5)
    for _ in range(4):
        one.draw()
    other.restore(one.state())
    for _ in range(4):
        a, b = (stream.draw().trial(frame) for stream in (one, other))
        assert torch.equal(a.clean, b.clean)
    with pytest.raises(ValueError, match="the stream has seed 6, the one to continue had seed 5"):
        exchanged(exchanges, 6).restore(one.state())


def test_what_cannot_be_is_refused() -> None:
    model = Model(Decider(orthonormal(2, 10)), DeciderFamily())
    (pair,) = contrasts(model, 1, 0)
    with pytest.raises(ValueError, match="others to judge by are needed; got 1 and 0"):
        align(model, [pair], [], "state", 1)
    with pytest.raises(ValueError, match="a frame in a space of width 12 has 1 … 12 directions, not 13"):
        align(model, [pair], [pair], "state", 13)
    same = Contrast(pair.clean, pair.clean, pair.positions, pair.metric)
    with pytest.raises(ValueError, match="exchanging the whole state has no effect"):
        align(model, [same], [pair], "state", 1)
    with pytest.raises(ValueError, match="needs independent finite rows; the 2 of width 12 are not"):
        Frame(torch.ones(2, WIDTH))
    trial = local(torch.randn(8, WIDTH), 4, 0).draw().trial(Frame(orthonormal(1, 0)))
    with pytest.raises(ValueError, match="interchange judges exchanges between inputs, not a Trial"):
        Interchange()(trial)
    assert Interchange.from_json(Interchange("whole").to_json()) == Interchange("whole")
