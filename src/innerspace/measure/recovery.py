"""Whether a partition found what is known to be there: subspaces against subspaces, parts against variables.

Geometry first: a part B and a true subspace T, orthonormal rows both, share the energy ‖B Tᵀ‖², the sum of the squared
cosines of their principal angles, between 0 and the smaller of their dimensions. Then information: how much a part
tells of a variable. Then use: whether a network takes another value of exactly that variable when the part is swapped.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import Read, patch
from innerspace.measure.estimate import Estimate, from_copies
from innerspace.network.model import Model
from innerspace.value import Value

_ORTHONORMAL = 1e-4
"""How far the rows of a true subspace may be from orthonormal."""

Decode = Callable[[Mapping[str, Tensor]], Int[Tensor, "n variables"]]
"""What a network's output says of every variable."""


@dataclass(frozen=True)
class Recovery(Value):
    """How well parts match true subspaces.

    ``purities`` has for each part the largest share of its energy that lies in one true subspace, ``purity`` is their
    mean weighted by dimension, and ``least_purity`` their minimum. Purity alone is reached by parts that are too small:
    ``overlaps`` has for each true subspace ‖B Tᵀ‖² / max(dim B, dim T) with the part ``partners`` that a one-to-one
    matching gives it (0 and −1 where no part is left for it), which is 1 only for the same subspace; ``overlap`` is the
    mean weighted by dimension. ``angles`` are the principal angles of each pair in degrees, the smallest first.
    """

    sizes: tuple[int, ...]
    purities: tuple[float, ...]
    purity: float
    least_purity: float
    partners: tuple[int, ...]
    overlaps: tuple[float, ...]
    overlap: float
    angles: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Informed(Value):
    """What parts tell of variables: ``share`` [part][variable] of the variable's entropy, each with its interval.

    ``entropy`` is in nats. ``within`` is the mean share that a variable's best part tells, ``across`` the mean share
    that the other parts tell.
    """

    entropy: tuple[float, ...]
    share: tuple[tuple[Estimate, ...], ...]
    within: float
    across: float


@dataclass(frozen=True)
class Interchange(Value):
    """What swapping a part between two inputs does to a network, on pairs whose values of the variable differ.

    ``accuracy``: the variable takes the other input's value and all others stay. ``moved``: it takes that value.
    ``kept``: all others stay. ``untouched``: it keeps its own value. ``count`` is the number of pairs.
    """

    variable: int
    parts: tuple[int, ...]
    count: int
    accuracy: Estimate
    moved: Estimate
    kept: Estimate
    untouched: Estimate


def principal_angles(a: Float[Tensor, "p d"], b: Float[Tensor, "q d"]) -> Float[Tensor, "_"]:
    """The min(p, q) principal angles between two spans of orthonormal rows, in radians, the smallest first, in float64.

    Small angles come from their sines, since the cosine hardly changes there: two directions 1e-9 apart are told apart.
    Björck and Golub, "Numerical Methods for Computing Angles Between Linear Subspaces", 1973.
    """
    few, many = (rows.double() for rows in sorted((a, b), key=len))
    cosine = torch.linalg.svdvals(few @ many.T).clamp(max=1)
    sine = torch.linalg.svdvals(few - few @ many.T @ many).clamp(max=1).flip(0)
    return torch.where(cosine.square() < 0.5, cosine.acos(), sine[: len(cosine)].asin())


def shared_energy(
    found: Sequence[Float[Tensor, "_ d"]], truth: Sequence[Float[Tensor, "_ d"]]
) -> Float[Tensor, "found truth"]:
    """‖B Tᵀ‖² of each part with each true subspace, in float64: how many of its dimensions they share."""
    pairs = [[(b.double() @ t.double().T).square().sum() for t in truth] for b in found]
    return torch.tensor(pairs, dtype=torch.float64)


def recovery(found: Subspaces, truth: Sequence[Float[Tensor, "_ d"]]) -> Recovery:
    """Parts next to true subspaces, orthonormal rows each, which need not fill the space nor be orthogonal.

    Raises:
        ValueError: for no true subspace, one of another width, or rows that are not orthonormal.
    """
    _check_truth(truth, found.width)
    parts = bases(found)
    energy = shared_energy(parts, truth)
    size, true_size = torch.tensor(found.sizes).double(), torch.tensor([len(basis) for basis in truth]).double()
    purities = (energy / size[:, None]).amax(1)
    alike = energy / torch.maximum(size[:, None], true_size)
    partners = match(alike)
    overlaps = [float(alike[part, t]) if part >= 0 else 0.0 for t, part in enumerate(partners)]
    pairs = [(part, basis) for part, basis in zip(partners, truth, strict=True) if part >= 0]
    return Recovery(
        sizes=found.sizes,
        purities=tuple(purities.tolist()),
        purity=float((purities * size).sum() / size.sum()),
        least_purity=float(purities.min()),
        partners=tuple(partners),
        overlaps=tuple(overlaps),
        overlap=float((torch.tensor(overlaps).double() * true_size).sum() / true_size.sum()),
        angles=tuple(tuple(principal_angles(parts[part], basis).rad2deg().tolist()) for part, basis in pairs),
    )


def bases(subspaces: Subspaces) -> list[Float[Tensor, "_ d"]]:
    """The orthonormal rows of every part."""
    rotation = subspaces.rotation.detach()
    return [rotation[part] for part in subspaces.parts]


def match(score: Float[Tensor, "found truth"]) -> list[int]:
    """For each column a row of its own, so that the sum of scores is largest (the Hungarian method's); −1 for none.

    Raises:
        ValueError: if scipy is missing.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError:
        raise ValueError("a matching needs scipy: pip install 'innerspace[language]'") from None
    partner = [-1] * score.shape[1]
    for row, column in zip(*linear_sum_assignment(score.cpu().numpy(), maximize=True), strict=True):
        partner[int(column)] = int(row)
    return partner


@torch.no_grad()
def information(
    x: Float[Tensor, "n d"],
    found: Subspaces,
    values: Int[Tensor, "n variables"],
    *,
    k: int = 3,
    seed: int = 0,
) -> Informed:
    """What each part tells of each discrete variable, as nearest neighbors estimate it.

    With ρ_q the distance of row q to its k-th neighbor of the same value, m_q the rows within it, k_q those of them of
    the same value (k, unless several lie equally far), and n_q all of that value, I = ψ(N) + ⟨ψ(k_q) − ψ(n_q) − ψ(m_q)⟩
    over the N rows whose value occurs more than k times; the others are left out. Intervals are those of a bootstrap
    over rows. The estimate is low where values are many and rows few. Ross, "Mutual Information between Discrete and
    Continuous Data Sets", 2014; ties as Gao et al. 2017.

    Raises:
        ValueError: for a variable of which fewer than two values occur often enough, or k below one.
    """
    if k < 1:
        raise ValueError(f"the nearest neighbor counted from one should be asked for, not k = {k}")
    generator = torch.Generator().manual_seed(seed)
    codes = [x @ basis.to(x).T for basis in bases(found)]
    entropy, columns = list[float](), list[list[Estimate]]()
    for variable, column in enumerate(values.T):
        kinds, kind, count = column.unique(return_inverse=True, return_counts=True)
        kept = (count > k)[kind]
        share = count[count > k].double() / count[count > k].sum()
        if len(share) < 2:
            raise ValueError(
                f"variable {variable} has {len(kinds)} values among {len(x)} rows, of which {len(share)} occur more "
                f"than {k} times; information needs two"
            )
        entropy.append(float(-(share * share.log()).sum()))
        local = [_local_information(z[kept], kind[kept], k) / entropy[-1] for z in codes]
        columns.append([_mean(one, generator) for one in local])
    means = torch.tensor([[one.mean for one in column] for column in columns])
    best = means.amax(1)
    return Informed(
        entropy=tuple(entropy),
        share=tuple(zip(*columns, strict=True)),
        within=float(best.mean()),
        across=float((means.sum() - best.sum()) / (means.numel() - len(best))) if len(codes) > 1 else 0.0,
    )


@torch.no_grad()
def interchange(
    model: Model,
    site: str,
    found: Subspaces,
    parts: Sequence[Sequence[int]],
    pairs: Iterable[tuple[Any, Any]],
    decode: Decode,
    *,
    seed: int = 0,
) -> list[Interchange]:
    """Swap the parts of each variable between two inputs: does the output take exactly that variable's value?

    ``parts[v]`` are those that are said to carry variable v. Each pair holds a batch and another of the same shape,
    from which the parts come. What an output means is the network's own word: it is decoded for both batches as they
    are, and pairs count in which the two values of the variable differ. Geiger et al., "Causal Abstractions of Neural
    Networks", 2021.

    Raises:
        ValueError: for no pairs, parts for another number of variables, or a variable that never differs.
    """
    verdicts: list[list[Tensor]] = [[] for _ in parts]
    for base, source in pairs:
        own = decode(model.run(base).output)
        trace = model.run(source, {site: Read()})
        other, hidden = decode(trace.output), trace.hidden[model.site(site).name]
        if own.shape[1] != len(parts):
            raise ValueError(f"{own.shape[1]} variables are decoded, parts are given for {len(parts)}")
        for v, chosen in enumerate(parts):
            now = decode(model.run(base, {site: patch(found, chosen, hidden)}).output)
            verdicts[v].append(_verdicts(own, other, now, v))
    generator = torch.Generator().manual_seed(seed)
    results = list[Interchange]()
    for v, chosen in enumerate(parts):
        rows = torch.cat(verdicts[v]) if verdicts[v] else torch.zeros(0, 3)
        if not len(rows):
            raise ValueError(f"variable {v} has the same value in both inputs of every pair, so no swap can be judged")
        moved, kept, untouched = rows.double().unbind(1)
        columns = (moved * kept, moved, kept, untouched)
        estimates = [_mean(column, generator) for column in columns]
        results.append(Interchange(v, tuple(chosen), len(rows), *estimates))
    return results


def _verdicts(own: Tensor, other: Tensor, now: Tensor, variable: int) -> Bool[Tensor, "differing 3"]:
    """Moved, kept, untouched: of every row whose values differ."""
    same = now == own
    rest = torch.arange(own.shape[1], device=own.device) != variable
    columns = (now[:, variable] == other[:, variable], same[:, rest].all(1), same[:, variable])
    return torch.stack(columns, 1)[own[:, variable] != other[:, variable]].cpu()


def _local_information(z: Float[Tensor, "n size"], kind: Int[Tensor, "n"], k: int) -> Float[Tensor, "n"]:
    """ψ(N) + ψ(k_q) − ψ(n_q) − ψ(m_q) of every row q, in blocks of rows."""
    n, psi = len(z), torch.special.digamma
    found = list[Tensor]()
    for first in range(0, n, 512):
        here = torch.arange(first, min(first + 512, n), device=z.device)
        # differences, not a product: rows at one place have the distance zero
        distance = torch.cdist(z[here], z, compute_mode="donot_use_mm_for_euclid_dist")
        distance[here - first, here] = math.inf
        alike = distance.masked_fill(kind[here, None] != kind, math.inf)
        radius = alike.kthvalue(k, 1, keepdim=True).values
        same, within = ((one <= radius).sum(1).double() for one in (alike, distance))
        found.append(psi(same) - psi(within))
    return psi(torch.tensor(float(n))) - psi(kind.bincount()[kind].double()) + torch.cat(found)


def _mean(values: Float[Tensor, "n"], generator: torch.Generator, replicates: int = 400) -> Estimate:
    drawn = torch.randint(len(values), (replicates, len(values)), generator=generator)
    return from_copies(float(values.mean()), values[drawn].mean(1))


def _check_truth(truth: Sequence[Tensor], width: int) -> None:
    if not truth:
        raise ValueError("there is no true subspace to compare with")
    for i, basis in enumerate(truth):
        if basis.ndim != 2 or basis.shape[1] != width or not 1 <= len(basis) <= width:
            raise ValueError(f"true subspace {i} has shape {tuple(basis.shape)}, its rows should have width {width}")
        error = float((basis.double() @ basis.double().T - torch.eye(len(basis), dtype=torch.float64)).abs().max())
        if not error <= _ORTHONORMAL:
            raise ValueError(f"the rows of true subspace {i} are not orthonormal, by up to {error:.2g}")
