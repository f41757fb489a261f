"""What can be read from a few coordinates: the accuracy of the best part, and how many parts the rest of it takes.

Of every label the parts are ranked on rows to learn from, by tr W⁻¹B with the covariances W within and B between the
classes, which count alike. Then Fisher's discriminant reads the label from the first part, the first two, the first
four and so on, and is judged by balanced accuracy on documents or scenes that it did not see.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.measure.estimate import Estimate
from innerspace.measure.part_labels import Reading, Sides, linear_reader, split_groups
from innerspace.measure.probing import over_splits
from innerspace.value import Value

ENOUGH = 0.95
"""The share of what the whole hidden state tells beyond chance that parts are asked for."""

MOST = 64
"""So many parts are read together at most."""


@dataclass(frozen=True)
class Readable(Value):
    """How well a label is read, in balanced accuracy; ``chance`` is one over the classes.

    ``best`` is that of the best part alone, ``together`` of the first ``MOST`` parts or all, ``whole`` of the hidden
    state itself. ``needed`` parts have together ``ENOUGH`` of what the whole tells beyond chance, the mean over splits;
    a split in which they never do counts for twice the parts that were tried, and ``reached`` is the share of the
    others.
    """

    label: str
    chance: float
    best: Estimate
    together: Estimate
    whole: Estimate
    needed: float
    reached: float


@torch.no_grad()
def codes(what: Decomposition, rows: Float[Tensor, "n d"], chunk: int = 4096) -> Float[Tensor, "n k"]:
    """The dense coordinates of rows."""
    like = what.directions
    return torch.cat([what.encode(part.to(like)).z for part in rows.split(chunk)])


def readability(
    what: Decomposition,
    rows: Float[Tensor, "n d"],
    labels: Mapping[str, Int[Tensor, "n"]],
    groups: Int[Tensor, "n"],
    *,
    reading: Reading = Reading(),
    seed: int = 0,
) -> list[Readable]:
    """Read every label from the parts of any decomposition; rows with −1 have none. The seed decides the splits.

    Raises:
        ValueError: for a label with fewer than two classes that lie on both sides of a split.
    """
    z = codes(what, rows)
    return [_readable(name, z, what.parts, rows, label, groups, reading, seed) for name, label in labels.items()]


@torch.no_grad()
def ranked(z: Float[Tensor, "n k"], parts: Sequence[slice], y: Int[Tensor, "n"], ridge: float = 1e-3) -> list[int]:
    """The parts by tr W⁻¹B, the largest first: how far the classes are apart in each, in units of their spread."""
    z = z.double()
    member = torch.nn.functional.one_hot(y).to(z)
    member = member[:, member.sum(0) > 0]
    means = (member.T @ z) / member.sum(0)[:, None]
    within, apart = z - member @ means, means - means.mean(0)
    if all(part.stop - part.start == 1 for part in parts):
        spread = within.square().mean(0)
        # coordinates that never vary tell nothing, whatever rounding makes of them
        floor = 1e-6 * spread.mean()
        score = apart.square().mean(0) / (spread + floor).clamp_min(torch.finfo(z.dtype).tiny)
    else:
        score = torch.stack([_separation(within[:, part], apart[:, part], ridge) for part in parts])
    return score.argsort(descending=True, stable=True).tolist()


def _separation(within: Tensor, apart: Tensor, ridge: float) -> Float[Tensor, ""]:
    spread = within.T @ within / len(within)
    floor = (ridge * spread.diagonal().mean()).clamp_min(torch.finfo(spread.dtype).tiny)
    solved = torch.linalg.solve(spread + floor * torch.eye(len(spread)).to(spread), apart.T)
    return (solved.T * apart).sum() / len(apart)


def _readable(
    name: str,
    z: Tensor,
    parts: Sequence[slice],
    rows: Tensor,
    label: Tensor,
    groups: Tensor,
    reading: Reading,
    seed: int,
) -> Readable:
    generator = torch.Generator().manual_seed(seed)
    known = (label >= 0).nonzero()[:, 0]
    known = known[torch.randperm(len(known), generator=generator)[: reading.most]]
    x, code, group = rows[known].double(), z[known].double(), groups[known]
    y = label[known].unique(return_inverse=True)[1]
    chance = 1 / (int(y.max()) + 1)
    best, together, whole, needed = (list[float]() for _ in range(4))
    for _ in range(reading.splits):
        train, test = split_groups(name, y, group, reading.held_out, generator)
        whole.append(_read(x, y, train, test, reading.ridge)(slice(0, x.shape[1])))
        order = ranked(code[train], parts, y[train], reading.ridge)[:MOST]
        own = torch.cat([code[:, parts[i]] for i in order], 1)
        ends = torch.tensor([parts[i].stop - parts[i].start for i in order]).cumsum(0).tolist()
        read = _read(own, y, train, test, reading.ridge)
        goal = chance + ENOUGH * (whole[-1] - chance)
        counts = sorted({*(2**i for i in range(len(ends).bit_length())), len(ends)})
        found = {count: read(slice(0, ends[count - 1])) for count in counts}
        best.append(found[1])
        together.append(found[len(ends)])
        needed.append(float(next((count for count in counts if found[count] >= goal), 2 * len(ends))))
    overlap = reading.held_out / (1 - reading.held_out)
    most = min(MOST, len(parts))
    return Readable(
        label=name,
        chance=chance,
        best=over_splits(best, overlap),
        together=over_splits(together, overlap),
        whole=over_splits(whole, overlap),
        needed=sum(needed) / len(needed),
        reached=sum(count <= most for count in needed) / len(needed),
    )


def _read(x: Tensor, y: Tensor, train: Tensor, test: Tensor, ridge: float) -> Callable[[slice], float]:
    return linear_reader(Sides(x[train], y[train], x[test], y[test]), ridge)
