"""Two passes of one batch, the clean one and one in which a decomposition stands in, and the stream of such pairs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Bool, Float
from torch import Tensor

from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.network.trace import Trace

OUTPUT = "output"
"""The place behind all sites: what the network puts out."""


@final
@dataclass(frozen=True, eq=False)
class Passes:
    """The clean pass, the other one, and which positions count."""

    model: Model
    batch: Any
    clean: Trace
    other: Trace
    where: Where
    variances: Mapping[str, Tensor]

    def divergence(self) -> Float[Tensor, ""]:
        """E[KL(clean ‖ other)] of the outputs, in nats, over the positions that count."""
        head = self.model.family.head(self.model.module)
        chosen = None if head is None else positions(self.model, self.batch, head.name, self.clean, self.where)
        return self.model.family.divergence(self.model.module, self.clean, self.other, chosen)

    def rows(self, site: str) -> tuple[Float[Tensor, "rows d"], Float[Tensor, "rows d"]]:
        """The hidden states of both passes at a site, where they count."""
        chosen = positions(self.model, self.batch, site, self.clean, self.where)
        name = self.model.site(site).name
        clean, other = self.clean.hidden[name], self.other.hidden[name]
        return (clean.flatten(0, -2), other.flatten(0, -2)) if chosen is None else (clean[chosen], other[chosen])

    def variance(self, site: str) -> Float[Tensor, ""]:
        """The mean squared distance of a site's hidden states from their mean.

        Raises:
            ValueError: if it is not known.
        """
        if (name := self.model.site(site).name) not in self.variances:
            raise ValueError(
                f"errors at {site!r} in units of its variance need that variance; known are {', '.join(self.variances)}"
            )
        return self.variances[name]


def positions(model: Model, batch: Any, site: str, trace: Trace, where: Where) -> Bool[Tensor, "..."] | None:
    """Which positions at a site count; None for all, so that rows need not be picked."""
    place = model.site(site)
    if not where.skip and where.tokens in ("all", "valid") and model.family.mask(batch, place) is None:
        return None
    return model.positions(batch, site, trace.hidden[place.name], where)
