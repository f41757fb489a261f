"""Forecasts steered by a sentence: "slower and turn left", asked of a finished run, for every agent by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from innerspace.jobs.finished import Finished
from innerspace.jobs.inputs.parts import chunks
from innerspace.jobs.motion.requests import Answered, Mode, answer, goals, way
from innerspace.jobs.motion.steering import MEASURES
from innerspace.jobs.motion.vectors import FOR_CONTROL
from innerspace.measure.control_loop import Goal, Loop
from innerspace.measure.solving import REACHED, UNDEFINED
from innerspace.motion.framing import Batch, frame
from innerspace.motion.instructions import Instruction, instruct, require, understand
from innerspace.motion.scenes import Scene


@dataclass(frozen=True, eq=False)
class SteeredForecasts:
    """Agents whose forecasts were asked to change.

    ``batch`` holds the agents, ``answered.controlled.output`` their steered forecasts (``trajectory``, ``logits``),
    ``.clean`` the unsteered ones, ``.tau`` the temperatures, one column per instruction.
    """

    instructions: tuple[Instruction, ...]
    goals: list[Goal]
    batch: Batch
    answered: Answered

    def table(self) -> Table:
        """What was asked and what came of it, over the agents with a request: medians, and quartiles in brackets."""
        done, rows = self.answered.controlled, self.answered.controlled.outcome != UNDEFINED
        count = int(rows.sum())
        table = Table("what", "value", title=f"{instruct(self.instructions)}: {count} of {len(rows)} agents")
        if not count:
            table.add_row("nothing to steer", "no agent moves fast enough for a share of its speed to say anything")
            return table
        for i, (one, goal) in enumerate(zip(self.instructions, self.goals, strict=True)):
            asked = f"{one.amount:+g} {one.unit}" if one.kind == "change" else f"to {one.amount:g} {one.unit}"
            got = _in_units(goal, done.before[rows, i], done.after[rows, i])
            table.add_row(f"{one.feature}, requested", asked)
            table.add_row(f"{one.feature}, reached", f"{_spread(got)} {one.unit}")
            table.add_row(f"{one.feature}, τ", _spread(done.tau[rows, i]))
        for name, share in done.shares().items():
            if share or name == "reached":
                table.add_row(name, f"{100 * share:.0f} %")
        table.add_row("change of the state, share of its norm", _spread(done.change[rows]))
        table.add_row("passes through the network", str(done.passes))
        reached = done.outcome == REACHED
        for label, value in self._side_effects(reached).items():
            table.add_row(f"{label}, where reached", value)
        return table

    def _side_effects(self, rows: Tensor) -> dict[str, str]:
        """What else moved: the readouts that were not asked for, and whether the motion can still be driven."""
        before, after = self.answered.before, self.answered.after
        asked = {goal.readout for goal in self.goals}
        found = dict[str, str]()
        if not rows.any():
            return found
        for measure in MEASURES.values():
            if measure.readout not in asked:
                unit = "m/s" if measure.readout == "speed" else measure.unit
                moved = (after[measure.readout] - before[measure.readout])[rows]
                found[f"{measure.readout}, change"] = f"{_spread(moved)} {unit}"
        found["feasible"] = (
            f"{100 * _mean(after['feasible'][rows]):.0f} % (unsteered {100 * _mean(before['feasible'][rows]):.0f} %)"
        )
        found["distance to the unsteered forecast"] = f"{_spread(after['shift'][rows])} m"
        return found


def steer(
    run: Path | Finished,
    scenes: Sequence[Scene],
    text: str,
    *,
    mode: Mode = "additive",
    loop: Loop = Loop(passes=24),
) -> SteeredForecasts:
    """Steer the forecasts of all targets of some scenes by what a text says, each by temperatures of its own.

    Args:
        run: a finished run of Words in motion, or its folder.
        scenes: any scenes of the run's sampling rate.
        text: as ``motion.instructions.understand`` reads it.
        mode: how vectors act on the hidden states.
        loop: how many passes and how much change are allowed.

    Raises:
        ValueError: for a text that is not understood, a feature without a vector, an unknown mode, or a folder that
            holds no complete run.
    """
    instructions = understand(text)
    way(mode)
    finished = run if isinstance(run, Finished) else Finished.load(run, FOR_CONTROL)
    require(instructions, [name for name in finished.vectors if name in MEASURES])
    batch = frame(scenes, finished.job.forecaster.framing)
    asked = goals(instructions, finished.job.steering.moving)
    along = torch.cat([finished.vectors[one.feature].directions for one in instructions])
    answered = answer(finished.model, finished.site, chunks(batch), None, along, asked, mode, loop)
    return SteeredForecasts(instructions, asked, batch, answered)


def _in_units(goal: Goal, before: Float[Tensor, "rows"], after: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    """What became of a readout, in the unit in which it was asked for."""
    match goal.kind:
        case "relative":
            return 100 * (after / before - 1)
        case "difference":
            return after - before
        case "value":
            return after


def _spread(values: Float[Tensor, "rows"]) -> str:
    known = values[values.isfinite()].double()
    if not len(known):
        return "–"
    low, middle, high = torch.quantile(known, torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    return f"{middle:+.3g} [{low:+.3g}, {high:+.3g}]"


def _mean(values: Float[Tensor, "rows"]) -> float:
    return float(values.double().mean())
