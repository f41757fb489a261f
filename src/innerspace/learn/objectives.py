"""What judges a trial: terms, each a loss, a metric and a column of the log at once.

An objective is a tuple of terms; the loss is their sum. Every term is a mean over rows, so neither the size of a batch
nor its repetition changes it.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from innerspace.decompose.autoencoder import SparseAutoencoder
from innerspace.decompose.base import AnyCode
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.sparse import Sparse, weighted_sum
from innerspace.learn.passes import OUTPUT, Passes
from innerspace.learn.trials import Trial
from innerspace.value import Value

Unit = Literal["variance", "sum", "mean"]
"""What squared errors are counted in: the rows' variance, as they are summed over the width, or their mean over it."""


@dataclass(frozen=True)
class Term(Value, ABC):
    """One number that judges a trial; smaller is better."""

    @property
    def name(self) -> str:
        """The column's name."""
        return type(self).__name__.lower()

    @property
    def needs(self) -> frozenset[str]:
        """The places behind the site at which the two passes are compared; none for what looks at the rows alone."""
        return frozenset()

    @abstractmethod
    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """The judgement, differentiable."""


Objective = tuple[Term, ...]


@dataclass(frozen=True)
class Reconstruction(Term):
    """``coefficient`` × mean over rows of ‖x − x̂‖²; in the rows' variance it is the share that is not explained."""

    coefficient: float = 1.0
    unit: Unit = "variance"

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """E‖x − x̂‖² / E‖x − x̄‖², in the default unit."""
        return self.coefficient * squared(trial.clean, trial.reconstruction, self.unit, trial.variance)


@dataclass(frozen=True)
class NestedReconstruction(Term):
    """Mean over a Matryoshka dictionary's prefixes of the reconstruction by the latents of the prefix alone.

    Bussmann et al. 2025, arXiv 2503.17547.
    """

    coefficient: float = 1.0
    unit: Unit = "variance"

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """E over prefixes m of E‖x − decode(z₁…z_m)‖².

        Raises:
            ValueError: if the decomposition is no dictionary with prefixes.
        """
        what = _dictionary(trial, self.name)
        if not what.form.prefixes:
            raise ValueError(f"{self.name} needs a dictionary whose form has prefixes")
        errors = [
            squared(trial.clean, what.decode(_before(trial.code, prefix)), self.unit, trial.variance)
            for prefix in what.form.prefixes
        ]
        return self.coefficient * torch.stack(errors).mean()


@dataclass(frozen=True)
class GateReconstruction(Term):
    """The reconstruction by what a gate lets through, max(pre, 0), with the decoder held fixed: how a gate learns.

    Rajamanoharan et al. 2024, arXiv 2404.16014.
    """

    coefficient: float = 1.0
    unit: Unit = "variance"

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """E‖x − decode(max(pre, 0))‖².

        Raises:
            ValueError: if the decomposition is no sparse autoencoder.
        """
        what, pre = trial.decomposition, trial.code.pre
        if not isinstance(what, SparseAutoencoder):
            raise ValueError(f"{self.name} judges a sparse autoencoder, not a {type(what).__name__}")
        gate = pre.replace(pre.values.relu()) if isinstance(pre, Sparse) else pre.relu()
        reconstruction = trial.of_rows(what.decode_held(gate))
        return self.coefficient * squared(trial.clean, reconstruction, self.unit, trial.variance)


@dataclass(frozen=True)
class Sparsity(Term):
    """``coefficient`` × mean over rows of what a code costs.

    ``measure`` is ``own``, the cost that the nonlinearity states (L1 for ReLU, a straight-through L0 for JumpReLU);
    ``lp``, Σ|z|ᵖ; ``norm``, (Σ|z|ᵖ)^(1/p); or ``tanh``, Σ tanh(z / ``p``), a smooth L0. ``per_width`` divides by the
    hidden state's width, as Braun et al. 2024 count.
    """

    coefficient: float
    measure: Literal["own", "lp", "norm", "tanh"] = "own"
    p: float = 1.0
    per_width: bool = False

    def __post_init__(self) -> None:
        if self.coefficient < 0 or not 0 < self.p < math.inf:
            raise ValueError(f"Sparsity: the coefficient should not be negative and p positive, they are {self}")

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """λ · E[cost]."""
        cost = self._cost(trial.code).mean(dtype=trial.clean.dtype)
        return self.coefficient * (cost / trial.clean.shape[-1] if self.per_width else cost)

    def _cost(self, code: AnyCode) -> Tensor:
        if self.measure == "own":
            return code.cost
        z = code.z.values if isinstance(code.z, Sparse) else code.z
        if self.measure == "tanh":
            entries = torch.tanh(z / self.p)
        else:
            # the power of zero has no derivative below p = 1
            entries = z if self.p == 1 else torch.where(z > 0, z.clamp(min=1e-12) ** self.p, 0.0)
        rows = code.z.replace(entries).row_sums() if isinstance(code.z, Sparse) else entries.sum(-1)
        if self.measure == "norm" and self.p != 1:
            return torch.where(rows > 0, rows.clamp(min=1e-12) ** (1 / self.p), 0.0)
        return rows


@dataclass(frozen=True)
class AuxK(Term):
    """Dead latents reconstruct what the others left over, which gives them a gradient again.

    ``coefficient`` × mean of ‖e − ê‖² in units of the rows' variance, where e = x − x̂ is held fixed and ê writes the
    ``k`` largest positive pre-activations among the latents that were silent for ``after`` rows. So it helps where
    positive ones are left out (TopK, BatchTopK, JumpReLU); a dead latent of a ReLU or a gate has none.
    Gao et al. 2024, arXiv 2406.04093.
    """

    k: int
    coefficient: float = 1 / 32
    after: int = 100_000

    def __post_init__(self) -> None:
        if self.k < 1 or self.after < 1 or self.coefficient < 0:
            raise ValueError(f"AuxK: k and after should be at least 1, coefficient not negative; they are {self}")

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """λ · E‖e − ê‖² / E‖x − x̄‖².

        Raises:
            ValueError: if the decomposition is no dictionary.
        """
        what = _dictionary(trial, self.name)
        left = (trial.clean - trial.reconstruction).detach()
        # to wait for the number of dead latents costs less than to treat all latents as if they might be
        dead = (what.silent >= self.after).nonzero().flatten()
        if not len(dead):
            return self.coefficient * squared(left, torch.zeros_like(left), "variance", trial.variance)
        written = weighted_sum(what.largest_among(trial.clean, dead, self.k), what.directions[dead])
        return self.coefficient * squared(left, written, "variance", trial.variance)


@dataclass(frozen=True)
class OutputKL(Term):
    """``coefficient`` × E[KL(p ‖ p̂)] in nats: what the dictionary changes in the network's output distribution.

    The mean is over the positions that count; p is the clean output. Braun et al. 2024, arXiv 2405.12241.
    """

    coefficient: float = 1.0

    @property
    def needs(self) -> frozenset[str]:
        """The output."""
        return frozenset({OUTPUT})

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """α · E[KL(p ‖ p̂)]."""
        return self.coefficient * _passes(trial, self.name).divergence()


@dataclass(frozen=True)
class Downstream(Term):
    """How much the hidden states behind the site change: Σₛ wₛ E‖aₛ − âₛ‖² over ``sites``.

    The weights wₛ are ``coefficient`` / number of sites, times ``weights`` where they are given. ``unit`` is the mean
    over the width (Braun et al. 2024, e2e+ds), or the variance at the site, which makes sites and layers comparable.
    """

    sites: tuple[str, ...]
    coefficient: float = 1.0
    unit: Unit = "mean"
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.sites or (self.weights and len(self.weights) != len(self.sites)):
            raise ValueError(f"Downstream needs sites, and no weights or one for each; it has {self}")

    @property
    def needs(self) -> frozenset[str]:
        """The sites."""
        return frozenset(self.sites)

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """Σₛ wₛ E‖aₛ − âₛ‖²."""
        passes = _passes(trial, self.name)
        total = trial.clean.new_zeros(())
        for site, weight in zip(self.sites, self.weights or (1.0,) * len(self.sites), strict=True):
            clean, other = passes.rows(site)
            variance = passes.variance(site) if self.unit == "variance" else None
            total = total + weight * squared(clean.to(total), other.to(total), self.unit, variance)
        return self.coefficient / len(self.sites) * total


@dataclass(frozen=True)
class Balanced(Term):
    """½ (MSE + [MSE / KL] · KL), the bracket held fixed: the divergence at the scale of the reconstruction error.

    So a sparsity penalty tuned for reconstruction keeps its weight when training goes over to the divergence.
    Karvonen 2025, arXiv 2503.17272.
    """

    unit: Unit = "variance"

    @property
    def needs(self) -> frozenset[str]:
        """The output."""
        return frozenset({OUTPUT})

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """½ (MSE + [MSE / KL] · KL)."""
        error = squared(trial.clean, trial.reconstruction, self.unit, trial.variance)
        divergence = _passes(trial, self.name).divergence()
        return 0.5 * (error + (error / (divergence + 1e-8)).detach() * divergence)


def squared(
    rows: Float[Tensor, "*rows d"], found: Float[Tensor, "*rows d"], unit: Unit, variance: Tensor | None
) -> Float[Tensor, ""]:
    """The mean over rows of squared errors, in a unit; the variance may be None where it is not that."""
    # in one operation, so that neither pass keeps or makes more than one array of that size
    total = F.mse_loss(found, rows, reduction="sum") / (rows.numel() // rows.shape[-1])
    if unit == "variance":
        assert variance is not None
        return total / variance
    return total / rows.shape[-1] if unit == "mean" else total


def _before(code: AnyCode, prefix: int) -> Tensor | Sparse:
    """The code without the latents from ``prefix`` on."""
    if isinstance(code.z, Sparse):
        return code.z.replace(code.z.values * (code.z.layout.latent < prefix))
    return code.z * (torch.arange(code.z.shape[-1], device=code.z.device) < prefix)


def _dictionary(trial: Trial, name: str) -> Dictionary:
    if not isinstance(trial.decomposition, Dictionary):
        raise ValueError(f"{name} judges a Dictionary, not a {type(trial.decomposition).__name__}")
    return trial.decomposition


def _passes(trial: Trial, name: str) -> Passes:
    if trial.passes is None:
        raise ValueError(f"{name} compares two passes of a network; rows alone have none (use spliced trials)")
    return trial.passes
