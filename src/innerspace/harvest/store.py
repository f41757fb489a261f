"""Hidden states on disk: rows of several sites with their places and moments, written in one pass, read by number.

A store is a folder. ``manifest.json`` says which network, sites, positions and number format, and lists the shards; a
shard is an array for each site and one of places, and row i of all of them belongs to the same position. A shard enters
the manifest when its last row is written, so an interruption loses the rows of one shard and nothing else.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.harvest.shards import ArrayFile, ArrayWriter, Column, fingerprint, save_manifest
from innerspace.harvest.shuffled import Shuffled
from innerspace.interventions import Read
from innerspace.network.model import Model
from innerspace.network.site import Site, Where
from innerspace.value import Value

DType = Literal["float32", "bfloat16", "float16"]
Documents = Callable[[Any], Int[Tensor, "batch *positions"] | None]

_TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NUMPY = {"float32": "<f4", "bfloat16": "<u2", "float16": "<f2"}  # numpy has no bfloat16: its bits are kept


@dataclass(frozen=True)
class Shard(Value):
    """Rows that were written together: an array for each site, and one of (sample, position, document)."""

    states: tuple[ArrayFile, ...]
    places: ArrayFile


@dataclass(frozen=True)
class Moments(Value):
    """The mean of a site's rows, and the sum of their squared distances from it."""

    mean: tuple[float, ...]
    scatter: float


@dataclass(frozen=True)
class Cursor(Value):
    """How far the stream is written: ``row`` rows of batch ``batch``, before which there were ``sample`` samples."""

    batch: int = 0
    row: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Manifest(Value):
    """What is in a store, and what it was made from."""

    model: str
    sites: tuple[Site, ...]
    where: Where
    dtype: DType
    shard_rows: int
    moments: tuple[Moments, ...]
    shards: tuple[Shard, ...] = ()
    cursor: Cursor = Cursor()
    complete: bool = False


@dataclass(frozen=True, eq=False)
class Places:
    """Where rows come from: the sample in the stream, the position in it, the document of the corpus."""

    sample: Int[Tensor, "rows"]
    position: Int[Tensor, "rows"]
    document: Int[Tensor, "rows"]


@final
class Store:
    """Rows of hidden states on disk; row i of every site is the same position of the same sample."""

    def __init__(self, folder: Path, manifest: Manifest, *, verify: bool) -> None:
        self.folder, self.manifest = folder, manifest
        self._states = {
            site.name: Column(folder, [shard.states[i] for shard in manifest.shards], verify=verify)
            for i, site in enumerate(manifest.sites)
        }
        self._places = Column(folder, [shard.places for shard in manifest.shards], verify=verify)

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "Store":
        """The store in a folder; ``verify`` reads every byte once to compare the checksums.

        Raises:
            ValueError: if there is none, it is not complete, or a shard is damaged, naming it.
        """
        manifest = Manifest.load(folder / "manifest.json")
        if not manifest.complete:
            raise ValueError(f"the store at {folder} was interrupted; write_store with the same settings completes it")
        return cls(folder, manifest, verify=verify)

    def __len__(self) -> int:
        return len(self._places)

    def check(self, model: Model) -> None:
        """Refuse another network than the one whose states these are.

        Raises:
            ValueError: if its weights differ.
        """
        if (found := model.fingerprint()) != self.manifest.model:
            raise ValueError(
                f"the store at {self.folder} holds states of the network {self.manifest.model}, not of {found}"
            )

    def rows(self, site: str, index: Int[Tensor, "rows"]) -> Float[Tensor, "rows d"]:
        """Hidden states by row number, in the store's number format.

        Raises:
            ValueError: for a site that is not stored, or a row that does not exist.
        """
        states = torch.from_numpy(self._column(site).take(index.cpu().numpy()))
        return states.view(torch.bfloat16) if self.manifest.dtype == "bfloat16" else states

    def places(self, index: Int[Tensor, "rows"]) -> Places:
        """Where rows come from."""
        return Places(*torch.from_numpy(self._places.take(index.cpu().numpy())).unbind(1))

    def chunks(self, site: str, size: int) -> Iterator[Float[Tensor, "rows d"]]:
        """All rows in the order in which they were written, so many at a time."""
        for start in range(0, len(self), size):
            yield self.rows(site, torch.arange(start, min(start + size, len(self))))

    def moments(self, site: str) -> tuple[Float[Tensor, "d"], Float[Tensor, ""]]:
        """The mean of a site's rows and their mean squared distance from it, in float64."""
        self._column(site)
        found = self.manifest.moments[list(self._states).index(site)]
        double = torch.float64
        return torch.tensor(found.mean, dtype=double), torch.tensor(found.scatter / len(self), dtype=double)

    def shuffled(
        self,
        site: str,
        batch: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        block: int = 32,
        buffer: int = 65536,
    ) -> Shuffled:
        """An endless stream of well mixed batches; see ``Shuffled``.

        Raises:
            ValueError: for an unknown site, or numbers that do not fit the store or each other.
        """
        self._column(site)
        source = f"{site} of {fingerprint(self.manifest)}"
        return Shuffled(
            partial(self.rows, site), len(self), source, batch, seed, rank=rank, world=world, block=block, buffer=buffer
        )

    def _column(self, site: str) -> Column:
        if site not in self._states:
            raise ValueError(f"the store at {self.folder} has no site {site!r}; it has {', '.join(self._states)}")
        return self._states[site]


@torch.no_grad()
def write_store(
    model: Model,
    batches: Iterable[Any],
    sites: Sequence[str],
    where: Where,
    folder: Path,
    *,
    dtype: DType = "float32",
    shard_rows: int = 65536,
    documents: Documents | None = None,
    progress: Callable[[int], None] | None = None,
) -> Store:
    """Run the network up to the last of the sites on every batch and keep the states at the positions of ``where``.

    ``documents`` tells from which document a sample, or each of its positions, comes; without it every sample is a
    document of its own. ``progress`` is told the rows written so far. Given the same batches again, an interrupted
    store goes on behind its last complete shard, and a complete one is opened: both are bit for bit what one run gives.

    Raises:
        ValueError: if there is no site or no row, a site is unknown, the sites have other positions, a state is not
            finite, or the folder holds a store with other settings.
    """
    if not sites:
        raise ValueError(f"no site was asked for; this model has {', '.join(model.sites)}")
    if shard_rows < 1:
        raise ValueError(f"a shard should have at least one row, not {shard_rows}")
    kept = tuple(dict.fromkeys(model.site(name) for name in sites))
    nothing = tuple(Moments((0.0,) * site.width, 0.0) for site in kept)
    manifest = _begun(folder, Manifest(model.fingerprint(), kept, where, dtype, shard_rows, nothing))
    # what is there already is read back before more is built on it
    store = Store(folder, manifest, verify=True)
    if manifest.complete:
        return store
    writer, start, number = _Writer(folder, manifest), manifest.cursor, -1
    sample = start.sample
    for number, batch in enumerate(batches):
        if number < start.batch:
            continue
        hidden = model.run(batch, {site.name: Read() for site in kept}, stop=True).hidden
        chosen = _chosen(model, batch, hidden, kept, where)
        states = [_stored(hidden[site.name], chosen, dtype, f"{site.name!r} in batch {number}") for site in kept]
        places = _places(chosen, sample, documents(batch) if documents else None)
        writer.append(states, places, Cursor(number, start.row if number == start.batch else 0, sample))
        sample += len(chosen)
        if progress:
            progress(writer.rows)
    if number < start.batch:
        raise ValueError(
            f"the stream has {number + 1} batches"
            + (f", the interrupted store had come to batch {start.batch}: they are not the same" if start.batch else "")
        )
    writer.finish()
    return Store.open(folder, verify=False)


@final
class _Writer:
    """Cuts a stream of rows into shards and keeps the moments of what is written (Chan et al. 1979)."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self.rows = sum(shard.places.shape[0] for shard in manifest.shards)
        self._means = [torch.tensor(item.mean, dtype=torch.float64) for item in manifest.moments]
        self._scatters = [item.scatter for item in manifest.moments]
        self._open()

    def append(self, states: Sequence[Tensor], places: Int[Tensor, "rows 3"], at: Cursor) -> None:
        """Write the rows of a batch from the cursor's on."""
        done = at.row
        if done > len(places):
            raise ValueError(f"batch {at.batch} had {done} rows or more before the interruption, it has {len(places)}")
        while done < len(places):
            part = slice(done, min(len(places), done + self._manifest.shard_rows - self._places.rows))
            for i, (file, x) in enumerate(zip(self._states, states, strict=True)):
                file.append((x[part].view(torch.uint16) if x.dtype == torch.bfloat16 else x[part]).numpy())
                self._count(i, x[part].double())
            self._places.append(places[part].numpy())
            self.rows, done = self.rows + part.stop - done, part.stop
            if self._places.rows == self._manifest.shard_rows:
                self._close(replace(at, row=done))
                self._open()

    def finish(self) -> None:
        """Close the last shard, and the store."""
        if not self.rows:
            raise ValueError(f"the stream has no {self._manifest.where.tokens} position to keep")
        if self._places.rows:
            self._close(self._manifest.cursor)
        save_manifest(replace(self._manifest, complete=True), self._folder)

    def _count(self, i: int, x: Float[Tensor, "rows d"]) -> None:
        total = self.rows + len(x)
        away = x.mean(0) - self._means[i]
        self._scatters[i] += float((x - x.mean(0)).square().sum() + away.square().sum() * (self.rows * len(x) / total))
        self._means[i] += away * (len(x) / total)

    def _open(self) -> None:
        name, dtype = f"{len(self._manifest.shards):05d}", _NUMPY[self._manifest.dtype]
        self._states = [
            ArrayWriter(self._folder, f"{name}.{i}.states", dtype, (site.width,))
            for i, site in enumerate(self._manifest.sites)
        ]
        self._places = ArrayWriter(self._folder, f"{name}.places", "<i8", (3,))

    def _close(self, cursor: Cursor) -> None:
        shard = Shard(tuple(file.close() for file in self._states), self._places.close())
        moments = zip(self._means, self._scatters, strict=True)
        self._manifest = replace(
            self._manifest,
            shards=(*self._manifest.shards, shard),
            moments=tuple(Moments(tuple(mean.tolist()), scatter) for mean, scatter in moments),
            cursor=cursor,
        )
        save_manifest(self._manifest, self._folder)


def _begun(folder: Path, fresh: Manifest) -> Manifest:
    """The manifest of what is in the folder, or a new one.

    Raises:
        ValueError: if the folder holds anything else.
    """
    if (folder / "manifest.json").is_file():
        found = Manifest.load(folder / "manifest.json")
        for field in ("model", "sites", "where", "dtype", "shard_rows"):
            there, asked = getattr(found, field), getattr(fresh, field)
            if there != asked:
                raise ValueError(
                    f"{folder} holds a store with {field} {there}, not {asked}; remove it or give another folder"
                )
        return found
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files; a store needs a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    save_manifest(fresh, folder)
    return fresh


def _chosen(
    model: Model, batch: Any, hidden: Mapping[str, Tensor], sites: Sequence[Site], where: Where
) -> Bool[Tensor, "batch *positions"]:
    """The positions to keep, the same at all sites."""

    def at(site: Site) -> Tensor:
        x = hidden[site.name]
        return where.select(tuple(x.shape[:-1]), model.family.mask(batch, site), x.device)

    chosen = at(sites[0])
    for site in sites[1:]:
        if not torch.equal(at(site), chosen):
            raise ValueError(f"{sites[0].name!r} and {site.name!r} have other positions; give each a store of its own")
    return chosen


def _stored(
    x: Float[Tensor, "batch *positions d"], chosen: Bool[Tensor, "batch *positions"], dtype: DType, where: str
) -> Float[Tensor, "rows d"]:
    """The chosen rows in the number format of the store, all of them finite."""
    rows = x[chosen].to(_TORCH[dtype]).cpu()
    if bad := (~rows.isfinite()).any(-1).nonzero().flatten().tolist():
        sample, *position = chosen.nonzero()[bad[0]].tolist()
        why = f"beyond what {dtype} holds" if x[chosen][bad[0]].isfinite().all() else "not finite"
        raise ValueError(
            f"the hidden state at {where}, sample {sample} of it, position {', '.join(map(str, position))}, is {why}; "
            f"{len(bad)} of the {len(rows)} rows of this batch are so"
        )
    return rows


def _places(
    chosen: Bool[Tensor, "batch *positions"], before: int, documents: Int[Tensor, "*axes"] | None
) -> Int[Tensor, "rows 3"]:
    """Sample in the stream, number of the position within it, and document, of every chosen position."""
    index = chosen.nonzero()
    sample = index[:, 0] + before
    positions = torch.arange(math.prod(chosen.shape[1:]), device=chosen.device).view(1, *chosen.shape[1:])
    if documents is None:
        document = sample
    elif documents.shape == chosen.shape[: documents.ndim]:
        document = documents.to(index.device)[index[:, : documents.ndim].unbind(1)]
    else:
        raise ValueError(
            f"the documents of a batch have shape {list(documents.shape)}, its positions {list(chosen.shape)}"
        )
    return torch.stack((sample, positions.expand_as(chosen)[chosen], document), 1).cpu()
