"""Requests of motion: what is asked of forecasts, in which way they are steered, and what else moves meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.interventions import Steer
from innerspace.jobs.motion.steering import MEASURES
from innerspace.measure.control_loop import Controlled, Goal, Loop, Via, control, joined
from innerspace.measure.forecasts import readout
from innerspace.motion.framing import Batch
from innerspace.motion.instructions import Instruction
from innerspace.network.model import Fork, Model
from innerspace.network.trace import Intervention
from innerspace.steering_modes import KeepNorm, Rotate

Mode = Literal["additive", "norm-preserving", "angular"]

TOLERANCES = {"%": 2.0, "m/s": 0.1, "m/s²": 0.1, "°": 2.0}
"""How near counts as reached."""


def _rescaled(along: Tensor, by: Any) -> Intervention:
    return KeepNorm(Steer(along, by))


MODES: dict[Mode, Via] = {"additive": Steer, "norm-preserving": _rescaled, "angular": Rotate}
"""What is done with vectors and temperatures: x + c, the same at the length of x, or an arc towards c."""


def way(mode: str) -> Via:
    """The way of steering of that name.

    Raises:
        ValueError: if there is none, naming those there are.
    """
    found = {str(name): via for name, via in MODES.items()}
    if mode not in found:
        raise ValueError(f"unknown mode {mode!r}; possible are {', '.join(found)}")
    return found[mode]


def goals(instructions: Sequence[Instruction], moving: float) -> list[Goal]:
    """What the loop is asked for; shares of a speed are asked of agents that move at ``moving`` m/s or more."""
    found = list[Goal]()
    for one in instructions:
        name, tolerance = MEASURES[one.feature].readout, TOLERANCES[one.unit]
        if one.kind == "set":
            found.append(Goal(name, one.amount, "value", tolerance))
        elif one.unit == "%":
            found.append(Goal(name, one.amount, "relative", tolerance, moving))
        else:
            found.append(Goal(name, one.amount, "difference", tolerance))
    return found


@dataclass(frozen=True, eq=False)
class Answered:
    """Rows under the loop with all readouts of their forecasts, unsteered (``before``) and steered (``after``)."""

    controlled: Controlled
    before: dict[str, Float[Tensor, "rows"]]
    after: dict[str, Float[Tensor, "rows"]]


def answer(
    model: Model,
    site: str,
    batches: Sequence[Batch],
    forks: Sequence[Fork] | None,
    along: Float[Tensor, "k d"],
    asked: Sequence[Goal],
    mode: Mode,
    loop: Loop,
) -> Answered:
    """Let every row of the batches reach what is asked; ``forks`` are their unsteered passes, where there are any."""
    with torch.no_grad():
        forks = forks or [model.fork(batch, site) for batch in batches]
    parts = [
        control(model, batch, site, along, asked, readout, loop, via=way(mode), fork=fork)
        for batch, fork in zip(batches, forks, strict=True)
    ]
    return Answered(
        joined(parts),
        _read([readout(part.clean, part.clean, batch) for part, batch in zip(parts, batches, strict=True)]),
        _read([readout(part.output, part.clean, batch) for part, batch in zip(parts, batches, strict=True)]),
    )


def _read(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
