"""Words for motion as a sentence, and back: "a vehicle moving left at high speed, decelerating"."""

from collections.abc import Mapping

from innerspace.motion.words import ACCELERATION, AGENT, DIRECTION, SPEED

_PACES = ("low", "moderate", "high")

# The published labels call whatever moves backwards stationary, and leave out a direction that they cannot name.
_MOTIONS: dict[tuple[str | None, str], str] = {
    ("stationary", "low"): "standing still",
    ("stationary", "backwards"): "standing still backwards",
    **{(None, pace): f"moving at {pace} speed" for pace in _PACES},
    **{(way, pace): f"moving {way} at {pace} speed" for way in ("straight", "right", "left") for pace in _PACES},
    ("straight", "backwards"): "moving backwards",
    **{(way, "backwards"): f"moving backwards to the {way}" for way in ("right", "left")},
}
_CHANGES = {"decelerating": ", decelerating", "constant": "", "accelerating": ", accelerating"}


def describe(words: Mapping[str, str]) -> str:
    """The sentence of an agent's words, as ``Labels.words`` gives them; a constant speed goes without saying.

    Raises:
        ValueError: for an unknown feature or word, listing those that are known, or for words that contradict each
            other or leave out what the sentence needs.
    """
    features = {feature.name: feature for feature in (SPEED, ACCELERATION, DIRECTION, AGENT)}
    for name, word in words.items():
        if name not in features:
            raise ValueError(f"unknown feature {name!r}; possible are {', '.join(features)}")
        features[name].index(word)
    if "agent" not in words:
        raise ValueError("a sentence needs the type of the agent")
    if len(words) == 1:
        return f"a {words['agent']}"
    if not {"speed", "acceleration"} <= words.keys():
        raise ValueError(f"a sentence about motion needs speed and acceleration, got {', '.join(words)}")
    direction, speed = words.get("direction"), words["speed"]
    if (direction, speed) not in _MOTIONS:
        raise ValueError(f"direction {direction!r} and speed {speed!r} contradict each other")
    return f"a {words['agent']} {_MOTIONS[direction, speed]}{_CHANGES[words['acceleration']]}"


def parse(text: str) -> dict[str, str]:
    """The words of a sentence; the inverse of ``describe``.

    Raises:
        ValueError: for a sentence that ``describe`` does not write, listing what is possible where it goes wrong.
    """
    head, comma, change = text.partition(",")
    article, _, rest = head.partition(" ")
    agent, _, motion = rest.partition(" ")
    if article != "a":
        raise ValueError(f"a sentence starts with 'a' and an agent, such as 'a {AGENT.classes[0]}'; got {text!r}")
    AGENT.index(agent)
    if not motion and not comma:
        return {"agent": agent}
    motions = {phrase: pair for pair, phrase in _MOTIONS.items()}
    if motion not in motions:
        raise ValueError(f"unknown motion {motion!r}; possible are {', '.join(motions)}")
    changes = {phrase: word for word, phrase in _CHANGES.items()}
    if comma + change not in changes:
        raise ValueError(f"unknown ending {comma + change!r}; possible are {', '.join(map(repr, changes))}")
    direction, speed = motions[motion]
    words = {"speed": speed, "acceleration": changes[comma + change]}
    return words | ({"direction": direction} if direction else {}) | {"agent": agent}
