"""What is compared: decompositions of a site's hidden states, from files, or made for the comparison, seed by seed."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Int
from torch import Tensor

from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.base import Decomposition, Home, check_place
from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.nonlinearities import Nonlinearity, ReLU
from innerspace.decompose.saved import load
from innerspace.decompose.subspaces import Subspaces, even_sizes
from innerspace.jobs.comparison.grounds import Ground, Sample
from innerspace.jobs.dictionaries.lessons import Course, Lesson, train_lessons
from innerspace.jobs.job import Run
from innerspace.jobs.partitions.learned import ICA_ROWS, Finding, harvest, learn
from innerspace.learn.objectives import Downstream, OutputKL, Reconstruction, Sparsity, Term
from innerspace.learn.partitions import independent_partition, principal_partition
from innerspace.learn.solve import Method, bootstrap, contrast
from innerspace.value import Value

BY_LABELS = "by labels"
"""The kind of what was fitted to labels."""


@dataclass(frozen=True, eq=False)
class Made:
    """A decomposition, and how many seconds it took to find; None where it was there already."""

    what: Decomposition
    seconds: float | None


@dataclass(frozen=True, eq=False)
class Materials:
    """What entrants are made from."""

    run: Run
    ground: Ground
    fit: Sample
    seeds: int
    course: Course

    @property
    def home(self) -> Home:
        """Where they belong."""
        return Home(self.ground.subject.model.fingerprint(), self.ground.site)

    def drawn(self, seed: int) -> Int[Tensor, "m"]:
        """The rows to fit to: all for seed 0, for others those of documents drawn with replacement."""
        if not seed:
            return torch.arange(len(self.fit.states))
        return bootstrap(len(self.fit.states), torch.Generator().manual_seed(seed), self.fit.documents)


@dataclass(frozen=True)
class Entrant(Value, ABC):
    """A way to decompose hidden states."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the page calls it."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What shares a color with it."""

    @abstractmethod
    def make(self, materials: Materials) -> list[Made]:
        """One for every seed.

        Raises:
            ValueError: for what cannot be made, and why.
        """

    def check(self) -> None:
        """Refuse files that are not there, before anything is made.

        Raises:
            ValueError: naming the file.
        """


@final
@dataclass(frozen=True)
class Saved(Entrant):
    """Directions, a dictionary or subspaces from files; several files are those of several seeds."""

    paths: tuple[Path, ...] = ()
    called: str = ""

    @property
    def name(self) -> str:
        """As it is called, or the name of the first file."""
        return self.called or (self.paths[0].stem if self.paths else "file")

    @property
    def kind(self) -> str:
        """A file."""
        return "file"

    def check(self) -> None:
        """Refuse files that are not there."""
        if missing := [path for path in self.paths if not path.is_file()]:
            raise ValueError(f"no file at {missing[0]}")
        if not self.paths:
            raise ValueError("a saved entrant needs a file, or several of several seeds")

    def make(self, materials: Materials) -> list[Made]:
        """Read them.

        Raises:
            ValueError: for files that are damaged, or belong elsewhere.
        """
        found = [load(path) for path in self.paths]
        home, width = materials.home, materials.fit.states.shape[1]
        for what in found:
            own = what.home if isinstance(what, Autoencoder | Subspaces) else None
            check_place(what.directions.shape[1], own, home, width)
            strangers = [one for one in what.origins if one.model != home.model] if isinstance(what, Directions) else []
            if strangers:
                raise ValueError(f"{self.name}: fitted to model {strangers[0].model}, this is {home.model}")
        return [Made(what, None) for what in found]


class Fitted(Entrant, ABC):
    """What takes no training: one decomposition for every seed, each timed by itself."""

    @abstractmethod
    def fit(self, materials: Materials, seed: int) -> Decomposition:
        """That of a seed.

        Raises:
            ValueError: for what cannot be made, and why.
        """

    def make(self, materials: Materials) -> list[Made]:
        """One for every seed."""
        return [_timed(lambda seed=seed: self.fit(materials, seed)) for seed in range(materials.seeds)]


@final
@dataclass(frozen=True)
class Vectors(Fitted):
    """A control vector for every label: probe normals, mean differences, or whatever has a closed form.

    Seeds beyond the first see documents drawn with replacement.
    """

    method: Method = "mean_difference"

    @property
    def name(self) -> str:
        """The method."""
        return {"probe_normal": "probe directions", "mean_difference": "control vectors"}.get(
            self.method, f"{self.method} vectors"
        )

    @property
    def kind(self) -> str:
        """Directions by labels."""
        return BY_LABELS

    def fit(self, materials: Materials, seed: int) -> Directions:
        """One for the opposing classes of every label that has both.

        Raises:
            ValueError: if no label has both of its opposing classes.
        """
        chosen, found, home = materials.drawn(seed), list[Directions](), materials.home
        for name, opposed in materials.ground.opposed.items():
            y = materials.fit.labels[name][chosen]
            ends = [opposed.classes.index(word) for word in (opposed.negative, opposed.positive)]
            if min(int((y == end).sum()) for end in ends) < 2:
                continue
            origin = Origin(name, opposed.positive, opposed.negative, self.method, home.site, model=home.model)
            found.append(contrast(materials.fit.states[chosen], y, opposed.classes, origin, self.method))
        if not found:
            raise ValueError(f"{self.name}: no label has both of its opposing classes")
        return Directions.concatenate(found)


Training = Literal["local", "e2e", "e2e+ds"]


@final
@dataclass(frozen=True)
class Sparse(Entrant):
    """A sparse dictionary, trained on reconstruction, on the output, or on both the output and what lies between.

    ``sparsity`` weighs the cost of a code, none for nonlinearities that are sparse by themselves; the terms of
    ``e2e+ds`` are half of the divergence and half of the unexplained variance behind the site.
    """

    training: Training = "local"
    sparsity: float = 0.0
    latents: int = 512
    nonlinearity: Nonlinearity = field(default_factory=ReLU)

    @property
    def name(self) -> str:
        """How it is trained."""
        return f"{self.training} dictionary"

    @property
    def kind(self) -> str:
        """A dictionary."""
        return "dictionary"

    def make(self, materials: Materials) -> list[Made]:
        """Train one for every seed."""
        sparsity = (Sparsity(self.sparsity),) if self.sparsity else ()
        objective = (*self._terms(materials.ground), *sparsity)
        lessons = [
            Lesson(materials.ground.site, self.training, self.sparsity, seed, self.latents, self.nonlinearity,
                   objective=objective)
            for seed in range(materials.seeds)
        ]  # fmt: skip
        trained = train_lessons(materials.run, materials.ground.subject, lessons, materials.course)
        return [Made(one.dictionary, float(one.cost["seconds"])) for one in trained]

    def _terms(self, ground: Ground) -> tuple[Term, ...]:
        match self.training:
            case "local":
                return (Reconstruction(),)
            case "e2e":
                return (OutputKL(),)
            case "e2e+ds":
                return OutputKL(0.5), Downstream(_behind(ground), 0.5, "variance")


@final
@dataclass(frozen=True)
class Ndm(Entrant):
    """Subspaces by neighbor distances; its ``rows`` and seeds are those of the comparison."""

    finding: Finding = field(default_factory=Finding)

    @property
    def name(self) -> str:
        """NDM."""
        return "NDM subspaces"

    @property
    def kind(self) -> str:
        """Subspaces."""
        return "NDM"

    def make(self, materials: Materials) -> list[Made]:
        """Learn one for every seed."""
        finding = replace(self.finding, rows=len(materials.fit.states), held_out=256, seeds=materials.seeds)
        subject, site = materials.ground.subject, materials.ground.site
        store, _ = harvest(materials.run, subject, [site], finding)
        return [Made(one.what, one.seconds) for one in learn(materials.run, subject, store, site, finding)]


@final
@dataclass(frozen=True)
class Principal(Fitted):
    """Principal components, ``unit`` to a part; seeds beyond the first see documents drawn with replacement."""

    unit: int = 1

    @property
    def name(self) -> str:
        """PCA."""
        return _by_unit("PCA", self.unit)

    @property
    def kind(self) -> str:
        """Components."""
        return "components"

    def fit(self, materials: Materials, seed: int) -> Subspaces:
        """In closed form."""
        rows = materials.fit.states[materials.drawn(seed)]
        return principal_partition(rows, even_sizes(rows.shape[1], self.unit)).subspaces


@final
@dataclass(frozen=True)
class Independent(Fitted):
    """Independent components, ``unit`` to a part; seeds as for principal ones."""

    unit: int = 1

    @property
    def name(self) -> str:
        """ICA."""
        return _by_unit("ICA", self.unit)

    @property
    def kind(self) -> str:
        """Components."""
        return "components"

    def fit(self, materials: Materials, seed: int) -> Subspaces:
        """By FastICA."""
        chosen = materials.drawn(seed)
        some = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:ICA_ROWS]]
        rows = materials.fit.states[some]
        return independent_partition(rows, even_sizes(rows.shape[1], self.unit), seed=seed, starts=3).subspaces


@final
@dataclass(frozen=True)
class RandomRotation(Fitted):
    """A rotation drawn evenly from all, ``unit`` coordinates to a part."""

    unit: int = 1

    @property
    def name(self) -> str:
        """Random."""
        return _by_unit("random rotation", self.unit)

    @property
    def kind(self) -> str:
        """Random."""
        return "random"

    def fit(self, materials: Materials, seed: int) -> Subspaces:
        """Drawn by the seed."""
        width = materials.fit.states.shape[1]
        return Subspaces.random(width, even_sizes(width, self.unit), torch.Generator().manual_seed(seed))


@final
@dataclass(frozen=True)
class RandomDirections(Entrant):
    """As many random directions as control vectors, which take equally long steps."""

    method: Method = "mean_difference"

    @property
    def name(self) -> str:
        """Random."""
        return "random directions"

    @property
    def kind(self) -> str:
        """Random."""
        return "random"

    def make(self, materials: Materials) -> list[Made]:
        """One set for every seed."""
        like = Vectors(self.method).fit(materials, 0)
        return [_timed(lambda seed=seed: _alike(like, seed)) for seed in range(materials.seeds)]


def _alike(vectors: Directions, seed: int) -> Directions:
    return vectors.random_like(torch.Generator().manual_seed(seed))


def _timed(make: Callable[[], Decomposition]) -> Made:
    start = time.perf_counter()
    what = make()
    return Made(what, time.perf_counter() - start)


def _by_unit(name: str, unit: int) -> str:
    return name if unit == 1 else f"{name} × {unit}"


def _behind(ground: Ground) -> tuple[str, ...]:
    """The stream behind the site in a language model; every later site of its stage in another network."""
    names: list[Any] = list(ground.subject.model.sites)
    stage = ground.site.partition(".")[0]
    later = names[names.index(ground.site) + 1 :]
    behind = tuple(name for name in later if name.startswith(f"{stage}."))
    if not behind:
        raise ValueError(f"no {stage} site follows {ground.site!r}, so that nothing downstream can be compared")
    return behind
