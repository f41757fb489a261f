import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from innerspace.motion.framing import Batch, Framing, Tracks, frame
from innerspace.motion.scenes import Scene
from innerspace.motion.simulate import Simulation, simulate

FRAMING = Framing(history=6, future=12, stride=3, agents=4, lines=8)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return simulate(Simulation(scenes=8, seed=2, history=6, future=12, dropout=0.2)).scenes


def moved(scene: Scene, angle: float, shift: tuple[float, float]) -> Scene:
    """The same scene in a world that is turned, then shifted."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return dataclasses.replace(
        scene,
        position=scene.position @ turn.T + shift,
        velocity=scene.velocity @ turn.T,
        heading=scene.heading + angle,
        line=scene.line @ turn.T + shift,
    )


def tensors(batch: Batch) -> dict[str, Tensor]:
    """Every tensor of a batch by its path."""
    found = dict[str, Tensor]()
    for field in dataclasses.fields(batch):
        item = getattr(batch, field.name)
        if isinstance(item, Tracks):
            found |= {f"{field.name}.{part.name}": getattr(item, part.name) for part in dataclasses.fields(item)}
        elif isinstance(item, Tensor):
            found[field.name] = item
    return found


def straight(speed: float = 10.0, *, now: int = 5, steps: int = 18, others: tuple[float, ...] = ()) -> Scene:
    """A target that drives along +y, with others that stand so many meters ahead of where it is now."""
    agents = 1 + len(others)
    position = np.zeros((agents, steps, 2))
    position[0, :, 1] = speed * (np.arange(steps) - now) / 10
    position[1:, :, 1] = np.array(others)[:, None]
    velocity = np.zeros((agents, steps, 2))
    velocity[0, :, 1] = speed
    line = np.stack([np.array([[x, 0.0], [x, 5.0], [x, 10.0]]) for x in (20.0, -3.0, 9.0)])
    return Scene(
        name="straight",
        position=position,
        heading=np.full((agents, steps), math.pi / 2),
        velocity=velocity,
        size=np.full((agents, 3), 2.0),
        kind=np.arange(agents) % 3,
        valid=np.ones((agents, steps), dtype=bool),
        target=np.array([0]),
        line=line,
        line_kind=np.array([1, 2, 3]),
        line_valid=np.ones((3, 3), dtype=bool),
        hz=10.0,
        now=now,
        group="straight",
    )


@pytest.mark.parametrize(("angle", "shift"), [(0.0, (1e5, -3e4)), (2.5, (0.0, 0.0)), (-3.1, (-4e4, 2e5))])
def test_where_the_world_lies_does_not_matter(scenes: list[Scene], angle: float, shift: tuple[float, float]) -> None:
    here, there = frame(scenes, FRAMING), frame([moved(scene, angle, shift) for scene in scenes], FRAMING)
    expected, found = tensors(here), tensors(there)
    for name in expected:
        if name in ("origin", "yaw"):
            continue
        difference = found[name].double() - expected[name].double()
        if name.endswith("heading"):
            # −π and π are one heading
            difference = torch.remainder(difference + math.pi, 2 * math.pi) - math.pi
        assert difference.abs().max() < 1e-4, name
    assert not torch.allclose(here.origin, there.origin)


def test_the_target_stands_at_the_origin_and_looks_along_x(scenes: list[Scene]) -> None:
    batch = frame(scenes, FRAMING)
    assert batch.target.position[:, -1].abs().max() < 1e-6
    assert batch.target.heading[:, -1].abs().max() < 1e-6
    one = frame([straight()], FRAMING)
    torch.testing.assert_close(one.target.position[0, :, 0], torch.arange(-5.0, 1.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(one.target.velocity[0], torch.tensor([10.0, 0.0]).expand(6, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(one.future[0, :, 0], torch.tensor([3.0, 6.0, 9.0, 12.0]), atol=1e-5, rtol=0)
    assert one.future[0, :, 1].abs().max() < 1e-5
    assert (one.dt, one.interval) == pytest.approx((0.1, 0.3))


def test_the_nearest_come_first_and_the_others_are_left_out() -> None:
    scene = straight(others=(30.0, -4.0, 11.0, 2.0, 60.0, 7.0))
    batch = frame([scene], dataclasses.replace(FRAMING, agents=4, lines=2))
    assert batch.others.position[0, :, -1, 0].tolist() == pytest.approx([2.0, -4.0, 7.0, 11.0], abs=1e-5)
    assert batch.others.kind[0].tolist() == [4 % 3, 2 % 3, 6 % 3, 3 % 3]
    # the lane 3 m to the left of a target that looks along +y, then the one 9 m to its right
    assert batch.line_kind[0].tolist() == [2, 3]
    assert batch.line[0, :, 0, 1].tolist() == pytest.approx([3.0, -9.0], abs=1e-5)


def test_nearness_is_that_of_the_current_step_and_only_of_who_is_there(scenes: list[Scene]) -> None:
    batch = frame(scenes, dataclasses.replace(FRAMING, agents=6, lines=64))
    for tokens, present in (
        (batch.others.position[:, :, -1].norm(dim=-1), batch.others.valid[:, :, -1]),
        (batch.line.norm(dim=-1).masked_fill(~batch.line_valid, torch.inf).amin(-1), batch.line_valid.any(-1)),
    ):
        assert present.any(1).all()
        assert not present.all()
        assert (present[:, :-1] >= present[:, 1:]).all()
        distance = tokens.masked_fill(~present, torch.inf)
        assert (distance[:, :-1] <= distance[:, 1:] + 1e-4).all()
    scene = straight(others=(3.0, 8.0))
    scene.valid[1, scene.now] = False
    assert frame([scene], FRAMING).others.position[0, 0, -1, 0].item() == pytest.approx(8.0)


def test_what_is_masked_is_zero(scenes: list[Scene]) -> None:
    wild = []
    for scene in scenes:
        hidden = ~scene.valid
        position, velocity = scene.position.copy(), scene.velocity.copy()
        position[hidden], velocity[hidden] = np.nan, np.nan
        wild.append(dataclasses.replace(scene, position=position, velocity=velocity))
    batch = frame(wild, dataclasses.replace(FRAMING, agents=8, lines=64))
    for tracks in (batch.target, batch.others):
        assert not tracks.valid.all()
        for item in (tracks.position, tracks.velocity, tracks.heading):
            assert (item[~tracks.valid] == 0).all()
            assert item.isfinite().all()
    absent = ~batch.others.valid.any(-1)
    assert absent.any()
    assert (batch.others.size[absent] == 0).all()
    assert (batch.others.kind[absent] == 0).all()
    assert not batch.line_valid.all()
    assert (batch.line[~batch.line_valid] == 0).all()
    assert (batch.line_kind[~batch.line_valid.any(-1)] == 0).all()
    assert not batch.future_valid.all()
    assert (batch.future[~batch.future_valid] == 0).all()
    assert (batch.future_heading[~batch.future_valid] == 0).all()


def test_points_find_back_to_the_world(scenes: list[Scene]) -> None:
    far = [moved(scene, 1.0, (5e4, -5e4)) for scene in scenes]
    batch = frame(far, FRAMING)
    for points, valid, steps in (
        (batch.target.position, batch.target.valid, slice(0, 6)),
        (batch.future, batch.future_valid, slice(8, None, 3)),
    ):
        truth = np.stack(
            [far[i].position[agent, steps] for i, agent in zip(batch.scene.tolist(), batch.agent.tolist(), strict=True)]
        )
        torch.testing.assert_close(batch.to_world(points)[valid], torch.from_numpy(truth)[valid], atol=1e-3, rtol=0)
    assert torch.equal(batch.to_world(torch.zeros(len(batch), 2)), batch.origin)
    many = torch.zeros(len(batch), 3, 5, 2)
    assert torch.equal(batch.to_world(many), batch.origin[:, None, None].expand(-1, 3, 5, 2))


def test_what_lies_outside_the_scene_is_not_valid() -> None:
    batch = frame([straight(now=2, steps=8)], FRAMING)
    assert batch.target.valid[0].tolist() == [False] * 3 + [True] * 3
    assert batch.target.position[0, 3:, 0].tolist() == pytest.approx([-2.0, -1.0, 0.0], abs=1e-6)
    assert (batch.target.position[0, :3] == 0).all()
    # of the waypoints at steps 5, 8, 11, 14 the scene holds the first one
    assert batch.future_valid[0].tolist() == [True, False, False, False]
    assert batch.future[0, 0, 0].item() == pytest.approx(3.0, abs=1e-6)
    assert (batch.future[0, 1:] == 0).all()


def test_scenes_in_chunks_equal_scenes_one_by_one() -> None:
    scenes = simulate(Simulation(scenes=300, seed=4, history=6, future=12)).scenes
    scenes[7] = dataclasses.replace(scenes[7], target=np.zeros(0, dtype=np.int64))
    scenes[-1] = dataclasses.replace(scenes[-1], target=np.zeros(0, dtype=np.int64))
    whole = frame(scenes, FRAMING)
    assert len(whole) == 2 * 298
    seen = dict.fromkeys(whole.scene.tolist())
    assert list(seen) == [i for i in range(299) if i != 7]
    rows = tensors(whole)
    # chunks end behind row 256, so behind scenes 128 and 256
    for i in (0, 6, 8, 127, 128, 129, 200, 256, 257, 298):
        alone = tensors(frame([scenes[i]], FRAMING))
        here = whole.scene == i
        for name in rows:
            if name != "scene":
                torch.testing.assert_close(rows[name][here], alone[name], atol=1e-5, rtol=1e-5, msg=f"{name} of {i}")


def test_rows_can_be_taken_and_moved(scenes: list[Scene]) -> None:
    batch = frame(scenes, FRAMING)
    some = batch[torch.tensor([3, 1])].to("cpu")
    assert len(some) == 2
    for name, tensor in tensors(some).items():
        assert torch.equal(tensor, tensors(batch)[name][[3, 1]])
    assert (some.dt, some.interval) == (batch.dt, batch.interval)


def test_what_cannot_be_framed_is_refused(scenes: list[Scene]) -> None:
    with pytest.raises(ValueError, match=r"one sampling rate are needed, got \[2.0, 10.0\]"):
        frame([scenes[0], dataclasses.replace(scenes[1], hz=2.0)], FRAMING)
    with pytest.raises(ValueError, match="one sampling rate are needed, got no scene at all"):
        frame([], FRAMING)
    with pytest.raises(ValueError, match="none of the 1 scenes has an agent to forecast"):
        frame([dataclasses.replace(scenes[0], target=np.zeros(0, dtype=np.int64))], FRAMING)
    with pytest.raises(ValueError, match=r"scene 'simulated-2-0+': lines have 10 nodes, the framing allows 4"):
        frame(scenes, dataclasses.replace(FRAMING, nodes=4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"history": 0}, "framing: history should be at least 1, it is 0"),
        ({"lines": 0}, "framing: lines should be at least 1, it is 0"),
        ({"stride": -1}, "framing: stride should be at least 1, it is -1"),
        ({"future": 7}, "framing: stride 3 should divide future 7"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FRAMING, **settings)
    assert FRAMING.waypoints == 4
