"""What dictionaries are trained on: a network, the batches that it reads, and which of its hidden states count."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from innerspace.learn.spliced import Batches
from innerspace.measure.activations import Caption
from innerspace.network.model import Model
from innerspace.network.site import Where


@runtime_checkable
class Subject(Protocol):
    """A network with its data, in two parts that have no document (no scene) in common."""

    @property
    def model(self) -> Model:
        """The network."""
        ...

    @property
    def where(self) -> Where:
        """The positions that count."""
        ...

    @property
    def device(self) -> str:
        """Where the network is, and its batches."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, counted or not."""
        ...

    @property
    def network(self) -> str:
        """What kind of network it is, with its article."""
        ...

    @property
    def description(self) -> str:
        """The network and the amount of its data."""
        ...

    @property
    def documents(self) -> str:
        """What is drawn anew for intervals, in the plural."""
        ...

    @property
    def tokenizer(self) -> Any:
        """What makes text of tokens; None where tokens are no text."""
        ...

    @property
    def caption(self) -> Caption | None:
        """What describes a row of a batch; None where it is text."""
        ...

    def stream(self, seed: int, *, held_out: bool = False) -> Batches:
        """Endless batches in an order of their own for each seed; of those to train on this process's share."""
        ...

    def held_out(self, count: int | None = None) -> Iterator[Any]:
        """Batches of what is judged on, in order; ``count`` rows, or as many as fill the last batch."""
        ...

    def sample(self, batches: int) -> Iterator[Any]:
        """Some batches to train on, for what is known of hidden states before training."""
        ...
