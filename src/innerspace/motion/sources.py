"""Where scenes come from: records, each read by itself, so that workers share them and an interrupted pass goes on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from innerspace.motion.scenes import Scene
from innerspace.value import Value


@dataclass(frozen=True)
class Skipped(Value):
    """A scenario or log of which something was not read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class SceneSource(Value, ABC):
    """Recorded scenes of one data set in one format, as settings of a job.

    A record is what can be read without reading the rest: a scenario's folder, a sensor log, a shard of many scenes.
    Damage is no error: what cannot be read is skipped, and named with the reason.
    """

    @abstractmethod
    def records(self) -> Sequence[str]:
        """The names of all records, in an order that does not change; nothing but names is read.

        Raises:
            ValueError: if there is none, naming what was looked for and where, or a package that is missing.
        """

    @abstractmethod
    def read(self, record: str) -> Iterator[Scene | Skipped]:
        """The scenes of a record, and what of it was left out; never an error for what the record holds."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """Scenes in memory, and what was left out of them."""

    scenes: list[Scene]
    skipped: list[Skipped]


def load(source: SceneSource) -> Loaded:
    """Read everything into memory.

    Raises:
        ValueError: if there is no record, or a package is missing.
    """
    found = [item for record in source.records() for item in source.read(record)]
    return Loaded(
        [item for item in found if isinstance(item, Scene)], [item for item in found if isinstance(item, Skipped)]
    )
