"""Nodes of a network: parts of decompositions at sites, at places of a template, and what else they could hold.

A *node* is a part of a decomposition at a site, or the error x − decode(encode x) there, at one place of a template or
at all of them. A *passage* takes inputs apart into the values v of all nodes, next to values v′ that would stand in
their stead: the mean at each place, or those of counterfactual inputs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.decompose.base import Decomposition
from innerspace.decompose.sequence import SequenceAutoencoder
from innerspace.interventions import Read, coordinates_of
from innerspace.measure.patching import Metric
from innerspace.network.model import Fork, Model
from innerspace.network.trace import Intervention, Trace, Visit
from innerspace.value import Value

B = TypeVar("B")
Decompositions = Mapping[str, Decomposition]
"""The decomposition of every site whose nodes are meant."""


@dataclass(frozen=True)
class Node(Value):
    """A part at a site, or the site's error where ``part`` is None; at one place, or at all where ``place`` is None."""

    site: str
    part: int | None
    place: int | None = None


@dataclass(frozen=True, eq=False)
class Asked(Generic[B]):
    """Inputs that are asked one thing.

    ``place`` numbers the places of a template: for every position the place where it stands, −1 for one that has no
    node, such as BOS or padding. Row i of ``other`` is a counterfactual of row i, position by position; with
    ``other_place`` it may be of another length, and in a position's stead is the mean over the other row's positions at
    the same place. Rows of one ``group`` are drawn together when an interval is found.
    """

    batch: B
    metric: Metric
    place: Int[Tensor, "batch *positions"]
    other: B | None = None
    other_place: Int[Tensor, "batch *others"] | None = None
    group: Int[Tensor, "batch"] | None = None


@dataclass(frozen=True, eq=False)
class Values:
    """Hidden states taken apart: x = decode(code) + error."""

    code: Float[Tensor, "*positions k"]
    error: Float[Tensor, "*positions d"]

    @staticmethod
    def of(via: Decomposition, x: Float[Tensor, "*positions d"]) -> "Values":
        """What a decomposition makes of states.

        Raises:
            ValueError: for a decomposition that reads several positions together.
        """
        if isinstance(via, SequenceAutoencoder):
            raise ValueError("nodes need a code for every position; this decomposition reads several together")
        x = x.to(via.directions)
        code = via.encode(x).z
        return Values(code, x - via.decode(code))

    def at(self, place: Int[Tensor, "*positions"]) -> "Values":
        """Of values by place, those of positions; what stands at a position without a place means nothing."""
        place = place.clamp(min=0)
        return Values(self.code[place], self.error[place])


@torch.no_grad()
def mean_values(model: Model, asked: Iterable[Asked[B]], vias: Decompositions, places: int) -> dict[str, Values]:
    """The mean code and the mean error at every place, by site: what stands in a node's stead when it is ablated.

    Raises:
        ValueError: for a place at which no input has a position.
    """
    sums = dict[str, tuple[Tensor, Tensor, Tensor]]()
    for one in asked:
        trace = model.run(one.batch, {site: Read() for site in vias}, stop=True)
        for site, via in vias.items():
            x = trace.hidden[model.site(site).name]
            values, place = Values.of(via, x), _placed(one.place, x, site)
            own = tuple(_by_place(part[None], place[None], places)[0] for part in (values.code, values.error))
            count = torch.bincount(place[place >= 0], minlength=places).to(own[0])
            before = sums.get(site, tuple(torch.zeros_like(part) for part in (*own, count)))
            sums[site] = before[0] + own[0], before[1] + own[1], before[2] + count
    if not sums:
        raise ValueError("nothing was asked, so that there is no mean")
    for site, (_, _, count) in sums.items():
        if empty := (count == 0).nonzero().flatten().tolist():
            raise ValueError(f"no input has a position at place {empty[0]} of {places}, so {site!r} has no mean there")
    return {site: Values(code / n[:, None], error / n[:, None]) for site, (code, error, n) in sums.items()}


@final
class Passage(Generic[B]):
    """Inputs taken apart at some sites, next to what would stand in every node's stead, and the passes between.

    What stands instead are the ``means`` of each place, or without them the values of the counterfactual inputs.
    ``clean`` [batch] is the metric as it is. Nodes of a site are numbered: its parts, and behind them the error.

    Raises:
        ValueError: for no site or an unknown one, places that do not fit the states, means of other places, no means
            where there is no counterfactual, or one without a place that the input has.
    """

    def __init__(
        self,
        model: Model,
        asked: Asked[B],
        vias: Decompositions,
        places: int,
        means: Mapping[str, Values] | None = None,
    ) -> None:
        if not vias:
            raise ValueError("nodes belong to decompositions, and there is none at any site")
        order = [name for name in model.sites if name in {model.site(site).name for site in vias}]
        named = {model.site(site).name: via for site, via in vias.items()}
        self.vias: Decompositions = {site: named[site] for site in order}
        self.model, self.asked, self.places = model, asked, places
        self.forks: dict[str, Fork] = {}
        with torch.no_grad():
            for site in order:
                self.forks[site] = model.fork(asked.batch, site)
            self.states = {site: fork.clean.hidden[site] for site, fork in self.forks.items()}
            self.place = _placed(asked.place, next(iter(self.states.values())), order[0])
            for site, x in self.states.items():
                _placed(asked.place, x, site)
            if int(self.place.max()) >= places:
                raise ValueError(f"a position stands at place {int(self.place.max())}; there are {places} places")
            self.own = {site: Values.of(self.vias[site], x) for site, x in self.states.items()}
            self.instead = self._means(means) if means is not None else self._counterfactual()
            self.clean = self.metric(self.forks[order[0]].clean)

    @property
    def chosen(self) -> Bool[Tensor, "batch *positions"]:
        """The positions that have nodes."""
        return self.place >= 0

    def metric(self, trace: Trace) -> Float[Tensor, "batch"]:
        """The metric of a pass.

        Raises:
            ValueError: if it does not give a finite number for every row.
        """
        found = self.asked.metric(trace)
        if found.shape != (len(self.place),) or not found.isfinite().all():
            raise ValueError(f"the metric should give {len(self.place)} finite numbers; it gives {found.tolist()}")
        return found

    @torch.no_grad()
    def change(self, site: str, *, errors: bool = True) -> Float[Tensor, "batch *positions d"]:
        """The v − v′ of all nodes at a site, as a change of the state; without ``errors`` these stay as they are."""
        change = (self.own[site].code - self.instead[site].code) @ self.vias[site].directions
        if errors:
            change = change + self.own[site].error - self.instead[site].error
        return change.masked_fill(~self.chosen[..., None], 0).to(self.states[site])

    @torch.no_grad()
    def node_change(self, node: Node) -> Float[Tensor, "batch *positions d"]:
        """The v − v′ of one node, as a change of the state."""
        own, other, via = self.own[node.site], self.instead[node.site], self.vias[node.site]
        if node.part is None:
            change = own.error - other.error
        else:
            index = coordinates_of(via, node.part)
            change = (own.code[..., index] - other.code[..., index]) @ via.directions[index]
        here = self.chosen if node.place is None else self.place == node.place
        return change.masked_fill(~here[..., None], 0).to(self.states[node.site])

    def given(self, site: str, state: Float[Tensor, "batch *positions d"]) -> Float[Tensor, "batch"]:
        """The metric of a pass that goes on from a state at a site."""
        return self.metric(self.forks[site].run({site: _give(state)}))

    def under(self, do: Mapping[str, Intervention]) -> Float[Tensor, "batch"]:
        """The metric of a pass with interventions at the sites."""
        if len(self.vias) == 1:
            return self.metric(self.forks[next(iter(self.vias))].run(do))
        # sites may lie beside each other, where a pass that goes on from the first does not come by
        return self.metric(self.model.run(self.asked.batch, do))

    def gradient(self, site: str, steps: int = 0, *, errors: bool = True) -> Float[Tensor, "batch *positions d"]:
        """∇m with respect to the state at a site: as it is, or the mean over ``steps`` midpoints of the line to v′."""
        x, change = self.states[site], self.change(site, errors=errors)
        points = [(step + 0.5) / steps for step in range(steps)] or [0.0]
        total = torch.zeros_like(x)
        for share in points:
            state = (x - share * change).detach().requires_grad_()
            (found,) = torch.autograd.grad(self.given(site, state).sum(), state)
            total += found / len(points)
        return total

    def gradients(self) -> dict[str, Tensor]:
        """∇m with respect to the states of all sites as they are, by one pass."""
        leaves = {site: torch.zeros_like(x).requires_grad_() for site, x in self.states.items()}
        total = self.under({site: _add(leaf) for site, leaf in leaves.items()}).sum()
        found = torch.autograd.grad(total, list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def reaching(self, source: str, target: str) -> tuple[Tensor, Values]:
        """The state at a site, and what is made of it at a later one, differentiable in it.

        States at sites in between that have decompositions stay as they are.
        """
        order, state = list(self.vias), self.states[source].detach().requires_grad_()
        between = dict.fromkeys(order[order.index(source) + 1 : order.index(target)], _stay)
        plan: dict[str, Intervention] = {source: _give(state), **between, target: Read()}
        trace = self.model.run(self.asked.batch, plan, stop=True)
        return state, Values.of(self.vias[target], trace.hidden[target])

    @torch.no_grad()
    def along(
        self, site: str, gradient: Float[Tensor, "batch *positions d"], *, errors: bool = True
    ) -> Float[Tensor, "batch places nodes"]:
        """The share of every node in gradient · (v − v′), summed over the positions of each place.

        Without ``errors`` the last column, that of the error, is zero.
        """
        own, other, via = self.own[site], self.instead[site], self.vias[site]
        gradient = gradient.to(via.directions)
        each = _by_part((gradient @ via.directions.T) * (own.code - other.code), via)
        error = (gradient * (own.error - other.error)).sum(-1, keepdim=True) * float(errors)
        return _by_place(torch.cat((each, error), -1), self.place, self.places)

    def _means(self, means: Mapping[str, Values]) -> dict[str, Values]:
        for site in self.vias:
            if site not in means or len(means[site].code) != self.places:
                have = len(means[site].code) if site in means else "none"
                raise ValueError(f"{self.places} means are needed at {site!r}, one per place; there are {have}")
        return {site: means[site].at(self.place) for site in self.vias}

    def _counterfactual(self) -> dict[str, Values]:
        asked = self.asked
        if asked.other is None:
            raise ValueError("nodes need something in their stead: means by place, or counterfactual inputs")
        trace = self.model.run(asked.other, {site: Read() for site in self.vias}, stop=True)
        found = dict[str, Values]()
        for site, via in self.vias.items():
            x = trace.hidden[site]
            values = Values.of(via, x)
            if asked.other_place is None:
                _placed(asked.place, x, site)
                found[site] = values
                continue
            place = _placed(asked.other_place, x, site)
            means, count = _means_of_rows(values, place, self.places)
            rows = torch.arange(len(self.place), device=x.device).view(-1, *(1,) * (self.place.ndim - 1))
            here = self.place.clamp(min=0)
            if (lacking := self.chosen & (count[rows, here] == 0)).any():
                row = int(lacking.nonzero()[0, 0])
                raise ValueError(f"the counterfactual of row {row} lacks a place that the row has")
            found[site] = Values(means.code[rows, here], means.error[rows, here])
        return found


def _means_of_rows(values: Values, place: Tensor, places: int) -> tuple[Values, Tensor]:
    """Row by row the mean over the positions of each place, and how many there are."""
    count = _by_place(torch.ones_like(values.code[..., :1]), place, places)
    parts = (_by_place(part, place, places) / count.clamp(min=1) for part in (values.code, values.error))
    return Values(*parts), count[..., 0]


def _by_part(coordinates: Float[Tensor, "*positions k"], via: Decomposition) -> Float[Tensor, "*positions parts"]:
    spans = via.parts
    if len(spans) == coordinates.shape[-1]:
        return coordinates
    sizes = torch.tensor([span.stop - span.start for span in spans], device=coordinates.device)
    part = torch.arange(len(spans), device=coordinates.device).repeat_interleave(sizes)
    return coordinates.new_zeros(*coordinates.shape[:-1], len(spans)).index_add(-1, part, coordinates)


def _by_place(
    each: Float[Tensor, "batch *positions n"], place: Int[Tensor, "batch *positions"], places: int
) -> Float[Tensor, "batch places n"]:
    """Sums over the positions of every place, row by row; positions without a place are left out."""
    rows = torch.arange(len(place), device=place.device).view(-1, *(1,) * (place.ndim - 1)).expand_as(place)
    there = place >= 0
    index = (rows * places + place)[there]
    found = each.new_zeros(len(place) * places, each.shape[-1]).index_add(0, index, each[there])
    return found.view(len(place), places, each.shape[-1])


def _placed(place: Tensor, x: Tensor, site: str) -> Tensor:
    if place.shape != x.shape[:-1]:
        raise ValueError(f"the places have shape {list(place.shape)}, the states at {site!r} {list(x.shape[:-1])}")
    return place.to(x.device)


def _give(state: Tensor) -> Intervention:
    def give(x: Tensor, visit: Visit) -> Tensor:  # noqa: ARG001
        return state

    return give


def _add(leaf: Tensor) -> Intervention:
    def add(x: Tensor, visit: Visit) -> Tensor:  # noqa: ARG001
        return x + leaf

    return add


def _stay(x: Tensor, visit: Visit) -> Tensor:  # noqa: ARG001
    return x.detach()
