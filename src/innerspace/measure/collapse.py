"""How sharply hidden states gather by a feature's classes, next to what chance labels give.

Notation: n rows x of width d in C classes, with means μ_c, covariances Σ_c, variances Var_c = E‖x − μ_c‖² = tr Σ_c and
shares n_c/n. NC1 and the CDNVs are 0 where every class is a point; equinorm and equiangularity are 0 where the class
means form a simplex. What random labels give depends on n, d and C, so each metric is shown beside its values under
permuted labels.

Several labelings are measured at once: what does not depend on labels (total covariance, squared norms) is computed
once, and class sums of all labelings are one product with their one-hot matrix.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.value import Value

Matrix = tuple[tuple[float, ...], ...]

_ZERO = 1e-12
"""What a metric below this differs from zero by is rounding."""

_COINCIDE = 1e-12
"""Two means coincide where their squared distance is below this share of the rows' mean square."""


@dataclass(frozen=True)
class Compared(Value):
    """A metric beside its permutation null: mean, 95 % range, and z of log value.

    The logarithm, because a metric with distances in its denominator has a null with a heavy tail, against which not
    even full collapse would be remarkable. A z far below zero says that the classes are more collapsed than chance
    labels; it is None where the null does not vary.
    """

    value: float
    null_mean: float
    null_low: float
    null_high: float
    z: float | None


@dataclass(frozen=True)
class Collapse(Value):
    """The collapse of hidden states at a site towards the classes of a feature.

    ``distances`` are those between class means, ``angles`` (degrees) those between class means seen from their common
    mean, ``norms`` their lengths from there. ``left_out`` names the classes with fewer than two rows.
    """

    feature: str
    site: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    left_out: tuple[str, ...]
    permutations: int
    nc1: Compared
    cdnv: Compared
    cdnv_ratio_of_means: Compared
    directional_cdnv: Compared
    equinorm: Compared
    equiangularity: Compared
    norms: tuple[float, ...]
    distances: Matrix
    angles: Matrix
    std_of_normalized: float
    effective_rank: float


def collapse(
    rows: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    classes: Sequence[str],
    generator: torch.Generator,
    *,
    feature: str,
    site: str,
    groups: Int[Tensor, "n"] | None = None,
    permutations: int = 100,
) -> Collapse:
    """Measure all metrics, each with its label-permutation null.

    Args:
        rows: hidden states.
        labels: each row's class, an index into ``classes``; rows with -1 take no part.
        classes: the names of the classes.
        generator: draws the permutations.
        feature: the feature's name, for the record.
        site: the site's name, for the record.
        groups: what rows belong together (scenes). Labels then move in blocks: the groups' label sequences are dealt
            in random order to the rows, which lie in order of their groups. Without groups every row moves alone.
        permutations: how many labelings make the null.

    Raises:
        ValueError: for fewer than two classes with two rows, labels out of range, rows that are not finite, class
            means that coincide, or fewer than two permutations.
    """
    if permutations < 2:
        raise ValueError(f"a null needs at least two permutations, got {permutations}")
    if len(labels) and int(labels.max()) >= len(classes):
        raise ValueError(f"label {int(labels.max())} has no name; the classes are {', '.join(classes)}")
    names, keep, label = _usable(rows, labels, classes)
    kept = rows[keep]
    states = _States.of(kept)
    group = torch.arange(len(kept), device=rows.device) if groups is None else groups[keep]
    order = group.argsort(stable=True)
    shuffled = torch.empty(permutations, len(kept), dtype=torch.long, device=rows.device)
    shuffled[:, order] = _dealt(label[order], group[order], permutations, generator)

    observed = _observe(states, label, names)
    # chunks bound the memory of the one-hot matrices to some tens of megabytes
    chunk = max(1, 4_000_000 // (len(kept) * len(names)))
    null = [_measure(states, part, len(names)) for part in shuffled.split(chunk)]

    def compared(metric: str) -> Compared:
        value = float(getattr(observed, metric))
        chance = torch.cat([getattr(part, metric) for part in null])
        low, high = chance.quantile(chance.new_tensor([0.025, 0.975])).tolist()
        logs = chance.clamp_min(_ZERO).log()
        z = (math.log(max(value, _ZERO)) - logs.mean().item()) / logs.std().item() if logs.std() > 1e-9 else None
        return Compared(value, chance.mean().item(), low, high, z)

    centered = observed.means[0] - observed.means[0].mean(0)
    return Collapse(
        feature=feature,
        site=site,
        classes=tuple(names),
        counts=tuple(label.bincount().tolist()),
        left_out=tuple(name for name in classes if name not in names),
        permutations=permutations,
        nc1=compared("nc1"),
        cdnv=compared("cdnv"),
        cdnv_ratio_of_means=compared("cdnv_ratio_of_means"),
        directional_cdnv=compared("directional_cdnv"),
        equinorm=compared("equinorm"),
        equiangularity=compared("equiangularity"),
        norms=tuple(centered.norm(dim=1).tolist()),
        distances=_matrix(torch.cdist(centered, centered, compute_mode="donot_use_mm_for_euclid_dist")),
        angles=_matrix(torch.rad2deg(_cosines(centered).clamp(-1, 1).acos()).fill_diagonal_(0)),
        std_of_normalized=std_of_normalized(kept),
        effective_rank=effective_rank(kept),
    )


def nc1(rows: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> float:
    """Within-class over between-class covariance, tr(Σ_W Σ_B⁺)/C (Papyan, Han, Donoho 2020), with classes by share.

    Σ_B = Σ_c n_c/n (μ_c − μ)(μ_c − μ)ᵀ and Σ_W = Σ_T − Σ_B, so every row weighs the same.

    Raises:
        ValueError: as ``collapse``; so do the following.
    """
    return float(_measured(rows, labels).nc1)


def cdnv(rows: Float[Tensor, "n d"], labels: Int[Tensor, "n"], ratio_of_means: bool = False) -> float:
    """Class-distance normalized variance: the mean over pairs of (Var_i + Var_j) / (2‖μ_i − μ_j‖²).

    With ``ratio_of_means``, as in the reference code of Words in Motion, the mean variance over the mean squared
    distance, which no pair of near classes can raise: it looks more collapsed (Galanti, György, Hutter, ICLR 2022).
    """
    measured = _measured(rows, labels)
    return float(measured.cdnv_ratio_of_means if ratio_of_means else measured.cdnv)


def directional_cdnv(rows: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> float:
    """As ``cdnv``, with the variance along the axis of the two means only: what matters for steering.

    The mean over pairs of (uᵀΣ_i u + uᵀΣ_j u) / (2‖μ_i − μ_j‖²), u along μ_i − μ_j (Luthra, Salunkhe, Galanti 2026).
    """
    return float(_measured(rows, labels).directional_cdnv)


def std_of_normalized(rows: Float[Tensor, "n d"]) -> float:
    """The mean over coordinates of the std of x/‖x‖: 0 for constant states, 1/√d for isotropic ones (SimSiam, 2021)."""
    return float(torch.nn.functional.normalize(rows.double(), dim=1).std(0).mean())


def effective_rank(rows: Float[Tensor, "n d"]) -> float:
    """The exponential of the entropy of the covariance's normalized spectrum (Roy and Vetterli 2007); 0 if constant."""
    centered = rows.double() - rows.double().mean(0)
    spectrum = torch.linalg.eigvalsh(centered.T @ centered).clamp_min(0)
    if spectrum.sum() == 0:
        return 0.0
    return float(torch.special.entr(spectrum / spectrum.sum()).sum().exp())


class _States(NamedTuple):
    """Centered rows in float64, and the moments that no labeling changes."""

    x: Float[Tensor, "n d"]
    square: Float[Tensor, "n"]
    covariance: Float[Tensor, "d d"]

    @staticmethod
    def of(rows: Float[Tensor, "n d"]) -> "_States":
        x = rows.double() - rows.double().mean(0)
        return _States(x, x.square().sum(1), x.T @ x / len(x))


class _Measured(NamedTuple):
    """The metrics of several labelings p of the same rows."""

    means: Float[Tensor, "p c d"]
    nc1: Float[Tensor, "p"]
    cdnv: Float[Tensor, "p"]
    cdnv_ratio_of_means: Float[Tensor, "p"]
    directional_cdnv: Float[Tensor, "p"]
    equinorm: Float[Tensor, "p"]
    equiangularity: Float[Tensor, "p"]


def _usable(
    rows: Float[Tensor, "n d"], labels: Int[Tensor, "n"], classes: Sequence[str]
) -> tuple[list[str], Int[Tensor, "m"], Int[Tensor, "m"]]:
    """The names of the classes with at least two rows, the indices of their rows, and the labels counted anew."""
    counts = labels[labels >= 0].bincount(minlength=len(classes))
    full = counts >= 2
    if full.sum() < 2:
        held = ", ".join(f"{name!r}: {count}" for name, count in zip(classes, counts.tolist(), strict=True))
        raise ValueError(f"at least two classes with two rows each are needed, got {held}")
    keep = ((labels >= 0) & full[labels.clamp_min(0)]).nonzero()[:, 0]
    if bad := int((~rows[keep].isfinite().all(1)).sum()):
        raise ValueError(f"{bad} of {len(keep)} rows are not finite")
    names = [name for name, chosen in zip(classes, full.tolist(), strict=True) if chosen]
    return names, keep, (full.cumsum(0) - 1)[labels[keep]]


def _measured(rows: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> _Measured:
    names, keep, label = _usable(rows, labels, [str(i) for i in range(int(labels.max()) + 1)])
    return _observe(_States.of(rows[keep]), label, names)


def _dealt(
    label: Int[Tensor, "n"], group: Int[Tensor, "n"], permutations: int, generator: torch.Generator
) -> Int[Tensor, "p n"]:
    """The labels of every group, in their order, the groups in random order."""
    block = group.unique_consecutive(return_inverse=True)[1]
    key = torch.rand(permutations, int(block[-1]) + 1, generator=generator).to(label.device)
    return label[key[:, block].argsort(dim=1, stable=True)]


def _observe(states: _States, label: Int[Tensor, "n"], names: Sequence[str]) -> _Measured:
    """The metrics of the true labels."""
    measured = _measure(states, label[None], len(names))
    distance = torch.pdist(measured.means[0])
    nearest = int(distance.argmin())
    if distance[nearest].square() <= _COINCIDE * states.square.mean():
        a, b = torch.combinations(torch.arange(len(names)))[nearest].tolist()
        raise ValueError(f"classes {names[a]!r} and {names[b]!r} have the same mean, so nothing tells them apart")
    return measured


def _measure(states: _States, labels: Int[Tensor, "p n"], count: int) -> _Measured:
    """The metrics of several labelings with the same class counts."""
    n = len(states.x)
    member = torch.nn.functional.one_hot(labels, count).mT.to(states.x)
    share = member[0].sum(1) / n
    weight = member / (n * share[:, None])
    means = (weight.flatten(0, 1) @ states.x).unflatten(0, (-1, count))
    variance = weight @ states.square - means.square().sum(-1)

    gram = means @ means.mT
    norm = gram.diagonal(dim1=1, dim2=2)
    distance = norm[:, :, None] + norm[:, None] - 2 * gram
    i, j = torch.triu_indices(count, count, 1, device=labels.device)
    # chance may let two means of few rows coincide, which must not turn the null into infinities
    apart = distance[:, i, j].clamp_min(_COINCIDE * states.square.mean())
    cdnv = ((variance[:, i] + variance[:, j]) / (2 * apart)).mean(1)
    ratio = variance.mean(1) / apart.mean(1)

    # row r of class c lies at x·(μ_c − μ_k) on the axis to every other class k
    place = states.x @ means.mT
    place = place.gather(2, labels[..., None]) - place
    along = weight @ place.square() - (weight @ place).square()
    directional = ((along[:, i, j] + along[:, j, i]) / (2 * apart.square())).mean(1)

    # Σ_B = AᵀA for the C weighted means A, so its pseudo-inverse needs the C × C matrix G = AAᵀ only
    a = means * share.sqrt()[:, None]
    inverse = torch.linalg.pinv(a @ a.mT, rtol=1e-10, hermitian=True)
    total = inverse @ (a @ states.covariance @ a.mT) @ inverse
    rank = (a @ a.mT @ inverse).diagonal(dim1=1, dim2=2).sum(1)
    nc1 = (total.diagonal(dim1=1, dim2=2).sum(1) - rank) / count

    spread = means - means.mean(1, keepdim=True)
    length = spread.norm(dim=2)
    equinorm = length.std(1, correction=0) / length.mean(1)
    simplex = -1 / (count - 1)
    equiangularity = (_cosines(spread)[:, i, j] - simplex).abs().mean(1)
    return _Measured(means, nc1, cdnv, ratio, directional, equinorm, equiangularity)


def _cosines(vectors: Float[Tensor, "*p c d"]) -> Float[Tensor, "*p c c"]:
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    return unit @ unit.mT


def _matrix(entries: Float[Tensor, "c c"]) -> Matrix:
    return tuple(tuple(row) for row in entries.tolist())
