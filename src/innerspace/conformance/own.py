"""This library under its own laws: paths of modules are sites, and padding is what the ground says."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from jaxtyping import Bool, Int
from torch import Tensor, nn

from innerspace import interventions
from innerspace.conformance.subject import Add, Ground, Inputs, Read, Scale, Seen, Step, greedy
from innerspace.network.model import Family, Model
from innerspace.network.site import Site, Where
from innerspace.network.trace import Intervention, Visit


@final
class GroundFamily(Family):
    """Sites of a ground: its own, or the blocks at some paths that have their width."""

    def __init__(self, ground: Ground, paths: Sequence[str] = ()) -> None:
        self.ground = ground
        self.paths = paths or (*ground.sites, ground.unused)

    def sites(self, module: nn.Module) -> list[Site]:
        """All of them."""
        return [Site(path, path, self.ground.width) for path in self.paths]

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """A pass."""
        return {"y": self.ground.forward(batch)}

    def mask(self, batch: Any, site: Site) -> Bool[Tensor, "..."] | None:
        """Which tokens count."""
        return self.ground.valid(batch)


@final
class Innerspace:
    """The adapter."""

    name = "innerspace"

    def run(self, ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
        """One pass."""
        trace = Model(ground.module, GroundFamily(ground)).run(inputs, _plan(steps))
        reads = [str(i) for i, step in enumerate(steps) if isinstance(step, Read)]
        return Seen(trace.output["y"], tuple(trace.hidden[name] for name in reads))

    def generate(self, ground: Ground, prompt: Int[Tensor, "1 token"], tokens: int, steps: Sequence[Step]) -> Tensor:
        """A generation in which the interventions know how many tokens came before."""
        with Model(ground.module, GroundFamily(ground)).under(_plan(steps), batch={}):
            return greedy(ground, prompt, tokens)


def _plan(steps: Sequence[Step]) -> dict[str, list[Intervention]]:
    plan = dict[str, list[Intervention]]()
    for i, step in enumerate(steps):
        plan.setdefault(step.site, []).append(_intervention(step, str(i)))
    return plan


def _intervention(step: Step, name: str) -> Intervention:
    match step:
        case Read():
            return interventions.Read(name)
        case Add():
            steer = interventions.Steer(step.vector, step.amount)
            everywhere = step.padding and not step.first
            return interventions.At(Where("all" if everywhere else "valid", skip=step.first), steer)
        case Scale():

            def scaled(x: Tensor, visit: Visit) -> Tensor:
                return step.factor * x

            return scaled
