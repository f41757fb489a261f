"""Known subspaces, recovered: neighbor distance minimization beside other means, on toys of superposition.

    python benchmarks/recovery.py [--threads 1] [--toys 10]

Each toy keeps features in 12 dimensions, in groups that exclude each other ([20, 20] or [5, 15, 5, 15]). Candidates are
trained, one by seed, and the first that are themselves block-orthogonal are judged; how many are, is told. Subspaces
are sought in 20,000 hidden states without labels. What does not find its own sizes is given the true ones. Purity and
overlap are those of ``recovery``; within and across are what a group's best part and the others tell of which feature
is on, in shares of its entropy; exchanged is how often swapping the matched part, between inputs that differ in a
group, changes what the network gives back in that group and in no other.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import Any, final

import torch
from recording import machine, save
from torch import Tensor

from innerspace.checkpoint import State
from innerspace.decompose.base import Code, Decomposition
from innerspace.decompose.dictionary import Dictionary, moments
from innerspace.decompose.nonlinearities import TopK
from innerspace.decompose.subspaces import Subspaces, random_rotation
from innerspace.harvest.stream import TokenRule, gather
from innerspace.learn.dependence import dependence
from innerspace.learn.fit import FitConfig, Student, fit, fit_together
from innerspace.learn.merge_rules import Calibrated
from innerspace.learn.neighbor_distance import NeighborDistance
from innerspace.learn.neighbors import Matches, Neighborhood
from innerspace.learn.objectives import Reconstruction
from innerspace.learn.partitions import (
    ClusterRule,
    SpectralClusters,
    cluster_partition,
    independent_partition,
    principal_partition,
)
from innerspace.learn.trials import Occasion, Trial, Trials, local
from innerspace.measure.estimate import over_seeds
from innerspace.measure.recovery import bases, information, interchange, recovery
from innerspace.planted.superposition import Superposition, Toy, check_blocks, toy_model, train_toys, true_subspaces

ROWS, STARTS, ROTATIONS, LABELED, SWAPPED = 20_000, 3, 20, 1500, 2000
CANDIDATES = {(20, 20): 12, (5, 15, 5, 15): 60}
SITE = "hidden"
RULE = Calibrated(naturalness=0.7)
"""Lines that were learned cut a variable more naturally than random ones: on the first three toys of [20, 20] the least
strength inside a group was 0.54, the largest between groups 0.05."""


@final
class Fours(Trials):
    """Lines judged on rows in groups of four, as published for toys: neighbors are sought among the other three only.

    Many small searches in every step keep the loss coarse and its gradient quiet; a few keys that all rows share would
    make it noisy, and many keys make lines across groups look as good as lines inside.
    """

    def __init__(self, x: Tensor, rows: int, seed: int) -> None:
        self.x, self.rows, self.variance = x, rows, moments(x)[1]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, needs: Set[str] = frozenset()) -> Occasion:
        return Four(self.x[torch.randint(len(self.x), (self.rows,), generator=self.generator)], self.variance)

    def state(self) -> State:
        return {"generator": self.generator.get_state()}

    def restore(self, state: State) -> None:
        self.generator.set_state(state["generator"])


@final
class Four(Occasion):
    def __init__(self, x: Tensor, variance: Tensor) -> None:
        self.x, self.variance = x, variance

    def trial(self, what: Decomposition, site: str = "", needs: Set[str] = frozenset()) -> Trial:
        assert isinstance(what, Subspaces)
        assert set(what.sizes) == {1}
        rotation, n = what.rotation, len(self.x)
        z = self.x @ rotation.T
        four = z.detach().view(n // 4, 4, -1)
        distance = (four[:, :, None] - four[:, None]).abs()
        distance[:, torch.arange(4), torch.arange(4)] = torch.inf
        least = distance.min(2)
        place = (least.indices + 4 * torch.arange(n // 4)[:, None, None]).view(n, -1).T[..., None]
        matches = Matches(place, least.values.view(n, -1).T[..., None])
        near = Neighborhood(self.x, self.x, torch.arange(n), matches=matches, rotation=rotation)
        return Trial(self.x, self.x, Code(z, z, z.new_zeros(n)), what, self.variance, neighborhood=near)


def lines_in_fours(x: Tensor, seed: int) -> Subspaces:
    """Single directions, learned on rows in groups of four from several starts, of which the best is merged."""
    draw, width, term = torch.Generator().manual_seed(seed), x.shape[1], NeighborDistance()
    starts = [Subspaces.random(width, [1] * width, draw) for _ in range(STARTS)]
    config = FitConfig(steps=3000, rate=1e-2, warmup=0, cooldown=1, clip=100.0, seed=seed)
    students = [Student(start, (term,), name=str(i)) for i, start in enumerate(starts)]
    fit_together(students, Fours(x, 512, seed), config)
    everything = Fours(x, len(x) // 4 * 4, seed + 1).draw()
    what = min(starts, key=lambda one: float(term(everything.trial(one)).detach()))
    near = Neighborhood(x[:512], x[:1024], torch.arange(512))
    while len(what.sizes) > 1:
        pairs = RULE.pairs(RULE.measure(what, near, seed), what.sizes)
        if not pairs:
            break
        what.merge(*pairs)
    return what


def dictionary_clusters(x: Tensor, toy: Toy, sizes: list[int], seed: int) -> Subspaces:
    """A dictionary with as many latents as there are features, its directions clustered into as many as groups."""
    groups = len(toy.groups)
    dictionary = Dictionary.normalized_for(x, toy.features, TopK(groups), seed=seed)
    fit(dictionary, local(x, 256, seed), (Reconstruction(),), FitConfig(steps=3000, seed=seed))
    rule = ClusterRule("size", smallest=1)
    return cluster_partition(x, dictionary, SpectralClusters(groups, seed), rule, sizes=sizes).subspaces


def judge(network: Superposition, found: Subspaces, truth: list[Tensor], seed: int) -> dict[str, Any]:
    """Every score of one partition."""
    toy, model = network.toy, toy_model(network)
    generator = torch.Generator().manual_seed(10_000 + seed)
    score = recovery(found, truth)
    labeled = toy.draw(LABELED, generator)
    x = gather(model, [labeled], [SITE], TokenRule()).states[SITE]
    told = information(x, found, labeled.active)
    pair = tuple(toy.draw(SWAPPED, generator, least=0.3) for _ in range(2))
    carried = [[part] if part >= 0 else [] for part in score.partners]
    swapped = 0.0
    if all(carried):
        results = interchange(model, SITE, found, carried, [pair], lambda output: toy.read_out(output["x"]))
        swapped = sum(one.accuracy.mean for one in results) / len(results)
    largest = 0.0
    if len(found.sizes) > 1:
        near = Neighborhood(x[:500], x[500:])
        size = torch.tensor(found.sizes)
        normalized = dependence(found, near).information / (size[:, None] + size)
        largest = float(normalized.nan_to_num(0).max())
    return {
        "sizes": list(found.sizes),
        "purity": score.purity,
        "least_purity": score.least_purity,
        "overlap": score.overlap,
        "within": told.within,
        "across": told.across,
        "exchanged": swapped,
        "dependence": largest,
    }


def timed(find: Callable[[], Subspaces]) -> tuple[Subspaces, float]:
    began = time.process_time()
    return find(), time.process_time() - began


def contenders(x: Tensor, toy: Toy, sizes: list[int], seed: int) -> Mapping[str, list[Callable[[], Subspaces]]]:
    """What divides the space; each may be several draws."""
    width = x.shape[1]
    draw = torch.Generator().manual_seed(seed)
    turned = [partial(Subspaces, random_rotation(width, draw), sizes) for _ in range(ROTATIONS)]
    return {
        "neighbor distance": [partial(lines_in_fours, x, seed)],
        "identity": [partial(Subspaces.identity, width, sizes)],
        "random rotation": list(turned),
        "PCA, largest first": [lambda: principal_partition(x, sizes, largest="first").subspaces],
        "PCA, largest last": [lambda: principal_partition(x, sizes, largest="last").subspaces],
        "ICA": [lambda: independent_partition(x, sizes, seed=seed).subspaces],
        "dictionary clusters": [partial(dictionary_clusters, x, toy, sizes, seed)],
    }


def compare(groups: tuple[int, ...], toys: int) -> dict[str, Any]:
    """Every contender on every toy; several draws of one contender are averaged within a toy."""
    toy = Toy(groups, 12)
    candidates = train_toys(toy, range(CANDIDATES[groups]))
    blocks = [check_blocks(network) for network in candidates]
    orthogonal = [seed for seed, found in enumerate(blocks) if found.orthogonal()]
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in orthogonal[:toys]:
        network = candidates[seed]
        truth = true_subspaces(network)
        sizes = sorted(truth.sizes, reverse=True)
        batch = toy.draw(ROWS, torch.Generator().manual_seed(1000 + seed))
        x = gather(toy_model(network), [batch], [SITE], TokenRule()).states[SITE]
        for name, draws in contenders(x, toy, sizes, seed).items():
            made = [timed(draw) for draw in draws]
            scores = [judge(network, found, bases(truth), seed) | {"seconds": used} for found, used in made]
            mean = {key: sum(one[key] for one in scores) / len(scores) for key in scores[0] if key != "sizes"}
            results.setdefault(name, []).append({"seed": seed, "true": sizes, "sizes": scores[0]["sizes"], **mean})
            print(groups, seed, name, scores[0]["sizes"], f"purity {mean['least_purity']:.4f}", flush=True)
    return {
        "groups": list(groups),
        "candidates": len(candidates),
        "orthogonal": orthogonal,
        "blocks": [found.to_json() for found in blocks],
        "contenders": results,
    }


COLUMNS = ("purity", "least_purity", "overlap", "within", "across", "exchanged", "dependence", "seconds")


def table(found: Mapping[str, Any]) -> list[str]:
    """Means over toys with their intervals."""
    judged = len(next(iter(found["contenders"].values())))
    lines = [
        f"### Groups of {', '.join(map(str, found['groups']))} features in 12 dimensions",
        "",
        f"{len(found['orthogonal'])} of {found['candidates']} toys are block-orthogonal; judged: {judged}.",
        "",
        "| | true sizes, least purity ≥ 0.999 | purity | least purity | overlap | within | across | exchanged "
        "| nats / dimension | CPU s |",
        "|---|" + "--:|" * 9,
    ]
    for name, runs in found["contenders"].items():
        right = sum(run["sizes"] == run["true"] and run["least_purity"] >= 0.999 for run in runs)
        cells = list[str]()
        for column in COLUMNS:
            one = over_seeds([run[column] for run in runs])
            spread = "" if one.high is None else f" ± {one.high - one.mean:.3f}"
            cells.append(f"{one.mean:.1f}" if column == "seconds" else f"{one.mean:.3f}{spread}")
        lines.append(f"| {name} | {right} of {len(runs)} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--toys", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    every = [compare(groups, arguments.toys) for groups in CANDIDATES]
    text = [line for found in every for line in [*table(found), ""]]
    save("recovery", "Known subspaces, recovered", machine(arguments.threads) | {"rows": ROWS}, every, text)
