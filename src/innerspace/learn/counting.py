"""Which parts belong together where states are points: what they hold is counted, and nothing has a scale below them.

Hidden states of discrete variables are the same few points again and again. Parts that are a little off the variables
split every point into a small cloud of the others' values, and an estimator that looks at nearest neighbors sees in the
cloud all that there is to know: full dependence everywhere. Rows nearer than a share of a part's spread are therefore
one point here, and points are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from innerspace.decompose.subspaces import Subspaces
from innerspace.learn.dependence import Dependence
from innerspace.learn.merge_rules import MergeRule
from innerspace.learn.neighbors import Neighborhood


@final
@dataclass(frozen=True)
class CountedPoints(MergeRule):
    """Merge parts that tell more than ``share`` of the smaller of their entropies of each other.

    Both are counted over the points of each part, of which there are at most ``most``: no row is farther from its own
    than ``radius`` of the part's spread. What counting too few rows adds to the information is taken off (Miller 1955).
    """

    share: float = 0.5
    radius: float = 0.4
    most: int = 60

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 < self.radius) or self.most < 2:
            raise ValueError(f"a share between 0 and 1, a radius and two points are needed: {self}")

    @property
    def bound(self) -> float:
        """The share."""
        return self.share

    def measure(self, what: Subspaces, near: Neighborhood, seed: int) -> Dependence:  # noqa: ARG002
        """Information of all pairs in nats; ``mixed`` has the smaller entropy of each."""
        z, count = what.encode(near.keys).z.detach(), len(what.sizes)
        points = [one_hot(nearest_points(z[:, part], self.radius, self.most)).double() for part in what.parts]
        found = torch.full((count, count), torch.nan, dtype=torch.float64)
        least = found.clone()
        for i, j in combinations(range(count), 2):
            both = points[i].T @ points[j] / len(z)
            one, other = both.sum(1), both.sum(0)
            bias = (len(one) - 1) * (len(other) - 1) / (2 * len(z))
            found[i, j] = found[j, i] = _entropy(one) + _entropy(other) - _entropy(both) - bias
            least[i, j] = least[j, i] = min(_entropy(one), _entropy(other)).clamp(min=1e-9)
        nothing, none = torch.zeros_like(found), found[None][:0]
        return Dependence(found, nothing, nothing, nothing, float(torch.tensor(len(z)).log()), none, none, least)

    def strength(self, found: Dependence, sizes: Sequence[int]) -> Float[Tensor, "s s"]:  # noqa: ARG002
        """The information as a share of the smaller entropy."""
        return found.information / found.mixed


def nearest_points(z: Float[Tensor, "n size"], radius: float, most: int) -> Int[Tensor, "n"]:
    """Which point every row is at: each is far from those before it, until no row is far from all."""
    far, centers = radius * z.var(0).sum().sqrt(), z[:1]
    while len(centers) < most:
        least = torch.cdist(z, centers).amin(1)
        if least.max() <= far:
            break
        centers = torch.cat([centers, z[least.argmax()][None]])
    return torch.cdist(z, centers).argmin(1)


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum()
