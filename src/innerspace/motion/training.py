"""Train a forecaster: winner takes all, a held-out loss, checkpoints, and an exact continuation.

Of the K forecasts only the one nearest to what happened is pulled towards it, by the likelihood of a normal
distribution around each waypoint; a cross entropy teaches the confidences which one that will be. Everything random
follows from the seed and the step, so that a run that was interrupted ends with the same bits as one that was not.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from innerspace.checkpoint import load_state, random_state, save_state, set_random_state
from innerspace.motion.forecast_metrics import Forecast, ForecastScores, constant_velocity, score
from innerspace.motion.framing import Batch
from innerspace.value import Json, Value


@dataclass(frozen=True)
class Training(Value):
    """How a forecaster is trained: AdamW, a linear warm-up, then a cosine down to zero.

    ``drop_history`` is the probability that a history step of the target, never the current one, is hidden in training.
    ``clip`` bounds the norm of the gradient.
    """

    steps: int = 2500
    batch_size: int = 64
    learning_rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    drop_history: float = 0.1
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


class Losses(NamedTuple):
    """The parts of the loss, each row's own; zero for rows without a valid waypoint.

    ``likelihood`` is the negative log likelihood of the winner summed over its valid waypoints, ``choice`` the cross
    entropy of the confidences, ``distance`` the winner's displacement (m) summed over its valid waypoints.
    """

    likelihood: Float[Tensor, "batch"]
    choice: Float[Tensor, "batch"]
    distance: Float[Tensor, "batch"]
    winner: Int[Tensor, "batch"]
    waypoints: Int[Tensor, "batch"]

    def mean(self) -> Float[Tensor, ""]:
        """Likelihood per valid waypoint plus cross entropy per row that has one."""
        rows = (self.waypoints > 0).sum().clamp_min(1)
        return self.likelihood.sum() / self.waypoints.sum().clamp_min(1) + self.choice.sum() / rows


def losses(output: Mapping[str, Tensor], batch: Batch) -> Losses:
    """What the forecasts cost; only the one nearest to the truth is judged (hard winner takes all).

    With L = [[eᵃ, 0], [c, eᵇ]] and z = L⁻¹ (y − ŷ), a waypoint costs a + b + ‖z‖²/2 + log 2π.
    """
    valid = batch.future_valid
    offset = batch.future[:, None] - output["trajectory"]
    distance = (offset.detach().norm(dim=-1) * valid[:, None]).sum(-1)
    nearest, winner = distance.min(1)
    row = torch.arange(len(winner), device=winner.device)
    x, y = offset[row, winner].unbind(-1)
    a, b, c = output["scale"][row, winner].unbind(-1)
    u = x * (-a).exp()
    v = (y - c * u) * (-b).exp()
    cost = a + b + (u.square() + v.square()) / 2 + math.log(2 * math.pi)
    counts = valid.sum(1)
    choice = torch.nn.functional.cross_entropy(output["logits"], winner, reduction="none")
    return Losses(torch.where(valid, cost, 0).sum(1), choice * (counts > 0), nearest, winner, counts)


def forecast(model: nn.Module, batch: Batch, chunk: int = 512) -> dict[str, Tensor]:
    """The forecaster's output for a batch of any size, without gradient, in evaluation mode, on the batch's device."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        parts = [model(batch[slice(start, start + chunk)].to(device)) for start in range(0, len(batch), chunk)]
    model.train(was_training)
    return {name: torch.cat([part[name] for part in parts]).to(batch.future.device) for name in parts[0]}


def evaluate(model: nn.Module, batch: Batch) -> tuple[float, ForecastScores]:
    """The loss on a batch, and the errors of the forecasts."""
    output = forecast(model, batch)
    modes = Forecast(output["trajectory"], output["logits"].softmax(-1))
    return losses(output, batch).mean().item(), score(modes, batch.future, batch.future_valid)


def train(
    model: nn.Module, training: Batch, held_out: Batch, settings: Training | None = None, folder: Path | None = None
) -> Trained:
    """Train a forecaster in place and give it the weights of its lowest held-out loss.

    With a folder, the learning curve goes to ``log.jsonl`` and snapshots to ``training.safetensors``, from which the
    same call goes on.

    Raises:
        ValueError: for a batch without waypoints, a snapshot of another run, or a loss that is not finite.
    """
    settings = settings or Training()
    for name, batch in (("training", training), ("held-out", held_out)):
        if not batch.future_valid.any():
            raise ValueError(f"the {name} batch of {len(batch)} rows has no valid waypoint")
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        run = _Run(model, training.to(device), held_out.to(device), settings, folder)
        run.restore()
        run.finish()
    model.load_state_dict(run.weights)
    baseline = score(constant_velocity(held_out), held_out.future, held_out.future_valid)
    return Trained(model, tuple(run.curve), evaluate(model, held_out)[1], baseline)


class _Run:
    """A training run between two snapshots."""

    def __init__(
        self, model: nn.Module, training: Batch, held_out: Batch, settings: Training, folder: Path | None
    ) -> None:
        self.model, self.training, self.held_out = model, training, held_out
        self.settings, self.folder = settings, folder
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
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
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
        settings = self.settings
        batch = _hide_history(self.training[self._rows()], settings.drop_history)
        loss = losses(self.model(batch), batch).mean()
        if not loss.isfinite():
            raise ValueError(
                f"the loss is {loss.item()} at step {self.step}; a lower learning rate than "
                f"{settings.learning_rate} may help, and the data should be finite"
            )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        self.optimizer.step()
        self.since.append(loss.item())
        self.step += 1

    def _rows(self) -> Int[Tensor, "rows"]:
        """The rows of a step: every epoch in an order of its own, which follows from the seed."""
        size = min(self.settings.batch_size, len(self.training))
        epoch, place = divmod(self.step, len(self.training) // size)
        generator = torch.Generator().manual_seed(1_000_003 * self.settings.seed + epoch)
        order = torch.randperm(len(self.training), generator=generator)
        return order[place * size : (place + 1) * size].to(self.training.scene.device)

    def _evaluate(self) -> Evaluation:
        held_out, scores = evaluate(self.model, self.held_out)
        point = Evaluation(self.step, sum(self.since) / len(self.since), held_out, scores.min_ade)
        if all(held_out < former.held_out for former in self.curve):
            self.weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.since = []
        self.curve.append(point)
        if self.folder is not None:
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
        if self.folder is None:
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
        """Go on from the folder's snapshot, if there is one."""
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


def _hide_history(batch: Batch, probability: float) -> Batch:
    hidden = torch.rand(batch.target.valid.shape, device=batch.scene.device) < probability
    hidden[:, -1] = False
    target = dataclasses.replace(batch.target, valid=batch.target.valid & ~hidden)
    return dataclasses.replace(batch, target=target)
