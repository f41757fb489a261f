"""Instructions in words: "make the vehicle slower and turn left" says which feature should change, whither and how far.

The grammar is small and explicit: an opening that may be left out ("make the vehicle …", "let it …"), and clauses
joined by "and", "but" or a comma. A clause changes a feature ("30 % slower", "turn left by 20°", "accelerate"), keeps
it ("keep the speed") or sets it ("go straight", "stop accelerating"). What it does not know it refuses, with what is
possible.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from innerspace.motion.words import ACCELERATION, AGENT, DIRECTION, SPEED
from innerspace.value import Value

Unit = Literal["%", "m/s", "m/s²", "°"]

_FEATURES = {feature.name: feature for feature in (SPEED, ACCELERATION, DIRECTION)}
_UNITS: dict[str, tuple[Unit, ...]] = {"speed": ("%", "m/s"), "acceleration": ("m/s²",), "direction": ("°",)}
_USUAL = {"speed": 20.0, "acceleration": 1.0, "direction": 20.0}
_DEGREES = {"a bit": 0.5, "a little": 0.5, "slightly": 0.5, "much": 2.0, "a lot": 2.0, "strongly": 2.0}

_LEFT, _RIGHT = DIRECTION.positive, DIRECTION.negative
_TURNS = ("turn", "steer", "bend", "go", "drive", "move")
_CHANGES: dict[str, tuple[str, int]] = {
    **dict.fromkeys(("faster", "speed up", "go faster", "drive faster", "move faster"), ("speed", 1)),
    **dict.fromkeys(("slower", "slow down", "go slower", "drive slower", "move slower"), ("speed", -1)),
    "accelerate": ("acceleration", 1),
    **dict.fromkeys(("decelerate", "brake"), ("acceleration", -1)),
    **{f"{verb} {way}": ("direction", sign) for verb in _TURNS for way, sign in ((_LEFT, 1), (_RIGHT, -1))},
    **{f"{verb} to the {way}": ("direction", sign) for verb in _TURNS for way, sign in ((_LEFT, 1), (_RIGHT, -1))},
    _LEFT: ("direction", 1),
    _RIGHT: ("direction", -1),
}
_SETTINGS = {
    **{f"stop {word}": "acceleration" for word in ("accelerating", "decelerating", "braking")},
    **{f"{verb} straight": "direction" for verb in ("go", "drive", "move")},
}
_KEPT = {"speed": "speed", "acceleration": "acceleration", "direction": "direction", "heading": "direction"}
_KEPT_PHRASES = {
    f"{verb} {article}{noun}": feature
    for verb in ("keep", "hold")
    for article in ("", "the ", "its ")
    for noun, feature in _KEPT.items()
}

_ALIASES = {
    "percent": "%",
    "degrees": "°",
    "degree": "°",
    "deg": "°",
    "m/s^2": "m/s²",
    "m/s2": "m/s²",
}
_UNIT = r"(?:%|percent|°|degrees?|deg|m/s²|m/s\^2|m/s2|m/s)"
_AMOUNT = re.compile(rf"(?:by )?(?P<number>\d+(?:\.\d+)?) ?(?P<unit>{_UNIT})(?![\w/²^])")
_OPENING = re.compile(
    rf"(?:please )?(?:make|let) (?:it|(?:the|this|a) (?P<agent>{'|'.join((*AGENT.classes, 'agent'))}))(?: be)?(?= )"
)
_JOINTS = re.compile(r"\s*,?\s*\b(?:and then|and|but|while|then)\b\s*|\s*,\s*")


@dataclass(frozen=True)
class Instruction(Value):
    """One feature of motion and what is to become of it.

    ``amount`` is signed: more of it is faster, more acceleration, farther to the left. ``"change"`` is relative to what
    would be otherwise, in percent of it or in the feature's unit; a change of 0 keeps the feature. ``"set"`` names the
    value itself.

    Raises:
        ValueError: for an unknown feature, a unit that is not the feature's, or a change below −100 %.
    """

    feature: str
    amount: float
    unit: Unit
    kind: Literal["change", "set"] = "change"

    def __post_init__(self) -> None:
        if self.feature not in _FEATURES:
            raise ValueError(f"unknown feature {self.feature!r}; possible are {', '.join(_FEATURES)}")
        if self.unit not in _UNITS[self.feature]:
            raise ValueError(f"{self.feature} is told in {' or '.join(_UNITS[self.feature])}, not in {self.unit}")
        if self.unit == "%" and self.amount < -100:
            raise ValueError(f"nothing becomes slower by more than 100 %; {-self.amount:g} % are asked")


def understand(text: str) -> tuple[Instruction, ...]:
    """The instructions that a text gives, in their order.

    Without an amount, speed changes by 20 %, acceleration by 1 m/s² and direction by 20°; "a bit" halves that and
    "much" doubles it.

    Raises:
        ValueError: for a clause that is not known, listing those that are, a unit that does not fit, or two clauses
            on the same feature.
    """
    whole = re.sub(r"\s+", " ", text.strip().rstrip(".!").lower())
    opening = _OPENING.match(whole)
    rest = whole[opening.end() :].strip() if opening else whole
    clauses = [part for part in _JOINTS.split(rest) if part]
    if not clauses:
        raise ValueError(f"nothing is asked for in {text!r}; possible are {possible()}")
    found = [_clause(clause) for clause in clauses]
    for i, one in enumerate(found):
        for j, other in enumerate(found[:i]):
            if one.feature == other.feature:
                raise ValueError(
                    f"{clauses[j]!r} and {clauses[i]!r} both speak of {one.feature}, and contradict each other or say "
                    f"it twice; each feature may be named once"
                )
    return tuple(found)


def instruct(instructions: Sequence[Instruction], agent: str = "") -> str:
    """The text of instructions; ``understand`` gives them back.

    Raises:
        ValueError: for no instruction, two on the same feature, a value that no clause sets, or an agent's type that
            there is not.
    """
    if not instructions:
        raise ValueError("a text needs at least one instruction")
    if agent:
        AGENT.index(agent)
    text = (f"make the {agent} " if agent else "") + " and ".join(map(_phrase, instructions))
    understand(text)
    return text


def require(instructions: Sequence[Instruction], vectors: Collection[str]) -> None:
    """Refuse features that no vector steers.

    Raises:
        ValueError: naming the feature, and those that can be steered.
    """
    for one in instructions:
        if one.feature not in vectors:
            raise ValueError(
                f"no vector steers {one.feature}; there are vectors of {', '.join(sorted(vectors)) or 'no feature'}"
            )


def possible() -> str:
    """What a clause may say, in one line."""
    return (
        "'faster', 'slower', 'accelerate', 'brake', 'turn left', 'turn right', 'go straight', 'stop accelerating' and "
        "'keep the speed', with 'a bit', 'much' or an amount such as '30 % slower' and 'turn left by 20°'"
    )


def _clause(clause: str) -> Instruction:
    if clause in _KEPT_PHRASES:
        feature = _KEPT_PHRASES[clause]
        return Instruction(feature, 0.0, _UNITS[feature][0])
    if clause in _SETTINGS:
        feature = _SETTINGS[clause]
        return Instruction(feature, 0.0, _UNITS[feature][-1], "set")
    given = _AMOUNT.search(clause)
    bare = " ".join((clause[: given.start()] + clause[given.end() :]).split()) if given else clause
    degree = next((word for word in _DEGREES if re.search(rf"(?<!\w){word}(?!\w)", bare)), None)
    if degree is not None:
        bare = " ".join(re.sub(rf"(?<!\w){degree}(?!\w)", " ", bare).split())
    if bare not in _CHANGES:
        raise ValueError(f"{clause!r} is not understood; possible are {possible()}")
    if given and degree:
        raise ValueError(f"{clause!r} says how much twice, {degree!r} and {given.group(0).strip()!r}")
    feature, sign = _CHANGES[bare]
    if given is None:
        return Instruction(feature, sign * _USUAL[feature] * _DEGREES.get(degree or "", 1.0), _UNITS[feature][0])
    word = given.group("unit")
    units = {str(unit): unit for unit in get_args(Unit)}
    unit: Unit = units[_ALIASES.get(word, word)]
    return Instruction(feature, sign * float(given.group("number")), unit)


def _phrase(one: Instruction) -> str:
    if one.kind == "set":
        if one.amount or one.feature == "speed":
            raise ValueError(f"no clause sets {one.feature} to {one.amount:g} {one.unit}")
        return "go straight" if one.feature == "direction" else "stop accelerating"
    if not one.amount:
        return f"keep the {one.feature}"
    size = f"{abs(one.amount):.12g}"
    match one.feature:
        case "speed":
            return f"{size} {one.unit} {'faster' if one.amount > 0 else 'slower'}"
        case "acceleration":
            return f"{'accelerate' if one.amount > 0 else 'decelerate'} by {size} {one.unit}"
        case _:
            return f"turn {_LEFT if one.amount > 0 else _RIGHT} by {size}{one.unit}"
