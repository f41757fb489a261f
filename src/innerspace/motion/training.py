"""Train a forecaster: winner takes all, a held-out loss, checkpoints, and an exact continuation.

Everything random follows from the seed and the step, so that a run that was interrupted ends with the same bits as one
that was not. Several processes that ``torchrun`` started share the rows of every batch out; together they take the
steps of one.
"""

import dataclasses
import json
import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from innerspace.checkpoint import load_state, random_state, save_state, set_random_state
from innerspace.motion.forecast_metrics import Forecast, ForecastScores, constant_velocity, score
from innerspace.motion.framing import Batch
from innerspace.motion.losses import Loss, losses
from innerspace.motion.scene_store import StoredAgents
from innerspace.motion.suppression import few
from innerspace.parallel import Share, add_up, all_rows, from_first
from innerspace.value import Json, Value


@dataclass(frozen=True)
class Training(Value):
    """How a forecaster is trained: AdamW, a linear warm-up, then a cosine down to zero.

    ``drop_history`` is the probability that a history step of the target, never the current one, is hidden in training.
    ``clip`` bounds the norm of the gradient. ``batch_size`` is that of all processes together.
    """

    steps: int = 2500
    batch_size: int = 64
    learning_rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    drop_history: float = 0.1
    loss: Loss = field(default_factory=Loss)
    evaluate_every: int = 250
    checkpoint_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"training: {name} should be at least 1, it is {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training: {name} should be positive, it is {getattr(self, name)}")
        if self.warm_up < 0 or self.weight_decay < 0:
            raise ValueError("training: warm_up and weight_decay should not be negative")
        if not 0 <= self.drop_history < 1:
            raise ValueError(f"training: drop_history should be in [0, 1), it is {self.drop_history}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(self.steps - self.warm_up, 1)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Evaluation(Value):
    """A point of the learning curve: losses in nats, the error of the best of the K forecasts in meters.

    ``loss`` is the mean over the training steps since the point before.
    """

    step: int
    loss: float
    held_out: float
    min_ade: float


@dataclass(frozen=True, eq=False)
class Trained:
    """A forecaster with the weights of its lowest held-out loss, how it came there, and how good it is.

    ``scores`` and those of constant velocity, ``baseline``, are of the held-out rows.
    """

    model: nn.Module
    curve: tuple[Evaluation, ...]
    scores: ForecastScores
    baseline: ForecastScores


def forecast(model: nn.Module, batch: Batch, chunk: int = 512) -> dict[str, Tensor]:
    """The forecaster's output for a batch of any size, without gradient, in evaluation mode, on the batch's device."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        parts = [model(batch[slice(start, start + chunk)].to(device)) for start in range(0, len(batch), chunk)]
    model.train(was_training)
    return {name: torch.cat([part[name] for part in parts]).to(batch.future.device) for name in parts[0]}


def evaluate(model: nn.Module, batch: Batch, loss: Loss | None = None) -> tuple[float, ForecastScores]:
    """The loss on a batch, and the errors of the forecasts, of which more than six modes are reduced to six."""
    return _judged(forecast(model, batch), batch, loss or Loss())


def _judged(output: Mapping[str, Tensor], batch: Batch, loss: Loss) -> tuple[float, ForecastScores]:
    modes = few(Forecast(output["trajectory"], output["logits"].softmax(-1)), batch.target.kind)
    return losses(output, batch, loss).mean().item(), score(modes, batch.future, batch.future_valid)


def train(
    model: nn.Module,
    training: Batch | StoredAgents,
    held_out: Batch,
    settings: Training | None = None,
    folder: Path | None = None,
) -> Trained:
    """Train a forecaster in place and give it the weights of its lowest held-out loss.

    Agents of a store are read and framed batch by batch; the same agents in memory train it to the same bits.

    With a folder, the learning curve goes to ``log.jsonl`` and snapshots to ``training.safetensors``, from which the
    same call goes on. Of several processes, which should give the same rows and settings, each has the trained
    forecaster at the end and the first one writes.

    Raises:
        ValueError: for a batch without waypoints or with fewer rows than processes, a snapshot of another run, or a
            loss that is not finite.
    """
    settings, world = settings or Training(), Share.mine().world
    if (fewest := min(settings.batch_size, len(training), len(held_out))) < world:
        raise ValueError(f"{world} processes need as many rows of every batch and of what is held out, not {fewest}")
    for name, batch in (("training", training), ("held-out", held_out)):
        if isinstance(batch, Batch) and not batch.future_valid.any():
            raise ValueError(f"the {name} batch of {len(batch)} rows has no valid waypoint")
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        rows = training.to(device) if isinstance(training, Batch) else training
        run = _Run(model, rows, held_out.to(device), settings, folder)
        run.restore()
        run.finish()
    model.load_state_dict(run.weights)
    baseline = score(constant_velocity(held_out), held_out.future, held_out.future_valid)
    return Trained(model, tuple(run.curve), run.judged()[1], baseline)


class _Run:
    """A training run between two snapshots."""

    def __init__(
        self,
        model: nn.Module,
        training: Batch | StoredAgents,
        held_out: Batch,
        settings: Training,
        folder: Path | None,
    ) -> None:
        self.model, self.training, self.held_out = model, training, held_out
        self.settings, self.folder = settings, folder
        self.share, self.device = Share.mine(), next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.step = 0
        self.since = list[float]()
        self.curve = list[Evaluation]()
        self.weights = dict[str, Tensor]()

    def finish(self) -> None:
        """Take the remaining steps."""
        console = Console(stderr=True)
        with Progress(
            console=console, transient=True, disable=self.share.rank > 0 or not console.is_terminal
        ) as progress:
            task = progress.add_task("training", total=self.settings.steps, completed=self.step)
            self.model.train()
            while self.step < self.settings.steps:
                self._advance()
                last = self.step == self.settings.steps
                if last or self.step % self.settings.evaluate_every == 0:
                    point = self._evaluate()
                    progress.update(task, description=f"training, held-out loss {point.held_out:.2f}")
                if last or self.step % self.settings.checkpoint_every == 0:
                    self._save()
                progress.update(task, completed=self.step)
            self.model.eval()

    def _advance(self) -> None:
        settings, rows = self.settings, self._rows()
        batch = self.training[self.share.of(rows)].to(self.device)
        hidden = self._hidden(len(rows), batch.target.valid.shape[1])
        batch = _without(batch, self.share.of(hidden))
        with self._own_noise():
            output = self.model(batch)
        loss = losses(output, batch, settings.loss).mean(all_rows(batch.future_valid.float()) > 0)
        self.optimizer.zero_grad()
        loss.backward()
        cost = loss.detach()
        add_up([cost, *(p.grad for p in self.model.parameters() if p.grad is not None)])
        if not cost.isfinite():
            raise ValueError(
                f"the loss is {cost.item()} at step {self.step}; a lower learning rate than "
                f"{settings.learning_rate} may help, and the data should be finite"
            )
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        self.optimizer.step()
        self.since.append(cost.item())
        self.step += 1

    def _rows(self) -> Int[Tensor, "rows"]:
        """The rows of a step: every epoch in an order of its own, which follows from the seed."""
        size = min(self.settings.batch_size, len(self.training))
        epoch, place = divmod(self.step, len(self.training) // size)
        generator = torch.Generator().manual_seed(1_000_003 * self.settings.seed + epoch)
        order = torch.randperm(len(self.training), generator=generator)
        return order[place * size : (place + 1) * size].to(self.device)

    def _hidden(self, count: int, steps: int) -> Bool[Tensor, "rows steps"]:
        """Which history steps of the whole batch are hidden, never the current one."""
        # of several processes only the generators of the processor are known to agree
        drawn = torch.rand((count, steps), device=self.device if self.share.world == 1 else "cpu").to(self.device)
        hidden = drawn < self.settings.drop_history
        hidden[:, -1] = False
        return hidden

    @contextmanager
    def _own_noise(self) -> Generator[None]:
        """Inside, each of several processes drops out by noise of its own, and none of the common noise is used up."""
        if self.share.world == 1:
            yield
            return
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed((1_000_003 * self.settings.seed + self.step) * self.share.world + self.share.rank)
            yield

    def judged(self) -> tuple[float, ForecastScores]:
        """The held-out loss, and the errors of the forecasts, for which processes share the rows out."""
        own = self.held_out[slice(self.share.rank, None, self.share.world)]
        rows = len(self.held_out)
        output = {
            name: all_rows(item.flatten(1)).view(rows, *item.shape[1:])
            for name, item in forecast(self.model, own).items()
        }
        return _judged(output, self.held_out, self.settings.loss)

    def _evaluate(self) -> Evaluation:
        held_out, scores = self.judged()
        point = Evaluation(self.step, sum(self.since) / len(self.since), held_out, scores.min_ade)
        if all(held_out < former.held_out for former in self.curve):
            self.weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.since = []
        self.curve.append(point)
        if self.folder is not None and self.share.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps({key: entry for key, entry in p.to_json().items() if key != "class"}) for p in self.curve
            ]
            (self.folder / "log.jsonl").write_text("\n".join(lines) + "\n")
        return point

    def _identity(self) -> dict[str, Json]:
        return {
            "settings": self.settings.to_json(),
            "rows": [len(self.training), len(self.held_out)],
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

    def _save(self) -> None:
        if self.folder is None or self.share.rank > 0:
            return
        state = {
            "identity": self._identity(),
            "step": self.step,
            "since": self.since,
            "curve": [point.to_json() for point in self.curve],
            "model": self.model.state_dict(),
            "weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(),
        }
        save_state(self.folder / "training.safetensors", state)

    def restore(self) -> None:
        """Go on from the folder's snapshot, if there is one; all processes begin with the weights of the first."""
        self._restore()
        from_first(list(self.model.state_dict().values()))

    def _restore(self) -> None:
        path = None if self.folder is None else self.folder / "training.safetensors"
        if path is None or not path.is_file():
            return
        state = load_state(path)
        if state["identity"] != self._identity():
            raise ValueError(
                f"{path} belongs to a run with {state['identity']}, not {self._identity()}; give another folder"
            )
        self.step, self.since = state["step"], state["since"]
        self.curve = [Evaluation.from_json(point) for point in state["curve"]]
        self.weights = state["weights"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"])


def _without(batch: Batch, hidden: Bool[Tensor, "rows steps"]) -> Batch:
    """The batch without some history steps of the targets."""
    target = dataclasses.replace(batch.target, valid=batch.target.valid & ~hidden)
    return dataclasses.replace(batch, target=target)
