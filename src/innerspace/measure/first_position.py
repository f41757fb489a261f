"""Position 0 and the first principal directions: what dictionaries spend on them, and whether the network reads them.

In many language models the state at position 0 is an outlier, and the first principal direction of all states little
else than the way to it. A dictionary trained on reconstruction follows it everywhere; one trained end to end need not,
if the network does not read it at other positions. That is asked by resample ablation: at all positions beyond 0 the
component along a direction is exchanged for that of another position, drawn at random among the batch's. Braun et al.
2024, arXiv 2405.12241, appendix; the divergence here is KL(clean ‖ ablated), theirs the other way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from innerspace.decompose.base import Decomposition
from innerspace.interventions import Read
from innerspace.measure.documents import Draws, Ledger
from innerspace.measure.estimate import Estimate
from innerspace.measure.geometry import faithfulness_along, principal_directions
from innerspace.measure.rate import Passes
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.network.trace import Visit
from innerspace.value import Value

ALIGNED = 0.5
"""A latent lies along a direction from this |cosine| on."""


@dataclass(frozen=True)
class Followed(Value):
    """What a dictionary makes of a direction d, beyond position 0 and at it.

    ``beyond`` and ``at_first`` are Pearson's r of x·d and x̂·d, None where either is constant; ``gain_at_first`` is the
    mean of x̂·d over that of x·d at position 0. ``aligned`` is the share of the latents with |cosine| ≥ ``ALIGNED``,
    ``nearest`` the largest |cosine|.
    """

    beyond: float | None
    at_first: float | None
    gain_at_first: float
    aligned: float
    nearest: float


@dataclass(frozen=True)
class Axis(Value):
    """A direction: its share of the variance beyond position 0, how it lies, and what the output needs of it.

    ``outlier`` is its |cosine| with the way from the mean state beyond position 0 to that at position 0; ``divergence``
    in nats is what resampling the component along it beyond position 0 costs; ``followed`` has an entry for every
    dictionary.
    """

    variance: float
    outlier: float
    divergence: Estimate
    followed: Mapping[str, Followed]


@dataclass(frozen=True)
class FirstPosition(Value):
    """Norms of the states at position 0 and of those beyond (medians), and directions.

    ``all`` are the principal directions of all states, position 0 included, ``beyond`` those of the others only, and
    ``random`` directions drawn evenly, to compare with.
    """

    site: str
    norm_at_first: float
    norm_beyond: float
    all: tuple[Axis, ...]
    beyond: tuple[Axis, ...]
    random: tuple[Axis, ...]


@final
@dataclass(frozen=True, eq=False)
class Resample:
    """The component along a direction exchanged among the positions that are meant: each takes another's.

    x + ((x′ · d) − (x · d)) d for d of unit length, where x′ are the same states in another order, drawn by ``seed``.
    """

    direction: Float[Tensor, "d"]
    where: Where
    seed: int = 0

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:
        """The state to go on with."""
        chosen = self.where.select(tuple(x.shape[:-1]), visit.valid(), x.device, visit.start)
        unit = F.normalize(self.direction, dim=0).to(x)
        along = (x @ unit)[chosen]
        order = torch.randperm(len(along), generator=torch.Generator().manual_seed(self.seed)).to(x.device)
        change = torch.zeros_like(x)
        change[chosen] = (along[order] - along)[:, None] * unit
        return x + change


@torch.no_grad()
def first_position(
    model: Model,
    batches: Sequence[Any],
    site: str,
    dictionaries: Mapping[str, Decomposition],
    *,
    directions: int = 25,
    random: int = 5,
    replicates: int = 500,
    seed: int = 0,
) -> FirstPosition:
    """The study of one site: norms, principal directions with and without position 0, and all dictionaries along them.

    Raises:
        ValueError: for an unknown site, batches without a position beyond 0, or more directions than states span.
    """
    where = Where("valid", skip=1)
    passes = Passes(model, batches, site, where)
    beyond, first = passes.rows.double(), _first(model, batches, site)
    every = torch.cat((first, beyond))
    away = F.normalize(first.mean(0) - beyond.mean(0), dim=0)
    variance = (beyond - beyond.mean(0)).square().sum(-1).mean()
    made = {name: (_made(via, first), _made(via, beyond), via) for name, via in dictionaries.items()}
    generator = torch.Generator().manual_seed(seed)

    def axis(direction: Tensor) -> Axis:
        documents, found = passes.divergence(Resample(direction, where, seed))
        ledger = Ledger()
        ledger.add("token", documents, {"kl": found})
        spread = (beyond @ direction).var(correction=0)
        followed = {name: _followed(direction, first, beyond, *parts) for name, parts in made.items()}
        divergence = Draws(ledger, replicates, seed).mean("token.kl")
        return Axis(float(spread / variance), float((direction @ away).abs()), divergence, followed)

    sets: dict[Literal["all", "beyond", "random"], Tensor] = {
        "all": principal_directions(every, directions),
        "beyond": principal_directions(beyond, directions),
        "random": F.normalize(torch.randn(random, beyond.shape[1], generator=generator, dtype=torch.float64), dim=1),
    }
    told = {name: tuple(axis(direction) for direction in rows) for name, rows in sets.items()}
    norm, others = (float(rows.norm(dim=-1).median()) for rows in (first, beyond))
    return FirstPosition(model.site(site).name, norm, others, told["all"], told["beyond"], told["random"])


def _first(model: Model, batches: Sequence[Any], site: str) -> Float[Tensor, "rows d"]:
    found = list[Tensor]()
    for batch in batches:
        x = model.run(batch, {site: Read()}, stop=True).hidden[model.site(site).name]
        here, later = (model.positions(batch, site, x, Where("valid", skip=skip)) for skip in (0, 1))
        found.append(x[here & ~later])
    return torch.cat(found).double()


def _made(via: Decomposition, rows: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
    like = via.directions
    return torch.cat([via.decode(via.encode(part.to(like)).z) for part in rows.split(4096)]).double()


def _followed(
    direction: Float[Tensor, "d"],
    first: Float[Tensor, "n d"],
    beyond: Float[Tensor, "m d"],
    first_hat: Float[Tensor, "n d"],
    beyond_hat: Float[Tensor, "m d"],
    via: Decomposition,
) -> Followed:
    def follows(x: Tensor, x_hat: Tensor) -> float | None:
        # what differs by rounding only is constant
        if (x @ direction).std(correction=0) < 1e-5 * x.norm(dim=-1).mean():
            return None
        r = float(faithfulness_along(x, x_hat, direction[None])[0])
        return r if r == r else None

    cosine = (F.normalize(via.directions.double(), dim=1) @ direction).abs()
    gain = float((first_hat @ direction).mean() / (first @ direction).mean())
    return Followed(
        follows(beyond, beyond_hat),
        follows(first, first_hat),
        gain,
        float((cosine >= ALIGNED).double().mean()),
        float(cosine.max()),
    )
