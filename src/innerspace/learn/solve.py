"""Control vectors from rows and labels: whatever direction has a closed or convex form.

Every estimator takes hidden states of two classes and returns one raw vector [d]; ``contrast`` turns it into
``Directions`` with a sign, a gap and an origin. Which rows take part is decided beforehand, by an index:
``matched`` pairs up comparable rows, ``bootstrap`` resamples them to show how uncertain a direction is.
All arithmetic is in float64.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from innerspace.decompose.base import Decomposition
from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.sequence import SequenceAutoencoder
from innerspace.harvest.sequences import Sequences

Method = Literal[
    "mean_difference",
    "difference_svd",
    "reference_pca",
    "lda",
    "probe_normal",
    "regression",
    "through",
    "reference_through",
]
"""The estimators by name; ``reference_through`` is ``through`` with the reference's biased decode."""


def contrast(
    rows: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    classes: Sequence[str],
    origin: Origin,
    method: Method = "mean_difference",
    *,
    target: Float[Tensor, "n"] | None = None,
    dictionary: Decomposition | None = None,
    within: Sequences | None = None,
) -> Directions:
    """The direction from ``origin.negative`` to ``origin.positive``, scaled so that τ = 1 is the class-mean gap.

    The sign follows from the class means, so it does not depend on the method, the order of rows or an SVD.

    Args:
        rows: hidden states.
        labels: each row's class, an index into ``classes``; rows of other classes, or -1, take no part.
        classes: the names of the classes of the feature.
        origin: feature, classes, site, tokens, split and model; its method is filled in here.
        method: the estimator.
        target: the continuous feature, for the regression only, which uses all rows where it is finite.
        dictionary: for the methods that go through one.
        within: the sequences in which the rows stand, for a dictionary that reads several tokens together.

    Raises:
        ValueError: for an unknown or empty class, rows that are not finite, widths that differ, an argument that the
            method lacks or does not use, or classes that do not differ along the direction.
    """
    if method not in get_args(Method):
        raise ValueError(f"no method {method!r}; possible are {', '.join(get_args(Method))}")
    for name, given, users in (
        ("target", target, ("regression",)),
        ("dictionary", dictionary, ("through", "reference_through")),
    ):
        if (given is not None) != (method in users):
            raise ValueError(f"method {method!r} {'needs' if given is None else 'does not use'} a {name}")
    reads = isinstance(dictionary, SequenceAutoencoder)
    if reads != (within is not None):
        name = "this method" if dictionary is None else f"a {type(dictionary).__name__}"
        raise ValueError(
            f"{name} {'reads sequences: give those in which the rows stand' if reads else 'does not read sequences'}"
        )
    if origin.positive == origin.negative:
        raise ValueError(f"two classes are needed, both are {origin.positive!r}")
    if bad := int((~rows.isfinite().all(1)).sum()):
        raise ValueError(f"{bad} of {len(rows)} rows are not finite")
    positive, negative = (_members(rows, labels, classes, name) for name in (origin.positive, origin.negative))
    difference = mean_difference(positive, negative)

    match method:
        case "mean_difference":
            raw = difference
        case "difference_svd":
            raw = difference_svd(positive, negative)
        case "reference_pca":
            raw = reference_pca(positive, negative)
        case "lda":
            raw = lda(positive, negative)
        case "probe_normal":
            raw = probe_normal(positive, negative)
        case "regression":
            assert target is not None
            known = target.isfinite()
            raw = regression(rows[known], target[known])
        case "through" | "reference_through":
            assert dictionary is not None
            biased = method == "reference_through"
            if isinstance(dictionary, SequenceAutoencoder):
                assert within is not None
                if biased or within.rows.shape != rows.shape or not torch.allclose(within.rows.to(rows), rows):
                    why = "the reference has no such dictionary" if biased else "the rows do not stand in the sequences"
                    raise ValueError(f"no control vector through a {type(dictionary).__name__}: {why}")
                ends = (within[labels == list(classes).index(name)] for name in (origin.positive, origin.negative))
                raw = through_sequences(dictionary, *ends)
            else:
                raw = through(dictionary, positive, negative, biased=biased)
    dtype = torch.promote_types(rows.dtype, torch.float32)
    named = dataclasses.replace(origin, method=method)
    return Directions.oriented(raw.to(rows.device, dtype)[None], difference.to(dtype)[None], [named])


def mean_difference(positive: Float[Tensor, "p d"], negative: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    """μ⁺ − μ⁻."""
    return positive.double().mean(0) - negative.double().mean(0)


def difference_svd(positive: Float[Tensor, "p d"], negative: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    """The leading right singular vector of all p·n differences x⁺ − x⁻, not centered.

    Their second moment is Σ⁺ + Σ⁻ + (μ⁺ − μ⁻)(μ⁺ − μ⁻)ᵀ, so no pairing has to be chosen. It finds the contrast only
    where that is stronger than any direction within the classes. Unit length, any sign.
    """
    difference = mean_difference(positive, negative)
    return _leading(_covariance(positive) + _covariance(negative) + difference.outer(difference))


def reference_pca(positive: Float[Tensor, "p d"], negative: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    """The control vector of the reference code of Words in Motion (Tas & Wagner, ICLR 2025), with its faults.

    The first n = min rows of each class are paired by position, and their differences are *centered* before the
    principal component is taken. Centering removes the contrast: what is left is the leading direction within the
    classes. The sign comes from a vote that compares every positive row with a single negative one.

    Raises:
        ValueError: for classes with fewer than two rows.
    """
    positive, negative = _paired(positive, negative)
    return _reference_flip(_reference_component(positive - negative), positive, negative)


def lda(
    positive: Float[Tensor, "p d"], negative: Float[Tensor, "n d"], shrinkage: float | None = None
) -> Float[Tensor, "d"]:
    """Fisher's discriminant, Σ⁻¹(μ⁺ − μ⁻), with the pooled within-class covariance shrunk towards a sphere.

    Σ = (1 − s) S + s tr(S)/d · I, solved by Cholesky; s is the ``shrinkage`` in (0, 1], by default the optimal one of
    Ledoit and Wolf (2004).

    Raises:
        ValueError: for a shrinkage out of range, or classes without variance.
    """
    centered = torch.cat([item.double() - item.double().mean(0) for item in (positive, negative)])
    scatter = centered.T @ centered / len(centered)
    scale = scatter.diagonal().mean()
    if scale == 0:
        raise ValueError("the classes have no variance, so a discriminant is not defined")
    share = _ledoit_wolf(centered, scatter) if shrinkage is None else shrinkage
    if not 0 < share <= 1:
        raise ValueError(f"the shrinkage should be in (0, 1], it is {share}")
    return _solve_shrunk(scatter, share, scale, mean_difference(positive, negative))


def probe_normal(
    positive: Float[Tensor, "p d"], negative: Float[Tensor, "n d"], penalty: float = 1e-2
) -> Float[Tensor, "d"]:
    """The normal of a logistic probe; moving by the vector adds one to the log-odds.

    Minimizes ½ E⁺[−log σ(w·x + b)] + ½ E⁻[−log σ(−w·x − b)] + ½ penalty ‖w‖² over standardized coordinates by
    Newton's method, so both classes weigh the same. The vector is w/‖w‖², with w in raw coordinates.

    Raises:
        ValueError: for a penalty that is not positive; separable classes have no solution without one.
    """
    if not penalty > 0:
        raise ValueError(f"the penalty should be positive, it is {penalty}")
    rows = torch.cat((positive, negative)).double()
    sign = rows.new_ones(len(rows))
    sign[len(positive) :] = -1
    weight = torch.where(sign > 0, 0.5 / len(positive), 0.5 / len(negative))
    std = rows.std(0, correction=0)
    std = torch.where(std > 0, std, 1)
    x = torch.cat(((rows - rows.mean(0)) / std, sign.abs()[:, None]), 1)
    ridge = torch.full_like(x[0], penalty)
    ridge[-1] = 0
    w = _newton(x * sign[:, None], weight, ridge)[:-1] / std
    return w / w.dot(w)


def regression(rows: Float[Tensor, "n d"], target: Float[Tensor, "n"], shrinkage: float = 1e-3) -> Float[Tensor, "d"]:
    """The ridge regression of a continuous feature; moving by the vector changes its readout by one unit of target.

    w = (S + s tr(S)/d · I)⁻¹ cov(x, y), the vector is w/‖w‖².

    Raises:
        ValueError: if fewer than two rows are given, or the target or the rows do not vary.
    """
    if len(rows) < 2 or target.double().var() == 0:
        raise ValueError(f"a regression needs a target that varies, got {len(rows)} rows of one value")
    x, y = rows.double() - rows.double().mean(0), target.double() - target.double().mean()
    scatter = x.T @ x / len(x)
    scale = scatter.diagonal().mean()
    if scale == 0:
        raise ValueError(f"all {len(rows)} rows are the same, so nothing can be read from them")
    w = _solve_shrunk(scatter, shrinkage, scale, x.T @ y / len(x))
    return w / w.dot(w)


def through(
    dictionary: Decomposition,
    positive: Float[Tensor, "p d"],
    negative: Float[Tensor, "n d"],
    biased: bool = False,
) -> Float[Tensor, "d"]:
    """A control vector through a dictionary: the difference of the mean codes, lifted, without any bias.

    With ``biased``, the reference's way: ``reference_pca``'s component of the differences of codes, decoded as if it
    were a code, the bias included.

    Raises:
        ValueError: if the dictionary has another width than the rows.
    """
    width = dictionary.directions.shape[1]
    if positive.shape[1] != width:
        raise ValueError(f"rows of width {positive.shape[1]}, dictionary of width {width}")
    positive, negative = positive.to(dictionary.directions), negative.to(dictionary.directions)
    with torch.no_grad():
        if not biased:
            difference = _mean_code(dictionary, positive) - _mean_code(dictionary, negative)
            return dictionary.lift(difference.to(positive)).double()
        positive, negative = _paired(positive, negative)
        codes = [dictionary.encode(item).z.double() for item in (positive, negative)]
        component = _reference_component(codes[0] - codes[1])
        return _reference_flip(dictionary.decode(component.to(positive)).double(), positive, negative)


def through_sequences(dictionary: SequenceAutoencoder, positive: Sequences, negative: Sequences) -> Float[Tensor, "d"]:
    """A control vector through a dictionary of sequences: the difference of the mean codes, lifted.

    The code of a token is averaged over the tokens that stand for their sample. A code of a whole sequence writes
    another direction at each token; steering adds one everywhere, so the vector is their mean, each token with the
    share that it has in standing for the samples of both classes: what the change does to the rows that were
    contrasted, on average. Where the same single token stands for all samples, it is that token's direction.

    Raises:
        ValueError: if the sequences have another width or other tokens than the dictionary reads.
    """
    with torch.no_grad():
        codes = [_mean_sequence_code(dictionary, item) for item in (positive, negative)]
        lifted = dictionary.lift((codes[0] - codes[1]).to(dictionary.directions)).double()
        if lifted.ndim == 1:
            return lifted
        shares = [item.share.double().mean(0) for item in (positive, negative)]
        return (shares[0] + shares[1]).to(lifted) / 2 @ lifted


def matched(
    labels: Int[Tensor, "n"], positive: int, negative: int, strata: Int[Tensor, "n"], generator: torch.Generator
) -> Int[Tensor, "m"]:
    """Rows such that both classes are spread alike over the strata (agent type, speed bin, scene).

    From every stratum as many rows of one class as of the other, drawn without replacement: the positive ones first,
    then the negative ones, in the same order of strata, so row i of one is matched with row i of the other.

    Raises:
        ValueError: if no stratum holds both classes.
    """
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    pairs = list[Tensor]()
    for stratum in strata.unique():
        here = order[strata[order] == stratum]
        ups, downs = here[labels[here] == positive], here[labels[here] == negative]
        count = min(len(ups), len(downs))
        pairs.append(torch.stack((ups[:count], downs[:count])))
    index = torch.cat(pairs, 1).flatten()
    if not len(index):
        raise ValueError(f"none of {len(strata.unique())} strata holds rows of both class {positive} and {negative}")
    return index


def bootstrap(count: int, generator: torch.Generator, groups: Int[Tensor, "{count}"] | None = None) -> Int[Tensor, "m"]:
    """Rows drawn with replacement; whole groups (scenes) at a time if they are given, for their rows are not alike."""
    if groups is None:
        return torch.randint(count, (count,), generator=generator)
    group = groups.unique(return_inverse=True)[1]
    size = int(group.max()) + 1
    times = torch.randint(size, (size,), generator=generator).bincount(minlength=size).to(groups.device)
    return torch.arange(count, device=groups.device).repeat_interleave(times[group])


def _members(
    rows: Float[Tensor, "n d"], labels: Int[Tensor, "n"], classes: Sequence[str], name: str
) -> Float[Tensor, "p d"]:
    present = [item for i, item in enumerate(classes) if (labels == i).any()]
    if name not in present:
        why = "has no members" if name in classes else "is unknown"
        raise ValueError(f"class {name!r} {why}; present are {', '.join(map(repr, present))}")
    return rows[labels == list(classes).index(name)]


def _covariance(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    centered = rows.double() - rows.double().mean(0)
    return centered.T @ centered / len(rows)


def _leading(symmetric: Float[Tensor, "d d"]) -> Float[Tensor, "d"]:
    return torch.linalg.eigh(symmetric)[1][:, -1]


def _mean_code(dictionary: Decomposition, rows: Float[Tensor, "n d"]) -> Float[Tensor, "k"]:
    # in pieces, for the codes of a wide dictionary are much larger than the rows
    totals = [dictionary.encode(piece).z.double().sum(0) for piece in rows.split(4096)]
    return torch.stack(totals).sum(0) / len(rows)


def _mean_sequence_code(dictionary: SequenceAutoencoder, sequences: Sequences) -> Float[Tensor, "k"]:
    total = torch.zeros(dictionary.latents, dtype=torch.float64, device=dictionary.scale.device)
    for start in range(0, len(sequences), 1024):
        part = sequences[start : start + 1024]
        z = dictionary.encode(part.states.to(dictionary.directions), part.valid).z.double()
        total += z.sum(0) if z.ndim == 2 else torch.einsum("nt,ntk->k", part.share.to(z), z)
    return total / len(sequences)


def _paired(
    positive: Float[Tensor, "p d"], negative: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]]:
    count = min(len(positive), len(negative))
    if count < 2:
        raise ValueError(f"the reference needs two rows of each class, got {len(positive)} and {len(negative)}")
    return positive[:count], negative[:count]


def _reference_component(differences: Float[Tensor, "n k"]) -> Float[Tensor, "k"]:
    component = _leading(_covariance(differences))
    # scikit-learn's convention; it matters where a bias is added before the sign is chosen
    return component * component[component.abs().argmax()].sign()


def _reference_flip(
    vector: Float[Tensor, "d"], positive: Float[Tensor, "n d"], negative: Float[Tensor, "n d"]
) -> Float[Tensor, "d"]:
    above, below = positive.double() @ vector, negative.double() @ vector
    against = (above < below).double().mean()
    # row 1 stands where row i was meant
    in_favor = (above > below[1]).double().mean()
    return -vector if against > in_favor else vector


def _ledoit_wolf(centered: Float[Tensor, "n d"], scatter: Float[Tensor, "d d"]) -> float:
    n, d = centered.shape
    norm = scatter.square().sum()
    spread = norm - scatter.diagonal().sum().square() / d
    noise = (centered.square().sum(1).square().mean() - norm) / n
    return float((noise / spread).clamp(1e-9, 1))


def _solve_shrunk(
    scatter: Float[Tensor, "d d"], share: float, scale: Float[Tensor, ""], right: Float[Tensor, "d"]
) -> Float[Tensor, "d"]:
    shrunk = (1 - share) * scatter
    shrunk.diagonal().add_(share * scale)
    return torch.cholesky_solve(right[:, None], torch.linalg.cholesky(shrunk))[:, 0]


def _newton(
    x: Float[Tensor, "n k"], weight: Float[Tensor, "n"], ridge: Float[Tensor, "k"], steps: int = 100
) -> Float[Tensor, "k"]:
    """The minimum of Σ weight · softplus(−x·w) + ½ Σ ridge · w²."""

    def loss(w: Tensor) -> Tensor:
        return -(weight * logsigmoid(x @ w)).sum() + (ridge * w * w).sum() / 2

    w = torch.zeros_like(x[0])
    for _ in range(steps):
        p = torch.sigmoid(-(x @ w))
        gradient = ridge * w - x.T @ (weight * p)
        if gradient.norm() < 1e-10:
            return w
        hessian = x.T @ (x * (weight * p * (1 - p))[:, None])
        hessian.diagonal().add_(ridge + 1e-12)
        step = torch.linalg.solve(hessian, gradient)
        size = 1.0
        while loss(w - size * step) > loss(w) - 1e-4 * size * gradient.dot(step) and size > 1e-6:
            size /= 2
        w = w - size * step
    raise RuntimeError(f"no minimum after {steps} Newton steps")
