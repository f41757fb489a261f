"""What a decomposition costs to use: milliseconds and operations for each token that is encoded and decoded."""

import time
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.measure.estimate import Estimate, from_copies
from innerspace.measure.flops import flops
from innerspace.value import Value


@dataclass(frozen=True)
class CodingCost(Value):
    """For each token ``milliseconds``, the median over rounds, and ``flops``, floating-point operations in products."""

    milliseconds: Estimate
    flops: float


@torch.no_grad()
def coding_cost(what: Decomposition, rows: Float[Tensor, "n d"], rounds: int = 15) -> CodingCost:
    """Encode and decode rows, in whichever form is cheaper.

    Raises:
        ValueError: for no row, or fewer than three rounds.
    """
    if not len(rows) or rounds < 3:
        raise ValueError(f"a median needs a row and at least 3 rounds, given {len(rows)} and {rounds}")
    x = rows.to(what.directions)

    def call() -> None:
        what.decode(what.code(x).z)

    call()
    count, times = flops(call) / len(x), list[float]()
    for _ in range(rounds):
        if x.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    found = torch.tensor(times, dtype=torch.float64) * 1e3 / len(x)
    draws = torch.randint(rounds, (500, rounds), generator=torch.Generator().manual_seed(0))
    return CodingCost(from_copies(float(found.median()), found[draws].median(1).values), count)
