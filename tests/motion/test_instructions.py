"""What texts ask for, what they cannot ask for, and texts of instructions that are understood again."""

import itertools

import pytest

from innerspace.motion.instructions import Instruction, instruct, require, understand

SLOWER, LEFT = Instruction("speed", -20.0, "%"), Instruction("direction", 20.0, "°")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("make the vehicle slower and turn left", [SLOWER, LEFT]),
        ("Slower, turn left.", [SLOWER, LEFT]),
        ("let it be slower, and then turn to the left!", [SLOWER, LEFT]),
        ("accelerate", [Instruction("acceleration", 1.0, "m/s²")]),
        ("brake", [Instruction("acceleration", -1.0, "m/s²")]),
        ("decelerate by 0.5 m/s^2", [Instruction("acceleration", -0.5, "m/s²")]),
        ("a bit faster", [Instruction("speed", 10.0, "%")]),
        ("make this cyclist go much faster", [Instruction("speed", 40.0, "%")]),
        ("slow down a lot", [Instruction("speed", -40.0, "%")]),
        ("30 % slower", [Instruction("speed", -30.0, "%")]),
        ("slower by 30 percent", [Instruction("speed", -30.0, "%")]),
        ("2.5 m/s faster", [Instruction("speed", 2.5, "m/s")]),
        ("turn 20 degrees right", [Instruction("direction", -20.0, "°")]),
        ("turn right by 7.5°", [Instruction("direction", -7.5, "°")]),
        ("turn slightly left", [Instruction("direction", 10.0, "°")]),
        ("stop accelerating", [Instruction("acceleration", 0.0, "m/s²", "set")]),
        ("go straight but stop braking", [
            Instruction("direction", 0.0, "°", "set"),
            Instruction("acceleration", 0.0, "m/s²", "set"),
        ]),
        ("keep the speed but turn left", [Instruction("speed", 0.0, "%"), LEFT]),
        ("turn left while hold its speed", [LEFT, Instruction("speed", 0.0, "%")]),
        ("keep heading and accelerate", [Instruction("direction", 0.0, "°"), Instruction("acceleration", 1.0, "m/s²")]),
    ],
)  # fmt: skip
def test_texts_are_understood(text: str, expected: list[Instruction]) -> None:
    assert understand(text) == tuple(expected)


def test_every_instruction_comes_back_from_its_text() -> None:
    speeds = [Instruction("speed", x, "%") for x in (-100.0, -30.0, 0.0, 12.345)] + [Instruction("speed", 2.0, "m/s")]
    directions = [Instruction("direction", x, "°") for x in (-20.0, 0.0, 7.5)] + [
        Instruction("direction", 0.0, "°", "set")
    ]
    accelerations = [
        Instruction("acceleration", 1 / 3, "m/s²"),
        Instruction("acceleration", -2.0, "m/s²"),
        Instruction("acceleration", 0.0, "m/s²", "set"),
    ]
    for group in itertools.product(speeds, directions, accelerations):
        for order in itertools.permutations(group):
            back = understand(instruct(order, "pedestrian"))
            assert [(one.feature, one.unit, one.kind) for one in back] == [
                (one.feature, one.unit, one.kind) for one in order
            ]
            assert [one.amount for one in back] == pytest.approx([one.amount for one in order])
    assert instruct([SLOWER, LEFT], "vehicle") == "make the vehicle 20 % slower and turn left by 20°"
    assert Instruction.from_json(SLOWER.to_json()) == SLOWER


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("faster and slower", "'faster' and 'slower' both speak of speed, and contradict each other"),
        ("turn left, go straight", "'turn left' and 'go straight' both speak of direction"),
        ("fly", "'fly' is not understood; possible are 'faster', 'slower'"),
        ("make the tram slower", "'make the tram slower' is not understood"),
        ("slower and honk", "'honk' is not understood"),
        ("become a pedestrian", "is not understood"),
        ("", "nothing is asked for in ''"),
        ("make the vehicle and", "nothing is asked for in 'make the vehicle and'"),
        ("30 ° slower", "speed is told in % or m/s, not in °"),
        ("turn left by 3 m/s", "direction is told in °, not in m/s"),
        ("accelerate by 10 %", "acceleration is told in m/s², not in %"),
        ("150 % slower", "slower by more than 100 %; 150 % are asked"),
        ("a bit slower by 10 %", "says how much twice, 'a bit' and 'by 10 %'"),
        ("10 % slower by 5 %", "is not understood"),
        ("-10 % slower", "is not understood"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("²", ".")):
        understand(text)


def test_instructions_that_have_no_text_or_no_vector_are_refused() -> None:
    with pytest.raises(ValueError, match="no vector steers direction; there are vectors of acceleration, speed"):
        require([SLOWER, LEFT], {"speed", "acceleration"})
    require([SLOWER, LEFT], {"speed", "direction"})
    with pytest.raises(ValueError, match="unknown feature 'agent'; possible are speed, acceleration, direction"):
        Instruction("agent", 1.0, "%")
    with pytest.raises(ValueError, match="at least one instruction"):
        instruct([])
    with pytest.raises(ValueError, match="both speak of speed"):
        instruct([SLOWER, SLOWER])
    with pytest.raises(ValueError, match="no clause sets speed to 3 m/s"):
        instruct([Instruction("speed", 3.0, "m/s", "set")])
    with pytest.raises(ValueError, match="unknown agent 'tram'; possible are vehicle"):
        instruct([SLOWER], "tram")
