import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from jaxtyping import config

from innerspace.motion.scenes import KINDS, LINE_KINDS, Scene, pack_lines


def scene(**changes: Any) -> Scene:
    """Two agents over four steps, the second of which is missing at the first step; a line of three nodes of four."""
    valid = np.ones((2, 4), dtype=bool)
    valid[1, 0] = False
    fields: dict[str, Any] = {
        "name": "crossing",
        "position": np.arange(16.0).reshape(2, 4, 2),
        "heading": np.zeros((2, 4)),
        "velocity": np.ones((2, 4, 2)),
        "size": np.ones((2, 3)),
        "kind": np.array([0, 1]),
        "valid": valid,
        "target": np.array([1]),
        "line": np.zeros((1, 4, 2)),
        "line_kind": np.array([3]),
        "line_valid": np.array([[True, True, True, False]]),
        "hz": 10.0,
        "now": 2,
        "group": "log",
    }
    return Scene(**(fields | changes))


def spoiled(name: str, place: tuple[int, ...], value: float) -> dict[str, Any]:
    array = getattr(scene(), name).copy()
    array[place] = value
    return {name: array}


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "position": ({"position": np.zeros((2, 3, 2))}, r"position should have shape \(2, 4, 2\), it has \(2, 3, 2\)"),
    "heading": ({"heading": np.zeros((1, 4))}, r"heading should have shape \(2, 4\), it has \(1, 4\)"),
    "velocity": ({"velocity": np.zeros((2, 5, 2))}, r"velocity should have shape \(2, 4, 2\), it has \(2, 5, 2\)"),
    "size": ({"size": np.zeros((3, 3))}, r"size should have shape \(2, 3\), it has \(3, 3\)"),
    "kind": ({"kind": np.zeros(3, dtype=int)}, r"kind should have shape \(2,\), it has \(3,\)"),
    "line": ({"line": np.zeros((1, 3, 2))}, r"line should have shape \(1, 4, 2\), it has \(1, 3, 2\)"),
    "line_kind": ({"line_kind": np.zeros(2, dtype=int)}, r"line_kind should have shape \(1,\), it has \(2,\)"),
    "rate": ({"hz": 0.0}, "the sampling rate should be positive, it is 0.0 Hz"),
    "rate nan": ({"hz": math.nan}, "the sampling rate should be positive, it is nan Hz"),
    "rate infinite": ({"hz": math.inf}, "the sampling rate should be positive, it is inf Hz"),
    "now late": ({"now": 4}, "the current step should be in 0…3, it is 4"),
    "now early": ({"now": -1}, "the current step should be in 0…3, it is -1"),
    "position nan": (
        spoiled("position", (1, 3, 0), math.nan),
        "position of agent 1 at step 3 is not finite though marked valid",
    ),
    "heading infinite": (
        spoiled("heading", (0, 0), math.inf),
        "heading of agent 0 at step 0 is not finite though marked valid",
    ),
    "velocity nan": (
        spoiled("velocity", (0, 2, 1), math.nan),
        "velocity of agent 0 at step 2 is not finite though marked valid",
    ),
    "map nan": (spoiled("line", (0, 1, 0), math.nan), "the map holds coordinates that are not finite"),
    "size nan": (spoiled("size", (0, 1), math.nan), "sizes should be finite and not negative"),
    "size negative": (spoiled("size", (0, 1), -0.1), "sizes should be finite and not negative"),
    "kind unknown": ({"kind": np.array([0, 3])}, "unknown agent type 3; known are vehicle, pedestrian, cyclist"),
    "line unknown": ({"line_kind": np.array([8])}, "unknown line type 8; known are lane, bus_lane"),
    "line negative": ({"line_kind": np.array([-1])}, "unknown line type -1; known are lane, bus_lane"),
    "target": ({"target": np.array([0, 2])}, "target 2 is no agent; there are 2"),
    "kind negative": ({"kind": np.array([2, -1])}, "unknown agent type -1; known are vehicle, pedestrian, cyclist"),
    "target negative": ({"target": np.array([1, -1])}, "target -1 is no agent; there are 2"),
    "target absent": ({"now": 0}, "target 1 is not valid at the current step 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_contradiction_is_refused_by_name(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # what the tests check at run time, a scene checks by itself
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    changes, message = FAULTS[fault]
    with pytest.raises(ValueError, match=f"^scene 'crossing': {message}"):
        scene(**changes)


def test_what_is_masked_may_hold_anything() -> None:
    for name, place in (("position", (1, 0, 0)), ("heading", (1, 0)), ("velocity", (1, 0, 1)), ("line", (0, 3, 1))):
        changes = spoiled(name, place, math.nan)
        assert np.isnan(getattr(scene(**changes), name)).sum() == 1


def test_nothing_to_forecast_and_no_map_are_fine() -> None:
    nothing = {"line": np.zeros((0, 4, 2)), "line_kind": np.zeros(0, dtype=int), "line_valid": np.zeros((0, 4), bool)}
    empty = scene(target=np.zeros(0, dtype=int), **nothing)
    assert dataclasses.replace(empty, name="again").name == "again"


def test_every_type_has_an_id() -> None:
    for i in range(len(KINDS)):
        assert scene(kind=np.array([i, 0])).kind[0] == i
    for i in range(len(LINE_KINDS)):
        assert scene(line_kind=np.array([i])).line_kind[0] == i


@pytest.mark.parametrize("count", [2, 4, 5, 7, 8, 20])
def test_pieces_share_their_end_nodes_and_make_up_the_line(count: int) -> None:
    rng = np.random.default_rng(count)
    line = rng.standard_normal((count, 2))
    packed, kinds, valid = pack_lines([line], [6], nodes=4)
    assert packed.shape == (math.ceil((count - 1) / 3), 4, 2)
    assert kinds.tolist() == [6] * len(packed)
    parts = [piece[mask] for piece, mask in zip(packed, valid, strict=True)]
    for before, after in pairwise(parts):
        assert (before[-1] == after[0]).all()
    assert (np.concatenate([part[1:] for part in parts]) == line[1:]).all()
    assert (parts[0][0] == line[0]).all()


def test_padding_comes_last_and_is_zero() -> None:
    lines = [np.full((3, 2), 7.0), np.full((1, 2), 5.0), np.full((6, 2), 9.0)]
    packed, kinds, valid = pack_lines(lines, [0, 1, 2], nodes=4)
    assert valid.sum(1).tolist() == [3, 1, 4, 3]
    assert (valid[:, :-1] >= valid[:, 1:]).all()
    assert (packed[~valid] == 0).all()
    assert packed[valid][:, 0].tolist() == [7.0] * 3 + [5.0] + [9.0] * 7
    assert kinds.tolist() == [0, 1, 2, 2]


def test_no_line_is_no_piece() -> None:
    packed, kinds, valid = pack_lines([], [])
    assert (packed.shape, kinds.shape, valid.shape) == ((0, 10, 2), (0,), (0, 10))
    with pytest.raises(ValueError, match="zip"):
        pack_lines([np.zeros((2, 2))], [])
