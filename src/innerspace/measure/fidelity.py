"""How faithfully and how sparsely a decomposition represents rows it was not trained on."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.decompose.dictionary import moments
from innerspace.value import Value


@dataclass(frozen=True)
class RowFidelity(Value):
    """The fidelity of a decomposition on ``rows`` rows; see the functions of the same names."""

    rows: int
    explained_variance: float
    l0: float
    alive: float
    shrinkage: float


@torch.no_grad()
def row_fidelity(what: Decomposition, rows: Float[Tensor, "rows d"], *, chunk: int = 8192) -> RowFidelity:
    """Encode and decode rows, and measure what came back.

    Raises:
        ValueError: if the rows are not finite or all alike.
    """
    training = what.training
    what.eval()
    like = next(what.parameters())
    reconstruction, entries, on = list[Tensor](), 0.0, None
    for part in rows.split(chunk):
        z = what.encode(part.to(like)).z
        reconstruction.append(what.decode(z).to(rows))
        entries += l0(z) * len(part)
        on = fired(z) if on is None else on | fired(z)
    what.train(training)
    x_hat = torch.cat(reconstruction)
    assert on is not None
    return RowFidelity(
        rows=len(rows),
        explained_variance=explained_variance(rows, x_hat),
        l0=entries / len(rows),
        alive=float(on.double().mean()),
        shrinkage=shrinkage(rows, x_hat),
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


def l0(z: Float[Tensor, "*rows k"]) -> float:
    """How many entries of a row's code are on, on average."""
    return float(z.count_nonzero(-1).double().mean())


def alive(z: Float[Tensor, "*rows k"]) -> float:
    """The share of latents that fire on at least one of the rows."""
    return float(fired(z).double().mean())


def fired(z: Float[Tensor, "*rows k"]) -> Bool[Tensor, "k"]:
    """Which latents fire on at least one of the rows."""
    return z.reshape(-1, z.shape[-1]).any(0)
