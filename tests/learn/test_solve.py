"""Estimators: a planted direction is found, and the reference's faults are the reference's."""

import dataclasses
from typing import final, get_args

import pytest
import torch
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from innerspace.decompose.base import Code, Decomposition
from innerspace.decompose.directions import Origin
from innerspace.learn import solve
from innerspace.learn.solve import contrast

ORIGIN = Origin("speed", "high", "low", site="agent.2", tokens="last", split="train", model="sha256:ab")
CLASSES = ("low", "moderate", "high")


@final
class Affine(Decomposition):
    """A linear dictionary with a bias and orthonormal directions."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.linalg.qr(torch.randn(width, width).double())[0])
        self.register_buffer("bias", bias * torch.randn(width).double())

    @property
    def parts(self) -> list[slice]:
        return [slice(i, i + 1) for i in range(len(self.directions))]

    @property
    def directions(self) -> Float[Tensor, "k d"]:
        weight = self.weight
        assert isinstance(weight, Tensor)
        return weight

    def encode(self, x: Float[Tensor, "*rows d"]) -> Code:
        z = (x - self.bias) @ self.directions.T
        return Code(z, z, z.abs().sum(-1))

    def decode(self, z: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows d"]:
        return self.lift(z) + self.bias


def planted(n: int = 1222, d: int = 128, gap: float = 5.0) -> tuple[Tensor, Tensor]:
    """Two Gaussians with a gap along e₀ and a strong nuisance along e₁."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    rows[..., 1] *= 2
    rows[0, :, 0] += gap
    return rows[0], rows[1]


def labelled(n: int = 600, d: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of three classes along e₀, their labels and their continuous target (unit: 5 per gap)."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(3 * n) % 3
    rows = torch.randn(3 * n, d, generator=generator, dtype=torch.float64)
    rows[:, 1] *= 2
    target = labels.double() + 0.3 * torch.randn(3 * n, generator=generator, dtype=torch.float64)
    rows[:, 0] += 2.5 * target
    return rows, labels, target


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def test_centering_removes_the_contrast_and_nothing_else_does() -> None:
    positive, negative = planted()
    axis = torch.eye(128).double()[0]
    assert abs(cosine(solve.reference_pca(positive, negative), axis)) < 0.05
    assert abs(cosine(solve.reference_pca(positive, negative), axis.roll(1))) > 0.9
    assert cosine(solve.mean_difference(positive, negative), axis) > 0.99
    assert abs(cosine(solve.difference_svd(positive, negative), axis)) > 0.99
    assert cosine(solve.lda(positive, negative), axis) > 0.95
    assert cosine(solve.probe_normal(positive, negative), axis) > 0.95


@pytest.mark.parametrize("method", get_args(solve.Method))
def test_finds_a_planted_direction_with_the_right_sign_and_gap(method: solve.Method) -> None:
    rows, labels, target = labelled()
    target[::7] = torch.nan
    extra = {
        "regression": {"target": target},
        "through": {"dictionary": Affine(32, 0.3)},
        "reference_through": {"dictionary": Affine(32, 0.3)},
    }
    found = contrast(rows, labels, CLASSES, ORIGIN, method, **extra.get(method, {}))
    axis = torch.eye(32).double()[0]
    if method.startswith("reference"):
        assert abs(cosine(found.unit[0], axis)) < 0.5
    else:
        assert cosine(found.unit[0], axis) > 0.95
    difference = rows[labels == 2].mean(0) - rows[labels == 0].mean(0)
    assert found.gap.item() == pytest.approx((found.unit[0] @ difference).item())
    assert found.origins[0] == dataclasses.replace(ORIGIN, method=method)
    swapped = dataclasses.replace(ORIGIN, positive="low", negative="high")
    back = contrast(rows, labels, CLASSES, swapped, method, **extra.get(method, {}))
    if method not in ("reference_pca", "reference_through"):
        torch.testing.assert_close(back.directions, -found.directions, rtol=1e-6, atol=1e-6)
    assert back.gap > 0


def test_one_unit_of_tau_moves_one_mean_onto_the_other() -> None:
    rows, labels, _ = labelled()
    found = contrast(rows.float(), labels, CLASSES, ORIGIN)
    assert found.unit.dtype == torch.float32
    moved = rows[labels == 0].mean(0).float() + found.directions[0]
    torch.testing.assert_close(moved, rows[labels == 2].mean(0).float(), rtol=1e-4, atol=1e-4)
    assert contrast(rows.bfloat16(), labels, CLASSES, ORIGIN).unit.dtype == torch.float32


def test_difference_svd_is_that_of_all_pairs() -> None:
    positive, negative = planted(n=30, d=6, gap=1.0)
    pairs = (positive[:, None] - negative[None, :20]).reshape(-1, 6)
    expected = torch.linalg.svd(pairs, full_matrices=False).Vh[0]
    assert abs(cosine(solve.difference_svd(positive, negative[:20]), expected)) == pytest.approx(1, abs=1e-10)


def test_reference_pca_is_sklearns_on_the_first_rows() -> None:
    positive, negative = planted(n=100, d=8)
    negative = negative[:70]
    expected = PCA(1).fit((positive[:70] - negative).numpy()).components_[0]
    assert abs(cosine(solve.reference_pca(positive, negative), torch.from_numpy(expected))) == pytest.approx(1)


def test_reference_flip_compares_with_a_single_row() -> None:
    # two of three positives lie below their partners, but all above negative row 1, so the vote does not turn it round
    positive = torch.tensor([[0.0, 1.0], [2.0, 0.0], [4.0, 1.0]]).double()
    negative = torch.tensor([[3.0, 0.0], [-9.0, 1.0], [8.0, 0.0]]).double()
    vector = solve.reference_pca(positive, negative)
    assert vector[0] > 0
    negative[1, 0] = 9
    assert solve.reference_pca(positive, negative)[0] < 0


def test_lda_is_fishers_with_ledoit_and_wolfs_shrinkage() -> None:
    positive, negative = planted(n=40, d=10)
    centered = torch.cat((positive - positive.mean(0), negative - negative.mean(0)))
    covariance = torch.from_numpy(ledoit_wolf(centered.numpy(), assume_centered=True)[0])
    expected = torch.linalg.solve(covariance, positive.mean(0) - negative.mean(0))
    torch.testing.assert_close(solve.lda(positive, negative), expected)
    sphere = solve.lda(positive, negative, shrinkage=1.0)
    assert cosine(sphere, solve.mean_difference(positive, negative)) == pytest.approx(1)


def test_probe_normal_is_the_minimum_of_its_loss() -> None:
    positive, negative = planted(n=200, d=6, gap=1.5)
    negative = negative[:80] * 3
    rows = torch.cat((positive, negative))
    x, std = (rows - rows.mean(0)) / rows.std(0, correction=0), rows.std(0, correction=0)
    y = torch.arange(len(rows)) < len(positive)
    # scikit-learn sums what is averaged here
    probe = LogisticRegression(C=1 / (0.05 * len(rows)), class_weight="balanced", tol=1e-10, max_iter=10_000)
    w = torch.from_numpy(probe.fit(x.numpy(), y.numpy()).coef_[0]) / std
    torch.testing.assert_close(solve.probe_normal(positive, negative, 0.05), w / w.dot(w), rtol=1e-4, atol=1e-5)


def test_regression_moves_the_readout_by_one_unit() -> None:
    rows = torch.randn(400, 5, generator=torch.Generator().manual_seed(2)).double()
    w = torch.tensor([2.0, -1.0, 0.0, 0.5, 0.0]).double()
    found = solve.regression(rows, rows @ w + 3, shrinkage=1e-9)
    torch.testing.assert_close(found @ w, torch.tensor(1.0).double(), rtol=1e-6, atol=0)
    assert cosine(found, w) == pytest.approx(1, abs=1e-9)


def test_through_a_linear_dictionary_nothing_is_lost() -> None:
    positive, negative = planted(n=300, d=16)
    dictionary = Affine(16, bias=2.0)
    torch.testing.assert_close(
        solve.through(dictionary, positive, negative), solve.mean_difference(positive, negative), rtol=1e-9, atol=1e-9
    )
    biased = solve.through(dictionary, positive, negative, biased=True)
    assert isinstance(dictionary.bias, Tensor)
    plain = [biased - dictionary.bias, biased + dictionary.bias]
    assert max(abs(cosine(item, solve.reference_pca(positive, negative))) for item in plain) == pytest.approx(1)
    unbiased = solve.through(Affine(16, bias=0.0), positive, negative, biased=True)
    torch.testing.assert_close(unbiased, solve.reference_pca(positive, negative))


def test_matching_removes_a_confounder() -> None:
    generator = torch.Generator().manual_seed(3)
    strata = torch.arange(4000) % 2
    labels = (torch.rand(4000, generator=generator) < torch.where(strata == 1, 0.9, 0.1)).long()
    rows = torch.randn(4000, 3, generator=generator).double()
    rows[:, 0] += 2 * labels
    rows[:, 1] += 8 * strata
    origin = Origin("speed", "high", "low")
    index = solve.matched(labels, 1, 0, strata, generator)
    half = len(index) // 2
    assert labels[index].tolist() == [1] * half + [0] * half
    assert torch.equal(strata[index[:half]], strata[index[half:]])
    assert len(index.unique()) == len(index)
    axis = torch.eye(3).double()[0]
    assert cosine(contrast(rows, labels, ("low", "high"), origin).unit[0], axis) < 0.5
    assert cosine(contrast(rows[index], labels[index], ("low", "high"), origin).unit[0], axis) > 0.99
    with pytest.raises(ValueError, match="none of 2 strata holds rows of both class 1 and 0"):
        solve.matched(labels, 1, 0, labels, generator)


def test_bootstrap_spreads_as_the_mean_does() -> None:
    rows = torch.randn(400, 1, generator=torch.Generator().manual_seed(4)).double()
    generator = torch.Generator().manual_seed(5)
    means = torch.stack([rows[solve.bootstrap(400, generator)].mean() for _ in range(400)])
    assert means.std().item() == pytest.approx(rows.std().item() / 20, rel=0.15)
    # rows that are copies within a scene hold no more than one of them
    copies, scenes = rows.repeat_interleave(10, 0)[:4000], torch.arange(4000) // 10
    means = torch.stack([copies[solve.bootstrap(4000, generator, scenes)].mean() for _ in range(400)])
    assert means.std().item() == pytest.approx(rows.std().item() / 20, rel=0.15)
    drawn = solve.bootstrap(4000, generator, scenes)
    assert (drawn.bincount(minlength=4000).view(400, 10).float().std(1) == 0).all()


def test_says_what_is_wrong() -> None:
    rows, labels, target = labelled(n=10)
    one = dataclasses.replace(ORIGIN, positive="warp")
    with pytest.raises(ValueError, match="class 'warp' is unknown; present are 'low', 'moderate', 'high'"):
        contrast(rows, labels, CLASSES, one)
    with pytest.raises(ValueError, match="class 'high' has no members; present are 'low', 'moderate'"):
        contrast(rows[labels < 2], labels[labels < 2], CLASSES, ORIGIN)
    with pytest.raises(ValueError, match="both are 'high'"):
        contrast(rows, labels, CLASSES, dataclasses.replace(ORIGIN, negative="high"))
    with pytest.raises(ValueError, match="'regression' needs a target"):
        contrast(rows, labels, CLASSES, ORIGIN, "regression")
    with pytest.raises(ValueError, match="'lda' does not use a target"):
        contrast(rows, labels, CLASSES, ORIGIN, "lda", target=target)
    with pytest.raises(ValueError, match="'through' needs a dictionary"):
        contrast(rows, labels, CLASSES, ORIGIN, "through")
    with pytest.raises(ValueError, match="rows of width 32, dictionary of width 128"):
        contrast(rows, labels, CLASSES, ORIGIN, "through", dictionary=Affine(128, 0.0))
    with pytest.raises(ValueError, match="1 of 30 rows are not finite"):
        contrast(rows.index_fill(0, torch.tensor([3]), torch.inf), labels, CLASSES, ORIGIN)
    with pytest.raises(ValueError, match="do not differ along the direction"):
        contrast(torch.ones(30, 4), labels, CLASSES, ORIGIN)
    with pytest.raises(ValueError, match="no variance"):
        contrast(labels[:, None].double(), labels, CLASSES, ORIGIN, "lda")
    with pytest.raises(ValueError, match="target that varies"):
        contrast(rows, labels, CLASSES, ORIGIN, "regression", target=torch.ones(30))
    with pytest.raises(ValueError, match="two rows of each class, got 1 and 1"):
        contrast(rows[:3], labels[:3], CLASSES, ORIGIN, "reference_pca")
    with pytest.raises(ValueError, match=r"shrinkage should be in \(0, 1\], it is 2"):
        solve.lda(rows[:5], rows[5:], shrinkage=2.0)
    with pytest.raises(ValueError, match="penalty should be positive"):
        solve.probe_normal(rows[:5], rows[5:], penalty=0.0)
