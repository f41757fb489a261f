import pytest
import torch

from innerspace.decompose.directions import Origin
from innerspace.decompose.nonlinearities import JumpReLU, ReLU, TopK
from innerspace.jobs.vectors import Dictionaries, Fitted, fit_vectors, missing_classes
from innerspace.motion.words import SPEED, UNDEFINED, Labels, Vocabulary

GROUPS = torch.arange(40) // 2
"""Twenty scenes of two agents."""


def labels(speed: list[int]) -> Labels:
    """Labels that know nothing but the speed."""
    undefined = torch.full((40,), UNDEFINED)
    classes = {feature.name: undefined for feature in Vocabulary().features} | {"speed": torch.tensor(speed)}
    return Labels(classes, {"speed": torch.arange(40.0)}, Vocabulary())


def fitted(words: Labels, seeds: int) -> list[Fitted]:
    rows = torch.randn(40, 4) + words.classes["speed"][:, None]
    origin = Origin("", "", "", site="s")
    return list(fit_vectors(rows, words, GROUPS, origin, ("mean_difference", "regression"), {}, seeds))


def test_every_seed_has_a_plain_vector_and_the_first_has_all() -> None:
    low, high = SPEED.index("low"), SPEED.index("high")
    found = fitted(labels([low] * 20 + [high] * 20), 3)
    assert [(item.method, item.seed) for item in found] == [
        ("mean_difference", 0),
        ("regression", 0),
        ("mean_difference", 1),
        ("mean_difference", 2),
    ]
    assert {item.direction.origins[0].positive for item in found} == {"high"}
    again = fitted(labels([low] * 20 + [high] * 20), 3)
    assert len(again) == 4


def test_a_class_of_one_scene_is_in_every_draw() -> None:
    words = labels([SPEED.index("low")] * 38 + [SPEED.index("high")] * 2)
    assert missing_classes(words, SPEED) == []
    # a draw with replacement misses a given scene with probability 0.36
    assert len(fitted(words, 12)) == 13


def test_a_feature_without_its_opposing_classes_is_left_out() -> None:
    words = labels([SPEED.index("low")] * 39 + [SPEED.index("high")])
    assert missing_classes(words, SPEED) == ["high"]
    assert fitted(words, 2) == []


def test_each_kind_of_dictionary_has_its_objective() -> None:
    settings = Dictionaries(k=7, l1=0.5, l0=0.25)
    kinds = {kind: settings.nonlinearity(kind) for kind in settings.kinds}
    assert {kind: type(sparse) for kind, (sparse, _) in kinds.items()} == {
        "relu": ReLU,
        "jumprelu": JumpReLU,
        "topk": TopK,
    }
    assert {kind: len(objective) for kind, (_, objective) in kinds.items()} == {"relu": 2, "jumprelu": 2, "topk": 1}
    with pytest.raises(Exception, match="gated"):
        Dictionaries(kinds=("gated",))  # pyright: ignore
