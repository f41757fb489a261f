"""Distributed alignment search: the subspace by which a network tells two inputs apart, learned from what it answers.

A *frame* of k orthonormal rows is learned so that exchanging its coordinates between inputs and their counterfactuals
takes the output along. This is the supervised bound for parts that were found without labels: no subspace of k
dimensions should do much better. Geiger et al. 2024, arXiv 2303.02536.

The frame itself is the parameter, a point of the Stiefel manifold: a step along the tangent is followed by a
Gram-Schmidt retraction, O(d k²) in all, where the exponential of a d × d matrix would cost O(d³).
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from innerspace.checkpoint import State
from innerspace.decompose.base import Code, Decomposition, Home
from innerspace.decompose.sparse import Sparse, weighted_sum
from innerspace.decompose.subspaces import Subspaces
from innerspace.harvest.epochs import check_same
from innerspace.learn.callbacks import Callback
from innerspace.learn.fit import FitConfig, Record, fit
from innerspace.learn.objectives import Term
from innerspace.learn.trials import Occasion, Trial, Trials
from innerspace.measure.documents import Draws, Ledger
from innerspace.measure.estimate import Estimate
from innerspace.measure.patching import Contrast, Exchange, note_rows
from innerspace.network.model import Model

B = TypeVar("B")
Goal = Literal["answer", "whole"]


@final
class Frame(Decomposition):
    """One part of k orthonormal directions in a space of width d; what it does not span is its error.

    Raises:
        ValueError: for rows that are not finite or not independent.
    """

    def __init__(self, rows: Float[Tensor, "k d"]) -> None:
        super().__init__()
        if not rows.isfinite().all() or int(torch.linalg.matrix_rank(rows.double())) < len(rows):
            raise ValueError(f"a frame needs independent finite rows; the {len(rows)} of width {rows.shape[1]} are not")
        q, r = torch.linalg.qr(rows.detach().double().T)
        self.basis = nn.Parameter((q * r.diagonal().sign()).T.to(rows).contiguous())

    @staticmethod
    def random(width: int, size: int, generator: torch.Generator) -> "Frame":
        """A frame drawn evenly from all.

        Raises:
            ValueError: for a size below one or above the width.
        """
        if not 1 <= size <= width:
            raise ValueError(f"a frame in a space of width {width} has 1 … {width} directions, not {size}")
        return Frame(torch.randn(size, width, generator=generator))

    @property
    def parts(self) -> list[slice]:
        """The one part."""
        return [slice(0, len(self.basis))]

    @property
    def directions(self) -> Float[Tensor, "k d"]:
        """The rows, of unit norm."""
        return self.basis

    def encode(self, x: Float[Tensor, "*rows d"]) -> Code:
        """The coordinates in the frame."""
        z = x @ self.basis.T
        return Code(z, z, z.new_zeros(z.shape[:-1]))

    def decode(self, z: Float[Tensor, "*rows k"] | Sparse) -> Float[Tensor, "*rows d"]:
        """The point of the subspace that has these coordinates."""
        return weighted_sum(z, self.basis) if isinstance(z, Sparse) else z @ self.basis

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from the gradient what would not turn the subspace: G ← G (1 − BᵀB), the Grassmannian's gradient."""
        if (gradient := self.basis.grad) is not None:
            gradient.sub_(gradient @ self.basis.T @ self.basis)

    @torch.no_grad()
    def retract(self) -> None:
        """Make the rows orthonormal again, as Gram-Schmidt does: B ← L⁻¹ B with L Lᵀ = B Bᵀ."""
        lower = torch.linalg.cholesky(self.basis @ self.basis.T)
        self.basis.copy_(torch.linalg.solve_triangular(lower, self.basis, upper=False))

    def to_subspaces(self, home: Home | None = None) -> Subspaces:
        """The frame as part 0, and all that is orthogonal to it as part 1, if anything is."""
        size, width = self.basis.shape
        q, _ = torch.linalg.qr(self.basis.detach().double().T, mode="complete")
        rotation = torch.cat((self.basis.detach(), q.T[size:].to(self.basis)))
        return Subspaces(rotation, [size, width - size] if size < width else [size], home=home)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ExchangeTrial(Trial):
    """The rows of a contrast, and what came of exchanging the first part.

    ``metric`` is that of the output after the exchange, ``whole`` that after exchanging the whole state, and ``scale``
    the stream's mean square of the whole state's effect.
    """

    metric: Float[Tensor, "batch"]
    whole: Float[Tensor, "batch"]
    scale: Float[Tensor, ""]


@dataclass(frozen=True)
class Interchange(Term):
    """How far the output is from the counterfactual's after the exchange.

    ``answer`` is for a metric that is the logit of the clean input's answer less that of the counterfactual's: the
    cross-entropy of the latter, log(1 + eᵐ). ``whole`` is for any other: the squared distance from the metric that
    exchanging the whole state gives, in units of the mean square of the whole state's effect.
    """

    goal: Goal = "answer"

    def __call__(self, trial: Trial) -> Float[Tensor, ""]:
        """The mean over the rows.

        Raises:
            ValueError: if the trial is none of an exchange.
        """
        if not isinstance(trial, ExchangeTrial):
            raise ValueError(f"{self.name} judges exchanges between inputs, not a {type(trial).__name__}")
        if self.goal == "answer":
            return F.softplus(trial.metric).mean()
        return (trial.metric - trial.whole).square().mean() / trial.scale


@dataclass(frozen=True, eq=False)
class Alignment:
    """The frame, the log of its fit, and how an exchange moves the output, on rows that were not trained on.

    ``share`` is the effect of the frame as a share of the whole state's. ``accuracy`` is how often the metric lies
    below zero after the exchange, so that the counterfactual's answer is given, and ``accuracy_whole`` the same for the
    whole state; None where the metric is no difference of logits.
    """

    frame: Frame
    history: list[Record]
    share: Estimate
    accuracy: Estimate | None
    accuracy_whole: Estimate | None


def align(
    model: Model,
    contrasts: Sequence[Contrast[B]],
    held_out: Sequence[Contrast[B]],
    site: str,
    size: int,
    *,
    goal: Goal = "answer",
    steps: int = 500,
    turn: float = 0.15,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
) -> Alignment:
    """Learn a frame of ``size`` directions at a site from contrasts, one of them a step, and judge it on others.

    The frame begins at random, by the seed, and a step turns each of its rows by about ``turn`` radians at most. The
    hidden states of all contrasts stay in memory. For other schedules, ``fit`` a ``Frame`` on what ``exchanged`` gives.

    Raises:
        ValueError: for no contrast, a size that the site does not have, contrasts that do not fit the site, or a whole
            state whose exchange changes nothing.
        Diverged: if the loss is no longer finite.
    """
    if not contrasts or not held_out:
        raise ValueError(
            f"contrasts to learn from and others to judge by are needed; got {len(contrasts)} and {len(held_out)}"
        )
    width = model.site(site).width
    # a step of Adam moves no entry by much more than the rate
    config = FitConfig(steps=steps, rate=turn / width**0.5, clip=None, seed=seed)
    frame = Frame.random(width, size, torch.Generator().manual_seed(seed))
    learned = [Exchange(model, contrast, site) for contrast in contrasts]
    state = learned[0].state
    frame.to(state.device, torch.promote_types(state.dtype, torch.float32))
    history = fit(frame, exchanged(learned, seed), (Interchange(goal),), config, callbacks).history
    ledger, count = Ledger(), 0
    for contrast in held_out:
        count = note_rows(ledger, count, contrast.group, _judged(Exchange(model, contrast, site), frame))
    draws = Draws(ledger, 1000, seed)
    share = draws.of(lambda s: s["row.part"] / s["row.whole"])
    answers = [draws.mean(f"row.{name}") if goal == "answer" else None for name in ("moved", "moved_whole")]
    return Alignment(frame, history, share, *answers)


def exchanged(exchanges: Sequence[Exchange[B]], seed: int) -> Trials:
    """Trials in which a decomposition's first part is exchanged: one contrast each, every epoch in another order.

    Raises:
        ValueError: for no contrast, or a whole state whose exchange changes nothing.
    """
    return _Exchanged(exchanges, seed)


@final
class _Exchanged(Trials, Generic[B]):
    @torch.no_grad()
    def __init__(self, exchanges: Sequence[Exchange[B]], seed: int) -> None:
        if not exchanges:
            raise ValueError("there is no contrast: nothing can be exchanged")
        self._exchanges, self._seed, self._drawn = exchanges, seed, 0
        self._whole = [one.metric(one.whole) for one in exchanges]
        clean = torch.cat([one.metric(one.state) for one in exchanges])
        self._scale = (clean - torch.cat(self._whole)).square().mean()
        self._variance = torch.cat([one.state[one.chosen] for one in exchanges]).var(0, correction=0).sum()
        if self._scale == 0:
            raise ValueError("exchanging the whole state has no effect at these positions: no part can")

    def draw(self, needs: Set[str] = frozenset()) -> Occasion:
        if needs:
            raise ValueError(f"exchanges do not tell {', '.join(sorted(needs))}; that takes spliced trials")
        epoch, place = divmod(self._drawn, len(self._exchanges))
        # an order per (seed, epoch) needs no generator state to be kept
        index = int(np.random.default_rng([self._seed, epoch]).permutation(len(self._exchanges))[place])
        self._drawn += 1
        return _Drawn(self._exchanges[index], self._whole[index], self._scale, self._variance)

    def state(self) -> State:
        return {"seed": self._seed, "contrasts": len(self._exchanges), "drawn": self._drawn}

    def restore(self, state: State) -> None:
        check_same({"seed": self._seed, "contrasts": len(self._exchanges)}, state)
        self._drawn = state["drawn"]


@final
class _Drawn(Occasion):
    def __init__(self, exchange: Exchange[Any], whole: Tensor, scale: Tensor, variance: Tensor) -> None:
        self._exchange, self._whole, self._scale, self._variance = exchange, whole, scale, variance

    def trial(self, what: Decomposition, site: str = "", needs: Set[str] = frozenset()) -> Trial:  # noqa: ARG002
        clean = self._exchange.state[self._exchange.chosen].to(next(what.parameters()))
        code = what.code(clean)
        return ExchangeTrial(
            clean,
            what.decode(code.z),
            code,
            what,
            self._variance,
            metric=self._exchange.part(what, 0),
            whole=self._whole,
            scale=self._scale,
        )


@torch.no_grad()
def _judged(exchange: Exchange[B], frame: Frame) -> dict[str, Tensor]:
    clean, part, whole = exchange.metric(exchange.state), exchange.part(frame, 0), exchange.metric(exchange.whole)
    return {"part": clean - part, "whole": clean - whole, "moved": part < 0, "moved_whole": whole < 0}
