"""The whole tree of merges: the two most dependent parts become one, until one is left.

Where to cut it is a question for a rule; the tree shows what every cut would give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from innerspace.decompose.subspaces import Subspaces
from innerspace.learn.dependence import Scale, Ties, dependence, dependence_on_first
from innerspace.learn.neighbors import Neighborhood
from innerspace.value import Value


@final
@dataclass(frozen=True)
class Joint(Value):
    """A merge of two nodes: parts are numbered 0 … S − 1, the joints behind them in their order.

    ``information`` is the dependence of the two sides in nats, and ``height`` what it is per dimension; where an early
    merge hid a stronger one, the height is that of the merge before, so that no branch is drawn backwards.
    """

    sides: tuple[int, int]
    members: tuple[int, ...]
    information: float
    height: float


@final
@dataclass(frozen=True)
class Dendrogram(Value):
    """The merges of parts of ``sizes``, the most dependent first, and the ``order`` in which no branches cross."""

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    joints: tuple[Joint, ...]

    def partition(self, count: int) -> list[tuple[int, ...]]:
        """The groups of parts that are left when ``count`` are.

        Raises:
            ValueError: for a count below one or above the number of parts.
        """
        if not 1 <= count <= len(self.sizes):
            raise ValueError(f"the tree can be cut into 1 … {len(self.sizes)} groups, not {count}")
        groups: list[tuple[int, ...]] = [(i,) for i in range(len(self.sizes))]
        for joint in self.joints[: len(self.sizes) - count]:
            groups = [group for group in groups if group[0] not in joint.members] + [joint.members]
        return sorted(groups)


@torch.no_grad()
def dendrogram(
    what: Subspaces, near: Neighborhood, *, k: int = 1, scale: Scale = "variance", ties: Ties = "counted"
) -> Dendrogram:
    """Merge the pair of largest Î / (dᵢ + dⱼ), estimate the dependence of what came of it anew, and so on.

    Nothing is inferred from the parts' own pairs (linkage): two parts may each be independent of a third that depends
    on both.

    Raises:
        ValueError: as ``dependence``.
    """
    rotation, count = what.rotation, len(what.sizes)
    spans = dict(enumerate(rotation[part] for part in what.parts))
    members: dict[int, tuple[int, ...]] = {node: (node,) for node in spans}
    found = dependence(what, near, k=k, scale=scale, ties=ties).information
    known = {(i, j): float(found[i, j]) for i in range(count) for j in range(i + 1, count)}
    joints = list[Joint]()
    while len(spans) > 1:
        strength = {pair: nats / sum(len(spans[node]) for node in pair) for pair, nats in known.items()}
        a, b = max(strength, key=lambda pair: strength[pair])
        height = min(strength[a, b], joints[-1].height if joints else strength[a, b])
        new = count + len(joints)
        members[new] = tuple(sorted(members[a] + members[b]))
        joints.append(Joint((a, b), members[new], known[a, b], height))
        known = {pair: nats for pair, nats in known.items() if not {a, b} & set(pair)}
        joint = torch.cat([spans.pop(a), spans.pop(b)])
        if spans:
            known |= _with_others(joint, spans, near, new, k, scale, ties)
        spans[new] = joint
    return Dendrogram(what.sizes, _leaves(count + len(joints) - 1, count, joints), tuple(joints))


def _with_others(
    joint: Tensor, spans: dict[int, Tensor], near: Neighborhood, new: int, k: int, scale: Scale, ties: Ties
) -> dict[tuple[int, int], float]:
    rows = [joint, *spans.values()]
    nats = dependence_on_first(near, torch.cat(rows), [len(one) for one in rows], k=k, scale=scale, ties=ties)
    return {(node, new): value for node, value in zip(spans, nats.tolist(), strict=True)}


def _leaves(node: int, count: int, joints: Sequence[Joint]) -> tuple[int, ...]:
    if node < count:
        return (node,)
    first, second = joints[node - count].sides
    return _leaves(first, count, joints) + _leaves(second, count, joints)
