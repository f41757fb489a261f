"""Find the subspaces of hidden states without labels: settings, published and fast, and the fit that they describe."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from innerspace.decompose.base import Home
from innerspace.decompose.dictionary import moments
from innerspace.decompose.subspaces import Chart, Subspaces, even_sizes
from innerspace.harvest.store import Store
from innerspace.learn.assembling import Assembling, assemble
from innerspace.learn.callbacks import Measure
from innerspace.learn.fit import Callback, FitConfig, Record, Student, fit_together
from innerspace.learn.merge_rules import Calibrated, MergeRule, PublishedThreshold
from innerspace.learn.merging import Merging, Sampling
from innerspace.learn.neighbor_distance import NeighborDistance, neighborhoods, stored_neighborhoods
from innerspace.learn.trials import Trials
from innerspace.parallel import Share
from innerspace.value import Value


@dataclass(frozen=True)
class Merges(Value):
    """From step ``start`` on, every ``every`` steps, what a rule finds to be one is merged; see ``Merging``.

    None in the last ``spare`` steps. With ``stop`` the fit ends when nothing is left to merge. ``transport`` keeps the
    optimizer's moments. ``sampling`` says on how many rows.
    """

    rule: MergeRule
    start: int
    every: int
    spare: int = 100
    stop: bool = True
    transport: bool = False
    sampling: Sampling = Sampling()

    def callback(self) -> Merging:
        """What does it."""
        return Merging(
            self.rule,
            self.start,
            self.every,
            transport=self.transport,
            stop=self.stop,
            spare=self.spare,
            sampling=self.sampling,
        )


@dataclass(frozen=True)
class Partitioning(Value):
    """How subspaces are found.

    The space begins as parts of ``unit`` dimensions; without ``merges`` they remain. A step judges ``queries`` rows
    against ``keys`` others, or as many as there are; queries and their neighbors serve for ``reuse`` steps. With
    ``apart``, neighbors of the same document do not count. ``chart`` says how the rotation is learned, see
    ``Subspaces``.
    """

    unit: int
    queries: int
    reuse: int
    chart: Chart
    fit: FitConfig
    merges: Merges | None
    keys: int = 409_600
    term: NeighborDistance = NeighborDistance()
    apart: bool = False

    @staticmethod
    def paper(
        unit: int = 32,
        steps: int = 50_000,
        threshold: float = 0.04,
        start: int = 10_000,
        every: int = 3_000,
        seed: int = 0,
    ) -> "Partitioning":
        """The algorithm as published: Adam on the exponential chart at a constant rate, 128 fresh queries a step.

        What is not said is as in the authors' code. Huang and Hahn, arXiv 2508.01916.
        """
        config = FitConfig(steps=steps, rate=3e-4, warmup=0, cooldown=0, clip=100.0, seed=seed)
        merges = Merges(PublishedThreshold(threshold), start, every)
        return Partitioning(unit, queries=128, reuse=1, chart="exponential", fit=config, merges=merges)

    @staticmethod
    def fast(width: int, unit: int = 32, steps: int = 2000, seed: int = 0) -> "Partitioning":
        """Neighbors that serve for several steps, a large rate that falls at the end, and no exponential.

        Adam moves every entry of the turn by up to the rate, so in a space of any ``width`` a direction turns by up to
        0.32 radians in a step. Much more, or half the queries, and the noise of the steps keeps parts from forming.

        Merges happen in the middle of the fit, by the calibrated rule, and keep the optimizer's moments.
        """
        config = FitConfig(
            steps=steps, rate=0.32 / width**0.5, betas=(0.9, 0.99), warmup=0.02, cooldown=0.3, clip=100.0, seed=seed
        )
        start, every = steps * 3 // 10, max(1, steps // 25)
        merges = Merges(Calibrated(), start, every, spare=start, stop=False, transport=True)
        return Partitioning(unit, queries=256, reuse=8, chart="moving", fit=config, merges=merges)


PUBLISHED: Mapping[str, Partitioning] = {
    "gpt2-small": Partitioning.paper(32, 100_000, 0.04, 20_000, 8_000),
    "qwen2.5-1.5b": Partitioning.paper(64, 100_000, 0.02, 20_000, 8_000),
    "gemma-2-2b": Partitioning.paper(72, 150_000, 0.01, 10_000, 4_000),
}
"""With what settings the paper's partitions were made: behind GPT-2's blocks, mid-block in layer 11 and in layer 9."""


class Found(NamedTuple):
    """The subspaces, the log of the fit, and the seconds it took."""

    what: Subspaces
    history: list[Record]
    seconds: float


def find_subspaces(
    rows: Float[Tensor, "rows d"] | Store,
    settings: Partitioning | Assembling,
    *,
    site: str = "",
    documents: Int[Tensor, "n"] | None = None,
    begins: Subspaces | None = None,
    home: Home | None = None,
    device: str = "cpu",
    callbacks: Sequence[Callback] = (),
) -> Found:
    """Learn a partition of the space of some rows, in memory or of a ``site`` of a store.

    Begins at the coordinates as they are, or at another partition, such as that of the layer before. The log tells the
    share of neighbors at distance zero, which are duplicates, and how many keys there are. To be assembled, rows have
    to be in memory, and there is neither a beginning nor a log.

    Raises:
        ValueError: for rows that cannot be partitioned so: too few, not finite, all alike, of another width than
            ``begins``, or without documents to keep apart.
        Diverged: if the loss is no longer finite.
    """
    if isinstance(settings, Assembling):
        if isinstance(rows, Store) or site or documents is not None or begins is not None or callbacks:
            raise ValueError("partitions are assembled from rows in memory, without documents, beginning or callbacks")
        began = time.perf_counter()
        moments(rows)
        what = assemble(rows.to(device), settings, settings.seed)
        what.home = home
        return Found(what, [], time.perf_counter() - began)
    trials, width = _trials(rows, settings, site, documents)
    if begins is None:
        what = Subspaces.identity(width, even_sizes(width, settings.unit), chart=settings.chart)
        what.home = home
    else:
        if begins.width != width:
            raise ValueError(f"the partition to begin with divides width {begins.width}, the rows have width {width}")
        what = Subspaces(begins.rotation.detach(), begins.sizes, home=home, chart=settings.chart)
    student = Student(what.to(device), (settings.term,))
    around: list[Callback] = [Measure(_watch, settings.fit.log_every)]
    if settings.merges is not None:
        around.append(settings.merges.callback())
    loop, seconds = fit_together([student], trials, settings.fit, [*around, *callbacks])
    what.settle()
    return Found(what, loop.history, seconds)


def _trials(rows: Tensor | Store, settings: Partitioning, site: str, documents: Tensor | None) -> tuple[Trials, int]:
    """The stream that the settings describe, and the width of its rows."""
    seed, reuse, k, metric = settings.fit.seed, settings.reuse, settings.term.neighbors, settings.term.metric
    if isinstance(rows, Store):
        if documents is not None:
            raise ValueError("a store knows the documents of its rows; give none")
        # a block of queries is a 25th of the keys
        keys = min(settings.keys, (len(rows) - settings.queries) * 25 // 26)
        trials = stored_neighborhoods(
            rows,
            site,
            settings.queries,
            keys,
            seed,
            reuse=reuse,
            neighbors=k,
            metric=metric,
            apart=settings.apart,
            share=Share.mine(),
        )
        return trials, len(rows.moments(site)[0])
    if site:
        raise ValueError(f"rows in memory have no sites, {site!r} was asked for")
    if settings.apart and documents is None:
        raise ValueError("to keep documents apart takes the documents of the rows")
    if documents is not None and not settings.apart:
        raise ValueError("documents were given, but the settings do not keep them apart")
    trials = neighborhoods(
        rows,
        settings.queries,
        min(settings.keys, len(rows)),
        seed,
        reuse=reuse,
        neighbors=k,
        metric=metric,
        documents=documents,
        share=Share.mine(),
    )
    return trials, rows.shape[1]


def _watch(student: Student) -> Record:
    """What a loss alone does not tell: duplicates, and how fine the search was."""
    near = student.trial.neighborhood
    assert near is not None
    assert near.matches is not None
    return {"zero_distances": float((near.matches.distance == 0).float().mean()), "keys": len(near.keys)}
