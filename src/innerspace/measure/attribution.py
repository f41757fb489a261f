"""What single nodes do to a network's answer: one by one, or of all at once by gradients.

The effect of a node (see ``measure/nodes.py``) is by how much a metric falls when it takes another value v′ and all
before it stays, m(v) − m(v′). Gradients approximate that: at the values as they are, ∇m(v) · (v − v′) (attribution
patching, Nanda 2023; Syed et al., arXiv 2310.10348), or averaged on the straight line from v to v′ (integrated
gradients, Sundararajan et al., arXiv 1703.01365), on which all nodes of a site go together, so that their effects add
up to that of the whole state. An *edge* is what of a node's effect passes through a later one (Marks et al., arXiv
2403.19647).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.interventions import coordinates_of
from innerspace.measure.nodes import Node, Passage

B = TypeVar("B")
Effects = Mapping[str, Float[Tensor, "rows places nodes"]]
"""Of every site what each node does at each place in each row; the last node is the error."""


def attributed(passages: Iterable[Passage[B]], *, steps: int = 0, errors: bool = True) -> dict[str, Tensor]:
    """The effects of all nodes of all sites, by gradients: see above, and ``Effects``.

    Without ``steps`` by attribution patching: one pass forth and back for everything. With them by integrated
    gradients, of every site by itself, so many passes for each: then the effects of a site add up to that of its whole
    state, but for the error of the midpoint rule. Without ``errors`` what a decomposition does not explain stays.

    Raises:
        ValueError: for a negative number of steps, or no passage.
    """
    if steps < 0:
        raise ValueError(f"steps should be a positive number, or 0 for attribution patching; they are {steps}")
    found = dict[str, list[Tensor]]()
    for passage in passages:
        at_once = {} if steps else passage.gradients()
        for site in passage.vias:
            gradient = passage.gradient(site, steps, errors=errors) if steps else at_once[site]
            found.setdefault(site, []).append(passage.along(site, gradient, errors=errors))
    if not found:
        raise ValueError("nothing was asked, so that no node has an effect")
    return {site: torch.cat(parts) for site, parts in found.items()}


@torch.no_grad()
def exact(passages: Iterable[Passage[B]], nodes: Sequence[Node]) -> Float[Tensor, "rows nodes"]:
    """The effects of single nodes as they are: one pass for each of them.

    Raises:
        ValueError: for no node, or no passage.
    """
    rows = [
        torch.stack([passage.clean - passage.given(n.site, _less(passage, n)) for n in nodes], -1)
        for passage in passages
    ]
    if not rows or not nodes:
        raise ValueError("exact effects need inputs and nodes")
    return torch.cat(rows)


def edges(
    passages: Iterable[Passage[B]], source: str, targets: Sequence[Node], *, steps: int = 0
) -> Float[Tensor, "rows targets places nodes"]:
    """What of the effect of every node at a site passes through each of some nodes of one later site.

    The node's change, times the gradient of the later node's value (one vector-Jacobian product for each), times what
    the metric's gradient there says of it, see ``Passage.gradient`` for ``steps``. States at sites in between that have
    decompositions stay as they are. Where all information passes through the later site, the edges of a node to all of
    its nodes add up to the node's effect.

    Raises:
        ValueError: for no target, or targets that are not all of one site behind the first.
    """
    names = list(dict.fromkeys(node.site for node in targets))
    found = list[Tensor]()
    for passage in passages:
        order = list(passage.vias)
        if len(names) != 1 or order.index(names[0]) <= order.index(source):
            raise ValueError(f"edges lead from {source!r} to one site behind it, not to {', '.join(names) or 'none'}")
        found.append(_edges(passage, source, names[0], targets, steps))
    return torch.cat(found)


def rank_correlation(a: Float[Tensor, "n"], b: Float[Tensor, "n"]) -> float:
    """Spearman's ρ; equal values share the mean of their ranks. Not a number where either is constant."""
    one, two = (_ranks(values) for values in (a, b))
    one, two = one - one.mean(), two - two.mean()
    return float((one @ two) / (one.norm() * two.norm()))


def _edges(
    passage: Passage[B], source: str, target: str, targets: Sequence[Node], steps: int
) -> Float[Tensor, "rows targets places nodes"]:
    via = passage.vias[target]
    weight = passage.gradient(target, steps).to(via.directions)
    by_code = weight @ via.directions.T
    state, values = passage.reaching(source, target)
    found = list[Tensor]()
    for node in targets:
        if node.part is None:
            reached = (weight * values.error).sum(-1)
        else:
            index = coordinates_of(via, node.part)
            reached = (by_code[..., index] * values.code[..., index]).sum(-1)
        here = passage.chosen if node.place is None else passage.place == node.place
        # where states in between hold all that is known, nothing gets there
        total = reached.masked_fill(~here, 0).sum() + 0 * state.sum()
        (gradient,) = torch.autograd.grad(total, state, retain_graph=True)
        found.append(passage.along(source, gradient))
    return torch.stack(found, 1)


def _less(passage: Passage[B], node: Node) -> Tensor:
    return passage.states[node.site] - passage.node_change(node)


def _ranks(values: Tensor) -> Tensor:
    ordered = values.double().sort().values
    below, upto = (torch.searchsorted(ordered, values.double(), right=right) for right in (False, True))
    return (below + upto).double() / 2
