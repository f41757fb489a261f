"""Hidden states as sequences: all tokens of a sample side by side, with a mask of those that are no padding."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.harvest.store import Store
from innerspace.harvest.stream import TokenRule
from innerspace.interventions import Read
from innerspace.network.model import Model


@final
@dataclass(frozen=True, eq=False)
class Sequences:
    """Hidden states of n samples, the tokens that are ``valid``, and those that stand for their sample.

    Where several are ``chosen`` in a sample, their mean stands for it.

    Raises:
        ValueError: if a sample has no chosen token, a chosen one is not valid, or a valid one not finite.
    """

    states: Float[Tensor, "n token d"]
    valid: Bool[Tensor, "n token"]
    chosen: Bool[Tensor, "n token"]

    def __post_init__(self) -> None:
        if (empty := (~self.chosen.any(-1)).nonzero().flatten().tolist()) or (self.chosen & ~self.valid).any():
            which = f"sample {empty[0]} has none" if empty else "some are padding"
            raise ValueError(f"every sample should have a valid token that stands for it; {which}")
        if not self.states[self.valid].isfinite().all():
            raise ValueError("the hidden states of valid tokens should be finite")

    @staticmethod
    def of(states: Float[Tensor, "n token d"], valid: Bool[Tensor, "n token"] | None = None) -> "Sequences":
        """Sequences for which all of their valid tokens stand; without a mask all tokens are valid."""
        if valid is None:
            valid = states.new_ones(states.shape[:-1], dtype=torch.bool)
        return Sequences(states, valid, valid)

    @staticmethod
    def stored(store: Store, site: str) -> "Sequences":
        """The sequences of a store: the tokens of each sample that are in it, at their positions.

        Raises:
            ValueError: for a site that is not stored.
        """
        every = torch.arange(len(store))
        places = store.places(every)
        sample = places.sample.unique(return_inverse=True)[1]
        shape = (int(sample.max()) + 1, int(places.position.max()) + 1)
        rows = store.rows(site, every).float()
        valid = torch.zeros(shape, dtype=torch.bool).index_put((sample, places.position), torch.tensor(True))
        return Sequences.of(rows.new_zeros(*shape, rows.shape[1]).index_put((sample, places.position), rows), valid)

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: Int[Tensor, "m"] | Bool[Tensor, "n"] | slice) -> "Sequences":
        """Some of the samples."""
        return Sequences(self.states[index], self.valid[index], self.chosen[index])

    @property
    def share(self) -> Float[Tensor, "n token"]:
        """What each token counts for its sample; a row sums to one."""
        return self.chosen / self.chosen.sum(-1, keepdim=True)

    @property
    def rows(self) -> Float[Tensor, "n d"]:
        """The hidden states that stand for the samples."""
        filled = self.states.masked_fill(~self.chosen[..., None], 0)
        return torch.einsum("nt,ntd->nd", self.share.to(filled), filled)


@torch.no_grad()
def gather_sequences(model: Model, batches: Iterable[Any], site: str, rule: TokenRule) -> Sequences:
    """Run the network up to a site on every batch and keep all tokens; those that the rule names are chosen.

    Raises:
        ValueError: for an unknown site, no batch, tokens of another number in another batch, or a sample without a
            token that the rule names.
    """
    states, valid, chosen = list[Tensor](), list[Tensor](), list[Tensor]()
    place = model.site(site)
    for batch in batches:
        hidden = model.run(batch, {site: Read()}, stop=True).hidden[place.name]
        mask = model.family.mask(batch, place)
        valid.append(torch.ones_like(hidden[..., 0], dtype=torch.bool) if mask is None else mask)
        chosen.append(model.positions(batch, site, hidden, rule.where))
        states.append(hidden)
    if len({tuple(item.shape[1:]) for item in states}) != 1:
        found = sorted({item.shape[-2] for item in states})
        raise ValueError(f"sequences should have one number of tokens, these have {found or 'no batch'}")
    if states[0].ndim != 3:
        raise ValueError(f"the hidden states at {site!r} have axes {place.axes!r}; sequences are batch token d")
    return Sequences(torch.cat(states), torch.cat(valid), torch.cat(chosen))
