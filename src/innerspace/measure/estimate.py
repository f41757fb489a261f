"""A number and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.value import Value

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t for 1 to 9 degrees of freedom; beyond, the Cornish-Fisher expansion serves."""


@dataclass(frozen=True)
class Estimate(Value):
    """A number with its 95 % interval; the bounds are None where no interval can be given."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        known = self.low is not None and self.high is not None
        return f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})" if known else f"{self.mean:.4g}"


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of independent repetitions with the 95 % interval of Student's t; a single one has no interval.

    Raises:
        ValueError: if there is no value.
    """
    if not values:
        raise ValueError("an estimate needs at least one value")
    numbers = torch.tensor(values, dtype=torch.float64)
    mean, freedom = float(numbers.mean()), len(values) - 1
    if not freedom:
        return Estimate(mean)
    z = 1.959964
    quantile = _T_975[freedom - 1] if freedom <= len(_T_975) else z + (z**3 + z) / (4 * freedom)
    half = quantile * float(numbers.std()) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def from_copies(value: float, copies: Float[Tensor, "replicates"]) -> Estimate:
    """A number with the 2.5 and 97.5 percentiles of its bootstrap copies; copies that are not finite do not count."""
    copies = copies[copies.isfinite()].double()
    if not len(copies):
        return Estimate(value)
    low, high = torch.quantile(copies, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, low, high)
