"""A forecaster of your own: trained, read in words, given a control vector, steered, and calibrated.

``Network`` stands for yours: a recurrent encoder of the history, and a perceptron that makes six ways of its last
state. ``Recurrent`` is all that has to be said of it. Simulated traffic, offline, in seconds:
``python examples/own_forecaster.py``.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

import innerspace as ins
from innerspace.learn.probing import ProbingSettings, probe
from innerspace.measure.forecasts import readout
from innerspace.measure.steering import calibrate, respond
from innerspace.motion.forecasters.forecaster import forecasts
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.simulate import Simulation, simulate
from innerspace.motion.training import Training, train
from innerspace.motion.words import SPEED, Vocabulary, label

FRAMING, MODES, WIDTH = Framing(), 6, 64


class Network(nn.Module):
    """Any module will do that maps a ``Batch`` to ``trajectory``, ``scale`` and ``logits``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(6, WIDTH), nn.GELU())
        self.memory = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.ways = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, MODES * (5 * FRAMING.waypoints + 1)))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Six ways with their probabilities, in meters in the frame of the agent."""
        past = batch.target
        facing = torch.stack((past.heading.cos(), past.heading.sin()), -1)
        steps = torch.cat((past.position / 10, past.velocity / 10, facing), -1) * past.valid[..., None]
        states, _ = self.memory(self.embed(steps))
        numbers = self.ways(states[:, -1]).unflatten(-1, (MODES, -1))
        # five numbers for each waypoint, the way and its uncertainty, and one for each way
        return {**forecasts(numbers[..., 1:], batch.interval), "logits": numbers[..., 0]}


class Recurrent(ins.Family):
    """Where the network's hidden states are, how it is called, and which of its tokens are padding."""

    def sites(self, module: nn.Module) -> list[ins.Site]:
        """The state behind every step of the history; a module's path and the width are all that is needed."""
        return [ins.Site("memory", module="memory", width=WIDTH)]

    def forward(self, module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The network's own answer; what is named otherwise there would be renamed here."""
        return module(batch)

    def mask(self, batch: Batch, site: ins.Site) -> Bool[Tensor, "batch steps"]:
        """The steps at which the agent was seen."""
        return batch.target.valid


def scenes(count: int, seed: int) -> Batch:
    """Simulated traffic, in which speed does not depend on an agent's type."""
    return frame(simulate(Simulation(scenes=count, seed=seed)).scenes, FRAMING)


def main() -> None:
    """Train, read, steer, calibrate."""
    learned, fit, test = scenes(1000, 0), scenes(300, 1), scenes(200, 2)  # nothing is judged on what it was fitted to

    # 1. train it; a network that is trained already goes to Model as it is
    torch.manual_seed(0)
    network = Network()
    trained = train(network, learned, fit, Training(steps=600, evaluate_every=200, checkpoint_every=600))
    model = ins.Model(network, Recurrent())
    print(model)
    print(f"minADE {trained.scores.min_ade:.2f} m, constant velocity {trained.baseline.min_ade:.2f} m")

    # 2. read its hidden states in words; this network does not see of which type an agent is, and none is read
    words = label(fit.target, fit.dt, Vocabulary())
    rows = ins.gather(model, [fit], ["memory"], ins.TokenRule()).states["memory"]  # the last valid step of each agent
    for score in probe({"memory": rows}, words.classes, fit.scene, ProbingSettings(seeds=2)):
        read, control = score.balanced_accuracy.mean, score.control.mean
        print(f"{score.feature:<12} read with balanced accuracy {read:.2f}, labels that mean nothing {control:.2f}")

    # 3. from opposing words to a control vector; τ = 1 is the gap between the means of "low" and "high"
    origin = ins.Origin("speed", positive=SPEED.positive, negative=SPEED.negative, site="memory")
    vector = ins.contrast(rows, words.classes["speed"], SPEED.classes, origin)

    # 4. steer forecasts that it was not fitted to, and calibrate; random directions of equal norm stand beside it
    tau, generator = torch.arange(-3, 4) / 10, torch.Generator().manual_seed(0)
    steered = respond(model, [test], "memory", vector.directions[0], tau, readout, test.scene)
    curve = calibrate(steered["speed"], kind="relative", minimum=1.0)
    turned = calibrate(steered["heading"], kind="difference")
    others = list[Tensor]()
    for _ in range(8):
        along = vector.random_like(generator).directions[0]
        moved = respond(model, [test], "memory", along, tau, readout, test.scene)["speed"]
        others.append(torch.tensor([point.mean for point in calibrate(moved, kind="relative", minimum=1.0).response]))
    chance = torch.stack(others).square().mean(0).sqrt().tolist()

    print(f"speed vector: Pearson {curve.pearson.mean:.3f}, straightness {curve.straightness.mean:.3f}")
    print("     τ   mean speed, % (95 %)         random, root mean square   heading, °")
    for amount, speed, by_chance, heading in zip(curve.tau, curve.response, chance, turned.response, strict=True):
        interval = f"({speed.low:+6.1f} to {speed.high:+6.1f})"
        print(f"{amount:+6.3f}   {speed.mean:+6.1f} {interval}   {by_chance:24.1f}   {heading.mean:+10.1f}")


if __name__ == "__main__":
    main()
