"""What happens around the steps: dead latents, a target for L0, evaluation, snapshots, progress, the log."""

import json
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, final

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor

from innerspace.checkpoint import State, load_state, random_state, save_state, set_random_state
from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.sparse import on_per_row
from innerspace.harvest.sequences import Sequences
from innerspace.learn.fit import Callback, Diverged, Loop, Record, Student
from innerspace.measure.fidelity import row_fidelity
from innerspace.parallel import Share, all_rows, mean_of_all


@final
class DeadLatents(Callback):
    """Every ``every`` steps, latents silent for ``after`` rows begin anew along errors of the current batch.

    Errors are drawn with a probability that grows with their square, after Bricken et al. 2023. Nothing begins anew
    while the rate cools down, since it could no longer be learned. Logs the share of ``dead`` latents.

    Raises:
        ValueError: if what is trained is no dictionary, or a number is below one.
    """

    def __init__(self, every: int, after: int) -> None:
        if every < 1 or after < 1:
            raise ValueError(f"DeadLatents: every and after should be at least 1, they are {every} and {after}")
        self.every, self.after = every, after

    def after_step(self, loop: Loop, student: Student) -> Record:
        """Find the dead latents, and let them begin anew."""
        what = _dictionary(student)
        if loop.step % self.every:
            return {}
        dead = (what.silent >= self.after).nonzero().flatten()
        if len(dead) and loop.step < (1 - loop.config.cooldown) * loop.config.steps:
            error = all_rows((student.trial.clean - student.trial.reconstruction).detach().flatten(0, -2))
            chance = error.square().sum(-1) + torch.finfo(error.dtype).tiny
            # chance of its own for every step: neither another student nor another process changes it
            generator = torch.Generator(error.device).manual_seed(loop.config.seed + (loop.step << 32))
            # drawing with replacement would make two latents one
            chosen = torch.multinomial(chance, min(len(dead), len(error)), generator=generator)
            reborn = dead[: len(chosen)]
            what.restart(reborn, error[chosen])
            for parameter in what.by_latent:
                for moment in ("exp_avg", "exp_avg_sq"):
                    student.optimizer.state[parameter][moment][reborn] = 0
        return {"dead": len(dead) / what.latents}


@final
class TargetL0(Callback):
    """Holds the mean number of entries that are on at a target, by the coefficient of the sparsity term.

    With r = L0 / target, the coefficient is multiplied by h · r³, where h is multiplied by r^``gain`` after every step:
    h settles where the two are equal, and r³ keeps it from overshooting, since codes follow a coefficient late.
    Logs ``l0`` and the factor that has come about, ``sparsity_gain``.

    Raises:
        ValueError: for a target or gain that is not positive, or an objective without sparsity.
    """

    def __init__(self, target: float, gain: float = 0.02) -> None:
        if min(target, gain) <= 0:
            raise ValueError(f"TargetL0: target and gain should be positive, they are {target} and {gain}")
        self.target, self.gain = target, gain

    def after_step(self, loop: Loop, student: Student) -> Record:
        """Move the coefficient."""
        for objective in (student.objective, *(phase.objective for phase in student.later)):
            if "sparsity" not in (term.name for term in objective):
                raise ValueError("TargetL0 moves the coefficient of Sparsity; the objective has none")
        found = mean_of_all(on_per_row(student.trial.code.z).flatten().float())
        # a code that is empty for once should not undo all that was learned of the coefficient
        ratio = min(max(found / self.target, 0.5), 2.0)
        held = student.gain.get("target_l0", 1.0) * ratio**self.gain
        student.gain |= {"target_l0": held, "sparsity": held * ratio**3}
        if loop.step % loop.config.log_every and not loop.over:
            return {}
        return {"l0": found, "sparsity_gain": student.gain["sparsity"]}


@final
class HeldOut(Callback):
    """Every ``every`` steps and after the last one, the fidelity on rows or sequences that are not trained on."""

    def __init__(self, rows: Float[Tensor, "rows d"] | Sequences, every: int) -> None:
        if every < 1:
            raise ValueError(f"HeldOut: every should be at least 1, it is {every}")
        self.rows, self.every = rows, every

    def after_step(self, loop: Loop, student: Student) -> Record:
        """Measure."""
        if loop.step % self.every and not loop.over:
            return {}
        found = row_fidelity(student.what, self.rows)
        columns = ("explained_variance", "l0", "alive", "shrinkage")
        return {f"held_out_{name}": getattr(found, name) for name in columns}


@final
class EarlyStopping(Callback):
    """Ends a fit when held-out rows or sequences have been explained no better for ``patience`` looks, ``every`` steps.

    The parameters of the best look come back, with what is followed beside them, also where the steps ran out. Logs
    ``held_out_explained_variance``. The rate falls with the steps that were planned, so a fit that ends early has not
    cooled down.

    Raises:
        ValueError: for numbers below one, or a fit of several students, who would not end together.
    """

    def __init__(self, rows: Float[Tensor, "rows d"] | Sequences, every: int, patience: int = 3) -> None:
        if every < 1 or patience < 1:
            raise ValueError(f"EarlyStopping: every and patience should be at least 1, they are {every} and {patience}")
        self.rows, self.every, self.patience = rows, every, patience
        self._best, self._worse = dict[str, Tensor](), 0
        self._score = -math.inf

    def after_step(self, loop: Loop, student: Student) -> Record:
        """Look, and remember the best."""
        if len(loop.students) > 1:
            raise ValueError(f"EarlyStopping ends the fit of one student; this one has {len(loop.students)}")
        if loop.step % self.every and not loop.over:
            return {}
        found = row_fidelity(student.what, self.rows).explained_variance
        self._worse = 0 if found > self._score else self._worse + 1
        if found > self._score:
            self._score = found
            self._best = {name: item.clone() for name, item in student.what.state_dict().items()}
        loop.finished = loop.finished or self._worse >= self.patience
        if loop.over and self._best:
            student.what.load_state_dict(self._best)
        return {"held_out_explained_variance": found}

    def state(self) -> State:
        """The best look, and how many were no better since."""
        return {"best": self._best, "worse": self._worse, "score": self._score} if self._best else {}

    def restore(self, state: State) -> None:
        """Continue."""
        self._best, self._worse, self._score = state["best"], state["worse"], state["score"]


@final
class Measure(Callback):
    """Every ``every`` steps and after the last one, whatever a function tells about a student."""

    def __init__(self, judge: Callable[[Student], Record], every: int) -> None:
        if every < 1:
            raise ValueError(f"Measure: every should be at least 1, it is {every}")
        self.judge, self.every = judge, every

    def after_step(self, loop: Loop, student: Student) -> Record:
        """Measure."""
        return {} if loop.step % self.every and not loop.over else self.judge(student)


@final
class Checkpoint(Callback):
    """Every ``every`` steps and after the last one, a snapshot from which the fit continues bit for bit.

    If there is a snapshot already, the fit continues from it, with the ``state`` of its callbacks. A fit that diverges
    ends with an error that names the last snapshot, which holds finite numbers only. Of several processes the
    first one writes.

    Raises:
        ValueError: if the snapshot was written by another fit, naming what differs.
    """

    def __init__(self, path: Path, every: int) -> None:
        if every < 1:
            raise ValueError(f"Checkpoint: every should be at least 1, it is {every}")
        self.path, self.every = path, every

    def resume(self, loop: Loop) -> None:
        """Continue from the snapshot, if there is one."""
        if not self.path.exists():
            return
        state = load_state(self.path)
        for name, own in _settings(loop).items():
            if state.get(name) != own:
                raise ValueError(
                    f"{self.path} has another {name}: {state.get(name)}, not {own}; remove it or follow it"
                )
        for student, saved in zip(loop.students, state["students"], strict=True):
            student.what.load_state_dict(saved["what"])
            student.optimizer.load_state_dict(saved["optimizer"])
            student.gain = saved["gain"]
        for name, callback in _named(loop.callbacks).items():
            if (saved := state.get("callbacks", {}).get(name)) is not None:
                callback.restore(saved)
        loop.trials.restore(state["trials"])
        loop.step, loop.history, loop.finished = state["step"], state["history"], state["finished"]
        set_random_state(state["random"])

    def during(self, loop: Loop) -> AbstractContextManager[object]:
        """A fit that diverges says where it can be continued."""
        return self._named(loop)

    def close_step(self, loop: Loop, records: Sequence[Record]) -> None:  # noqa: ARG002
        """Write the snapshot."""
        if loop.step % self.every and not loop.over:
            return
        for student in loop.students:
            if not all(parameter.isfinite().all() for parameter in student.what.parameters()):
                raise Diverged(f"the parameters of {student.name or 'the decomposition'} are not finite")
        students = [
            {"what": s.what.state_dict(), "optimizer": s.optimizer.state_dict(), "gain": s.gain} for s in loop.students
        ]
        state = {
            "step": loop.step,
            "finished": loop.finished,
            "students": students,
            "callbacks": {name: own for name, one in _named(loop.callbacks).items() if (own := one.state())},
            "trials": loop.trials.state(),
            "history": loop.history,
            "random": random_state(),
        }
        if Share.mine().rank == 0:
            save_state(self.path, _settings(loop) | state)

    @contextmanager
    def _named(self, loop: Loop) -> Generator[None]:
        try:
            yield
        except Diverged as error:
            kept = f"the last good snapshot is {self.path}" if self.path.exists() else "there is no snapshot yet"
            raise Diverged(f"{error} ({kept}; the fit stood at step {loop.step})") from None


@final
class Log(Callback):
    """Writes every record as a line of JSON; after an interruption the file is that of an uninterrupted fit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def during(self, loop: Loop) -> AbstractContextManager[object]:
        """The file is open."""
        return self._open(loop)

    def close_step(self, loop: Loop, records: Sequence[Record]) -> None:  # noqa: ARG002
        """Write a line for each."""
        assert self._file is not None
        self._file.writelines(json.dumps(record) + "\n" for record in records)
        if records:
            self._file.flush()

    @contextmanager
    def _open(self, loop: Loop) -> Generator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w") as self._file:
            # the records up to the snapshot; those after it were lost with their steps
            self._file.writelines(json.dumps(record) + "\n" for record in loop.history)
            yield


@final
class Bar(Callback):
    """A progress bar with the latest loss."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(*Progress.get_default_columns(), console=console)
        self._task: TaskID | None = None

    def during(self, loop: Loop) -> AbstractContextManager[object]:
        """The bar is shown."""
        self._task = self._progress.add_task("fit", total=loop.config.steps, completed=loop.step)
        return self._progress

    def close_step(self, loop: Loop, records: Sequence[Record]) -> None:
        """Move on."""
        assert self._task is not None
        losses = [float(record["loss"]) for record in records if "loss" in record]
        if losses:
            mean = sum(losses) / len(losses)
            self._progress.update(self._task, completed=loop.step, description=f"loss {mean:.4f}")


def _dictionary(student: Student) -> Dictionary:
    if not isinstance(student.what, Dictionary):
        raise ValueError(f"this callback is for the training of a Dictionary, not of a {type(student.what).__name__}")
    return student.what


def _named(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Callbacks by class, and by their place among those of one class."""
    classes = [type(callback).__name__ for callback in callbacks]
    return {f"{name} {classes[:i].count(name)}": callbacks[i] for i, name in enumerate(classes)}


def _settings(loop: Loop) -> dict[str, object]:
    students = [
        {
            "name": student.name,
            "site": student.site,
            "what": student.what.settings if isinstance(student.what, Autoencoder) else type(student.what).__name__,
            "rate": student.rate,
            "objective": [term.to_json() for term in student.objective],
            "later": [phase.to_json() for phase in student.later],
        }
        for student in loop.students
    ]
    return {"config": loop.config.to_json(), "objectives": students}
