"""Spliced trials: the network runs once cleanly, and from the site on once more for every dictionary.

The clean pass of a batch is shared: by all dictionaries that are tried on it, and between the part before the site and
the part behind it, which goes on to where the last term looks and no further. A trial that compares nothing behind the
site costs no second pass, so local training, end-to-end training and everything between them are one stream.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.checkpoint import State
from innerspace.decompose.base import Decomposition
from innerspace.decompose.sequence import SequenceAutoencoder, reconstructed
from innerspace.interventions import Read
from innerspace.learn.passes import OUTPUT, Passes, positions
from innerspace.learn.trials import Occasion, Trial, Trials
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.network.trace import Trace, Visit

Precision = Literal["float32", "bfloat16"]


@runtime_checkable
class Batches(Protocol):
    """An endless stream of batches that can be continued."""

    def next(self) -> Any:
        """The next batch."""
        ...

    def state(self) -> State:
        """Where the stream stands."""
        ...

    def restore(self, state: State) -> None:
        """Continue where ``state`` was taken."""
        ...


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the hidden states at a site: how many rows, their mean, and their mean squared distance from it."""

    rows: int
    mean: Float[Tensor, "d"]
    variance: float


@torch.no_grad()
def survey(model: Model, batches: Iterable[Any], sites: Sequence[str], where: Where) -> dict[str, Moments]:
    """The moments of hidden states at sites, in one sweep, in float64.

    Raises:
        ValueError: if a hidden state is not finite, naming site and batch, if there is no row, or all are alike.
    """
    count = dict.fromkeys(sites, 0)
    first = dict[str, Tensor]()
    sums = dict[str, tuple[Tensor, Tensor]]()
    for number, batch in enumerate(batches):
        trace = model.run(batch, {site: Read() for site in sites}, stop=True)
        for site in sites:
            chosen = positions(model, batch, site, trace, where)
            hidden = trace.hidden[model.site(site).name]
            rows = (hidden.flatten(0, -2) if chosen is None else hidden[chosen]).double()
            if not rows.isfinite().all():
                raise ValueError(f"the hidden states at {site!r} are not finite in batch {number}")
            if not len(rows):
                continue
            # sums about a point among the rows lose no digits to a mean far from zero
            shift = first.setdefault(site, rows.mean(0))
            total, squares = sums.get(site, (torch.zeros_like(shift), torch.zeros_like(shift)))
            sums[site] = total + (rows - shift).sum(0), squares + (rows - shift).square().sum(0)
            count[site] += len(rows)
    if empty := [site for site in sites if not count[site]]:
        raise ValueError(f"no hidden state at {empty[0]!r} counts: the stream is empty, or all positions are left out")
    found = dict[str, Moments]()
    for site in sites:
        offset = sums[site][0] / count[site]
        variance = float((sums[site][1] / count[site] - offset.square()).sum())
        if variance <= 0:
            raise ValueError(f"the {count[site]} hidden states at {site!r} are all alike")
        found[site] = Moments(count[site], (first[site] + offset).float(), variance)
    return found


def spliced(
    model: Model,
    batches: Batches,
    sites: Sequence[str],
    variance: Mapping[str, float],
    *,
    where: Where = Where("valid"),
    precision: Precision = "float32",
) -> Trials:
    """Trials at sites of a running network.

    Positions that ``where`` leaves out pass a dictionary unchanged and are judged by no term. ``variance`` is that of
    the hidden states at the sites, and at all places that are compared in its units (``survey``). With ``bfloat16`` the
    network and the large products run in that precision.

    Raises:
        ValueError: for an unknown site, or one whose variance is not given.
    """
    return _Spliced(model, batches, sites, variance, where, precision)


@final
class _Spliced(Trials):
    def __init__(
        self,
        model: Model,
        batches: Batches,
        sites: Sequence[str],
        variance: Mapping[str, float],
        where: Where,
        precision: Precision,
    ) -> None:
        self._model, self._batches, self._where = model, batches, where
        self._precision: Precision = precision
        self._sites = [model.site(site).name for site in sites]
        self._variance = {
            model.site(site).name: torch.tensor(number, dtype=torch.float64) for site, number in variance.items()
        }
        if missing := [site for site in self._sites if site not in self._variance]:
            raise ValueError(f"the variance at {missing[0]!r} is not given; it is known at {', '.join(variance)}")

    def draw(self, needs: Set[str] = frozenset()) -> Occasion:
        needs = _named(self._model, needs)
        return _Spot(
            self._model, self._batches.next(), self._sites, needs, self._variance, self._where, self._precision
        )

    def state(self) -> State:
        return {"sites": self._sites, "batches": dict(self._batches.state())}

    def restore(self, state: State) -> None:
        if state.get("sites") != self._sites:
            raise ValueError(f"the stream has the sites {self._sites}, the one to continue {state.get('sites')}")
        self._batches.restore(state["batches"])


@final
class _Spot(Occasion):
    """A batch and its clean pass."""

    def __init__(
        self,
        model: Model,
        batch: Any,
        sites: Sequence[str],
        needs: Set[str],
        variance: Mapping[str, Tensor],
        where: Where,
        precision: Precision,
    ) -> None:
        self._model, self._batch, self._variance, self._where, self._precision = (
            model,
            batch,
            variance,
            where,
            precision,
        )
        self._cuts = {site: model.cut(site) for site in sites}
        begins = [cut.name for cut in self._cuts.values() if cut is not None] if needs else []
        with torch.no_grad():
            self._clean = self._pass({*sites, *begins}, needs)

    def precision(self) -> AbstractContextManager[object]:
        device = next(self._model.module.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._precision == "bfloat16")

    def trial(self, what: Decomposition, site: str = "", needs: Set[str] = frozenset()) -> Trial:
        site, needs = self._place(site), _named(self._model, needs)
        hidden = self._clean.hidden[site]
        like = next(what.parameters())
        chosen = positions(self._model, self._batch, site, self._clean, self._where)
        valid = hidden.new_ones(hidden.shape[:-1], dtype=torch.bool) if chosen is None else chosen
        with self.precision():
            if isinstance(what, SequenceAutoencoder):
                clean, reconstruction, code = reconstructed(what, hidden.to(like), valid)
            else:
                clean = (hidden.flatten(0, -2) if chosen is None else hidden[chosen]).to(like)
                code = what.code(clean)
                reconstruction = what.decode(code.z)
        passes = None
        if needs:
            put = reconstruction.to(hidden)
            edited = put.view_as(hidden) if chosen is None else hidden.index_put((chosen,), put)
            other = self._pass(set(), needs, site, edited)
            passes = Passes(self._model, self._batch, self._clean, other, self._where, self._variance)
        variance = self._variance[site].to(like)
        return Trial(clean, reconstruction, code, what, variance, passes, valid=valid if valid.ndim > 1 else None)

    def _place(self, site: str) -> str:
        """The site of that name; where there is one only, it need not be named."""
        name = self._model.site(site).name if site or len(self._cuts) > 1 else next(iter(self._cuts))
        if name not in self._cuts:
            raise ValueError(f"the stream has no trials at {site!r}; it has them at {', '.join(self._cuts)}")
        return name

    def _pass(self, reads: Set[str], needs: Set[str], site: str = "", edited: Tensor | None = None) -> Trace:
        """The clean pass, or one with another state at a site; it ends where nothing more is asked for."""
        model = self._model
        head = model.family.head(model.module)
        whole = OUTPUT in needs and head is None
        ends = {head.name} if OUTPUT in needs and head is not None else set[str]()
        wanted = {name: Read() for name in {*reads, *(needs - {OUTPUT}), *ends}}
        with self.precision():
            if edited is None:
                return model.run(self._batch, wanted, stop=not whole)
            cut = self._cuts[site]
            if cut is None or cut == model.site(site):
                return model.resume(self._batch, site, edited, wanted, stop=not whole)
            give = _Give(edited)
            plan = {site: [give, wanted[site]] if site in wanted else give}
            return model.resume(self._batch, cut.name, self._clean.hidden[cut.name], wanted | plan, stop=not whole)


def _named(model: Model, needs: Set[str]) -> Set[str]:
    """Places by the sites' own names, under which traces keep them."""
    return {need if need == OUTPUT else model.site(need).name for need in needs}


@dataclass(frozen=True, eq=False)
class _Give:
    hidden: Tensor

    def __call__(self, x: Tensor, visit: Visit) -> Tensor:  # noqa: ARG002
        return self.hidden
