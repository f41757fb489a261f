"""Many tests at once: two-sided p values from a bootstrap, and what they are worth next to each other.

Of m tests of nothing at the level α, mα come out by chance. ``holm`` bounds the chance of a single false finding among
them, ``benjamini_hochberg`` the expected share of false ones among what is found.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


def two_sided(copies: Float[Tensor, "replicates"]) -> float | None:
    """How often bootstrap copies of a difference lie on the other side of zero, p = 2 (1 + min(n≤, n≥)) / (n + 1).

    The smallest p is 2 / (n + 1), so n copies cannot tell more. None where no copy is finite.
    """
    copies = copies[copies.isfinite()]
    if not len(copies):
        return None
    fewer = min(int((copies <= 0).sum()), int((copies >= 0).sum()))
    return min(1.0, 2 * (1 + fewer) / (len(copies) + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values that bound the chance of any false finding: step down, max over j ≤ i of (m − j + 1) p₍ⱼ₎.

    They hold whatever the dependence between the tests is (Holm, A simple sequentially rejective multiple test
    procedure, 1979).

    Raises:
        ValueError: for a p value outside 0 … 1.
    """
    _check(p)
    adjusted, most = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        most = max(most, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = most
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p values that bound the share of false findings: step up, min over j ≥ i of m p₍ⱼ₎ / j.

    They hold for independent or positively dependent tests (Benjamini and Hochberg, Controlling the false discovery
    rate, 1995; Benjamini and Yekutieli, 2001).

    Raises:
        ValueError: for a p value outside 0 … 1.
    """
    _check(p)
    adjusted, least = [0.0] * len(p), 1.0
    order = sorted(range(len(p)), key=lambda i: p[i])
    for rank in reversed(range(len(p))):
        least = min(least, len(p) * p[order[rank]] / (rank + 1))
        adjusted[order[rank]] = least
    return adjusted


def _check(p: Sequence[float]) -> None:
    if bad := [value for value in p if not 0 <= value <= 1]:
        raise ValueError(f"a p value lies between 0 and 1, one of these is {bad[0]}")
