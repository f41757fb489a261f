"""What happens around the steps: unit norms, dead latents, evaluation, snapshots, progress, the log."""

import json
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, final

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor

from innerspace.checkpoint import load_state, random_state, save_state, set_random_state
from innerspace.decompose.dictionary import Dictionary
from innerspace.learn.fit import Callback, Loop, Record
from innerspace.measure.fidelity import row_fidelity


@final
class UnitDecoder(Callback):
    """Keeps the decoder rows of a dictionary at unit norm; every training of a dictionary wants it.

    Raises:
        ValueError: if what is trained is no dictionary.
    """

    def before_step(self, loop: Loop) -> None:
        """Remove the gradient along the rows."""
        _dictionary(loop).project_gradient()

    def after_step(self, loop: Loop) -> Record:
        """Bring the rows back to unit norm."""
        _dictionary(loop).normalize()
        return {}


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

    def after_step(self, loop: Loop) -> Record:
        """Find the dead latents, and let them begin anew."""
        what = _dictionary(loop)
        if loop.step % self.every:
            return {}
        dead = (what.silent >= self.after).nonzero().flatten()
        if len(dead) and loop.step < (1 - loop.config.cooldown) * loop.config.steps:
            error = (loop.trial.clean - loop.trial.reconstruction).detach().flatten(0, -2)
            chance = error.square().sum(-1) + torch.finfo(error.dtype).tiny
            # drawing with replacement would make two latents one
            chosen = torch.multinomial(chance, min(len(dead), len(error)))
            reborn = dead[: len(chosen)]
            what.restart(reborn, error[chosen])
            for parameter in what.by_latent:
                for moment in ("exp_avg", "exp_avg_sq"):
                    loop.optimizer.state[parameter][moment][reborn] = 0
        return {"dead": len(dead) / what.latents}


@final
class HeldOut(Callback):
    """Every ``every`` steps and after the last one, the fidelity on rows that are not trained on."""

    def __init__(self, rows: Float[Tensor, "rows d"], every: int) -> None:
        if every < 1:
            raise ValueError(f"HeldOut: every should be at least 1, it is {every}")
        self.rows, self.every = rows, every

    def after_step(self, loop: Loop) -> Record:
        """Measure."""
        if loop.step % self.every and loop.step < loop.config.steps:
            return {}
        found = row_fidelity(loop.what, self.rows)
        columns = ("explained_variance", "l0", "alive", "shrinkage")
        return {f"held_out_{name}": getattr(found, name) for name in columns}


@final
class Checkpoint(Callback):
    """Every ``every`` steps and after the last one, a snapshot from which the fit continues bit for bit.

    If there is a snapshot already, the fit continues from it. A callback's own numbers are not part of it.

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
        loop.what.load_state_dict(state["what"])
        loop.optimizer.load_state_dict(state["optimizer"])
        loop.trials.restore(state["trials"])
        loop.step, loop.history = state["step"], state["history"]
        set_random_state(state["random"])

    def close_step(self, loop: Loop, record: Record | None) -> None:  # noqa: ARG002
        """Write the snapshot."""
        if loop.step % self.every and loop.step < loop.config.steps:
            return
        state = {
            "step": loop.step,
            "what": loop.what.state_dict(),
            "optimizer": loop.optimizer.state_dict(),
            "trials": loop.trials.state(),
            "history": loop.history,
            "random": random_state(),
        }
        save_state(self.path, _settings(loop) | state)


@final
class Log(Callback):
    """Writes every record as a line of JSON; after an interruption the file is that of an uninterrupted fit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def during(self, loop: Loop) -> AbstractContextManager[object]:
        """The file is open."""
        return self._open(loop)

    def close_step(self, loop: Loop, record: Record | None) -> None:  # noqa: ARG002
        """Write a line."""
        assert self._file is not None
        if record:
            self._file.write(json.dumps(record) + "\n")
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

    def close_step(self, loop: Loop, record: Record | None) -> None:
        """Move on."""
        assert self._task is not None
        if record and "loss" in record:
            self._progress.update(self._task, completed=loop.step, description=f"loss {record['loss']:.4f}")


def _dictionary(loop: Loop) -> Dictionary:
    if not isinstance(loop.what, Dictionary):
        raise ValueError(f"this callback is for the training of a Dictionary, not of a {type(loop.what).__name__}")
    return loop.what


def _settings(loop: Loop) -> dict[str, object]:
    return {"config": loop.config.to_json(), "objective": [term.to_json() for term in loop.objective]}
