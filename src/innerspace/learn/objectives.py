"""What judges a trial: terms, each a loss, a metric and a column of the log at once.

An objective is a tuple of terms; the loss is their sum. Every term is a mean over rows, so neither the size of a batch
nor its repetition changes it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import TopK
from innerspace.learn.trials import Trial
from innerspace.value import Value


@dataclass(frozen=True)
class Term(Value, ABC):
    """One number that judges a trial; smaller is better."""

    @property
    def name(self) -> str:
        """The column's name."""
        return type(self).__name__.lower()

    @abstractmethod
    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """The judgement, differentiable."""


Objective = tuple[Term, ...]


@dataclass(frozen=True)
class Reconstruction(Term):
    """The share of the variance that is not explained: mean of ‖x − x̂‖² over rows, in units of the rows' variance."""

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """E‖x − x̂‖² / E‖x − x̄‖²."""
        return _squared(trial.clean - trial.reconstruction) / trial.variance


@dataclass(frozen=True)
class Sparsity(Term):
    """``coefficient`` × mean over rows of the cost that the code's nonlinearity states."""

    coefficient: float

    def __post_init__(self) -> None:
        if self.coefficient < 0:
            raise ValueError(f"Sparsity: the coefficient should not be negative, it is {self.coefficient}")

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """λ · E[cost]."""
        return self.coefficient * trial.code.cost.mean()


@dataclass(frozen=True)
class AuxK(Term):
    """Dead latents reconstruct what the others left over, which gives them a gradient again.

    ``coefficient`` × mean of ‖e − ê‖² in units of the rows' variance, where e = x − x̂ is held fixed and ê writes the
    ``k`` largest positive pre-activations among the latents that were silent for ``after`` rows.
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
        what = trial.decomposition
        if not isinstance(what, Dictionary):
            raise ValueError(f"AuxK revives the latents of a Dictionary; a {type(what).__name__} has none")
        # to wait for the number of dead latents costs less than to treat all latents as if they might be
        dead = (what.silent >= self.after).nonzero().flatten()
        pre = trial.code.pre[..., dead]
        z = TopK(self.k)(pre, {}).z if len(dead) > self.k else pre.relu()
        left = (trial.clean - trial.reconstruction).detach()
        return self.coefficient * _squared(left - z @ what.directions[dead]) / trial.variance


def _squared(error: Float[Tensor, "*rows d"]) -> Float[Tensor, ""]:
    return error.square().sum(-1).mean()
