import pytest
import torch
from torch import Tensor

from innerspace.jobs.motion.reading import readable
from innerspace.learn.probes import LogisticSettings
from innerspace.learn.probing import ProbingSettings, probe
from innerspace.motion.words import UNDEFINED, Labels, Vocabulary


def labels(**classes: list[int]) -> Labels:
    """Labels of 60 agents; features that are not given have a single word."""
    named = {name: torch.tensor(ids) for name, ids in classes.items()}
    single = torch.zeros(60, dtype=torch.int64)
    everything = {feature.name: named.get(feature.name, single) for feature in Vocabulary().features}
    return Labels(everything, {}, Vocabulary())


GROUPS = torch.arange(60) // 10
"""Six scenes of ten agents."""


def test_words_with_members_in_enough_scenes_stay_and_are_counted_anew() -> None:
    # decelerating in scenes 0 to 3, constant nowhere, accelerating in scenes 3 to 5, a few undefined
    ids = [0] * 32 + [2] * 24 + [UNDEFINED] * 4
    kept, names, left_out = readable(labels(acceleration=ids), GROUPS)
    assert names == {"acceleration": ("decelerating", "accelerating")}
    assert kept["acceleration"].tolist() == [0] * 32 + [1] * 24 + [UNDEFINED] * 4
    assert "acceleration 'constant' is not probed for: 0 members in 0 scenes (or logs), 10 in 2 are needed" in left_out
    assert "speed is not probed for: fewer than two of its words are left" in left_out
    assert not any(line.startswith("speed 'low'") for line in left_out)


@pytest.mark.parametrize(
    ("ids", "settings", "why"),
    [
        ([0] * 51 + [1] * 9, {}, "'constant' is not probed for: 9 members in 1 scenes"),
        ([0] * 50 + [1] * 10, {}, "'constant' is not probed for: 10 members in 1 scenes (or logs), 10 in 2"),
        ([0] * 49 + [1] * 11, {"spread": 3}, "'constant' is not probed for: 11 members in 2 scenes (or logs), 10 in 3"),
        ([0] * 30 + [1] * 30, {"least": 31}, "'constant' is not probed for: 30 members in 3 scenes (or logs), 31 in 2"),
    ],
)
def test_words_that_no_probe_can_learn_are_left_out_and_named(ids: list[int], settings: dict, why: str) -> None:
    kept, names, left_out = readable(labels(acceleration=ids), GROUPS, **settings)
    assert kept == names == {}
    assert any(line.startswith(f"acceleration {why}") for line in left_out)


def test_what_is_readable_can_be_probed() -> None:
    """Where every scene holds another word, parts cannot all have each of them: then the word must go."""
    ids = torch.arange(60) % 2
    ids[GROUPS >= 3] = 2 * ids[GROUPS >= 3]
    states: dict[str, Tensor] = {"site": torch.randn(60, 4)}
    settings = ProbingSettings(seeds=1, parts=5, logistic=LogisticSettings())
    kept, names, _ = readable(labels(acceleration=ids.tolist()), GROUPS)
    assert names["acceleration"] == ("decelerating", "constant", "accelerating")
    with pytest.raises(ValueError, match=r"class 1 .'constant'. occurs in 3 of 6 scenes, 5 at least are needed"):
        probe(states, kept, GROUPS, settings, names)
    mixed = torch.arange(60) % 2 * 2
    kept, names, left_out = readable(labels(acceleration=mixed.tolist()), GROUPS, spread=settings.parts)
    assert names["acceleration"] == ("decelerating", "accelerating")
    assert "acceleration 'constant'" in left_out[4]
    (score,) = probe(states, kept, GROUPS, settings, names)
    assert score.rows == 60
