"""Terms for sequences: how well a Koopman autoencoder says the token ahead and the one behind, and whether both agree.

Azencot et al. 2020, arXiv 2003.02236. Words in Motion weighs them with 1, 0.1 and 0.01, beside the reconstruction:

    (Reconstruction(), Ahead(), Back(), Consistency())

All are means over pairs of neighboring tokens that are both valid, whatever the number of sequences or tokens. A trial
without any such pair has nothing to say and gives zero.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.decompose.koopman import Koopman, Towards
from innerspace.learn.objectives import Term, Unit, squared
from innerspace.learn.trials import Trial


@dataclass(frozen=True)
class Ahead(Term):
    """``coefficient`` × E‖x_{t+1} − decode(h_t C(h_t))‖²."""

    coefficient: float = 1.0
    unit: Unit = "variance"

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """As above.

        Raises:
            ValueError: if the decomposition has no operators, or the trial no sequences.
        """
        return self.coefficient * _prediction(trial, "ahead", self.name, self.unit)


@dataclass(frozen=True)
class Back(Term):
    """``coefficient`` × E‖x_t − decode(h_{t+1} D(h_{t+1}))‖²."""

    coefficient: float = 0.1
    unit: Unit = "variance"

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """As above.

        Raises:
            ValueError: if the decomposition has no operators, or the trial no sequences.
        """
        return self.coefficient * _prediction(trial, "back", self.name, self.unit)


@dataclass(frozen=True)
class Consistency(Term):
    """``coefficient`` × E[½ ‖C_t D_{t+1} − I‖² + ½ ‖D_{t+1} C_t − I‖²] / k: a step ahead and one back lead nowhere.

    The norm is Frobenius's, so the term is the mean squared error of an axis, for any number of latents k. With
    ``reference`` it is the published one instead, ½ ‖·‖ + ½ ‖·‖ of all pairs' matrices as one tensor, without a square,
    a mean or k: it grows with the root of the number of pairs.
    """

    coefficient: float = 0.01
    reference: bool = False

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """As above.

        Raises:
            ValueError: if the decomposition has no operators, or the trial no sequences.
        """
        what, codes, (now, then) = _sequence(trial, self.name)
        if not len(now):
            return trial.clean.new_zeros(())
        ahead, back = what.operator(codes[now], "ahead"), what.operator(codes[then], "back")
        identity = torch.eye(what.latents).to(ahead)
        errors = torch.stack((ahead @ back - identity, back @ ahead - identity))
        if self.reference:
            every = errors.expand(-1, len(now), -1, -1)
            return self.coefficient * 0.5 * every.flatten(1).norm(dim=1).sum()
        return self.coefficient * 0.5 * errors.square().sum((0, 2, 3)).mean() / what.latents


def neighbors(trial: Trial, name: str) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
    """The rows of a trial that are tokens t, and those that are the tokens t + 1 of the same sequences.

    Raises:
        ValueError: if the rows do not stand in sequences.
    """
    if (valid := trial.valid) is None:
        raise ValueError(f"{name} compares neighboring tokens; rows alone have none (use trials of sequences)")
    row = valid.flatten().cumsum(0).view_as(valid) - 1
    both = valid[..., :-1] & valid[..., 1:]
    return row[..., :-1][both], row[..., 1:][both]


def _sequence(trial: Trial, name: str) -> tuple[Koopman, Tensor, tuple[Tensor, Tensor]]:
    what, codes = trial.decomposition, trial.code.z
    if not isinstance(what, Koopman):
        raise ValueError(f"{name} judges a Koopman autoencoder, not a {type(what).__name__}")
    assert isinstance(codes, Tensor)
    return what, codes, neighbors(trial, name)


def _prediction(trial: Trial, towards: Towards, name: str, unit: Unit) -> Tensor:
    what, codes, pair = _sequence(trial, name)
    origin, target = pair if towards == "ahead" else pair[::-1]
    if not len(origin):
        return trial.clean.new_zeros(())
    predicted = what.decode(what.step(codes[origin], towards))
    return squared(trial.clean[target], predicted, unit, trial.variance)
