"""Hidden states as rows, from a running network."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.interventions import Read
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.value import Value


@dataclass(frozen=True)
class TokenRule(Value):
    """Which tokens of a hidden state become rows: those of ``where``, each a row or averaged by sample."""

    where: Where = Where("last")
    pool: Literal["each", "mean"] = "each"

    def __str__(self) -> str:
        return f"{self.where.tokens} tokens" + (", averaged" if self.pool == "mean" else "")


@dataclass(frozen=True, eq=False)
class Rows:
    """Hidden states of several sites; ``sample`` tells from which sample of the stream each row came."""

    states: dict[str, Float[Tensor, "rows d"]]
    sample: dict[str, Int[Tensor, "rows"]]


def gather(model: Model, batches: Iterable[Any], sites: Sequence[str], rule: TokenRule) -> Rows:
    """Run the network up to the last of the sites on every batch and keep the rows that the rule names.

    The pass stops behind the last site. Samples are counted through the stream; with ``pool="mean"`` or
    ``Where("last")`` row i is sample i, provided that every sample has a valid token.

    Raises:
        ValueError: if there is no site or no batch, or a site is unknown.
    """
    return gather_by(model, batches, sites, [rule])[0]


@torch.no_grad()
def gather_by(model: Model, batches: Iterable[Any], sites: Sequence[str], rules: Sequence[TokenRule]) -> list[Rows]:
    """The rows of several rules from the same passes, in the order of the rules; each as ``gather`` gives them.

    Raises:
        ValueError: as ``gather`` does, or if there is no rule.
    """
    if not sites:
        raise ValueError(f"no site was asked for; this model has {', '.join(model.sites)}")
    if not rules:
        raise ValueError("no rule was given that says which tokens become rows")
    keys = [(i, site) for i in range(len(rules)) for site in sites]
    states: dict[tuple[int, str], list[Tensor]] = {key: [] for key in keys}
    sample: dict[tuple[int, str], list[Tensor]] = {key: [] for key in keys}
    count = 0
    for batch in batches:
        hidden = model.run(batch, {site: Read() for site in sites}, stop=True).hidden
        for i, site in keys:
            x, rule = hidden[model.site(site).name], rules[i]
            chosen = model.positions(batch, site, x, rule.where)
            if rule.pool == "mean":
                share = chosen / chosen.sum(-1, keepdim=True).clamp(min=1)
                x, chosen = (x * share[..., None].to(x)).sum(-2), chosen.any(-1)
            states[i, site].append(x[chosen])
            sample[i, site].append(chosen.nonzero()[:, 0] + count)
        count += len(hidden[model.site(sites[0]).name])
    if not count:
        raise ValueError("the stream of batches is empty")
    return [
        Rows(
            {site: torch.cat(states[i, site]) for site in sites},
            {site: torch.cat(sample[i, site]) for site in sites},
        )
        for i in range(len(rules))
    ]
