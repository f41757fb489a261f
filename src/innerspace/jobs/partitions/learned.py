"""Subspaces of a network's sites: hidden states on disk, partitions learned from them, and others by other means."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.decompose.base import Home
from innerspace.decompose.subspaces import Subspaces
from innerspace.harvest.store import DType, Places, Store, write_store
from innerspace.jobs.inputs.subject import Subject
from innerspace.jobs.job import Run
from innerspace.language.text import Text
from innerspace.learn.assembling import Assembling
from innerspace.learn.callbacks import Bar, Checkpoint, Log
from innerspace.learn.fit import Callback, Record
from innerspace.learn.neighbor_distance import mean_distance
from innerspace.learn.neighbors import Neighborhood
from innerspace.learn.partitioning import Partitioning, find_subspaces
from innerspace.learn.partitions import independent_partition, principal_partition
from innerspace.measure.estimate import over_seeds
from innerspace.value import Value, read_json

LEARNED = "learned"
"""The name of the partitions that neighbor distances taught, wherever methods are compared."""

IN_MEMORY = 2**31
"""The bytes of a site's states up to which they are learned from in memory; beyond, from disk and in half precision."""


ICA_ROWS = 4000
"""Hidden states that independent components are sought in; more take long and change little."""


@dataclass(frozen=True)
class Finding(Value):
    """How subspaces are sought, how often, and on how many hidden states.

    A ``preset`` begins with parts of ``unit`` dimensions and takes ``steps`` steps; without ``merging`` the parts keep
    their size. ``custom`` settings take its place; those of assembling need the states in memory.
    ``rows`` of a site are learned from, ``held_out`` others judge. ``randoms`` random rotations are the control.
    """

    preset: Literal["fast", "paper"] = "fast"
    unit: int = 32
    steps: int = 2000
    merging: bool = True
    custom: Partitioning | Assembling | None = None
    seeds: int = 3
    rows: int = 200_000
    held_out: int = 20_000
    randoms: int = 5

    @property
    def name(self) -> str:
        """What the page calls the way of learning."""
        return self.preset if self.custom is None else "custom"

    def settings(self, width: int, seed: int) -> Partitioning | Assembling:
        """The settings in a space of a width, with the seed of a run."""
        if isinstance(self.custom, Assembling):
            return replace(self.custom, seed=seed)
        if self.custom is not None:
            return replace(self.custom, fit=replace(self.custom.fit, seed=seed))
        if self.preset == "paper":
            settings = Partitioning.paper(self.unit, self.steps, seed=seed)
        else:
            settings = Partitioning.fast(width, self.unit, self.steps, seed)
        return settings if self.merging else replace(settings, merges=None)

    def __post_init__(self) -> None:
        if min(self.seeds, self.randoms) < 1 or min(self.rows, self.held_out) < 2:
            raise ValueError(f"a seed, a random rotation and two rows to learn from and to judge on are needed: {self}")


@dataclass(frozen=True, eq=False)
class Held:
    """Hidden states to judge on: by site, with their places, and the batches that they come from."""

    states: Mapping[str, Float[Tensor, "n d"]]
    places: Places
    batches: Sequence[Any]


@dataclass(frozen=True, eq=False)
class Learned:
    """A partition, the log of its fit, and what that took in seconds of the clock and of the processor."""

    site: str
    seed: int
    what: Subspaces
    history: Sequence[Record]
    seconds: float
    cpu_seconds: float


def harvest(run: Run, subject: Subject, sites: Sequence[str], finding: Finding) -> tuple[Store, Held]:
    """The states to learn from, on disk, and those to judge on, in memory; all sites in one pass."""
    widest = max(subject.model.site(site).width for site in sites)
    dtype: DType = "float32" if finding.rows * widest * 4 <= IN_MEMORY else "float16"
    batches = _enough(subject.sample(-(-finding.rows // subject.batch_tokens) + 1), finding.rows)
    store = write_store(
        subject.model, batches, sites, subject.where, run.folder / "states", dtype=dtype, documents=_documents
    )
    kept = list(_enough(subject.held_out(), finding.held_out))
    other = write_store(subject.model, kept, sites, subject.where, run.folder / "states_held_out", documents=_documents)
    every = torch.arange(len(other))
    return store, Held({site: other.rows(site, every).float() for site in sites}, other.places(every), kept)


def learn(run: Run, subject: Subject, store: Store, site: str, finding: Finding) -> list[Learned]:
    """A partition for every seed, learned or taken from the run's folder, where it lies complete or begun."""
    home = Home(subject.model.fingerprint(), subject.model.site(site).name)
    return [_learn(run, store, site, seed, finding, home, subject.device) for seed in range(finding.seeds)]


def beside(
    learned: Sequence[Learned], rows: Float[Tensor, "n d"], randoms: int
) -> tuple[dict[str, list[Subspaces]], list[str]]:
    """The learned partitions, and others of the first one's sizes: as they are, random, principal and independent.

    Gives also a sentence for each that is not there, with the reason.
    """
    width, sizes = rows.shape[1], learned[0].what.sizes
    generator = torch.Generator().manual_seed(0)
    found = {
        LEARNED: [one.what for one in learned],
        "identity": [Subspaces.identity(width, sizes)],
        "random": [Subspaces.random(width, sizes, generator) for _ in range(randoms)],
        "PCA, small first": [principal_partition(rows, sizes, largest="last").subspaces],
        "PCA, large first": [principal_partition(rows, sizes, largest="first").subspaces],
    }
    try:
        return found | {"ICA": [independent_partition(rows[:ICA_ROWS], sizes, starts=5).subspaces]}, []
    except ValueError as error:
        return found, [f"no ICA at {learned[0].site}: {error}"]


@torch.no_grad()
def distances(
    partitions: Mapping[str, Sequence[Subspaces]], keys: Float[Tensor, "n d"], queries: Float[Tensor, "b d"]
) -> dict[str, list[tuple[float, float]]]:
    """By method and partition the mean neighbor distance of held-out rows, over parts and weighted by dimensions."""
    found = dict[str, list[tuple[float, float]]]()
    for method, several in partitions.items():
        for one in several:
            mean = mean_distance(one, Neighborhood(queries, keys)).double()
            share = torch.tensor(one.sizes, dtype=torch.float64) / one.width
            found.setdefault(method, []).append((float(mean.mean()), float(share @ mean)))
    return found


def training_rows(
    learned: Sequence[Learned], found: Mapping[str, Sequence[tuple[float, float]]], kind: str
) -> list[dict[str, Any]]:
    """The section on training (``report.subspaces.subspace_training``) of one site."""
    random = over_seeds([weighted for _, weighted in found["random"]])
    rows = list[dict[str, Any]]()
    for place, one in enumerate(learned):
        records = [record for record in one.history if "loss" in record]
        changes = [record for record in one.history if record.get("merged")]
        last = next((record for record in reversed(one.history) if "merged" in record), None)
        done = last is not None and not last["merged"]
        base = one.what.rotation.detach().double()
        rows.append(
            {
                "site": one.site,
                "kind": kind,
                "seed": one.seed,
                "steps": [int(record["step"]) for record in records],
                "distance": [float(record["neighbordistance"]) for record in records],
                "events": [
                    {
                        "step": int(record["step"]),
                        "what": "merge",
                        "sizes": [int(size) for size in str(record["sizes"]).split("+")],
                        "words": f"parts {record['merged']}",
                    }
                    for record in changes
                ],
                "sizes": list(one.what.sizes),
                "stopped": "all steps were taken" if records and not done else "no pair asks to be merged",
                "distance_per_dimension": found[LEARNED][place][1],
                "identity": found["identity"][0][1],
                "random": random.to_json(),
                "departure": float((base @ base.T - torch.eye(len(base), dtype=torch.float64)).abs().max()),
                "seconds": one.seconds,
                "cpu_seconds": one.cpu_seconds,
            }
        )
    return rows


def _learn(run: Run, store: Store, site: str, seed: int, finding: Finding, home: Home, device: str) -> Learned:
    folder = run.folder / "subspaces"
    path = folder / f"{site}-{seed}.safetensors"
    log, snapshot = path.with_suffix(".fit.json"), path.with_suffix(".snapshot")
    if path.is_file() and log.is_file():
        record: Any = read_json(log)
        return Learned(site, seed, Subspaces.load(path), record["history"], record["seconds"], record["cpu_seconds"])
    settings = finding.settings(len(store.moments(site)[0]), seed)
    rows, documents = _rows(store, site)
    cpu = time.process_time()
    if isinstance(settings, Assembling):
        found = find_subspaces(_in_memory(rows, site), settings, home=home, device=device)
    else:
        every = max(1, settings.fit.steps // 10)
        callbacks: list[Callback] = [Checkpoint(snapshot, every), Log(path.with_suffix(".log.jsonl")), Bar(run.console)]
        found = find_subspaces(
            rows,
            settings,
            site=site if isinstance(rows, Store) else "",
            documents=documents if settings.apart else None,
            home=home,
            device=device,
            callbacks=callbacks,
        )
    cpu = time.process_time() - cpu
    found.what.eval().save(path)
    record = {"history": found.history, "seconds": found.seconds, "cpu_seconds": cpu}
    log.write_text(json.dumps(record) + "\n")
    snapshot.unlink(missing_ok=True)
    return Learned(site, seed, found.what, found.history, found.seconds, cpu)


def _rows(store: Store, site: str) -> tuple[Tensor | Store, Int[Tensor, "rows"] | None]:
    """A site's states and their documents, in memory if they are few."""
    if len(store) * len(store.moments(site)[0]) * 4 > IN_MEMORY:
        return store, None
    every = torch.arange(len(store))
    return store.rows(site, every).float(), store.places(every).document


def _in_memory(rows: Tensor | Store, site: str) -> Tensor:
    if isinstance(rows, Store):
        raise ValueError(
            f"the {len(rows)} states of {site} do not fit into {IN_MEMORY} bytes: assemble from fewer rows"
        )
    return rows


def _enough(batches: Iterable[Any], rows: int) -> Iterable[Any]:
    """Batches until they have so many positions that count, at most."""
    count = 0
    for batch in batches:
        if count >= rows:
            return
        count += int(batch.valid.sum()) if isinstance(batch, Text) and batch.valid is not None else _positions(batch)
        yield batch


def _positions(batch: Any) -> int:
    return batch.ids.numel() if isinstance(batch, Text) else int(batch.target.valid.sum())


def _documents(batch: Any) -> Tensor | None:
    """Of each token its document, of each agent its scene."""
    return batch.document if isinstance(batch, Text) else batch.scene
