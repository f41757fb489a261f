"""The variables of compiled programs, recovered without labels: neighbor distance minimization beside other means.

    python benchmarks/recover_programs.py [--threads 1] [--seeds 3] [--programs reverse sort …]

Programs are set into networks, hidden by a random rotation and judged behind the last block, on different states only.
Directions along which states do not vary are left out. All settings are the same for all programs; they were chosen on
the first four, hidden by other rotations than those of ``SEEDS``. Contenders "at once" have the true sizes and one
random start, without pieces and cuts.

A variable of n values makes n points in n − 1 dimensions. With many keys every query finds its own point again, in a
mixture of two variables too, and the distance is near zero everywhere; with about as many keys as one variable has
values, but fewer than two have combinations, it is small in the true parts alone. So keys are few, and drawn anew for
every step. What is left are local minima: parts that hold whole values of one another's variables. Parts of a few
dimensions get past most of them, so these are sought first, from several starts, and put together by the information
between them; then the joint space of every pair of parts is cut anew in the same way, and kept if the distance falls.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recording import machine, save
from torch import Tensor
from torch.nn.functional import one_hot

from innerspace.decompose.subspaces import Subspaces, nearest_rotation, random_rotation
from innerspace.interventions import Read
from innerspace.learn.partitions import independent_partition, principal_partition
from innerspace.measure.recovery import recovery
from innerspace.network.model import Model
from innerspace.planted import programs
from innerspace.planted.compiled import Compiled, CompiledFamily

PROGRAMS = {
    "reverse": programs.reverse(9, 8),
    "histogram": programs.histogram(9, 8),
    "fraction": programs.fraction(9, 8),
    "sort": programs.sort(9, 6),
    "induction": programs.induction(9, 8),
    "balance": programs.balance(4, 8),
}
INPUTS, ROWS, ROTATIONS = 2000, 4000, 20
PIECE, PIECE_KEYS, PART_KEYS, MANY_KEYS = 3, 50, 32, 200
QUERIES, STEPS, STARTS, POLISH, SWEEPS = 128, 400, 4, 200, 3
ONE = 0.35
"""Pieces are of one variable if they share this part of the smaller entropy, on average over the pairs."""
NONE = 0.02
"""Parts that share less have nothing of one another."""
SEEDS = range(10, 20)

NOTES = (
    "Cells: variables with overlap ≥ 0.99, ≥ 0.9, of all variables and seeds; mean overlap.",
    "",
    "All settings are the same for all programs. They were chosen while looking at the first four, under rotations and "
    "starts that are not judged here; induction and balance, and all seeds, were not seen before.",
    "",
    "In brackets below: the dimensions that are sought of those in which a variable lives. Fewer are sought where one "
    "direction of two variables is the same number in every state (a value is missing exactly where the position says "
    "so): no look at states can say whose it is, so it counts with the larger variable, and overlaps "
    "are with the spans divided so. Identity divides all "
    "coordinates, the others only those along which states vary.",
)


def descend(y: Tensor, sizes: Sequence[int], keys: int, steps: int, rate: float, begins: Tensor, seed: int) -> Tensor:
    """Rotations that make the mean distance to the nearest of a few keys small, from several starts at once.

    Σ (d_s / d) ρ̄_s with fresh queries and keys in every step; Adam in the moving chart, as ``Subspaces`` has it.
    """
    member, draw = _members(sizes), torch.Generator().manual_seed(seed)
    weight, apart = _shares(sizes), (member[:, None] != member).float()
    turns, d = begins.clone(), y.shape[1]
    first, second, one = torch.zeros_like(turns), torch.zeros_like(turns), torch.eye(d)
    for step in range(steps):
        index = torch.randint(len(y), (len(turns), QUERIES + keys), generator=draw)
        z = y[index] @ turns.mT
        away = z[:, :QUERIES, None] - z[:, None, QUERIES:]
        squared = away.square() @ one_hot(member).float()
        own = index[:, :QUERIES, None] == index[:, None, QUERIES:]
        least, place = squared.masked_fill(own[..., None], torch.inf).min(2)
        distance = least.clamp(min=1e-12).sqrt()
        gradient = torch.empty_like(turns)
        for s, these in enumerate((member == s).nonzero().flatten() for s in range(len(sizes))):
            matched = away.gather(2, place[:, :, None, s, None].expand(-1, -1, 1, d))[:, :, 0]
            pulled = matched[..., these] / distance[..., s, None] * weight[s]
            gradient[:, these] = pulled.mT @ matched / QUERIES
        skew = (gradient - gradient.mT) * apart
        first, second = first.lerp(skew, 0.1), second.lerp(skew.square(), 0.01)
        speed = rate * min(1, (step + 1) / 20, 2 * (steps - step) / steps)
        half = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8) * (-speed / 2)
        turns = torch.linalg.solve(one - half, turns + half @ turns)
    return torch.stack([nearest_rotation(turn) for turn in turns])


def distance(y: Tensor, rotation: Tensor, sizes: Sequence[int], keys: int, draws: int = 30) -> float:
    """Σ (d_s / d) ρ̄_s on the same draws of queries and keys each time."""
    draw, total, member = torch.Generator().manual_seed(1), torch.zeros(len(sizes)), one_hot(_members(sizes)).float()
    for _ in range(draws):
        z = y[torch.randperm(len(y), generator=draw)[: QUERIES + keys]] @ rotation.T
        total += ((z[:QUERIES, None] - z[None, QUERIES:]).square() @ member).amin(1).sqrt().mean(0)
    return float(total @ _shares(sizes)) / draws


def pieces(y: Tensor, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Small parts, from the best of several starts."""
    begins = torch.stack([random_rotation(y.shape[1], torch.Generator().manual_seed(seed + i)) for i in range(STARTS)])
    found = descend(y, sizes, PIECE_KEYS, STEPS, 0.15, begins, seed)
    best = min(found, key=lambda turn: distance(y, turn, sizes, PIECE_KEYS))
    return list(best.split(list(sizes)))


def known_sizes(y: Tensor, sizes: Sequence[int], seed: int) -> Tensor:
    """Pieces that can make up parts of these sizes, put together so that most information is inside, and refined."""
    slots = sorted(((one, k) for k, size in enumerate(sizes) for one in _even(size)), reverse=True)
    found = pieces(y, [one for one, _ in slots], seed)
    group = _assembled(shared(y, found), slots, torch.Generator().manual_seed(seed))
    rotation = torch.cat([found[i] for k in range(len(sizes)) for i in range(len(slots)) if group[i] == k])
    return descend(y, sizes, PART_KEYS, POLISH, 0.03, rotation[None], seed)[0]


def recut(
    y: Tensor, rotation: Tensor, sizes: Sequence[int], seed: int, *, moves: Sequence[int] = (0,)
) -> tuple[Tensor, list[int]]:
    """Cuts the joint space of each dependent pair of parts anew, the most dependent first, until none gets better.

    With ``moves`` a part may win or lose so many dimensions to the other.
    """
    parts, draws = list(rotation.split(list(sizes))), itertools.count(seed * 1000)
    for _ in range(SWEEPS):
        information, moved = shared(y, parts), False
        for i, j in sorted(itertools.combinations(range(len(parts)), 2), key=lambda ij: -float(information[ij])):
            joint, now = torch.cat([parts[i], parts[j]]), [len(parts[i]), len(parts[j])]
            pairs = [[now[0] + move, now[1] - move] for move in moves if min(now[0] + move, now[1] - move) > 0]
            if information[i, j] < NONE or len(joint) == 2:
                continue
            own = y @ joint.T
            cuts = [(known_sizes(own, pair, next(draws)), pair) for pair in pairs]
            cut, pair = min(cuts, key=lambda one: distance(own, *one, PART_KEYS))
            if distance(own, cut, pair, PART_KEYS) < distance(own, torch.eye(len(joint)), now, PART_KEYS) - 1e-3:
                (parts[i], parts[j]), moved = (cut @ joint).split(pair), True
        if not moved:
            break
    return torch.cat(parts), [len(part) for part in parts]


def unknown_sizes(y: Tensor, seed: int) -> tuple[Tensor, list[int]]:
    """Pieces, merged and recut, with sizes that may change, until no parts are one."""
    parts = pieces(y, _even(y.shape[1]), seed)
    for turn in itertools.count():
        count, parts = len(parts), merged(y, parts)
        sizes = [len(part) for part in parts]
        if turn and len(parts) == count:
            return torch.cat(parts), sizes
        rotation = descend(y, sizes, PART_KEYS, POLISH, 0.03, torch.cat(parts)[None], seed)[0]
        rotation, sizes = recut(y, rotation, sizes, seed + turn, moves=(0, 1, -1))
        parts = list(rotation.split(sizes))
    raise AssertionError("there are fewer parts every time")


def merged(y: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """Groups of parts that share more than ``ONE`` on average, the most dependent first; larger ones come first."""
    information, groups = shared(y, parts), [[i] for i in range(len(parts))]
    while len(groups) > 1:
        pairs = itertools.combinations(range(len(groups)), 2)
        strength, i, j = max((float(information[groups[i]][:, groups[j]].mean()), i, j) for i, j in pairs)
        if strength < ONE:
            break
        groups[i] += groups.pop(j)
    return sorted((torch.cat([parts[i] for i in group]) for group in groups), key=len, reverse=True)


def shared(y: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Mutual information of all pairs as a share of the smaller entropy, by counting the points that parts hold."""
    points = [_points(y @ part.T) for part in parts]
    found = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    for i, j in itertools.combinations(range(len(parts)), 2):
        both = one_hot(points[i]).double().T @ one_hot(points[j]).double() / len(y)
        one, other = both.sum(1), both.sum(0)
        bias = (len(one) - 1) * (len(other) - 1) / (2 * len(y))
        told = _entropy(one) + _entropy(other) - _entropy(both) - bias
        found[i, j] = found[j, i] = told / min(_entropy(one), _entropy(other)).clamp(min=1e-9)
    return found


def identifiable(y: Tensor, axes: Tensor, truth: Sequence[Tensor]) -> list[Tensor]:
    """The true spans within the directions along which states vary, without what an earlier one moves as well."""
    spans, taken = list[Tensor](), torch.zeros(0, len(axes), dtype=torch.float64)
    for basis in truth:
        inside = basis.double() @ axes.double().T
        _, size, rows_ = torch.linalg.svd(inside - inside @ taken.T @ taken, full_matrices=False)
        spans.append(rows_[size > 1e-3])
        taken = torch.cat([taken, spans[-1]])
    assert len(taken) == y.shape[1]
    return spans


def judge(name: str, seed: int) -> dict[str, Any]:
    """Every contender on one program, hidden by one rotation."""
    network = Compiled(PROGRAMS[name])
    network = network.hidden(random_rotation(network.width, torch.Generator().manual_seed(seed)))
    site = f"resid.{network.plan.depth - 1}"
    (x, labels), truth = _states(network, site, seed), network.truth(site)
    spans = {variable: span for variable, span in truth.spans(labels).items() if len(span)}
    spans = dict(sorted(spans.items(), key=lambda item: -len(item[1])))
    centered = x.double() - x.double().mean(0)
    variance, vectors = torch.linalg.eigh(centered.T @ centered / len(x))
    axes = vectors.T[variance > 1e-9 * variance.max()].float()
    y = centered.float() @ axes.T
    true = identifiable(y, axes, list(spans.values()))
    sizes = [len(span) for span in true]

    def score(rotation: Tensor, sizes: Sequence[int]) -> dict[str, Any]:
        judged = recovery(Subspaces(rotation, sizes), [span.float() for span in true])
        return {"sizes": list(sizes), "overlaps": dict(zip(spans, judged.overlaps, strict=True))}

    began = time.process_time()
    first = known_sizes(y, sizes, seed)
    recutted, _ = recut(y, first, sizes, seed)
    seconds = time.process_time() - began
    alone, found = unknown_sizes(y, seed)
    begins = random_rotation(len(axes), torch.Generator().manual_seed(seed))[None]
    at_once = {keys: descend(y, sizes, keys, STEPS, 0.15, begins, seed)[0] for keys in (PART_KEYS, MANY_KEYS)}
    # of the raw coordinates, those that no variable needs are the last
    plain = [*map(len, spans.values())]
    identity = recovery(Subspaces.identity(x.shape[1], [*plain, x.shape[1] - sum(plain)]), list(spans.values()))
    draw = torch.Generator().manual_seed(seed)
    turned = [score(random_rotation(len(axes), draw), sizes) for _ in range(ROTATIONS)]
    contenders = {
        "sizes known": score(recutted, sizes),
        "sizes known, not recut": score(first, sizes),
        "sizes found": score(alone, found),
        **{f"at once, {keys} keys": score(rotation, sizes) for keys, rotation in at_once.items()},
        "identity": {"sizes": plain, "overlaps": dict(zip(spans, identity.overlaps, strict=True))},
        "random": {"sizes": sizes, "overlaps": {v: sum(t["overlaps"][v] for t in turned) / ROTATIONS for v in spans}},
        "PCA": score(principal_partition(y, sizes).subspaces.rotation.detach(), sizes),
    }
    if (components := _independent(y, sizes, seed)) is not None:
        contenders["ICA"] = score(components, sizes)
    return {
        "program": name,
        "seed": seed,
        "rows": len(x),
        "width": x.shape[1],
        "varying": len(axes),
        "true": {variable: len(span) for variable, span in spans.items()},
        "identifiable": dict(zip(spans, sizes, strict=True)),
        "functions_of": {key: list(value) for key, value in truth.functions_of.items()},
        "distance": distance(y, recutted, sizes, PART_KEYS),
        "true_distance": distance(y, torch.cat(true).float(), sizes, PART_KEYS),
        "seconds": seconds,
        "contenders": contenders,
    }


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """By program, how many variables of all seeds have overlap ≥ 0.99 and ≥ 0.9, and the mean overlap."""
    names = list(dict.fromkeys(name for one in results for name in one["contenders"]))
    lines = [
        f"| program | {' | '.join(names)} | found below the true distance | CPU s |",
        "|---|" + "--:|" * (len(names) + 2),
    ]
    for program in dict.fromkeys(one["program"] for one in results):
        runs, cells = [one for one in results if one["program"] == program], list[str]()
        for name in names:
            overlaps = [
                o for one in runs if name in one["contenders"] for o in one["contenders"][name]["overlaps"].values()
            ]
            if not overlaps:
                cells.append("not converged")
                continue
            exact, near = (sum(o >= bound for o in overlaps) for bound in (0.99, 0.9))
            cells.append(f"{exact}, {near} of {len(overlaps)}; {sum(overlaps) / len(overlaps):.2f}")
        below = sum(one["distance"] < one["true_distance"] - 1e-3 for one in runs)
        seconds = sum(one["seconds"] for one in runs) / len(runs)
        lines.append(f"| {program} | {' | '.join(cells)} | {below} of {len(runs)} | {seconds:.0f} |")
    lines += ["", *NOTES, ""]
    for name in ("sizes known", "sizes found"):
        whole = [one for one in results if min(one["contenders"][name]["overlaps"].values()) >= 0.99]
        told = ", ".join(f"{one['program']} {one['seed']}" for one in whole) or "none"
        lines += [f"Every variable recovered (≥ 0.99), {name}, in {len(whole)} of {len(results)} runs: {told}.", ""]
    follows = {(key, *value) for one in results for key, value in one["functions_of"].items()}
    for function, *sources in sorted(follows):
        lines += [
            f"{function} follows from {' and '.join(sources)}, so these cannot be told apart by independence.",
            "",
        ]
    for one in results:
        known, found = (one["contenders"][name] for name in ("sizes known", "sizes found"))
        told = ", ".join(
            f"{v} {o:.3f} ({one['identifiable'][v]} of {one['true'][v]})" for v, o in known["overlaps"].items()
        )
        merged = ", ".join(f"{v} {o:.2f}" for v, o in found["overlaps"].items())
        lines.append(
            f"- {one['program']}, seed {one['seed']}, {one['rows']} states: {told}; distance {one['distance']:.4f}, "
            f"in the true parts {one['true_distance']:.4f}. Sizes found {'+'.join(map(str, found['sizes']))}: {merged}."
        )
    return lines


def _assembled(information: Tensor, slots: Sequence[tuple[int, int]], draw: torch.Generator) -> list[int]:
    """For every piece a part with room for it; the best of 50 ends of swaps between pieces of one size."""
    size = torch.tensor([one for one, _ in slots])
    best, most = [part for _, part in slots], -torch.inf
    for _ in range(50):
        group = torch.tensor([part for _, part in slots])
        for one in size.unique():
            places = (size == one).nonzero().flatten()
            group[places] = group[places[torch.randperm(len(places), generator=draw)]]
        while True:
            to = (information @ one_hot(group).double())[:, group]
            gain = to + to.T - to.diagonal()[:, None] - to.diagonal() - 2 * information
            gain[(size[:, None] != size) | (group[:, None] == group)] = 0
            i, j = divmod(int(gain.argmax()), len(gain))
            if gain[i, j] <= 1e-9:
                break
            group[[i, j]] = group[[j, i]]
        if (total := float(to.diagonal().sum())) > most:
            best, most = group.tolist(), total
    return best


def _points(z: Tensor, share: float = 0.4, most: int = 60) -> Tensor:
    """Which point every row is at: none is farther from its own than a share of the spread."""
    radius, centers = share * z.var(0).sum().sqrt(), z[:1]
    while len(centers) < most:
        least = torch.cdist(z, centers).amin(1)
        if least.max() <= radius:
            break
        centers = torch.cat([centers, z[least.argmax()][None]])
    return torch.cdist(z, centers).argmin(1)


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum()


def _even(total: int) -> list[int]:
    """As few pieces as possible, alike in size."""
    count = -(-total // PIECE)
    return [total // count + (i < total % count) for i in range(count)]


def _members(sizes: Sequence[int]) -> Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def _shares(sizes: Sequence[int]) -> Tensor:
    return torch.tensor(sizes) / sum(sizes)


def _independent(y: Tensor, sizes: Sequence[int], seed: int) -> Tensor | None:
    """Independent components, if they converge."""
    try:
        return independent_partition(y, sizes, seed=seed, iterations=2000).subspaces.rotation.detach()
    except ValueError:
        return None


def _states(network: Compiled, site: str, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The different states that ``INPUTS`` inputs bring, up to ``ROWS`` of them, and the variables in each."""
    inputs = network.program.inputs(INPUTS, seed)
    trace = Model(network, CompiledFamily()).run(network.encode(inputs), {site: Read()})
    labels = {name: column.flatten() for name, column in network.labels(inputs, site).items()}
    _, first = np.unique(torch.stack([c.double() for c in labels.values()], 1).numpy(), axis=0, return_index=True)
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(first)[:ROWS])
    return trace.hidden[site][:, 1:].flatten(0, 1)[chosen], {name: column[chosen] for name, column in labels.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = list[dict[str, Any]]()
    for seed, name in itertools.product(SEEDS[: arguments.seeds], arguments.programs):
        results.append(judge(name, seed))
        save(
            "recover_programs",
            "Variables of compiled programs, recovered",
            machine(arguments.threads),
            results,
            table(results),
        )
