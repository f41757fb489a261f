"""Differences between methods that were judged on the same data: every resample is the same for all of them.

A *copy* is a number computed on a resample of the groups (the scenes), drawn with replacement; the first copy is that
of the data as they are. Copies of several methods can be subtracted and divided, copy by copy, and the spread of the
outcome is that of the comparison: what makes scenes hard for all methods alike cancels out.
"""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.measure.estimate import Estimate, from_copies


@final
class Resamples:
    """The data as they are, and ``replicates`` resamples of their groups; the same seed gives the same ones.

    ``times`` says how often a row counts in each copy.

    Raises:
        ValueError: if there is no row.
    """

    times: Float[Tensor, "copies rows"]

    def __init__(self, groups: Int[Tensor, "rows"], replicates: int = 300, seed: int = 0) -> None:
        if not len(groups):
            raise ValueError("resamples of no row were asked for")
        _, group = groups.unique(return_inverse=True)
        count = int(group.amax()) + 1
        draws = torch.randint(count, (replicates, count), generator=torch.Generator().manual_seed(seed))
        drawn = torch.zeros(replicates, count, dtype=torch.float64)
        drawn.scatter_add_(1, draws, torch.ones(draws.shape, dtype=torch.float64))
        self.times = torch.cat((torch.ones(1, count, dtype=torch.float64), drawn))[:, group]

    def mean(self, values: Float[Tensor, "rows"]) -> Float[Tensor, "copies"]:
        """The mean of the rows that are known, in every copy; NaN in those that have none."""
        known = values.isfinite()
        times = self.times[:, known]
        return times @ values[known].double() / times.sum(1)


def summary(copies: Float[Tensor, "copies"]) -> Estimate:
    """The first copy, with the 2.5 and 97.5 percentiles of the others."""
    return from_copies(float(copies[0]), copies[1:])
