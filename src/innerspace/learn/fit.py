"""The training loop; there is one: draw a trial, sum the terms that judge it, step. All else is a callback."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam

from innerspace.decompose.base import Decomposition
from innerspace.learn.objectives import Objective
from innerspace.learn.trials import Trial, Trials
from innerspace.value import Value

Record = dict[str, float]


@dataclass(frozen=True)
class FitConfig(Value):
    """How to step: with Adam, at a rate that rises for a share ``warmup`` of the steps and falls for ``cooldown``.

    ``clip`` bounds the norm of the whole gradient. ``seed`` starts torch's random generators for the time of the fit.
    """

    steps: int = 3000
    rate: float = 1e-3
    warmup: float = 0.05
    cooldown: float = 0.2
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    seed: int = 0
    log_every: int = 100

    def __post_init__(self) -> None:
        if min(self.steps, self.log_every, self.rate, math.inf if self.clip is None else self.clip) <= 0:
            raise ValueError(f"steps, log_every, rate and clip should be positive: {self}")
        if min(self.warmup, self.cooldown) < 0 or self.warmup + self.cooldown > 1:
            raise ValueError(f"warmup and cooldown are shares of the steps, not {self.warmup} and {self.cooldown}")

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0 … steps − 1; never zero."""
        rise, fall = (step + 1) / (self.warmup * self.steps + 1), (self.steps - step) / (self.cooldown * self.steps + 1)
        return self.rate * min(1.0, rise, fall)


@dataclass(eq=False)
class Loop:
    """Where a fit stands; what callbacks see and may change. ``step`` counts the finished steps."""

    what: Decomposition
    trials: Trials
    objective: Objective
    config: FitConfig
    optimizer: Adam = field(init=False)
    step: int = 0
    trial: Trial = field(init=False)
    history: list[Record] = field(default_factory=list[Record])

    def __post_init__(self) -> None:
        self.reset_optimizer()

    def reset_optimizer(self) -> None:
        """Begin anew with the parameters as they are now; for callbacks that replace parameters."""
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in self.what.parameters())
        self.optimizer = Adam(self.what.parameters(), lr=self.config.rate, betas=self.config.betas, fused=fused)


class Callback:
    """Something that happens around the steps; override what is needed."""

    def resume(self, loop: Loop) -> None:
        """Put the loop back to where an interrupted fit stood; runs before everything else."""

    def during(self, loop: Loop) -> AbstractContextManager[object]:  # noqa: ARG002
        """A context in which the whole fit runs, left also after an error."""
        return nullcontext()

    def before_step(self, loop: Loop) -> None:
        """The gradients are there; clipping and the update follow."""

    def after_step(self, loop: Loop) -> Record:  # noqa: ARG002
        """The parameters are new. What is returned goes into the log."""
        return {}

    def close_step(self, loop: Loop, record: Record | None) -> None:
        """The step is complete, and logged if there is a record of it."""


class Fit(NamedTuple):
    """What came out: the decomposition (the one that was given), the log, and the seconds it took."""

    what: Decomposition
    history: list[Record]
    seconds: float


def fit(
    what: Decomposition, trials: Trials, objective: Objective, config: FitConfig, callbacks: Sequence[Callback] = ()
) -> Fit:
    """Train a decomposition, in place, on a stream of trials.

    Raises:
        ValueError: for an objective without terms or with two of one name, or if the loss is no longer finite.
    """
    names = [term.name for term in objective]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"an objective needs terms of different names, it has {', '.join(names) or 'none'}")
    began = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        torch.manual_seed(config.seed)
        loop = Loop(what.train(), trials, objective, config)
        stack.callback(what.eval)
        for callback in callbacks:
            callback.resume(loop)
        for callback in callbacks:
            stack.enter_context(callback.during(loop))
        while loop.step < config.steps:
            _step(loop, callbacks)
    return Fit(what, loop.history, time.perf_counter() - began)


def _step(loop: Loop, callbacks: Sequence[Callback]) -> None:
    loop.trial = loop.trials.draw(loop.what)
    terms = torch.stack([term(loop.trial) for term in loop.objective])
    loop.optimizer.zero_grad()
    terms.sum().backward()
    for callback in callbacks:
        callback.before_step(loop)
    if loop.config.clip is not None:
        nn.utils.clip_grad_norm_(loop.what.parameters(), loop.config.clip)
    for group in loop.optimizer.param_groups:
        group["lr"] = loop.config.rate_at(loop.step)
    loop.optimizer.step()
    loop.step += 1
    logs = loop.step % loop.config.log_every == 0 or loop.step == loop.config.steps
    record = _judgement(loop, terms) if logs else Record()
    for callback in callbacks:
        record |= callback.after_step(loop)
    if record:
        loop.history.append({"step": loop.step} | record)
    for callback in callbacks:
        callback.close_step(loop, loop.history[-1] if record else None)


def _judgement(loop: Loop, terms: Tensor) -> Record:
    columns: Record = {term.name: value for term, value in zip(loop.objective, terms.tolist(), strict=True)}
    if not math.isfinite(loss := sum(columns.values())):
        raise ValueError(f"the loss is not finite at step {loop.step}: {columns}; try a smaller rate or clip")
    return {"loss": loss, **columns}
