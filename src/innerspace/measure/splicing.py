"""What a network loses when a decomposition stands in for a hidden state, on documents or scenes not trained on.

From the site on every batch runs four times: as it is, through the decomposition, and with the state set to zero and to
its mean, two standards of total loss. What lies before the site runs once. Sums are kept by document, so that every
number comes with an interval that says how much depends on which documents were taken.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from innerspace.decompose.base import Decomposition
from innerspace.interventions import Read
from innerspace.language.causal_lm import CausalLM
from innerspace.language.divergence import cross_entropy, next_token
from innerspace.language.text import Text
from innerspace.measure.documents import Draws, Ledger
from innerspace.measure.estimate import Estimate
from innerspace.measure.fidelity import (
    FiringHistogram,
    Histogram,
    active,
    firing_histogram,
    frequency,
    l0_histogram,
    l0_quantiles,
)
from innerspace.network.model import Model
from innerspace.network.site import Site, Where
from innerspace.network.trace import Intervention, Trace, Visit
from innerspace.value import Value


@dataclass(frozen=True)
class TokenLoss(Value):
    """What a language model loses, in nats, and in shares of positions where there is no unit.

    Cross-entropies of the next token: clean, spliced, with the state set to zero, and to its mean; ``ce_increase`` is
    spliced − clean, and ``recovered_…`` = 1 − (spliced − clean) / (zero − clean), or (mean − clean). ``kl`` is
    KL(clean ‖ spliced), ``top1`` how often both find the same token the likeliest, ``total_variation`` ½ Σ |p − q|.
    ``predictions`` of the positions have a next token that counts; only the cross-entropies need one.
    """

    predictions: int
    ce_clean: Estimate
    ce_spliced: Estimate
    ce_zero: Estimate
    ce_mean: Estimate
    ce_increase: Estimate
    recovered_zero: Estimate
    recovered_mean: Estimate
    kl: Estimate
    top1: Estimate
    total_variation: Estimate


@dataclass(frozen=True)
class OutputLoss(Value):
    """What another network loses: the divergence of its outputs from the clean ones, in nats, for each row.

    ``recovered_…`` = 1 − divergence / (that with the state set to zero, or to its mean).
    """

    divergence: Estimate
    divergence_zero: Estimate
    divergence_mean: Estimate
    recovered_zero: Estimate
    recovered_mean: Estimate


@dataclass(frozen=True)
class SiteError(Value):
    """What differs at a site: ``error`` = Σ‖a − â‖² / Σ‖a − ā‖², ``mse`` = E(a − â)² over positions and axes."""

    site: str
    error: Estimate
    mse: Estimate


@dataclass(frozen=True)
class SpliceFidelity(Value):
    """What is kept of the hidden states x at a site, and what the network loses by x̂ in their place.

    ``tokens`` positions of ``documents`` were judged. ``explained_variance`` is 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²,
    ``explained_variance_per_token`` the mean of 1 − ‖x − x̂‖² / ‖x − x̄‖², ``norm_ratio`` that of ‖x̂‖ / ‖x‖, ``cosine``
    that of the cosine of x̂ and x. ``l0`` is the mean number of latents on at a position, ``l0_quantiles`` its 5, 25,
    50, 75 and 95 % quantiles. ``alive`` of the ``latents`` fired at one of those positions at least. ``downstream``
    begins with the site itself.
    """

    site: str
    tokens: int
    documents: int
    loss: TokenLoss | OutputLoss
    explained_variance: Estimate
    explained_variance_per_token: Estimate
    norm_ratio: Estimate
    cosine: Estimate
    l0: Estimate
    l0_quantiles: tuple[int, ...]
    l0_histogram: Histogram
    latents: int
    alive: int
    frequency_histogram: FiringHistogram
    downstream: tuple[SiteError, ...]


@torch.no_grad()
def splice_fidelity(
    model: Model,
    batches: Iterable[Any],
    site: str,
    what: Decomposition,
    *,
    where: Where = Where("valid"),
    mean: Float[Tensor, "d"] | None = None,
    downstream: Sequence[str] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> SpliceFidelity:
    """Run batches with and without a decomposition in the place of a site's hidden state, and compare.

    Positions that ``where`` or the family's mask leaves out pass unchanged and are judged nowhere. A prediction counts
    where its position does and the token that follows is neither masked nor of another document. ``mean`` is x̄, the
    state of mean ablation; without it a first sweep finds that of the batches. ``downstream`` are the sites to compare,
    by default the stream behind the site in a language model, and every later site in another network. Each row of a
    batch is a document (a scene), unless it is a ``Text`` that tells them. Intervals are those of ``replicates`` draws
    of as many documents.

    Raises:
        ValueError: for an unknown site, a mean of another width, no position that counts, none with a next token, or
            hidden states that are not finite, naming the batch.
    """
    place = model.site(site)
    names = _behind(model, place) if downstream is None else [model.site(name).name for name in downstream]
    if mean is None:
        batches = list(batches)
        mean = mean_state(model, batches, site, where)
    if len(mean) != place.width:
        raise ValueError(f"the mean has width {len(mean)}, the hidden state at {site!r} {place.width}")
    sweep = _Sweep(model, place, what, where, mean, names)
    training = what.training
    what.eval()
    try:
        for batch in batches:
            sweep.judge(batch)
    finally:
        what.train(training)
    return sweep.result(replicates, seed)


@torch.no_grad()
def mean_state(model: Model, batches: Iterable[Any], site: str, where: Where = Where("valid")) -> Float[Tensor, "d"]:
    """The mean hidden state at a site over the positions that count, in float64.

    Raises:
        ValueError: for an unknown site, or no position that counts.
    """
    place = model.site(site)
    total, count = torch.zeros(place.width, dtype=torch.float64), 0
    for batch in batches:
        hidden = model.run(batch, {site: Read()}, stop=True).hidden[place.name]
        rows = hidden[model.positions(batch, site, hidden, where)]
        total, count = total + rows.sum(0, dtype=torch.float64).cpu(), count + len(rows)
    if not count:
        raise ValueError(f"no position at {site!r} counts: there is no batch, or all positions are left out")
    return total / count


@final
class _Sweep:
    """What is counted while batches pass."""

    def __init__(
        self, model: Model, site: Site, what: Decomposition, where: Where, mean: Tensor, downstream: Sequence[str]
    ) -> None:
        self._model, self._site, self._what, self._where, self._mean = model, site, what, where, mean
        self._ledger = Ledger()
        self._centers = {name: torch.empty(0) for name in downstream}
        self._offsets = {name: torch.zeros(model.site(name).width, dtype=torch.float64) for name in downstream}
        # the first batch tells how many latents there are
        self._l0 = self._fired = torch.zeros((), dtype=torch.int64)
        self._batches = self._rows = 0

    def judge(self, batch: Any) -> None:
        """Take a batch into account."""
        passes = _Passes(self._model, batch, self._site, self._where, list(self._centers))
        hidden, chosen = passes.hidden, passes.chosen
        first, number = self._rows, self._batches
        self._rows, self._batches = first + len(hidden), number + 1
        if not chosen.any():
            return
        if not hidden[chosen].isfinite().all():
            raise ValueError(f"the hidden states at {self._site.name!r} are not finite in batch {number}")
        x = hidden[chosen].to(next(self._what.parameters(), hidden))
        z, mean = self._what.code(x).z, self._mean.to(x)
        x_hat = self._what.decode(z)
        spliced = passes.given(x_hat, list(self._centers))
        others = spliced, passes.given(torch.zeros_like(x)), passes.given(mean.expand_as(x))

        count, error, away = active(z), _squares(x - x_hat), _squares(x - mean)
        columns = {"error": error, "away": away, "per_token": 1 - error / away, "l0": count}
        columns |= {"norm": x_hat.norm(dim=-1) / x.norm(dim=-1), "cosine": F.cosine_similarity(x_hat, x, dim=-1)}
        self._ledger.add("x", _documents(batch, hidden, first)[chosen], columns)
        self._fired = self._fired + frequency(z).cpu()
        self._l0 = self._l0 + torch.bincount(count, minlength=len(self._fired) + 1).cpu()
        for name in self._centers:
            self._compare(name, batch, passes.clean.hidden[name], spliced.hidden[name], first)
        if isinstance(self._model.family, CausalLM):
            self._read(self._model.family, batch, chosen, _documents(batch, hidden, first), (passes.clean, *others))
        else:
            self._diverge(batch, chosen, _documents(batch, hidden, first), passes.clean, others)

    def _compare(self, name: str, batch: Any, clean: Tensor, other: Tensor, first: int) -> None:
        """The hidden states of a site behind the splice."""
        chosen = self._model.positions(batch, name, clean, self._where)
        exact = torch.promote_types(clean.dtype, torch.float32)
        a, a_hat = clean[chosen].to(exact), other[chosen].to(exact)
        if len(a):
            # squares about a point near the mean lose no digits to a mean far from zero
            center = self._centers[name] = self._centers[name] if len(self._centers[name]) else a.mean(0)
            self._offsets[name] += (a - center).sum(0, dtype=torch.float64).cpu()
            columns = {"error": _squares(a - a_hat), "away": _squares(a - center)}
            self._ledger.add(f"at.{name}", _documents(batch, clean, first)[chosen], columns)

    def _read(self, family: CausalLM, batch: Text, chosen: Tensor, document: Tensor, traces: Sequence[Trace]) -> None:
        """The next tokens of a language model."""
        module = self._model.module
        unembedding = family.unembedding(module)
        clean, spliced, zero, mean = (trace.hidden[family.head(module).name][chosen] for trace in traces)
        target, follows = batch.ids.roll(-1, 1)[chosen], _follows(batch, family.mask(batch, self._site))[chosen]
        found = next_token(clean, spliced, target, unembedding)
        columns = {"kl": found.kl, "top1": found.agree, "total_variation": found.distance}
        self._ledger.add("token", document[chosen], columns)
        if follows.any():
            zero, mean = (cross_entropy(rows[follows], target[follows], unembedding) for rows in (zero, mean))
            columns = {"clean": found.clean[follows], "spliced": found.other[follows], "zero": zero, "mean": mean}
            self._ledger.add("next", document[chosen][follows], columns)

    def _diverge(self, batch: Any, chosen: Tensor, document: Tensor, clean: Trace, others: Sequence[Trace]) -> None:
        """The outputs of another network, row by row, since rows are what is drawn anew."""
        family, module = self._model.family, self._model.module
        head, counts = family.head(module), chosen.flatten(1).any(1)
        if head is not None:
            counts = self._model.positions(batch, head.name, clean.hidden[head.name], self._where)
        rows = counts.reshape(len(counts), -1).any(1).nonzero().flatten()
        place = torch.arange(len(counts), device=counts.device).view(-1, *(1,) * (counts.ndim - 1))
        ones = [counts & (place == row) for row in rows]
        found = [[family.divergence(module, clean, other, one) for one in ones] for other in others]
        columns = {name: torch.stack(row) for name, row in zip(("spliced", "zero", "mean"), found, strict=True)}
        self._ledger.add("output", document.reshape(len(document), -1)[rows, 0], columns)

    def result(self, replicates: int, seed: int) -> SpliceFidelity:
        """What was found.

        Raises:
            ValueError: if no position counted, or none has a next token.
        """
        draws = Draws(self._ledger, replicates, seed)
        if not draws.count("x"):
            raise ValueError(f"no position at {self._site.name!r} counts: no batch, or all positions are left out")
        errors = [_site_error(draws, "x", self._site, 0.0)]
        for name, offset in self._offsets.items():
            if count := draws.count(f"at.{name}"):
                # squares about the center exceed those about the mean by the same at each position
                excess = float((offset / count).square().sum())
                errors.append(_site_error(draws, f"at.{name}", self._model.site(name), excess))
        return SpliceFidelity(
            site=self._site.name,
            tokens=draws.count("x"),
            documents=draws.documents,
            loss=_token_loss(draws) if isinstance(self._model.family, CausalLM) else _output_loss(draws),
            explained_variance=draws.of(lambda s: 1 - s["x.error"] / s["x.away"]),
            explained_variance_per_token=draws.mean("x.per_token"),
            norm_ratio=draws.mean("x.norm"),
            cosine=draws.mean("x.cosine"),
            l0=draws.mean("x.l0"),
            l0_quantiles=l0_quantiles(self._l0, (0.05, 0.25, 0.5, 0.75, 0.95)),
            l0_histogram=l0_histogram(self._l0),
            latents=len(self._fired),
            alive=int(self._fired.count_nonzero()),
            frequency_histogram=firing_histogram(self._fired, draws.count("x")),
            downstream=tuple(errors),
        )


@final
class _Passes:
    """The passes of a batch from a site on; ``clean`` is the one in which nothing is changed."""

    def __init__(self, model: Model, batch: Any, site: Site, where: Where, reads: Sequence[str]) -> None:
        head, start = model.family.head(model.module), model.cut(site.name)
        self._model, self._batch, self._site, self._start = model, batch, site, start
        self._head = [] if head is None else [head.name]
        self._state = None
        if start is not None:
            self._state = model.run(batch, {start.name: Read()}, stop=True).hidden[start.name]
        self.clean = self._run((), [site.name, *reads])
        self.hidden = self.clean.hidden[site.name]
        self.chosen = model.positions(batch, site.name, self.hidden, where)

    def given(self, rows: Float[Tensor, "rows d"], reads: Sequence[str] = ()) -> Trace:
        """The pass in which the positions that count have these hidden states at the site."""
        state = self.hidden.clone()
        state[self.chosen] = rows.to(state)

        def give(x: Tensor, visit: Visit) -> Tensor:  # noqa: ARG001
            return state

        return self._run((give,), reads)

    def _run(self, edits: Sequence[Intervention], reads: Sequence[str]) -> Trace:
        site, stop = self._site.name, bool(self._head)
        plan: dict[str, Sequence[Intervention]] = {name: (Read(),) for name in (*reads, *self._head)}
        if edits:
            plan[site] = (*edits, *plan.get(site, ()))
        if self._start is None or self._state is None:
            return self._model.run(self._batch, plan, stop=stop)
        return self._model.resume(self._batch, self._start.name, self._state, plan, stop=stop)


def _token_loss(draws: Draws) -> TokenLoss:
    if not draws.count("next"):
        raise ValueError("no position that counts is followed by a token that counts, so there is nothing to predict")

    def recovered(standard: str) -> Estimate:
        clean = "next.clean"
        return draws.of(lambda s: 1 - (s["next.spliced"] - s[clean]) / (s[f"next.{standard}"] - s[clean]))

    return TokenLoss(
        predictions=draws.count("next"),
        ce_clean=draws.mean("next.clean"),
        ce_spliced=draws.mean("next.spliced"),
        ce_zero=draws.mean("next.zero"),
        ce_mean=draws.mean("next.mean"),
        ce_increase=draws.of(lambda s: (s["next.spliced"] - s["next.clean"]) / s["next.count"]),
        recovered_zero=recovered("zero"),
        recovered_mean=recovered("mean"),
        kl=draws.mean("token.kl"),
        top1=draws.mean("token.top1"),
        total_variation=draws.mean("token.total_variation"),
    )


def _output_loss(draws: Draws) -> OutputLoss:
    return OutputLoss(
        divergence=draws.mean("output.spliced"),
        divergence_zero=draws.mean("output.zero"),
        divergence_mean=draws.mean("output.mean"),
        recovered_zero=draws.of(lambda s: 1 - s["output.spliced"] / s["output.zero"]),
        recovered_mean=draws.of(lambda s: 1 - s["output.spliced"] / s["output.mean"]),
    )


def _site_error(draws: Draws, group: str, site: Site, excess: float) -> SiteError:
    error, away, count = f"{group}.error", f"{group}.away", f"{group}.count"
    return SiteError(
        site.name,
        draws.of(lambda s: s[error] / (s[away] - excess * s[count])),
        draws.of(lambda s: s[error] / (site.width * s[count])),
    )


def _behind(model: Model, site: Site) -> list[str]:
    """The stream behind a site of a language model; every later site of another network."""
    names = list(model.sites)
    later = names[names.index(site.name) + 1 :]
    return [name for name in later if name.startswith("resid.") or not isinstance(model.family, CausalLM)]


def _documents(batch: Any, hidden: Tensor, first: int) -> Int[Tensor, "..."]:
    """To which document each position belongs; rows, counted from ``first``, are documents where none are told."""
    if isinstance(batch, Text) and batch.document is not None:
        return batch.document
    rows = torch.arange(first, first + len(hidden), device=hidden.device)
    return rows.view(-1, *(1,) * (hidden.ndim - 2)).expand(hidden.shape[:-1])


def _follows(batch: Text, mask: Tensor | None) -> Bool[Tensor, "batch token"]:
    """Which positions are followed by a token of the same document that is not masked."""
    follows = torch.ones_like(batch.ids, dtype=torch.bool) if mask is None else mask.roll(-1, 1)
    if batch.document is not None:
        follows = follows & (batch.document == batch.document.roll(-1, 1))
    return follows & (torch.arange(batch.ids.shape[1], device=follows.device) < batch.ids.shape[1] - 1)


def _squares(rows: Float[Tensor, "rows d"]) -> Float[Tensor, "rows"]:
    return rows.square().sum(-1)
