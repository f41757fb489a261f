"""How faithfully and how sparsely a decomposition represents rows it was not trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.decompose.dictionary import moments
from innerspace.decompose.sequence import reconstructed
from innerspace.decompose.sparse import Sparse
from innerspace.harvest.sequences import Sequences
from innerspace.value import Value


@dataclass(frozen=True)
class RowFidelity(Value):
    """The fidelity of a decomposition on ``rows`` rows; see the functions of the same names."""

    rows: int
    explained_variance: float
    l0: float
    alive: float
    shrinkage: float


@dataclass(frozen=True)
class Histogram(Value):
    """How many values lie where: ``counts[i]`` of them from ``edges[i]`` to below ``edges[i + 1]``."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class FiringHistogram(Value):
    """How many latents fire how often: bins of log₁₀ of the share of rows; ``never`` counts those that fire on none."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    never: int


@torch.no_grad()
def row_fidelity(what: Decomposition, rows: Float[Tensor, "rows d"] | Sequences, *, chunk: int = 8192) -> RowFidelity:
    """Encode and decode rows, and measure what came back; the rows of sequences are their valid tokens.

    Where there is one code for a whole sequence, L0 is that of sequences.

    Raises:
        ValueError: if the rows are not finite or all alike.
    """
    training = what.training
    what.eval()
    like = next(what.parameters())
    reconstruction, entries, codes, on = list[Tensor](), 0.0, 0, None
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        if isinstance(part, Sequences):
            _, x_hat, code = reconstructed(what, part.states.to(like), part.valid)
        else:
            code = what.code(part.to(like))
            x_hat = what.decode(code.z)
        reconstruction.append(x_hat)
        entries += float(active(code.z).double().sum())
        codes += code.cost.numel()
        on = fired(code.z) if on is None else on | fired(code.z)
    what.train(training)
    assert on is not None
    clean = rows.states[rows.valid] if isinstance(rows, Sequences) else rows
    x_hat = torch.cat(reconstruction).to(clean)
    return RowFidelity(
        rows=len(clean),
        explained_variance=explained_variance(clean, x_hat),
        l0=entries / codes,
        alive=float(on.double().mean()),
        shrinkage=shrinkage(clean, x_hat),
    )


@torch.no_grad()
def explained_variance(x: Float[Tensor, "rows d"], x_hat: Float[Tensor, "rows d"]) -> float:
    """1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²: one for a perfect copy, zero for the mean, negative for worse.

    Raises:
        ValueError: if the rows are not finite or all alike.
    """
    _, variance = moments(x.double())
    return float(1 - (x.double() - x_hat.double()).square().sum(-1).mean() / variance)


@torch.no_grad()
def shrinkage(x: Float[Tensor, "rows d"], x_hat: Float[Tensor, "rows d"]) -> float:
    """1 − γ, where x̂ / γ is the rescaled reconstruction that comes closest: positive where codes are too small.

    γ = Σ‖x̂‖² / Σ x̂·x, both about the mean of x, which would else hide it. Rajamanoharan et al. 2024, arXiv 2404.16014.
    A reconstruction that is the mean has no size to compare and gives NaN.
    """
    mean, _ = moments(x.double())
    centered, centered_hat = x.double() - mean, x_hat.double() - mean
    return float(1 - centered_hat.square().sum() / (centered_hat * centered).sum())


def l0(z: Float[Tensor, "*rows k"] | Sparse) -> float:
    """How many entries of a row's code are on, on average."""
    return float(active(z).double().mean())


def active(z: Float[Tensor, "*rows k"] | Sparse) -> Int[Tensor, "*rows"]:
    """How many entries of each row's code are on."""
    return z.count() if isinstance(z, Sparse) else z.count_nonzero(-1)


def frequency(z: Float[Tensor, "*rows k"] | Sparse) -> Int[Tensor, "k"]:
    """On how many of the rows each latent fires."""
    return z.frequency() if isinstance(z, Sparse) else z.reshape(-1, z.shape[-1]).count_nonzero(0)


def alive(z: Float[Tensor, "*rows k"] | Sparse) -> float:
    """The share of latents that fire on at least one of the rows."""
    return float(fired(z).double().mean())


def fired(z: Float[Tensor, "*rows k"] | Sparse) -> Bool[Tensor, "k"]:
    """Which latents fire on at least one of the rows."""
    return z.fired() if isinstance(z, Sparse) else z.reshape(-1, z.shape[-1]).any(0)


def l0_histogram(rows: Int[Tensor, "counts"], bins: int = 40) -> Histogram:
    """The distribution of L0, where ``rows[n]`` rows have n entries on; a bin is a whole number wide."""
    found = rows.nonzero().flatten()
    low, high = int(found.min()), int(found.max())
    width = -(-(high - low + 1) // bins)
    counts = torch.stack([part.sum() for part in rows[low : high + 1].split(width)])
    return Histogram(tuple(float(low + i * width) for i in range(len(counts) + 1)), tuple(counts.tolist()))


def l0_quantiles(rows: Int[Tensor, "counts"], levels: Sequence[float]) -> tuple[int, ...]:
    """The least L0 that at least such a share of the rows does not exceed; ``rows`` as for ``l0_histogram``."""
    sums = rows.cumsum(0).double()
    wanted = torch.tensor(levels, dtype=torch.float64, device=sums.device) * sums[-1]
    return tuple(torch.searchsorted(sums, wanted).tolist())


def firing_histogram(rows: Int[Tensor, "k"], total: int, step: float = 0.25) -> FiringHistogram:
    """How often latents fire, of which latent i does on ``rows[i]`` of ``total`` rows; ``step`` is a bin's width."""
    on = rows[rows > 0]
    bins = math.ceil(math.log10(total) / step) + 1
    place = ((on.double() / total).log10() / step).floor().long() + bins - 1
    edges = tuple(step * (i - bins + 1) for i in range(bins + 1))
    return FiringHistogram(edges, tuple(torch.bincount(place, minlength=bins).tolist()), len(rows) - len(on))
