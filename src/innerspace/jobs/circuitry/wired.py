"""What circuits are made of: dictionaries of several sites that belong together, trained here or in a former run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.decompose.dictionary import Dictionary
from innerspace.harvest.stream import TokenRule, gather
from innerspace.jobs.dictionaries.lessons import Course, Lesson, train_lessons
from innerspace.jobs.inputs.subject import Subject
from innerspace.jobs.job import Run
from innerspace.learn.objectives import Downstream, OutputKL, Reconstruction, Sparsity, Term
from innerspace.learn.partitions import principal_partition
from innerspace.value import Value

LOCAL, E2E, E2E_DS, PCA = "local", "e2e", "e2e+ds", "PCA"

_NAME = re.compile(r"(?P<kind>.+?)(?:-(?P<strength>[\d.]+(?:e[-+]\d+)?))?-(?P<seed>\d+)")


@final
@dataclass(frozen=True, eq=False)
class Wired:
    """Decompositions of one kind and seed, by site."""

    kind: str
    seed: int
    vias: Mapping[str, Decomposition]


@dataclass(frozen=True)
class Makings(Value):
    """Dictionaries to train at every site: the weights of the sparsity of each kind, None leaving the kind out.

    The terms of ``e2e+ds`` are half of the divergence and half of the unexplained variance of the stream behind the
    site. With ``run``, the folder of a finished run, its dictionaries at the sites are taken instead.
    """

    latents: int = 512
    local: float | None = 0.12
    e2e: float | None = 0.1
    e2e_ds: float | None = 0.1
    seeds: int = 3
    course: Course = field(default_factory=Course)
    run: Path | None = None

    def check(self) -> None:
        """Refuse what leaves nothing to compare, and a folder that holds no dictionary.

        Raises:
            ValueError: naming it.
        """
        if self.run is not None:
            if not list((self.run / "dictionaries").glob("*.safetensors")):
                raise ValueError(
                    f"no dictionaries at {self.run / 'dictionaries'}; the folder of a finished run is meant"
                )
        elif self.seeds < 1 or not self._weights:
            raise ValueError(f"a seed and a kind of dictionary are needed at least: {self}")

    def make(self, run: Run, subject: Subject, sites: Sequence[str]) -> list[Wired]:
        """The dictionaries of all sites, by kind and seed.

        Raises:
            ValueError: for a folder without dictionaries of all sites, or with those of another network.
        """
        if self.run is not None:
            return self._read(subject, sites)
        lessons = [
            Lesson(site, kind, weight, seed, self.latents, objective=(*_terms(subject, site, kind), Sparsity(weight)))
            for seed in range(self.seeds)
            for kind, weight in self._weights.items()
            for site in sites
        ]
        trained = train_lessons(run, subject, lessons, self.course)
        return _together(
            [(one.lesson.kind, one.lesson.seed, one.lesson.site, one.dictionary) for one in trained], sites
        )

    @property
    def _weights(self) -> dict[str, float]:
        weights = {LOCAL: self.local, E2E: self.e2e, E2E_DS: self.e2e_ds}
        return {kind: weight for kind, weight in weights.items() if weight is not None}

    def _read(self, subject: Subject, sites: Sequence[str]) -> list[Wired]:
        assert self.run is not None
        home, found = subject.model.fingerprint(), list[tuple[str, str, int, str, Dictionary]]()
        for path in sorted((self.run / "dictionaries").glob("*.safetensors")):
            dictionary = Dictionary.load(path)
            site = next((site for site in sites if path.stem.startswith(f"{site}-")), None)
            if site is None or (told := _NAME.fullmatch(path.stem.removeprefix(f"{site}-"))) is None:
                continue
            dictionary.check(home, site, subject.model.site(site).width)
            found.append((told["kind"], told["strength"] or "", int(told["seed"]), site, dictionary))
        strengths = {kind: {one[1] for one in found if one[0] == kind} for kind in {one[0] for one in found}}
        named = [
            (f"{kind} λ {strength}" if len(strengths[kind]) > 1 else kind, seed, site, dictionary)
            for kind, strength, seed, site, dictionary in found
        ]
        if not named:
            raise ValueError(f"{self.run} holds no dictionary at {', '.join(sites)}")
        return _together(named, sites)


def principal(subject: Subject, sites: Sequence[str], rows: int) -> Wired:
    """The trivial basis: principal components, one to a part."""
    batches = subject.sample(-(-2 * rows // subject.batch_tokens))
    states = gather(subject.model, batches, sites, TokenRule(subject.where)).states
    vias = {
        site: principal_partition(x[:rows], [1] * x.shape[1]).subspaces.to(subject.device) for site, x in states.items()
    }
    return Wired(PCA, 0, vias)


def random_order(active: Bool[Tensor, "parts"], seed: int) -> list[int]:
    """The parts in a random order, those that are active first: chance for orders by effect."""
    order = torch.randperm(len(active), generator=torch.Generator().manual_seed(seed))
    return torch.cat((order[active[order]], order[~active[order]])).tolist()


def _together(found: Sequence[tuple[str, int, str, Dictionary]], sites: Sequence[str]) -> list[Wired]:
    groups = dict[tuple[str, int], dict[str, Decomposition]]()
    for kind, seed, site, dictionary in found:
        groups.setdefault((kind, seed), {})[site] = dictionary.eval()
    whole = {key: vias for key, vias in groups.items() if len(vias) == len(sites)}
    if not whole:
        raise ValueError(f"no kind and seed has dictionaries at all of {', '.join(sites)}")
    return [Wired(kind, seed, {site: vias[site] for site in sites}) for (kind, seed), vias in whole.items()]


def _terms(subject: Subject, site: str, kind: str) -> tuple[Term, ...]:
    if kind == LOCAL:
        return (Reconstruction(),)
    if kind == E2E:
        return (OutputKL(),)
    names: list[Any] = list(subject.model.sites)
    behind = tuple(n for n in names[names.index(site) + 1 :] if n.startswith("resid."))
    if not behind:
        raise ValueError(f"no block follows {site!r}, so that nothing downstream can be compared")
    return OutputKL(0.5), Downstream(behind, 0.5, "variance")
