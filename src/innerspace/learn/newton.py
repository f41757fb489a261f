"""Many multinomial logistic regressions on the same rows at once, by quasi-Newton steps that share every product.

Problem (f, s) fits feature f on the training rows of split s. With z the standardized row, extended by a one,

    minimize over θ:  1/W Σ_i ω_i · −log softmax(θ z_i)[y_i]  +  ½ Σ_d penalty_d ‖θ_d‖²,      W = Σ_i ω_i.

All problems are evaluated together: one product with the rows gives every logit, a second one every gradient. The
metric is the class-block diagonal of the Hessian, estimated once per feature on a sample of rows and shared by its
splits; L-BFGS corrects what it misses. Splits of the same rows have nearly the same optimum, so every feature is
first solved once on all rows, and its splits start there. The objective is strictly convex up to a common shift of the
biases: where the steps start decides how many there are, not where they end.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 4096
"""Rows evaluated at a time on a CPU: the logits of a chunk stay in the cache."""
SAMPLE = 8192
"""Rows from which a metric is estimated."""
MEMORY = 10
"""Steps that L-BFGS remembers."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Logistic regressions that share their rows.

    ``z`` holds the rows with a last column of ones; ``weight`` is zero where a row is not trained on and sums to one
    over the rows; ``penalty`` is the penalty of each coordinate.
    """

    z: Float[Tensor, "n D"]
    label: Int[Tensor, "features n"]
    weight: Float[Tensor, "features splits n"]
    penalty: Float[Tensor, "features splits D"]
    classes: int

    def pooled(self) -> "Problem":
        """Every feature once, on all rows that any of its splits is trained on."""
        return replace(self, weight=self.weight.mean(1, True), penalty=self.penalty.mean(1, True))

    def every(self, stride: int) -> "Problem":
        """The same problems on a fraction of the rows."""
        weight = self.weight[..., ::stride]
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        return replace(self, z=self.z[::stride], label=self.label[:, ::stride], weight=weight)


def solve(problem: Problem, tolerance: float, steps: int) -> Float[Tensor, "classes features splits D"]:
    """The weights of every problem, to an estimated excess of the objective of at most ``tolerance`` (nats per row).

    Warns:
        RuntimeWarning: if some problem is further from its optimum after ``steps`` evaluations.
    """
    features, splits, rows = problem.weight.shape
    theta = problem.penalty.new_zeros(problem.classes, features, 1, problem.z.shape[1])
    sample = problem.pooled().every(max(rows // SAMPLE, 1))
    metric = _metric(sample, theta)
    # the sample's optimum is no closer than this to that of all rows
    for coarse in (1e-2, 1e-3):
        theta, _ = _minimize(sample, theta, metric, coarse, steps)
        metric = _metric(sample, theta)
    if splits > 1:
        theta, _ = _minimize(problem.pooled(), theta, metric, 1e-5, steps)
        metric = _metric(sample, theta)
        theta = theta.expand(-1, -1, splits, -1)
    theta, excess = _minimize(problem, theta, metric, tolerance, steps)
    if (worst := float(excess.max())) > tolerance:
        warnings.warn(
            f"a probe is still {worst:.1e} nats per row from its optimum after {steps} steps; {tolerance:.1e} was"
            " asked: allow more steps, or penalize more",
            RuntimeWarning,
            stacklevel=3,
        )
    return theta


def _minimize(
    problem: Problem,
    theta: Float[Tensor, "classes features splits D"],
    metric: Float[Tensor, "classes features D D"],
    tolerance: float,
    steps: int,
) -> tuple[Float[Tensor, "classes features splits D"], Float[Tensor, "features splits"]]:
    """L-BFGS in the given inverse metric, with a step length of its own for each problem; also the excess left."""
    value, gradient = _evaluate(problem, theta)
    # what rounding can change in a sum of this size is no rise
    noise = torch.finfo(problem.z.dtype).eps * value.abs()
    changes = list[tuple[Tensor, Tensor, Tensor]]()
    length = torch.ones_like(value)
    step = _precondition(gradient, metric)
    excess, direction = _dot(gradient, step) / 2, -step
    for _ in range(steps):
        active = excess > tolerance
        if not active.any():
            break
        trial = theta + length[..., None] * active[..., None] * direction
        trial_value, trial_gradient = _evaluate(problem, trial)
        slope = _dot(gradient, direction)
        fell = (trial_value <= value + 1e-4 * length * slope + noise) & active
        move = fell[..., None]
        change, bend = (trial - theta) * move, (trial_gradient - gradient) * move
        theta = torch.where(move, trial, theta)
        gradient = torch.where(move, trial_gradient, gradient)
        value = torch.where(fell, trial_value, value)
        length = torch.where(fell, 1.0, length / 2)
        curvature = _dot(change, bend)
        inverse = torch.where(curvature > 0, 1 / curvature, 0.0)
        changes = [*changes[-MEMORY + 1 :], (change, bend, inverse)]
        excess = _dot(gradient, _precondition(gradient, metric)) / 2
        direction = -_two_loops(gradient, changes, metric)
    return theta, excess


def _two_loops(gradient: Tensor, changes: list[tuple[Tensor, Tensor, Tensor]], metric: Tensor) -> Tensor:
    """The inverse L-BFGS Hessian times a vector (Nocedal and Wright, algorithm 7.4)."""
    q, alphas = gradient, list[Tensor]()
    for change, bend, inverse in reversed(changes):
        alphas.append(inverse * _dot(change, q))
        q = q - alphas[-1][..., None] * bend
    r = _precondition(q, metric)
    for (change, bend, inverse), alpha in zip(changes, reversed(alphas), strict=True):
        r = r + (alpha - inverse * _dot(bend, r))[..., None] * change
    return r


def _precondition(gradient: Tensor, metric: Tensor) -> Tensor:
    """The inverse metric on the weights whose sum over the classes is zero.

    A common shift of all classes changes only the penalty, and the optimum has none: off this subspace, the way back
    is endless.
    """
    step = (gradient - gradient.mean(0)) @ metric
    return step - step.mean(0)


def _evaluate(
    problem: Problem, theta: Float[Tensor, "classes features splits D"]
) -> tuple[Float[Tensor, "features splits"], Float[Tensor, "classes features splits D"]]:
    """Objective and gradient of every problem."""
    value = (problem.penalty * theta.square()).sum((0, -1)) / 2
    gradient = problem.penalty * theta
    flat = theta.flatten(0, 2).to(problem.z.dtype)
    for z, label, weight in _chunks(problem):
        logits = (flat @ z.T).view(*theta.shape[:3], -1)
        target = label[None, :, None].expand(1, *logits.shape[1:])
        logits -= logits.amax(0)
        picked = logits.gather(0, target)[0]
        exponential = logits.exp_()
        total = exponential.sum(0)
        value += (weight * (total.log() - picked)).sum(-1, dtype=value.dtype)
        residual = exponential.mul_(weight / total)
        residual.scatter_add_(0, target, -weight[None])
        gradient += (residual.flatten(0, 2) @ z).view_as(theta)
    return value, gradient


def _metric(problem: Problem, theta: Float[Tensor, "classes features 1 D"]) -> Float[Tensor, "classes features D D"]:
    """The inverses of the Hessian's class blocks, C/(C − 1) Σ_i ω_i p_ic (1 − p_ic) z_i z_iᵀ + diag(penalty).

    The factor stands for the blocks between classes: on weights that sum to zero it makes the metric exact for two
    classes, and for any number of them where all are equally likely.
    """
    blocks = torch.diag_embed(problem.penalty[:, 0]).repeat(problem.classes, 1, 1, 1)
    flat = theta.flatten(0, 2).to(problem.z.dtype)
    for z, _, weight in _chunks(problem):
        p = (flat @ z.T).view(*theta.shape[:2], -1).softmax(0)
        curvature = problem.classes / (problem.classes - 1) * weight[:, 0] * p * (1 - p)
        for c, f in torch.cartesian_prod(*(torch.arange(size) for size in theta.shape[:2])).tolist():
            blocks[c, f] += (z.T * curvature[c, f]) @ z
    # the products are rounded, and a sample may have fewer rows than there are coordinates
    diagonal = blocks.diagonal(dim1=-2, dim2=-1)
    diagonal += 10 * torch.finfo(problem.z.dtype).eps * diagonal.amax(-1, keepdim=True)
    return torch.cholesky_inverse(torch.linalg.cholesky(blocks))


def _chunks(problem: Problem) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    size = CHUNK if problem.z.device.type == "cpu" else 16 * CHUNK
    label = problem.label.clamp_min(0)
    for start in range(0, len(problem.z), size):
        rows = slice(start, start + size)
        yield problem.z[rows], label[:, rows], problem.weight[..., rows]


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, "features splits"]:
    return (a * b).sum((0, -1))
