from pathlib import Path
from typing import get_args

import pytest
import torch

from innerspace.decompose.convolutional import Kernels
from innerspace.decompose.directions import Origin
from innerspace.decompose.mixer import Mixing
from innerspace.decompose.nonlinearities import BatchTopK, Gated, JumpReLU, ReLU, TopK
from innerspace.harvest.sequences import Sequences
from innerspace.jobs.motion.vectors import Dictionaries, Fitted, Kind, fit_vectors, missing_classes
from innerspace.learn.fit import FitConfig
from innerspace.measure.fidelity import row_fidelity
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
    settings = Dictionaries(k=7, l1=0.5, l0=0.25, kinds=get_args(Kind))
    sparse = {kind: settings.nonlinearity(kind)[0] for kind in settings.kinds if kind != "koopman"}
    assert sparse == {
        "relu": ReLU(),
        "jumprelu": JumpReLU(),
        "gated": Gated(),
        "topk": TopK(7),
        "batchtopk": BatchTopK(7),
        "conv": ReLU(),
        "mixer": ReLU(),
        "sequence": TopK(7),
    }
    names = {kind: "+".join(term.name for term in settings.objective(kind)) for kind in settings.kinds}
    assert names == {
        **dict.fromkeys(("relu", "jumprelu", "conv", "mixer"), "reconstruction+sparsity"),
        **dict.fromkeys(("topk", "batchtopk", "sequence"), "reconstruction"),
        "gated": "reconstruction+gatereconstruction+sparsity",
        "koopman": "reconstruction+ahead+back+consistency",
    }
    with pytest.raises(ValueError, match="a Koopman autoencoder has a dense code"):
        settings.nonlinearity("koopman")
    with pytest.raises(Exception, match="magic"):
        Dictionaries(kinds=("magic",))  # pyright: ignore


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_learns_gives_a_vector_and_comes_back(kind: Kind, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    valid = torch.rand(80, 5, generator=generator) > 0.2
    valid[:, -1] = True
    speed = torch.tensor([SPEED.index("low")] * 40 + [SPEED.index("high")] * 40)
    contrast = torch.randn(6, generator=generator)
    drift = torch.randn(80, 1, 6, generator=generator) + 0.1 * torch.randn(80, 5, 6, generator=generator)
    x = drift + 2 * (speed == SPEED.index("high"))[:, None, None] * contrast
    last = torch.zeros_like(valid)
    last[:, -1] = True
    whole = Sequences(x.masked_fill(~valid[..., None], torch.nan), valid, last)
    rows = whole.states[valid]
    fit = FitConfig(200, 5e-3, log_every=100)
    settings = Dictionaries((kind,), 12, k=3, kernels=Kernels(3, 2), mixing=Mixing(1, 4, 8), batch=40, fit=fit)
    what = settings.train(rows, kind, 0, tmp_path, whole)
    assert [path.name for path in tmp_path.iterdir()] == [f"{kind}-0.safetensors"]
    again = settings.train(rows, kind, 0, tmp_path, whole)
    assert type(again) is type(what)
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), what.parameters(), strict=True))
    reads = kind in ("mixer", "sequence")
    assert row_fidelity(what, whole if reads else rows).explained_variance > 0.5

    undefined = torch.full((80,), UNDEFINED)
    classes = {feature.name: undefined for feature in Vocabulary().features} | {"speed": speed}
    words = Labels(classes, {}, Vocabulary())
    origin = Origin("", "", "", site="s")
    found = list(
        fit_vectors(whole.rows, words, torch.arange(80), origin, ("mean_difference",), {(kind, 0): again}, 1, whole)
    )
    assert [item.method for item in found] == ["mean_difference", kind]
    assert float(found[1].direction.angles(found[0].direction)) < 40


def test_what_learns_from_sequences_is_not_trained_on_rows(tmp_path: Path) -> None:
    for kind in ("mixer", "sequence", "koopman"):
        with pytest.raises(ValueError, match=f"kind '{kind}' learns from whole sequences, and only rows are given"):
            Dictionaries().train(torch.randn(20, 4), kind, 0, tmp_path)
