"""Trials: a clean pass next to one in which a decomposition stands in, and streams of them.

The smallest trial is local: rows next to their reconstructions, no network involved. A *spliced* trial takes its rows
from a running network, and compares, where a term asks for it, what follows with and without the decomposition.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from innerspace.checkpoint import State
from innerspace.decompose.base import AnyCode, Decomposition
from innerspace.decompose.dictionary import moments
from innerspace.decompose.sequence import reconstructed
from innerspace.harvest.epochs import Epochs
from innerspace.harvest.sequences import Sequences
from innerspace.harvest.store import Store
from innerspace.learn.neighbors import Neighborhood
from innerspace.learn.passes import Passes
from innerspace.parallel import Share


@dataclass(frozen=True, eq=False)
class Trial:
    """What a decomposition made of hidden states.

    ``variance`` is the mean squared distance of the stream's rows from their mean: the unit of reconstruction errors.
    It belongs to the stream, not to the batch, so that a mean over rows stays one. ``passes`` are the clean and the
    spliced pass, where a term needs them; ``neighborhood`` holds the rows among which neighbors are sought. ``valid``
    says where the rows stand in sequences, which they do in order; None where they do not.
    """

    clean: Float[Tensor, "*rows d"]
    reconstruction: Float[Tensor, "*rows d"]
    code: AnyCode
    decomposition: Decomposition
    variance: Float[Tensor, ""]
    passes: Passes | None = None
    neighborhood: Neighborhood | None = None
    valid: Bool[Tensor, "*batch token"] | None = None

    def of_rows(self, decoded: Tensor) -> Float[Tensor, "*rows d"]:
        """What a decoder gives, where the rows are: of whole sequences the valid tokens."""
        whole = self.valid is not None and decoded.shape[:-1] == self.valid.shape
        return decoded[self.valid] if whole else decoded


class Occasion(ABC):
    """One draw from a stream, on which any number of decompositions can be tried."""

    def precision(self) -> AbstractContextManager[object]:
        """The context in which trials are judged: autocast, if the stream's products are in half precision."""
        return nullcontext()

    @abstractmethod
    def trial(self, what: Decomposition, site: str = "", needs: Set[str] = frozenset()) -> Trial:
        """The trial of a decomposition at a site; ``needs`` are the places behind it that are compared."""


class Trials(ABC):
    """An endless, resumable stream of trials."""

    @abstractmethod
    def draw(self, needs: Set[str] = frozenset()) -> Occasion:
        """The next occasion; ``needs`` are all places that any trial on it will compare."""

    @abstractmethod
    def state(self) -> State:
        """Where the stream stands."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Continue where ``state`` was taken.

        Raises:
            ValueError: if it was taken from another stream.
        """


def local(rows: Float[Tensor, "rows d"], batch: int, seed: int, share: Share = Share()) -> Trials:
    """Trials of rows in batches, every epoch in another order that depends on the seed alone.

    An epoch's last rows that fill no batch are left out; the next epoch leaves out others. Of every batch a process of
    several takes its ``share``.

    Raises:
        ValueError: if there are fewer rows than a batch, or rows that are not finite or all alike.
    """
    variance = moments(rows)[1]

    def occasion(index: Tensor) -> Occasion:
        return _Rows(rows.index_select(0, index), variance)

    return _Local(len(rows), "rows", rows.device, occasion, batch, seed, share)


def sequences(states: Sequences, batch: int, seed: int, share: Share = Share()) -> Trials:
    """Trials of whole sequences, ``batch`` of them at a time, in an order like that of ``local``.

    The rows of a trial are the valid tokens of its sequences, so every term weighs all tokens alike.

    Raises:
        ValueError: if there are fewer sequences than a batch, or their tokens are all alike.
    """
    variance = moments(states.states[states.valid])[1]

    def occasion(index: Tensor) -> Occasion:
        return _Sequences(states.states.index_select(0, index), states.valid.index_select(0, index), variance)

    return _Local(len(states), "sequences", states.states.device, occasion, batch, seed, share)


def stored(store: Store, site: str, batch: int, seed: int, share: Share = Share()) -> Trials:
    """Trials of hidden states on disk, well mixed, of which only a buffer is in memory.

    Raises:
        ValueError: for an unknown site, or a batch that the store cannot fill.
    """
    return _Stored(store, site, batch, seed, share)


@final
class _Local(Trials):
    def __init__(
        self,
        count: int,
        noun: str,
        device: torch.device,
        occasion: Callable[[Tensor], Occasion],
        batch: int,
        seed: int,
        share: Share,
    ) -> None:
        self._device, self._occasion = device, occasion
        self._epochs = Epochs(count, batch, seed, {noun: count}, share, noun)

    def draw(self, needs: Set[str] = frozenset()) -> Occasion:
        _refuse(needs)
        return self._occasion(self._epochs.next().to(self._device))

    def state(self) -> State:
        return self._epochs.state()

    def restore(self, state: State) -> None:
        self._epochs.restore(state)


@final
class _Stored(Trials):
    def __init__(self, store: Store, site: str, batch: int, seed: int, share: Share) -> None:
        self._rows = store.shuffled(site, batch, seed, rank=share.rank, world=share.world)
        self._variance = torch.tensor(float(store.moments(site)[1]))

    def draw(self, needs: Set[str] = frozenset()) -> Occasion:
        _refuse(needs)
        return _Rows(self._rows.next(), self._variance)

    def state(self) -> State:
        return self._rows.state()

    def restore(self, state: State) -> None:
        self._rows.restore(state)


def _refuse(needs: Set[str]) -> None:
    if needs:
        raise ValueError(f"rows alone do not tell {', '.join(sorted(needs))}; that takes a stream of spliced trials")


@final
class _Rows(Occasion):
    def __init__(self, rows: Tensor, variance: Tensor) -> None:
        self._rows, self._variance = rows, variance

    def trial(self, what: Decomposition, site: str = "", needs: Set[str] = frozenset()) -> Trial:  # noqa: ARG002
        like = next(what.parameters())
        clean = self._rows.to(like)
        code = what.code(clean)
        return Trial(clean, what.decode(code.z), code, what, self._variance.to(like))


@final
class _Sequences(Occasion):
    def __init__(self, states: Tensor, valid: Tensor, variance: Tensor) -> None:
        self._states, self._valid, self._variance = states, valid, variance

    def trial(self, what: Decomposition, site: str = "", needs: Set[str] = frozenset()) -> Trial:  # noqa: ARG002
        like = next(what.parameters())
        clean, reconstruction, code = reconstructed(what, self._states.to(like), self._valid)
        return Trial(clean, reconstruction, code, what, self._variance.to(like), valid=self._valid)
