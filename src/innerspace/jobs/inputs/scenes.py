"""A trained forecaster and the scenes that it reads, as settings of a job."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch

from innerspace.checkpoint import State
from innerspace.harvest.epochs import Epochs, check_even
from innerspace.jobs.inputs.data import Data
from innerspace.jobs.inputs.parts import chunks
from innerspace.jobs.job import Run
from innerspace.measure.activations import Caption
from innerspace.motion.forecasters.known import load
from innerspace.motion.framing import Batch, frame
from innerspace.motion.sentences import describe
from innerspace.motion.words import Labels, Vocabulary, label
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.parallel import Share
from innerspace.value import Value


@dataclass(frozen=True)
class SceneData(Value):
    """The forecaster of a words-in-motion run, and scenes: its ``fit`` split to train on, its ``test`` split to judge.

    ``data`` should be that of the run, lest scenes that the forecaster was trained on are judged. A batch has ``batch``
    agents. ``vocabulary`` puts them into words.
    """

    forecaster: Path = Path("runs/demo")
    data: Data = field(default_factory=Data)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    batch: int = 16
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"a batch needs an agent, not {self.batch}")

    def check(self) -> None:
        """Refuse settings that contradict each other, and a device or a run that is not there.

        Raises:
            ValueError: naming what is missing.
        """
        self.data.check()
        if not (self.forecaster / "settings.json").is_file():
            raise ValueError(f"{self.forecaster} holds no forecaster; give the folder of a words-in-motion run")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r} was asked for, and no CUDA device is there; 'cpu' is possible")

    def open(self, run: Run) -> "SceneReading":  # noqa: ARG002
        """Load the forecaster, and look at the scenes as it does.

        Raises:
            ValueError: for weights that are missing or damaged, or too few scenes for a batch.
        """
        network = load(self.forecaster).requires_grad_(False).to(self.device)
        framing = network.settings.framing
        splits = self.data.read(framing)
        return SceneReading(
            Model(network, network.settings.family),
            frame(splits.fit, framing),
            first_of_each_scene(frame(splits.test, framing)),
            splits.description,
            self.vocabulary,
            self.batch,
            self.device,
        )


@final
@dataclass(frozen=True, eq=False)
class SceneReading:
    """The forecaster, agents to train on, and agents to judge on.

    Raises:
        ValueError: if one of the two is too few for a batch.
    """

    model: Model
    fit: Batch
    test: Batch
    scenes: str
    vocabulary: Vocabulary
    batch: int
    device: str

    def __post_init__(self) -> None:
        if (fewest := min(len(self.fit), len(self.test))) < self.batch:
            raise ValueError(f"a batch should have 1 … {fewest} agents, as many as there are; it has {self.batch}")

    @property
    def where(self) -> Where:
        """What is no padding."""
        return Where("valid")

    @property
    def batch_tokens(self) -> int:
        """Steps of the batch's agents: an agent has a token for each."""
        return self.batch * self.fit.target.valid.shape[1]

    @property
    def network(self) -> str:
        """A forecaster."""
        return "a motion forecaster"

    @property
    def description(self) -> str:
        """The forecaster's class, the scenes, and the number of agents."""
        name = type(self.model.module).__name__
        return f"{name}; {self.scenes}; {len(self.fit):,} agents to train on, {len(self.test):,} held out"

    @property
    def documents(self) -> str:
        """Scenes: of each, one agent is judged."""
        return "scenes"

    @property
    def tokenizer(self) -> None:
        """There is none."""
        return

    @property
    def caption(self) -> Caption:
        """An agent in words and numbers."""
        return Captions(self.vocabulary)

    def stream(self, seed: int, *, held_out: bool = False) -> "SceneStream":
        """Endless batches in an order of their own for each seed; of those to train on this process's share."""
        if held_out:
            return SceneStream(self.test, self.batch, seed, self.device)
        return SceneStream(self.fit, self.batch, seed, self.device, Share.mine())

    def held_out(self, count: int | None = None) -> Iterator[Batch]:
        """One agent of each scene to judge on, in order, up to a number of them."""
        return (part.to(self.device) for part in chunks(self.test[slice(0, count)], self.batch))

    def sample(self, batches: int) -> Iterator[Batch]:
        """Some batches to train on, for what is known of hidden states before training."""
        stream = SceneStream(self.fit, self.batch, 0, self.device)
        return (stream.next() for _ in range(batches))


@final
class SceneStream:
    """An endless, resumable stream of batches: every epoch is a permutation of the agents, by (seed, epoch).

    All processes together get the same batches as one alone. Agents at the end of an epoch that fill no batch are left
    out; the next epoch leaves out others.

    Raises:
        ValueError: for a batch that is larger than what there is, or cannot be shared out evenly.
    """

    def __init__(self, agents: Batch, size: int, seed: int, device: str, share: Share = Share()) -> None:
        check_even(size, share.rank, share.world)
        self._agents, self._device = agents, device
        self._epochs = Epochs(len(agents), size, seed, {"agents": len(agents)}, share, "agents")

    def next(self) -> Batch:
        """The next batch, or this process's share of it."""
        return self._agents[self._epochs.next()].to(self._device)

    def state(self) -> State:
        """Where the stream stands, the same for every process."""
        return self._epochs.state()

    def restore(self, state: State) -> None:
        """Continue where ``state`` was taken, by any number of processes.

        Raises:
            ValueError: if it was taken from another stream.
        """
        self._epochs.restore(state)


@final
class Captions:
    """Agents in words, with speed, acceleration and turn as measured: ``a vehicle moving left at high speed · …``."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._last: tuple[Batch, list[dict[str, str]], Labels] | None = None

    def __call__(self, batch: Batch, row: int) -> str:
        """The caption of a row."""
        if self._last is None or self._last[0] is not batch:
            labels = label(batch.target, batch.dt, self._vocabulary)
            self._last = batch, labels.words(), labels
        _, words, labels = self._last
        speed, acceleration, turn = (float(target[row]) for target in labels.targets.values())
        if math.isnan(speed):
            return describe(words[row])
        measured = f"{speed:.1f} m/s, {acceleration:+.1f} m/s², {math.degrees(turn):+.0f}°"
        return f"{describe(words[row])} · {measured}"


def first_of_each_scene(batch: Batch) -> Batch:
    """One agent of each scene, so that what is said of rows is said of independent ones."""
    first = torch.ones(len(batch), dtype=torch.bool)
    first[1:] = batch.scene[1:] != batch.scene[:-1]
    return batch[first]
