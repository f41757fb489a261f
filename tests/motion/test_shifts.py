"""Shifts on paths with closed forms: straight lines, arcs, gaps."""

import dataclasses
import math

import numpy as np
import pytest

from innerspace.motion.framing import Framing, frame
from innerspace.motion.scenes import Scene
from innerspace.motion.shifts import LateralAcceleration, SamplingRate, Shift, Speed
from innerspace.motion.simulate import Simulation, simulate

NOW, STEPS = 10, 41
TIME = (np.arange(STEPS) - NOW) / 10
RADIUS, SPEED = 20.0, 10.0
EVERY: tuple[Shift, ...] = (
    Speed(0.5),
    Speed(1.5),
    Speed(0.5, history=True),
    Speed(1.5, history=True),
    LateralAcceleration(1.0),
    LateralAcceleration(1.0, history=True),
    SamplingRate(5.0),
    SamplingRate(20.0),
    SamplingRate(8.0),
    SamplingRate(5.0, told=False),
    SamplingRate(20.0, told=False),
)


def scene(**changes: np.ndarray) -> Scene:
    """The first agent drives straight north-east, the second on an arc to the left, both at 10 m/s."""
    way, angle = SPEED * TIME, SPEED * TIME / RADIUS
    straight = np.array([3.0, -2.0]) + way[:, None] * np.array([0.6, 0.8])
    arc = RADIUS * np.column_stack((np.sin(angle), 1 - np.cos(angle)))
    heading = np.stack((np.full(STEPS, math.atan2(0.8, 0.6)), angle))
    fields = {
        "position": np.stack((straight, arc)),
        "heading": heading,
        "velocity": SPEED * np.stack((np.cos(heading), np.sin(heading)), -1),
        "valid": np.ones((2, STEPS), dtype=bool),
        "target": np.arange(2),
    }
    return Scene(
        name="two",
        size=np.ones((2, 3)),
        kind=np.zeros(2, dtype=np.int64),
        line=np.zeros((0, 2, 2)),
        line_kind=np.zeros(0, dtype=np.int64),
        line_valid=np.zeros((0, 2), dtype=bool),
        hz=10.0,
        now=NOW,
        group="two",
        **fields | changes,
    )


def same(one: Scene, other: Scene, steps: slice = slice(None), agents: slice = slice(None)) -> bool:
    """Whether what moves is equal bit for bit."""
    names = ("position", "heading", "velocity", "valid")
    return all(np.array_equal(getattr(one, n)[agents, steps], getattr(other, n)[agents, steps]) for n in names)


@pytest.mark.parametrize(
    "shift", [Speed(1.0), Speed(1.0, history=True), LateralAcceleration(9.0), SamplingRate(10.0), SamplingRate(20.0)]
)
def test_what_changes_nothing_is_the_identity(shift: Shift) -> None:
    assert same(shift.apply(scene()), scene())


@pytest.mark.parametrize("shift", [Speed(1.0), SamplingRate(10.0), SamplingRate(20.0)])
def test_what_changes_nothing_keeps_noise_and_gaps(shift: Shift) -> None:
    for drawn in simulate(Simulation(scenes=20, dropout=0.2)).scenes:
        found = shift.apply(drawn)
        # headings beyond half a turn are wrapped anew
        assert found.heading == pytest.approx(drawn.heading)
        assert same(dataclasses.replace(found, heading=drawn.heading), drawn)


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.25])
def test_on_a_straight_line_the_way_is_multiplied(factor: float) -> None:
    found = Speed(factor).apply(scene())
    ahead = slice(NOW + 1, None)
    valid = np.arange(1, STEPS - NOW) * factor <= STEPS - NOW - 1 + 1e-9
    assert np.array_equal(found.valid[0, ahead], valid)
    wanted = scene().position[0, NOW] + factor * SPEED * TIME[ahead, None] * np.array([0.6, 0.8])
    assert found.position[0, ahead][valid] == pytest.approx(wanted[valid])
    assert found.velocity[0, ahead][valid] == pytest.approx(factor * scene().velocity[0, ahead][valid])
    assert found.heading[0, ahead][valid] == pytest.approx(scene().heading[0, ahead][valid])
    assert same(found, scene(), slice(0, NOW + 1))
    assert not found.position[0, ahead][~valid].any()


@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_on_an_arc_the_curvature_is_kept(factor: float) -> None:
    found = Speed(factor).apply(scene())
    seen = np.flatnonzero(found.valid[1, NOW + 1 :]) + NOW + 1
    # chords between steps of 1 m leave the arc by 1 / (8 R) = 6 mm
    assert np.hypot(*(found.position[1, seen] - [0, RADIUS]).T) == pytest.approx(RADIUS, abs=0.0065)
    assert found.heading[1, seen] == pytest.approx(factor * SPEED * TIME[seen] / RADIUS)
    tangent = np.column_stack((np.cos(found.heading[1, seen]), np.sin(found.heading[1, seen])))
    assert found.velocity[1, seen] == pytest.approx(factor * SPEED * tangent)
    length = np.hypot(*np.diff(found.position[1, seen], axis=0).T)
    assert np.diff(found.heading[1, seen]) / length == pytest.approx(1 / RADIUS, rel=2e-3)


def test_the_history_moves_along_where_it_is_meant_to() -> None:
    found = Speed(0.5, history=True).apply(scene())
    assert found.position[0] == pytest.approx(
        scene().position[0, NOW] + 0.5 * SPEED * TIME[:, None] * np.array([0.6, 0.8])
    )
    assert found.velocity[0] == pytest.approx(0.5 * scene().velocity[0])
    assert found.heading[1] == pytest.approx(0.5 * SPEED * TIME / RADIUS)
    assert np.array_equal(found.position[:, NOW], scene().position[:, NOW])
    fast = Speed(2.0, history=True).apply(scene())
    assert fast.valid[0].nonzero()[0].tolist() == list(range(NOW - NOW // 2, NOW + (STEPS - NOW - 1) // 2 + 1))


def test_half_the_speed_of_twice_the_speed_is_the_speed() -> None:
    there = Speed(0.5, history=True).apply(scene())
    back = Speed(2.0, history=True).apply(there)
    assert back.valid[0].sum() == NOW // 2 + 1 + (STEPS - NOW - 1) // 2
    seen = back.valid[0]
    assert back.position[0, seen] == pytest.approx(scene().position[0, seen])


def test_nothing_is_put_where_nothing_was_seen() -> None:
    valid = np.ones((2, STEPS), dtype=bool)
    valid[0, NOW + 5] = False
    valid[1, NOW] = False
    given = scene(valid=valid, target=np.array([0]))
    found = Speed(0.5).apply(given)
    # the gap is passed at steps 9 to 11, and the missing step is still missing
    assert np.flatnonzero(~found.valid[0, NOW:]).tolist() == [5, 9, 10, 11]
    assert found.position[0, NOW + 20] == pytest.approx(scene().position[0, NOW + 10])
    assert same(found, given, agents=slice(1, 2))
    # what stands where nothing is valid plays no part
    position = given.position.copy()
    position[0, NOW + 5] = np.nan
    assert same(Speed(0.5).apply(dataclasses.replace(given, position=position)), found)


def test_who_stops_is_not_sent_beyond_the_stop() -> None:
    given = scene()
    position, velocity = given.position.copy(), given.velocity.copy()
    position[0, NOW + 20 :], velocity[0, NOW + 20 :] = position[0, NOW + 20], 0.0
    stopping = dataclasses.replace(given, position=position, velocity=velocity)
    slow, fast = Speed(0.5).apply(stopping), Speed(1.25).apply(stopping)
    assert slow.valid[0].all()
    assert slow.position[0, NOW + 20 :] == pytest.approx(np.broadcast_to(position[0, NOW + 10], (11, 2)))
    assert np.flatnonzero(fast.valid[0]).tolist() == list(range(NOW + 16 + 1))


def test_curves_are_taken_no_faster_than_allowed() -> None:
    # v² / R = 5 m/s², a fourth of which half the speed leaves
    found = LateralAcceleration(1.25).apply(scene())
    assert same(found, scene(), agents=slice(0, 1))
    ahead = slice(NOW + 1, None)
    assert found.valid.all()
    assert found.heading[1, ahead] == pytest.approx(0.5 * SPEED * TIME[ahead] / RADIUS, rel=1e-3)
    assert np.hypot(*found.velocity[1, ahead].T) == pytest.approx(0.5 * SPEED, rel=1e-3)
    assert same(found, scene(), slice(0, NOW + 1))
    both = LateralAcceleration(1.25, history=True).apply(scene())
    assert both.heading[1] == pytest.approx(0.5 * SPEED * TIME / RADIUS, rel=1e-3)
    assert np.hypot(*both.velocity[1].T) == pytest.approx(0.5 * SPEED, rel=1e-3)


def test_before_a_curve_nobody_is_late() -> None:
    given = scene()
    position, heading, velocity = given.position.copy(), given.heading.copy(), given.velocity.copy()
    bend = NOW + 10
    angle = np.maximum(np.arange(STEPS) - bend, 0) / RADIUS
    heading[1] = angle
    velocity[1] = SPEED * np.column_stack((np.cos(angle), np.sin(angle)))
    steps = np.column_stack((np.cos(angle), np.sin(angle)))
    position[1] = np.cumsum(steps, axis=0) - np.cumsum(steps, axis=0)[NOW]
    bent = dataclasses.replace(given, position=position, heading=heading, velocity=velocity)
    found = LateralAcceleration(1.25).apply(bent)
    # the acceleration is measured half a second ahead
    assert found.position[1, : bend - 5] == pytest.approx(position[1, : bend - 5])
    way = np.hypot(*np.diff(found.position[1], axis=0).T)
    assert way[-5:] == pytest.approx(0.5, rel=0.01)
    assert found.heading[1, -1] == pytest.approx(heading[1, -1] / 2, rel=0.1)


def test_samples_in_between_are_interpolated() -> None:
    position = scene().position.copy()
    position[0, NOW - 1] += 1.0
    position[0, NOW - 2] += 0.5
    kinked = scene(position=position)
    found = SamplingRate(5.0).apply(kinked)
    assert found.valid.all()
    assert found.position[0, NOW - 2] == pytest.approx(position[0, NOW - 2])
    assert found.position[0, NOW - 1] == pytest.approx((position[0, NOW] + position[0, NOW - 2]) / 2)
    assert same(found, kinked, slice(NOW, None))
    # a step that is missing in the recording takes its neighbors along, if it was sampled
    valid = np.ones((2, STEPS), dtype=bool)
    valid[0, NOW - 4], valid[0, NOW - 7] = False, False
    assert np.flatnonzero(~SamplingRate(5.0).apply(scene(valid=valid)).valid[0]).tolist() == [5, 6, 7]


def test_a_rate_that_is_not_told_is_taken_for_another_speed() -> None:
    slow, fast = (SamplingRate(hz, told=False).apply(scene()) for hz in (20.0, 5.0))
    before = slice(0, NOW + 1)
    assert slow.position[0, before] == pytest.approx(Speed(0.5, history=True).apply(scene()).position[0, before])
    assert slow.velocity[0, before] == pytest.approx(0.5 * scene().velocity[0, before])
    assert fast.valid[0, before].tolist() == [False] * 5 + [True] * 6
    assert fast.position[0, 5:NOW] == pytest.approx(scene().position[0, 0:NOW:2])
    assert fast.velocity[0, 5] == pytest.approx(2 * scene().velocity[0, 0])
    for found in (slow, fast):
        assert same(found, scene(), slice(NOW + 1, None))


@pytest.mark.parametrize("shift", EVERY, ids=lambda shift: shift.label)
def test_every_shift_gives_scenes_that_can_be_framed(shift: Shift) -> None:
    drawn, framing = simulate(Simulation(scenes=8, seed=3)).scenes, Framing()
    plain, found = frame(drawn, framing), frame([shift.apply(one) for one in drawn], framing)
    assert np.array_equal(plain.origin, found.origin)
    assert np.array_equal(plain.yaw, found.yaw)
    read = [
        np.array_equal(getattr(part, name), getattr(same_part, name))
        for part, same_part in ((plain.target, found.target), (plain.others, found.others))
        for name in ("position", "velocity", "heading", "valid")
    ]
    assert all(read) == (not shift.seen or shift == SamplingRate(20.0))
    changed = not np.array_equal(plain.future, found.future)
    assert changed == (not isinstance(shift, SamplingRate))


@pytest.mark.parametrize(
    ("shift", "needed"),
    [
        (Speed(0.5), 0.5),
        (Speed(0.5, history=True), 1.0),
        (LateralAcceleration(2.0), None),
        (LateralAcceleration(2.0, history=True), 1.0),
        (SamplingRate(5.0), 1.0),
        (SamplingRate(20.0, told=False), 2.0),
    ],
)
def test_what_makes_up_for_a_shift(shift: Shift, needed: float | None) -> None:
    assert shift.compensation(10.0) == needed
    assert Shift.from_json(shift.to_json()) == shift


def test_labels_tell_shifts_apart() -> None:
    assert len({shift.label for shift in EVERY}) == len(EVERY)
    assert Speed(1.0).label == "no shift"


@pytest.mark.parametrize("number", [0.0, -1.0, math.nan])
def test_impossible_shifts_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="the factor should be positive and finite, it is"):
        Speed(number)
    with pytest.raises(ValueError, match="the limit should be positive, it is"):
        LateralAcceleration(number)
    with pytest.raises(ValueError, match="hz should be positive and finite, it is"):
        SamplingRate(number)
