"""Sums kept by document, and numbers with intervals that say how much depends on which documents were taken.

Positions of one document resemble each other, so it is documents that are drawn anew, not positions.
"""

from collections.abc import Callable, Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.measure.estimate import Estimate, from_copies


@final
class Ledger:
    """Sums over positions by document, in float64."""

    def __init__(self) -> None:
        self._parts = dict[str, list[tuple[Tensor, Tensor]]]()

    def add(self, group: str, document: Int[Tensor, "n"], columns: Mapping[str, Tensor]) -> None:
        """Add quantities of positions to the sums of their documents."""
        own, place = document.unique(return_inverse=True)
        for name, column in ({"count": torch.ones_like(place)} | dict(columns)).items():
            sums = torch.zeros(len(own), dtype=torch.float64, device=own.device).index_add_(0, place, column.double())
            self._parts.setdefault(f"{group}.{name}", []).append((own.cpu(), sums.cpu()))

    def table(self) -> tuple[list[str], Float[Tensor, "documents columns"]]:
        """The names of the quantities, and the sum of each over each document."""
        every = [document for parts in self._parts.values() for document, _ in parts]
        own = torch.cat(every).unique() if every else torch.zeros(0, dtype=torch.int64)
        table = torch.zeros(len(own), len(self._parts), dtype=torch.float64)
        for column, parts in zip(table.unbind(1), self._parts.values(), strict=True):
            for document, sums in parts:
                column[torch.searchsorted(own, document)] += sums
        return list(self._parts), table


@final
class Draws:
    """The sums of a ledger, over all documents and over as many that were drawn with replacement, many times."""

    def __init__(self, ledger: Ledger, replicates: int, seed: int) -> None:
        names, table = ledger.table()
        self.documents = count = len(table)
        self._total = dict(zip(names, table.sum(0), strict=True))
        self._copies = dict[str, Tensor]()
        if count > 1:
            generator = torch.Generator().manual_seed(seed)
            draws = (torch.randint(count, (count,), generator=generator) for _ in range(replicates))
            sums = torch.stack([torch.bincount(draw, minlength=count).double() @ table for draw in draws], 1)
            self._copies = dict(zip(names, sums, strict=True))

    def of(self, quantity: Callable[[Mapping[str, Tensor]], Tensor]) -> Estimate:
        """A quantity that follows from the sums; without an interval if there is one document only."""
        value = float(quantity(self._total))
        return from_copies(value, quantity(self._copies)) if self._copies else Estimate(value)

    def mean(self, column: str) -> Estimate:
        """The mean over the positions of a group, of ``group.name``."""
        count = f"{column.rpartition('.')[0]}.count"
        return self.of(lambda s: s[column] / s[count])

    def count(self, group: str) -> int:
        """How many positions a group has."""
        return int(self._total.get(f"{group}.count", 0))
