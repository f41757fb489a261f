import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from innerspace.motion.framing import Framing, frame
from innerspace.motion.lanes import Route, crossing_lane, road_lanes
from innerspace.motion.simulate import Simulated, Simulation, simulate
from innerspace.motion.traffic import LIMITS, Motion, headway, roll_out

EXACT = {"position_noise": 0.0, "velocity_noise": 0.0, "heading_noise": 0.0, "dropout": 0.0}
SPLITS = pytest.mark.parametrize("confounded", [False, True])


@cache
def exact(confounded: bool) -> Simulated:
    return simulate(Simulation(scenes=800, seed=1, confounded=confounded, **EXACT))


def tracks(simulated: Simulated, targets_only: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Position, unwrapped heading, signed speed and kind of every agent, [agents, steps]."""
    pairs = [(scene, slice(len(scene.target) if targets_only else None)) for scene in simulated.scenes]
    names = ("position", "heading", "velocity", "kind")
    position, heading, velocity, kind = (np.concatenate([getattr(s, name)[c] for s, c in pairs]) for name in names)
    speed = velocity[..., 0] * np.cos(heading) + velocity[..., 1] * np.sin(heading)
    return position, np.unwrap(heading), speed, kind


def turned(simulated: Simulated) -> np.ndarray:
    """Net heading change of the targets over the history, degrees."""
    _, heading, _, _ = tracks(simulated)
    return np.degrees(heading[:, 10] - heading[:, 0])


def words(simulated: Simulated) -> dict[str, np.ndarray]:
    factors = simulated.factors
    mean = factors.speed - factors.acceleration / 2
    return {
        "speed": np.select([mean < 0, mean < 0.25, mean < 6.94, mean < 13.89], [0, 1, 2, 3], 4),
        "acceleration": np.digitize(factors.acceleration, [-0.5, 0.5]),
        "direction": np.digitize(turned(simulated), [-10.0, 10.0]),
    }


def last_derivative(values: np.ndarray) -> np.ndarray:
    """At the current step, from it and the two before; exact for parabolas."""
    return (3 * values[:, 10] - 4 * values[:, 9] + values[:, 8]) / 0.2


@SPLITS
def test_factors_are_the_finite_differences_of_exact_tracks(confounded: bool) -> None:
    simulated = exact(confounded)
    factors = simulated.factors
    position, heading, speed, kind = tracks(simulated)
    np.testing.assert_allclose(speed[:, 10], factors.speed, atol=1e-9)
    np.testing.assert_allclose(last_derivative(speed), factors.acceleration, atol=1e-9)
    np.testing.assert_allclose(last_derivative(heading), factors.yaw_rate, atol=1e-9)
    np.testing.assert_array_equal(kind, factors.kind)
    way = last_derivative(position)
    np.testing.assert_allclose(np.hypot(*way.T), np.abs(factors.speed), rtol=5e-3, atol=1e-6)


@SPLITS
def test_the_history_has_constant_acceleration(confounded: bool) -> None:
    _, _, speed, _ = tracks(exact(confounded))
    gain = np.diff(speed[:, :11]) / 0.1
    assert np.ptp(gain, axis=1).max() < 1e-9


def test_rows_are_in_the_order_of_frame() -> None:
    simulated = exact(False)
    batch = frame(simulated.scenes, Framing())
    np.testing.assert_array_equal(batch.target.kind.numpy(), simulated.factors.kind)
    signed = batch.target.velocity[:, -1, 0].numpy()
    np.testing.assert_allclose(signed, simulated.factors.speed, atol=1e-4)


@SPLITS
def test_velocity_is_the_change_of_position_along_the_heading(confounded: bool) -> None:
    position, heading, speed, _ = tracks(exact(confounded), targets_only=False)
    ahead = np.stack((np.cos(heading), np.sin(heading)), -1)
    velocity = speed[..., None] * ahead
    step = np.diff(position, axis=1) / 0.1
    assert np.abs(step - (velocity[:, 1:] + velocity[:, :-1]) / 2).max() < 0.35
    assert np.abs(step - (velocity[:, 1:] + velocity[:, :-1]) / 2).mean() < 0.01


def test_who_backs_up_looks_the_other_way() -> None:
    simulated = exact(False)
    position, heading, _, _ = tracks(simulated)
    way = position[:, 10] - position[:, 0]
    along = way[:, 0] * np.cos(heading[:, 10]) + way[:, 1] * np.sin(heading[:, 10])
    backwards = simulated.factors.speed < 0
    assert 0.02 < backwards.mean() < 0.1
    assert (along[backwards] < -0.5).all()
    assert (along[~backwards] >= -1e-9).all()


@SPLITS
def test_nobody_exceeds_the_limits_of_its_type(confounded: bool) -> None:
    _, heading, speed, kind = tracks(exact(confounded), targets_only=False)
    limits = LIMITS.of(kind if confounded else np.zeros_like(kind))
    gain, yaw_rate = np.diff(speed) / 0.1, np.diff(heading) / 0.1
    lateral = np.abs(yaw_rate * speed[:, 1:])
    assert (np.abs(speed).max(1) <= limits.speed + 1e-9).all()
    assert (gain.max(1) <= limits.acceleration + 1e-9).all()
    assert (-gain.min(1) <= limits.braking + 1e-9).all()
    assert (lateral.max(1) <= 1.05 * limits.lateral).all()
    assert (np.abs(yaw_rate).max(1) <= 1.05 * limits.yaw_rate).all()


def test_type_is_independent_of_motion_unless_confounded() -> None:
    for confounded, least, most in ((False, 0.0, 0.01), (True, 0.1, 1.0)):
        simulated = simulate(Simulation(scenes=800, confounded=confounded, future=1, agents=4, targets=4, **EXACT))
        kind = simulated.factors.kind
        share = {word: normalized_mutual_info_score(kind, ids) for word, ids in words(simulated).items()}
        assert least <= share["speed"] < most
        if not confounded:
            assert max(share.values()) < 0.01
            pairs = words(simulated)["speed"] * 3 + words(simulated)["direction"]
            assert normalized_mutual_info_score(kind, pairs) < 0.01


def test_words_are_well_populated_and_clear_cut() -> None:
    simulated = exact(False)
    for word, ids in words(simulated).items():
        share = np.bincount(ids) / len(ids)
        assert share.min() > (0.03 if word == "speed" else 0.08), (word, share)
    strength, turn = np.abs(simulated.factors.acceleration), np.abs(turned(simulated))
    assert not ((strength > 0.25 + 1e-9) & (strength < 0.9 - 1e-9)).any()
    assert not ((turn > 4) & (turn < 18 - 1e-6)).any()
    assert turn.max() < 45 + 1e-6


def test_the_future_follows_from_the_history() -> None:
    simulated = exact(False)
    factors, batch = simulated.factors, frame(simulated.scenes, Framing())
    t = np.arange(1, 61) * 0.1
    rest = np.broadcast_to(factors.speed[:, None], (len(factors.speed), len(t)))
    speed = rest + factors.acceleration[:, None] * 2.2 * (1 - np.exp(-t / 2.2))
    speed = np.where(rest < 0, np.minimum(speed, 0), np.maximum(speed, 0))
    curvature = np.divide(factors.yaw_rate, factors.speed, out=np.zeros_like(rest[:, 0]), where=rest[:, 0] != 0)
    turn = np.clip(np.cumsum(speed * curvature[:, None] * 0.1, 1), -0.8, 0.8)

    def error(speed: np.ndarray, heading: np.ndarray) -> float:
        steps = np.stack((speed * np.cos(heading), speed * np.sin(heading)), -1) * 0.1
        return float(np.linalg.norm(steps.cumsum(1)[:, 1::2] - batch.future.numpy(), axis=-1).mean())

    assert error(speed, turn) < 0.65 * error(rest, np.zeros_like(turn))


def test_the_same_seed_gives_the_same_scenes() -> None:
    first, second, other = (simulate(Simulation(scenes=20, seed=seed)) for seed in (3, 3, 4))
    for a, b in zip(first.scenes, second.scenes, strict=True):
        for field in dataclasses.fields(a):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
    assert not np.array_equal(first.factors.speed, other.factors.speed)
    assert first.scenes[0].group == first.scenes[0].name != other.scenes[0].name


@pytest.mark.parametrize("seed", range(6))
def test_a_single_scene_can_be_simulated(seed: int) -> None:
    simulated = simulate(Simulation(scenes=1, seed=seed, agents=1, targets=1))
    assert [len(scene.kind) for scene in simulated.scenes] == [1]


def test_dropouts_leave_the_current_step() -> None:
    simulated = simulate(Simulation(scenes=150, dropout=0.3))
    valid = np.concatenate([scene.valid for scene in simulated.scenes])
    assert valid[:, 10].all()
    assert np.delete(valid, 10, axis=1).mean() == pytest.approx(0.7, abs=0.01)
    assert all((scene.position[~scene.valid] == 0).all() for scene in simulated.scenes)


def test_noise_has_its_size_and_the_style_of_the_type() -> None:
    settings = Simulation(scenes=300, dropout=0.0)
    noisy, clean = simulate(settings), simulate(dataclasses.replace(settings, **EXACT))
    (p, h, _, kind), (q, g, _, _) = tracks(noisy, targets_only=False), tracks(clean, targets_only=False)
    np.testing.assert_array_equal(noisy.factors.speed, clean.factors.speed)
    turn = (h - g + np.pi) % (2 * np.pi) - np.pi
    for of, meters, radians in ((0, 0.03, 0.005), (1, 0.018, 0.02), (2, 0.024, 0.01)):
        assert (p - q)[kind == of].std() == pytest.approx(meters, rel=0.05)
        assert turn[kind == of].std() == pytest.approx(radians, rel=0.05)


def test_headings_are_wrapped() -> None:
    heading = np.concatenate([scene.heading.ravel() for scene in exact(False).scenes])
    assert heading.min() >= -np.pi
    assert heading.max() < np.pi


@pytest.mark.parametrize("history", [3, 50])
def test_other_windows_keep_their_promises(history: int) -> None:
    settings = Simulation(scenes=60, history=history, future=10, hz=5.0, agents=12, targets=4, **EXACT)
    simulated = simulate(settings)
    scene = simulated.scenes[0]
    assert scene.now == history - 1
    assert scene.valid.shape[1] == history + 10
    assert simulated.factors.speed.shape == (240,)
    assert len(frame(simulated.scenes, Framing(history=history, future=10))) == 240
    heading = np.unwrap(np.concatenate([scene.heading[:4] for scene in simulated.scenes]))
    assert np.degrees(np.abs(heading[:, history - 1] - heading[:, 0])).max() < 45 + 1e-6


def test_targets_on_the_lanes_are_near_a_line_and_maps_fit_a_framing() -> None:
    near = list[float]()
    for scene in exact(False).scenes[:200]:
        assert 30 <= len(scene.line) <= 45
        middle = (scene.line[:, 1:] + scene.line[:, :-1]).reshape(-1, 2) / 2
        nodes = np.concatenate((scene.line.reshape(-1, 2), middle))
        near += [float(np.linalg.norm(nodes - scene.position[i, 10], axis=1).min()) for i in scene.target]
    assert np.mean(np.array(near) < 1.6) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenes": 0}, "scenes should be at least 1"),
        ({"history": 2}, "history should be at least 3"),
        ({"future": 0}, "future should be at least 1"),
        ({"targets": 5}, "agents should be at least 5|room for 4 targets"),
        ({"targets": 3, "agents": 2}, "agents should be at least 3"),
        ({"hz": 0.0}, "hz should be"),
        ({"dropout": 1.0}, "dropout should be in"),
        ({"position_noise": -1.0}, "position_noise should be"),
        ({"heading_noise": float("nan")}, "heading_noise should be"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simulation(**changes)


def test_settings_go_to_json_and_back() -> None:
    settings = Simulation(scenes=7, confounded=True)
    assert Simulation.from_json(settings.to_json()) == settings


def one_route(curvature: float, length: float) -> Route:
    return Route(*(np.array([value]) for value in (2.0, -1.0, 0.7, curvature, length)))


@pytest.mark.parametrize("curvature", [0.0, 0.05, -0.4])
def test_poses_are_the_integral_of_the_heading(curvature: float) -> None:
    route = one_route(curvature, 5.0)
    s = np.linspace(-4, 12, 16001)
    position, heading = route.poses(s)
    middle = (heading[1:] + heading[:-1]) / 2
    step = np.diff(s)[:, None] * np.stack((np.cos(middle), np.sin(middle)), -1)
    np.testing.assert_allclose(np.diff(position, axis=0), step, atol=1e-9)
    np.testing.assert_allclose(heading[-1] - heading[0], 5 * curvature, atol=1e-12)
    np.testing.assert_allclose(route.poses(np.zeros(1))[0], [[2.0, -1.0]])


def test_shifting_and_reversing_keep_the_curve() -> None:
    route, s = one_route(0.1, 6.0), np.array([0.0, 2.0, 6.0])
    position, heading = route.poses(s)
    left, left_heading = route.shifted(np.array(2.0)).poses(s * 0.8)
    np.testing.assert_allclose(left, position + 2 * np.stack((-np.sin(heading), np.cos(heading)), -1), atol=1e-12)
    np.testing.assert_allclose(left_heading, heading, atol=1e-12)
    back, back_heading = route.reversed().poses(6.0 - s)
    np.testing.assert_allclose(back, position, atol=1e-12)
    np.testing.assert_allclose(back_heading - np.pi, heading, atol=1e-12)


def test_every_turn_of_a_crossing_ends_on_another_lane() -> None:
    quarter = np.pi / 2
    for side, radius in ((1.0, 9.0), (-1.0, 4.0)):
        turn = crossing_lane(np.array([0.0]), np.array([side]), np.array([radius]))
        exit_lane = crossing_lane(np.array([side % 4]), np.zeros(1), np.ones(1))
        end, heading = turn.poses(turn.length)
        np.testing.assert_allclose(heading, side * quarter, atol=1e-12)
        np.testing.assert_allclose(end[0, 0], exit_lane.poses(np.zeros(1))[0][0, 0], atol=1e-12)
    lanes = road_lanes(one_route(0.0, 0.0))
    assert lanes.x.shape == (1, 4)


def still(speed: list[float], acceleration: list[float], stops: list[bool]) -> Motion:
    v, a = np.array([speed]), np.array([acceleration])
    return Motion(v, a, v, v, v + 2 * a, np.full_like(v, 2.0), np.array([stops]), 0 * v, np.ones_like(v))


def alone(motion: Motion, leader: list[int], place: list[float]) -> tuple[np.ndarray, np.ndarray]:
    shape = motion.speed.shape
    kind, straight = np.zeros(shape, dtype=np.int64), Route(*np.zeros((5, *shape)))
    rng, length = np.random.default_rng(0), np.full(shape, 4.0)
    place_now, ahead = np.array([place]), np.array([leader])
    return roll_out(rng, motion, LIMITS.of(kind), straight, place_now, ahead, length, 3, 150, 0.1)


def test_who_stops_brakes_evenly_to_the_stopping_distance() -> None:
    s, v = alone(still([8.0], [-2.0], [True]), [-1], [0.0])
    t = np.arange(1, 40) * 0.1
    np.testing.assert_allclose(v[0, 0, 3:42], 8 - 2 * t, atol=1e-9)
    assert s[0, 0, -1] == pytest.approx(16.0, abs=1e-3)


def test_who_is_free_relaxes_to_the_cruising_speed() -> None:
    count = 400
    _, v = alone(still([8.0] * count, [1.0] * count, [False] * count), [-1] * count, [0.0] * count)
    t = np.arange(0, 60) * 0.1
    np.testing.assert_allclose(v[0, :, 2:62].mean(0), 10 - 2 * np.exp(-t / 2), atol=0.1)


def test_followers_stop_behind_a_standing_leader() -> None:
    motion = still([0.0, 9.0, 9.0], [0.0, 0.0, 0.0], [False] * 3)
    limits = LIMITS.of(np.zeros(1, dtype=np.int64))
    gap = float(headway(limits, np.array([9.0]), np.zeros(1), np.zeros(1))[0])
    s, v = alone(motion, [-1, 0, 1], [0.0, -gap - 4, -gap - 30])
    assert np.diff(v[0, 1])[2] == pytest.approx(0, abs=0.15)
    assert (s[0, 0] - s[0, 1]).min() > 4
    assert (s[0, 1] - s[0, 2]).min() > 4
    assert v[0, :, -1].max() < 0.3
