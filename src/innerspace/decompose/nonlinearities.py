"""What makes a code sparse, and what its sparsity costs: ReLU, JumpReLU, Gated, TopK, GroupMax, BatchTopK.

A nonlinearity is one frozen class: its settings are its fields; its learned numbers, if any, live in the dictionary
that uses it and are handed back at every call. A new one is a new class here, and nothing else changes.

Each says twice what it does: *densely*, for every latent of every row, and as the *support* of the few entries that it
lets through with what becomes of them. Outside of the support neither the code nor any gradient differs from zero, so
the two agree exactly, and the second never writes the dense code down.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.sparse import Support
from innerspace.value import Value

_GROUP = 32
"""Neighbors of which only the largest is ranked at first."""

Tiles = Callable[[], Iterator[Tensor]]
"""The pre-activations of rows, block by block; every block lies in memory only until the next."""

Numbers = Mapping[str, Tensor]
"""The learned numbers of a nonlinearity, by name."""


class Activated(NamedTuple):
    """What a nonlinearity makes of pre-activations: entries, and what each costs (see ``Code``)."""

    z: Float[Tensor, "..."]
    cost: Float[Tensor, "..."]


@dataclass(frozen=True)
class Nonlinearity(Value, ABC):
    """From pre-activations to a sparse code that is never negative."""

    @property
    def always_few(self) -> bool:
        """Whether few entries are on from the first step, so that the sparse form is always the cheaper one."""
        return False

    def parameters(self, latents: int) -> dict[str, Float[Tensor, "{latents}"]]:  # noqa: ARG002
        """Initial values of the learned numbers, one per latent; none by default.

        Raises:
            ValueError: if the settings do not fit this number of latents.
        """
        return {}

    def running(self) -> dict[str, Tensor]:
        """Initial values of what is not learned but followed while training; nothing by default."""
        return {}

    def support(self, tiles: Tiles, numbers: Numbers, *, training: bool) -> Support:  # noqa: ARG002
        """The entries that pass, without a gradient: what is positive, unless a class says otherwise."""
        return _above(tiles, 0.0)

    @abstractmethod
    def activate(self, pre: Float[Tensor, "..."], numbers: Numbers) -> Activated:
        """What becomes of pre-activations that passed; the numbers are those of each entry's latent."""

    def __call__(self, pre: Float[Tensor, "rows k"], numbers: Numbers, *, training: bool) -> Activated:  # noqa: ARG002
        """The dense code, and the cost of each of its entries."""
        return self.activate(pre, numbers)


@dataclass(frozen=True)
class ReLU(Nonlinearity):
    """z = max(pre, 0), at the cost of its L1 norm."""

    def activate(self, pre: Float[Tensor, "..."], numbers: Numbers) -> Activated:  # noqa: ARG002
        """The positive part, which is its own cost."""
        z = pre.relu()
        return Activated(z, z)


@dataclass(frozen=True)
class JumpReLU(Nonlinearity):
    """z = pre · H(pre − θ) with a learned threshold θ > 0 per latent, at the cost of its L0 norm.

    The jump has no gradient; both z and L0 take the straight-through one of a rectangle kernel K of width ε
    (``bandwidth``), in units of the normalized rows: ∂z/∂θ = −(θ/ε) K((pre − θ)/ε), ∂L0/∂θ = −(1/ε) K((pre − θ)/ε).
    The parameter is log θ; ``threshold`` is its first value. Rajamanoharan et al. 2024, arXiv 2407.14435, who use
    0.001 for both on batches of thousands of wide states; a wider kernel suits smaller batches.
    """

    bandwidth: float = 0.02
    threshold: float = 0.05

    def __post_init__(self) -> None:
        for name in ("bandwidth", "threshold"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"JumpReLU: {name} should be positive, it is {getattr(self, name)}")

    def parameters(self, latents: int) -> dict[str, Float[Tensor, "{latents}"]]:
        """The logarithms of the thresholds."""
        return {"log_threshold": torch.full((latents,), math.log(self.threshold))}

    def support(self, tiles: Tiles, numbers: Numbers, *, training: bool) -> Support:
        """What is above its threshold; while training also what is so close below that the threshold feels it."""
        bound = numbers["log_threshold"].exp()
        return _above(tiles, bound - self.bandwidth / 2 if training else bound)

    def activate(self, pre: Float[Tensor, "..."], numbers: Numbers) -> Activated:
        """The entries above threshold, each of which costs one."""
        return Activated(*cast(tuple[Tensor, Tensor], _Jump.apply(pre, numbers["log_threshold"], self.bandwidth)))


@dataclass(frozen=True)
class Gated(Nonlinearity):
    """z = H(pre) · max(eʳ pre + b, 0): one bias decides what is on, a scale r and a bias b per latent how much.

    The cost is the gate's own L1 norm, max(pre, 0), which shrinks the gate and not the entries. The gate learns through
    ``GateReconstruction``. Rajamanoharan et al. 2024, arXiv 2404.16014, with W_mag = eʳ W_gate; their magnitude bias is
    b + eʳ b_gate here, where b_gate is the dictionary's encoder bias.
    """

    def parameters(self, latents: int) -> dict[str, Float[Tensor, "{latents}"]]:
        """Magnitudes that equal the gate's."""
        return {"log_magnitude": torch.zeros(latents), "magnitude_bias": torch.zeros(latents)}

    def activate(self, pre: Float[Tensor, "..."], numbers: Numbers) -> Activated:
        """The magnitudes where the gate is open, at the cost of how far it is."""
        magnitude = torch.addcmul(numbers["magnitude_bias"], numbers["log_magnitude"].exp(), pre).relu()
        return Activated(magnitude * (pre > 0), pre.relu())


@dataclass(frozen=True)
class TopK(Nonlinearity):
    """z keeps the ``k`` largest positive pre-activations of each row, at no cost. Gao et al. 2024, arXiv 2406.04093."""

    k: int

    def __post_init__(self) -> None:
        _check_k(self)

    @property
    def always_few(self) -> bool:
        """True."""
        return True

    def parameters(self, latents: int) -> dict[str, Float[Tensor, "{latents}"]]:
        """None; checks that there are enough latents to choose from."""
        return _enough(self, latents)

    def support(self, tiles: Tiles, numbers: Numbers, *, training: bool) -> Support:  # noqa: ARG002
        """The largest of each row, positive or not."""
        return _ranked(tiles, partial(_largest_of_each, k=self.k), self.k)

    def activate(self, pre: Float[Tensor, "..."], numbers: Numbers) -> Activated:  # noqa: ARG002
        """The positive part."""
        return Activated(pre.relu(), torch.zeros_like(pre))

    def __call__(self, pre: Float[Tensor, "rows k"], numbers: Numbers, *, training: bool) -> Activated:  # noqa: ARG002
        """The code, and zeros."""
        values, index = pre.topk(self.k, dim=-1, sorted=False)
        z = torch.zeros_like(pre).scatter_(-1, index, values.relu())
        return Activated(z, torch.zeros_like(pre))


@dataclass(frozen=True)
class GroupMax(Nonlinearity):
    """z keeps of each of ``k`` equally large groups of neighboring latents the largest positive one, at no cost."""

    k: int

    def __post_init__(self) -> None:
        _check_k(self)

    @property
    def always_few(self) -> bool:
        """True."""
        return True

    def parameters(self, latents: int) -> dict[str, Float[Tensor, "{latents}"]]:
        """None; checks that the groups are equally large."""
        if latents % self.k:
            raise ValueError(f"GroupMax: {latents} latents cannot be divided into {self.k} equally large groups")
        return {}

    def support(self, tiles: Tiles, numbers: Numbers, *, training: bool) -> Support:  # noqa: ARG002
        """The largest of each group, positive or not."""
        return _ranked(tiles, partial(_largest_of_groups, k=self.k), self.k)

    def activate(self, pre: Float[Tensor, "..."], numbers: Numbers) -> Activated:  # noqa: ARG002
        """The positive part."""
        return Activated(pre.relu(), torch.zeros_like(pre))

    def __call__(self, pre: Float[Tensor, "rows k"], numbers: Numbers, *, training: bool) -> Activated:  # noqa: ARG002
        """The code, and zeros."""
        values, index = _largest_of_groups(pre, self.k)
        z = torch.zeros_like(pre).scatter_(-1, index, values.relu())
        return Activated(z, torch.zeros_like(pre))


@dataclass(frozen=True)
class BatchTopK(Nonlinearity):
    """z keeps the k · rows largest positive pre-activations of a batch, at no cost. Bussmann et al. 2024, 2412.06410.

    After training, rows no longer compete: what passes is above the mean of the training batches' thresholds, of which
    ``memory`` is the share that is kept at each step. A dictionary that was never trained has no threshold yet and
    goes by the batch.
    """

    k: int
    memory: float = 0.999

    def __post_init__(self) -> None:
        _check_k(self)
        if not 0 <= self.memory < 1:
            raise ValueError(f"BatchTopK: memory is a share below one, it is {self.memory}")

    @property
    def always_few(self) -> bool:
        """True."""
        return True

    def parameters(self, latents: int) -> dict[str, Float[Tensor, "{latents}"]]:
        """None; checks that there are enough latents to choose from."""
        return _enough(self, latents)

    def running(self) -> dict[str, Tensor]:
        """The threshold, negative until there is one, and that of the last batch."""
        return {"threshold": torch.tensor(-1.0), "last": torch.tensor(-1.0)}

    def support(self, tiles: Tiles, numbers: Numbers, *, training: bool) -> Support:
        """What is above the batch's threshold, which is looked for near that of the batch before."""
        if not training and numbers["threshold"] > 0:
            return _above(tiles, numbers["threshold"])
        guess = 0.9 * self._near(tiles, numbers)
        found = _above(tiles, max(guess, 0.0))
        wanted = self.k * (len(found.offsets) - 1)
        if guess > 0 and len(found.pre) < wanted:
            found = _above(tiles, 0.0)
        found = _largest(found, wanted)
        if training and len(found.pre):
            self._follow(found.pre.min(), numbers)
        return found

    def activate(self, pre: Float[Tensor, "..."], numbers: Numbers) -> Activated:  # noqa: ARG002
        """The positive part."""
        return Activated(pre.relu(), torch.zeros_like(pre))

    def __call__(self, pre: Float[Tensor, "rows k"], numbers: Numbers, *, training: bool) -> Activated:
        """The code, and zeros."""
        found = self.support(lambda: iter((pre.detach(),)), numbers, training=training)
        on = torch.zeros_like(pre)
        row = torch.arange(len(pre), device=pre.device).repeat_interleave(found.offsets.diff())
        on[row, found.latent] = 1
        return Activated(pre.relu() * on, torch.zeros_like(pre))

    def _near(self, tiles: Tiles, numbers: Numbers) -> float:
        """A number near the threshold: the last batch's, or that of a few rows."""
        if (last := float(numbers["last"])) > 0:
            return last
        few = next(tiles())[::8]
        return float(few.flatten().topk(self.k * len(few), sorted=False).values.min())

    def _follow(self, threshold: Tensor, numbers: Numbers) -> None:
        numbers["last"].copy_(threshold)
        first = numbers["threshold"] < 0
        numbers["threshold"].lerp_(threshold.to(numbers["threshold"]), torch.where(first, 1.0, 1 - self.memory))


def _above(tiles: Tiles, bound: float | Tensor) -> Support:
    """The entries above a bound, the same or one per latent."""
    pre, latent, counts = list[Tensor](), list[Tensor](), list[Tensor]()
    for tile in tiles():
        place = _places(tile > bound)
        row = place // tile.shape[1]
        pre.append(tile.flatten().index_select(0, place))
        latent.append(place - row * tile.shape[1])
        counts.append(torch.bincount(row, minlength=len(tile)))
    offsets = torch.cat([counts[0].new_zeros(1), *counts]).cumsum(0)
    return Support(torch.cat(pre), torch.cat(latent), offsets)


def _places(on: Bool[Tensor, "rows k"]) -> Int[Tensor, "n"]:
    """Where a matrix is true, as if its rows were one; eight entries of which none is are passed over at once."""
    if on.numel() % 8:
        return on.flatten().nonzero()[:, 0]
    word = on.view(-1).view(torch.int64).nonzero()[:, 0]
    place = on.view(-1, 8).index_select(0, word).view(-1).nonzero()[:, 0]
    return (word << 3).index_select(0, place >> 3).add_(place & 7)


def _ranked(tiles: Tiles, largest: Callable[[Tensor], tuple[Tensor, Tensor]], k: int) -> Support:
    """The ``k`` entries of each row that ``largest`` finds."""
    # a comprehension would hold a tile while the next one is made
    best = list(map(largest, tiles()))
    pre = torch.cat([values for values, _ in best])
    offsets = torch.arange(0, pre.numel() + 1, k, device=pre.device)
    return Support(pre.flatten(), torch.cat([latent for _, latent in best]).flatten(), offsets)


def _largest_of_each(pre: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The ``k`` largest entries of each row, and where they stand.

    None is below the k-th largest of the maxima of groups of neighbors. Few more than k groups and few more than k
    entries reach that, and only these are ranked. For arrays of that size numpy is several times faster than torch.
    """
    rows, groups = len(pre), pre.shape[1] // _GROUP
    if pre.device.type != "cpu" or pre.shape[1] % _GROUP or groups < 2 * k:
        return pre.topk(k, dim=-1, sorted=False)
    members = pre.to(torch.promote_types(pre.dtype, torch.float32)).view(-1, _GROUP)
    maxima = members.amax(-1).view(rows, groups).numpy()
    bound = np.sort(maxima, axis=-1)[:, -k]
    # what cannot be compared stays in
    group = np.flatnonzero(~(maxima < bound[:, None]))
    home = group // groups
    some = members.index_select(0, torch.from_numpy(group)).numpy()
    place = np.flatnonzero(~(some < bound[home, None]))
    entry = place // _GROUP
    row, latent = home[entry], group[entry] % groups * _GROUP + place % _GROUP
    # the entries of a row side by side, in a table as wide as the longest row
    count = np.bincount(row, minlength=rows)
    seat = row, np.arange(len(row)) - (count.cumsum() - count)[row]
    table = np.full((rows, count.max()), -math.inf, some.dtype)
    which = np.zeros(table.shape, latent.dtype)
    table[seat], which[seat] = some.ravel()[place], latent
    best = np.argpartition(table, -k, axis=-1)[:, -k:]
    found = np.take_along_axis(table, best, -1), np.take_along_axis(which, best, -1)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _largest_of_groups(pre: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The largest entry of each of ``k`` groups of neighbors, and where it stands."""
    values, index = pre.unflatten(-1, (k, -1)).max(-1)
    return values, index + torch.arange(0, pre.shape[1], pre.shape[1] // k, device=pre.device)


def _largest(found: Support, count: int) -> Support:
    """The ``count`` largest entries, in the order in which they stood."""
    if len(found.pre) <= count:
        return found
    keep = found.pre.topk(count, sorted=False).indices.sort().values
    offsets = torch.searchsorted(keep, found.offsets)
    return Support(found.pre[keep], found.latent[keep], offsets)


def _check_k(what: TopK | GroupMax | BatchTopK) -> None:
    if what.k < 1:
        raise ValueError(f"{type(what).__name__}: k should be at least 1, it is {what.k}")


def _enough(what: TopK | BatchTopK, latents: int) -> dict[str, Tensor]:
    if what.k > latents:
        name = type(what).__name__
        raise ValueError(f"{name}: k should be at most the number of latents, {latents}; it is {what.k}")
    return {}


class _Jump(torch.autograd.Function):
    """(pre, log θ) → (z, on), entry by entry."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, log_threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        threshold = log_threshold.exp()
        # zeros and ones in floating point: products with them are several times faster than selections by booleans
        on = pre - threshold
        near = on.abs().lt_(bandwidth / 2)
        on.gt_(0)
        ctx.save_for_backward(threshold, on, near)
        ctx.bandwidth = bandwidth
        return pre * on, on.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        to_z, to_cost = grads
        threshold, on, near = ctx.saved_tensors
        slope = torch.addcmul(to_cost, threshold, to_z).mul_(near).sum_to_size(threshold.shape)
        # the factor θ turns the derivative by θ into the one by log θ
        return to_z * on, -threshold / ctx.bandwidth * slope, None
