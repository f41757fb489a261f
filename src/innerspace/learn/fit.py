"""The training loop; there is one: draw an occasion, let every student be judged on it, step. All else is a callback.

Several students (dictionaries of other seeds, coefficients, kinds or layers) learn in one fit from one stream: what a
draw costs, such as a network's clean pass, is paid once for all of them.
"""

import math
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam

from innerspace.checkpoint import State
from innerspace.decompose.base import Decomposition
from innerspace.learn.memory import retained
from innerspace.learn.objectives import Objective, Term
from innerspace.learn.parallel import agree, silence
from innerspace.learn.trials import Occasion, Trial, Trials
from innerspace.parallel import add_up
from innerspace.value import Value

Record = dict[str, float | str]


class Diverged(ValueError):  # noqa: N818
    """A loss is no longer a finite number."""


@dataclass(frozen=True)
class FitConfig(Value):
    """How to step: with Adam, at a rate that rises for a share ``warmup`` of the steps and then falls.

    A ``linear`` schedule stays level and falls to zero over the last share ``cooldown``. A ``cosine`` falls from the
    end of the rise on, along half a cosine, to the share ``floor`` of the rate; its first step has the rate zero, as in
    Braun et al. 2024. ``clip`` bounds the norm of the whole gradient of a student. Every step sums the gradients of
    ``accumulate`` draws. The coefficient of a term ``sparsity`` rises from zero over the first share
    ``sparsity_warmup``. ``seed`` starts torch's random generators for the time of the fit.
    """

    steps: int = 3000
    rate: float = 1e-3
    warmup: float = 0.05
    cooldown: float = 0.2
    schedule: Literal["linear", "cosine"] = "linear"
    floor: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    accumulate: int = 1
    sparsity_warmup: float = 0.0
    seed: int = 0
    log_every: int = 100

    def __post_init__(self) -> None:
        counts = (self.steps, self.log_every, self.accumulate)
        if min(*counts, self.rate, math.inf if self.clip is None else self.clip) <= 0:
            raise ValueError(f"steps, log_every, accumulate, rate and clip should be positive: {self}")
        if min(self.warmup, self.cooldown) < 0 or self.warmup + self.cooldown > 1:
            raise ValueError(f"warmup and cooldown are shares of the steps, not {self.warmup} and {self.cooldown}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is a share of the rate, not {self.floor}")
        if not 0 <= self.sparsity_warmup <= 1:
            raise ValueError(f"sparsity_warmup is a share of the steps, not {self.sparsity_warmup}")

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0 … steps − 1; with a linear schedule it is never zero."""
        rise = self.warmup * self.steps
        if self.schedule == "linear":
            fall = (self.steps - step) / (self.cooldown * self.steps + 1)
            return self.rate * min(1.0, (step + 1) / (rise + 1), fall)
        if step < rise:
            return self.rate * step / rise
        swing = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(self.steps - rise, 1)))
        return self.rate * (self.floor + (1 - self.floor) * swing)

    def sparsity_at(self, step: int) -> float:
        """What the coefficient of sparsity is multiplied by at step 0 … steps − 1."""
        rise = self.sparsity_warmup * self.steps
        return step / rise if step < rise else 1.0


@dataclass(frozen=True)
class Phase(Value):
    """From the share ``begins`` of the steps on, other terms, and ``rate`` times the learning rate."""

    begins: float
    objective: tuple[Term, ...]
    rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.begins < 1 or self.rate <= 0:
            raise ValueError(f"a phase begins inside the fit and has a positive rate: {self}")


@dataclass(eq=False)
class Student:
    """A decomposition in training, at a ``site`` where the stream has several, and what judges it.

    ``objective`` holds until the first of the ``later`` phases begins. ``rate`` multiplies the learning rate. Callbacks
    may change ``gain``, by which terms are multiplied, by name; other numbers that they must not lose may stand there
    as well.
    """

    what: Decomposition
    objective: Objective
    site: str = ""
    name: str = ""
    later: tuple[Phase, ...] = ()
    rate: float = 1.0
    gain: dict[str, float] = field(default_factory=dict[str, float])
    seconds: float = 0.0
    optimizer: Adam = field(init=False)
    trial: Trial = field(init=False)

    def __post_init__(self) -> None:
        for objective in (self.objective, *(phase.objective for phase in self.later)):
            names = [term.name for term in objective]
            if not names or len(set(names)) < len(names):
                raise ValueError(f"an objective needs terms of different names, it has {', '.join(names) or 'none'}")
        if [phase.begins for phase in self.later] != sorted(phase.begins for phase in self.later):
            raise ValueError("phases should be in the order in which they begin")

    def at(self, progress: float) -> tuple[Objective, float]:
        """The terms, and the factor of the rate, when a share of the steps is done."""
        begun = [phase for phase in self.later if phase.begins <= progress]
        return (begun[-1].objective, self.rate * begun[-1].rate) if begun else (self.objective, self.rate)


@dataclass(eq=False, repr=False)
class Loop:
    """Where a fit stands; what callbacks see and may change.

    ``step`` counts the finished steps. A callback that finds nothing left to learn sets ``finished``.
    """

    students: Sequence[Student]
    trials: Trials
    config: FitConfig
    callbacks: "Sequence[Callback]" = ()
    step: int = 0
    history: list[Record] = field(default_factory=list[Record])
    finished: bool = False

    def __repr__(self) -> str:
        names = ", ".join(student.name or type(student.what).__name__ for student in self.students)
        return f"Loop({names}, step {self.step} of {self.config.steps}, {len(self.history)} records)"

    def __post_init__(self) -> None:
        names = [student.name for student in self.students]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"students need names of their own, they have {names}")
        for student in self.students:
            self.reset_optimizer(student)

    @property
    def over(self) -> bool:
        """Whether there is no step to come."""
        return self.finished or self.step >= self.config.steps

    def reset_optimizer(self, student: Student) -> None:
        """Begin anew with the parameters as they are now; for callbacks that replace parameters."""
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in student.what.parameters())
        config = self.config
        student.optimizer = Adam(student.what.parameters(), lr=config.rate, betas=config.betas, fused=fused)


class Callback:
    """Something that happens around the steps; override what is needed."""

    def resume(self, loop: Loop) -> None:
        """Put the loop back to where an interrupted fit stood; runs before everything else."""

    def during(self, loop: Loop) -> AbstractContextManager[object]:  # noqa: ARG002
        """A context in which the whole fit runs, left also after an error."""
        return nullcontext()

    def after_step(self, loop: Loop, student: Student) -> Record:  # noqa: ARG002
        """A student's parameters are new. What is returned goes into the log."""
        return {}

    def close_step(self, loop: Loop, records: Sequence[Record]) -> None:
        """The step is complete for all; ``records`` are those that were logged."""

    def state(self) -> State:
        """What a snapshot must hold of the callback itself; it should change in ``after_step`` only."""
        return {}

    def restore(self, state: State) -> None:
        """Continue where ``state``, which was not empty, was taken."""


class Fit(NamedTuple):
    """What came out: the decomposition (the one that was given), the log, and the seconds it took."""

    what: Decomposition
    history: list[Record]
    seconds: float

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {value:.4g}" for name, value in _numbers(self.history))
        return f"Fit({type(self.what).__name__}, {self.seconds:.1f} s, {len(self.history)} records; last: {last})"


def fit(
    what: Decomposition, trials: Trials, objective: Objective, config: FitConfig, callbacks: Sequence[Callback] = ()
) -> Fit:
    """Train a decomposition, in place, on a stream of trials.

    Raises:
        ValueError: for an objective without terms or with two of one name.
        Diverged: if the loss is no longer finite.
    """
    loop, seconds = fit_together([Student(what, objective)], trials, config, callbacks)
    return Fit(what, loop.history, seconds)


def fit_together(
    students: Sequence[Student], trials: Trials, config: FitConfig, callbacks: Sequence[Callback] = ()
) -> tuple[Loop, float]:
    """Train several decompositions, in place, on one stream; gives the loop at its end and the seconds it took.

    Every student learns exactly what it would learn alone.

    Raises:
        ValueError: for students of one name.
        Diverged: if a loss is no longer finite.
    """
    began = time.perf_counter()
    with ExitStack() as stack:
        retain = stack.enter_context(retained())
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        torch.manual_seed(config.seed)
        loop = Loop(students, trials, config, callbacks)
        for student in students:
            student.what.train()
            stack.callback(student.what.eval)
        for callback in callbacks:
            callback.resume(loop)
        for callback in callbacks:
            stack.enter_context(callback.during(loop))
        if not loop.over:
            # makes what the optimizers keep
            _step(loop, callbacks)
        retain()
        while not loop.over:
            _step(loop, callbacks)
    return loop, time.perf_counter() - began


def _step(loop: Loop, callbacks: Sequence[Callback]) -> None:
    config, progress = loop.config, loop.step / loop.config.steps
    chosen = [student.at(progress) for student in loop.students]
    needs = frozenset[str]().union(*(term.needs for objective, _ in chosen for term in objective))
    totals = [torch.zeros(()) for _ in chosen]
    for student in loop.students:
        student.optimizer.zero_grad()
    for _ in range(config.accumulate):
        occasion = loop.trials.draw(needs)
        for i, (student, (objective, _)) in enumerate(zip(loop.students, chosen, strict=True)):
            with _timed(student):
                totals[i] = totals[i] + _learn(student, occasion, objective, loop)
    for student, (_, factor) in zip(loop.students, chosen, strict=True):
        with _timed(student):
            _update(student, config, factor * config.rate_at(loop.step))
    loop.step += 1
    logs = loop.step % config.log_every == 0 or loop.step == config.steps
    if logs:
        add_up(totals)
    records = list[Record]()
    for student, (objective, _), total in zip(loop.students, chosen, totals, strict=True):
        record = _judgement(loop, student, objective, total) if logs else Record()
        for callback in callbacks:
            record |= callback.after_step(loop, student)
        if record:
            named: Record = {"student": student.name} if student.name else {}
            records.append({"step": loop.step, **named, **record})
    loop.history.extend(records)
    for callback in callbacks:
        callback.close_step(loop, records)


@contextmanager
def _timed(student: Student) -> Generator[None]:
    began = time.perf_counter()
    yield
    student.seconds += time.perf_counter() - began


def _learn(student: Student, occasion: Occasion, objective: Objective, loop: Loop) -> Tensor:
    """Add the gradients of one trial; gives its terms."""
    gain = dict(student.gain)
    gain["sparsity"] = gain.get("sparsity", 1.0) * loop.config.sparsity_at(loop.step)
    needs = frozenset[str]().union(*(term.needs for term in objective))
    before = silence(student.what)
    with occasion.precision():
        student.trial = occasion.trial(student.what, student.site, needs)
        share = agree(student.what, before, len(student.trial.clean))
        terms = torch.stack([gain.get(term.name, 1.0) * term(student.trial) for term in objective])
    terms = terms * share / loop.config.accumulate
    terms.sum().backward()
    return terms.detach()


def _update(student: Student, config: FitConfig, rate: float) -> None:
    parameters = list(student.what.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    add_up(gradients)
    student.what.project_gradient()
    if config.clip is not None:
        norm = nn.utils.get_total_norm(gradients)
        # on a device it would take longer to look at the norm than to multiply by one
        if norm.is_cuda or norm > config.clip:
            nn.utils.clip_grads_with_norm_(parameters, config.clip, norm)
    for group in student.optimizer.param_groups:
        group["lr"] = rate
    student.optimizer.step()
    student.what.retract()


def _judgement(loop: Loop, student: Student, objective: Objective, terms: Tensor) -> Record:
    columns = {term.name: value for term, value in zip(objective, terms.tolist(), strict=True)}
    if not math.isfinite(loss := sum(columns.values())):
        whose = f" of {student.name}" if student.name else ""
        finite = bool(student.trial.clean.isfinite().all())
        cause = "try a smaller rate or clip" if finite else "the hidden states themselves are not finite"
        raise Diverged(f"the loss{whose} is not finite at step {loop.step}: {columns}; {cause}")
    return {"loss": loss, **columns}


def _numbers(history: Sequence[Record]) -> list[tuple[str, float]]:
    """The numbers of the last record, if there is one."""
    record = history[-1] if history else {}
    return [(name, value) for name, value in record.items() if isinstance(value, int | float)]
