"""Ways out of local minima: pairs of parts are mixed at random while a partition is learned, and the best is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from innerspace.checkpoint import State
from innerspace.decompose.subspaces import Subspaces, random_rotation
from innerspace.learn.dependence import dependence
from innerspace.learn.fit import Callback, Loop, Record, Student
from innerspace.learn.merging import Sampling, subspaces
from innerspace.learn.neighbor_distance import mean_distance
from innerspace.learn.neighbors import Neighborhood
from innerspace.learn.objectives import Objective
from innerspace.learn.trials import Trial

_FEW = Sampling(1024, 8192)


@final
class Perturbing(Callback):
    """Every ``every`` steps until step ``until``, mixes the worst part with a partner; then goes on from the best.

    The part whose neighbors are farthest is turned together with another one by a random rotation. The partner is drawn
    in proportion to its own distance times the dependence between the two, so parts that hold pieces of one another's
    variables are likely. What the objective is before every perturbation tells which partition was best, on rows of the
    first comparison, which serve for all of them and go into snapshots; each perturbation starts from the best, and
    with ``wander`` from the latest, as published. Logs the ``objective`` on these rows and the ``best`` so far.

    Raises:
        ValueError: for a schedule that is not positive, or students that are no subspaces.
    """

    def __init__(self, every: int, until: int, *, wander: bool = False, sampling: Sampling = _FEW) -> None:
        if every < 1 or until < every:
            raise ValueError(f"Perturbing: every should be positive and until no less: {every}, {until}")
        self.every, self.until, self.wander, self.sampling = every, until, wander, sampling
        self._best, self._rows = dict[str, _Best](), dict[str, Neighborhood]()

    def resume(self, loop: Loop) -> None:
        """Refuse what cannot be perturbed."""
        for student in loop.students:
            subspaces(student)

    def state(self) -> State:
        """The best partition of every student, and the rows on which it was found to be that."""
        return {
            name: {
                "value": best.value,
                "rotation": best.rotation,
                "keys": self._rows[name].keys,
                "documents": self._rows[name].key_document,
            }
            for name, best in self._best.items()
        }

    def restore(self, state: State) -> None:
        """The inverse of ``state``."""
        self._best = {name: _Best(one["value"], one["rotation"]) for name, one in state.items()}
        self._rows = {name: self.sampling.among(one["keys"], one["documents"]) for name, one in state.items()}

    @torch.no_grad()
    def after_step(self, loop: Loop, student: Student) -> Record:
        """Compare, and perturb or end with the best, if it is time."""
        last = loop.step == self.until
        if loop.step > self.until or (loop.step % self.every and not last):
            return {}
        what = subspaces(student)
        if student.name not in self._rows:
            self._rows[student.name] = self.sampling.draw(student, 0)
        near = self._rows[student.name]
        objective, _ = student.at(loop.step / loop.config.steps)
        now, best = value(what, near, objective), self._best.get(student.name)
        if best is None or now < best.value:
            best = self._best[student.name] = _Best(now, what.rotation.clone())
        if (last or not self.wander) and best.value < now:
            what.settle()
            what.base.copy_(best.rotation)
            loop.reset_optimizer(student)
        if not last and len(what.sizes) > 1:
            generator = torch.Generator().manual_seed(self.sampling.seed + (loop.step << 32))
            pair = _pair(mean_distance(what, near), dependence(what, near).information, generator)
            perturb(student, pair, generator)
        return {"objective": now, "best": best.value}


@torch.no_grad()
def value(what: Subspaces, near: Neighborhood, objective: Objective) -> float:
    """What an objective is on some rows."""
    code = what.encode(near.queries)
    trial = Trial(near.queries, near.queries, code, what, near.keys.var(0).sum(), neighborhood=near)
    return sum(float(term(trial)) for term in objective)


@torch.no_grad()
def perturb(student: Student, pair: tuple[int, int], generator: torch.Generator) -> None:
    """Turn two parts together evenly at random; the optimizer forgets what it knew of their coordinates."""
    what = subspaces(student)
    what.turn_together(pair, random_rotation(sum(what.sizes[part] for part in pair), generator))
    forget(student, pair)


@torch.no_grad()
def forget(student: Student, parts: Sequence[int]) -> None:
    """Set the optimizer's moments of the coordinates of some parts to zero."""
    what = subspaces(student)
    moved = torch.isin(what.member, torch.tensor(parts, device=what.member.device))
    state = student.optimizer.state.get(what.turn, {})
    for moment in ("exp_avg", "exp_avg_sq"):
        if moment in state:
            state[moment][moved] = 0
            state[moment][:, moved] = 0


@dataclass(frozen=True, eq=False)
class _Best:
    value: float
    rotation: Tensor


def _pair(distance: Tensor, information: Tensor, generator: torch.Generator) -> tuple[int, int]:
    """The part with the largest distance, and a partner by chance."""
    worst = int(distance.argmax())
    weight = (distance.double() * information[worst].clamp(min=0)).nan_to_num(nan=0).cpu()
    if not weight.sum() > 0:
        weight = torch.ones_like(weight)
        weight[worst] = 0
    return worst, int(torch.multinomial(weight, 1, generator=generator))
