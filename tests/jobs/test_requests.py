"""Instructions as goals, and settings of the loop that cannot be."""

import pytest
import torch

from innerspace.jobs.motion.control_loop import Looping
from innerspace.jobs.motion.requests import MODES, goals, way
from innerspace.motion.instructions import understand


def test_instructions_become_targets_in_the_units_of_readouts() -> None:
    before = torch.tensor([10.0, 0.2, torch.nan])

    def target(text: str) -> list[float]:
        (goal,) = goals(understand(text), moving=1.0)
        return goal.target(before).nan_to_num(-99).tolist()

    assert target("30 % slower") == [7.0, -99, -99]
    assert target("2 m/s faster") == pytest.approx([12.0, 2.2, -99])
    assert target("turn right by 5°") == pytest.approx([5.0, -4.8, -99])
    assert target("go straight") == [0.0, 0.0, -99]
    assert target("keep the heading") == pytest.approx([10.0, 0.2, -99])
    speed, turn, slope = goals(understand("slower, turn left, brake"), moving=1.0)
    assert [goal.readout for goal in (speed, turn, slope)] == ["speed", "heading", "acceleration"]
    # two percent of the agent's own speed, two degrees
    assert speed.allowance(before).tolist()[:2] == pytest.approx([0.2, 0.004])
    assert turn.allowance(before).tolist() == [2.0] * 3


def test_ways_of_steering_have_names() -> None:
    assert [way(mode) for mode in MODES] == list(MODES.values())
    with pytest.raises(ValueError, match="unknown mode 'sideways'; possible are additive, norm-preserving, angular"):
        way("sideways")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 3}, "at least 10 samples and a pilot of 10, given 3, 100"),
        ({"randoms": -1}, "should not be fewer than none, they are -1"),
        (
            {"modes": ("additive",)},
            "additive is always among the modes; beside it norm-preserving, angular are possible",
        ),
        ({"speeds": (0.0, 10.0)}, "leave 0 out of speeds and headings"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Looping(**change)  # type: ignore[arg-type]
