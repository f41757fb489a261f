"""Latents that are on for motion words: named exactly from some scenes, and told apart on others."""

import pytest

from explain.planted import MOTION, SceneFamily, latents, model
from innerspace.decompose.dictionary import Dictionary
from innerspace.explain.examples import Sampling
from innerspace.explain.interpret import Interpretation, interpret
from innerspace.explain.reading import SceneReader, TextReader
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.simulate import Simulation, simulate

WIDTH = len(MOTION) + 12


def entry(about: str, value: str) -> int:
    return MOTION.index((about, value))


@pytest.fixture(scope="module")
def agents() -> Batch:
    return frame(simulate(Simulation(scenes=260, seed=4)).scenes, Framing(agents=2, lines=2))


def planted() -> Dictionary:
    """High speed; turning left or right; accelerating vehicles; the first three steps; noise."""
    turning = {entry("direction", "left"): 1.0, entry("direction", "right"): 1.0}
    both = {entry("acceleration", "accelerating"): 1.0, entry("agent", "vehicle"): 1.0}
    steps = {len(MOTION) + i: 1.0 for i in range(3)}
    rows = [({entry("speed", "high"): 1.0}, 0.5), (turning, 0.5), (both, 1.5), (steps, 0.5), ({WIDTH - 1: 1.0}, 0.7)]
    return latents(WIDTH, rows)


@pytest.fixture(scope="module")
def found(agents: Batch) -> Interpretation:
    batches = [agents[slice(0, 300)], agents[slice(300, None)]]
    return interpret(model(SceneFamily()), batches, planted(), "hidden", range(5), SceneReader(), replicates=100)


def words(found: Interpretation, i: int) -> list[dict[str, set[str]]]:
    rule = found.explained[i].explanation.rule
    assert rule is not None
    return [{test.about: set(test.values) for test in clause.tests} for clause in rule.clauses]


def test_motion_words_are_named_exactly(found: Interpretation) -> None:
    assert not found.missing
    assert words(found, 0) == [{"speed": {"high"}}]
    assert words(found, 1) == [{"direction": {"left", "right"}}]
    assert words(found, 2) == [{"acceleration": {"accelerating"}, "agent": {"vehicle"}}]
    assert words(found, 3) == [{"step": {"1", "2", "3"}}]
    assert found.explained[3].explanation.text == "step 1 to 3"
    assert all(one.detection.mean >= 0.99 for one in found.explained[:4])


def test_marks_tell_steps_where_steps_differ(found: Interpretation) -> None:
    scores = found.scores.copies("fuzzing")[:, 0, 0]
    # words hold at all steps of an agent, so there is no wrong mark
    assert scores[:3].isnan().all()
    assert float(scores[3]) >= 0.99


def test_noise_is_not_explained(found: Interpretation) -> None:
    score = found.explained[4].detection
    assert score.low is not None
    assert score.high is not None
    assert score.low <= 0.5 <= score.high


def test_scenes_are_read_as_words_at_a_step(found: Interpretation) -> None:
    item, _ = found.seen(0)[0]
    assert item.question.shown.startswith("a ")
    assert " at high speed" in item.question.shown
    assert item.question.shown.endswith(" of 11")


def test_media_are_not_mixed_up(agents: Batch) -> None:
    with pytest.raises(ValueError, match="a TextReader reads batches of text, not of Batch"):
        interpret(model(SceneFamily()), [agents], planted(), "hidden", [0], TextReader(), sampling=Sampling())
