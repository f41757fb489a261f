"""Linear probes on frozen states, fitted many at once: logistic regression for classes, ridge for quantities.

The inputs are standardized for the fit, and the standardization is folded back: a probe is an affine readout of raw
hidden states, and the rows of its weight are directions there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.learn.newton import Problem, solve
from innerspace.value import Value


@dataclass(frozen=True)
class LogisticSettings(Value):
    """Multinomial logistic regression with an L2 penalty.

    ``penalty`` weighs ½‖W‖² against the cross-entropy summed over the rows, W in standardized coordinates. It is
    scikit-learn's 1/C, or its 2/C for two classes, of which scikit-learn penalizes only the difference.
    ``bias_penalty`` does the same for the intercepts. ``balanced`` gives every class the same total weight. The fit
    ends where the objective is estimated to be within ``tolerance`` (nats per row) of its optimum, or, with a
    warning, after ``steps`` evaluations.
    """

    penalty: float = 1.0
    bias_penalty: float = 0.0
    balanced: bool = True
    tolerance: float = 1e-7
    steps: int = 300

    def __post_init__(self) -> None:
        for name, value in (("penalty", self.penalty), ("tolerance", self.tolerance), ("steps", self.steps)):
            if not value > 0:
                raise ValueError(f"logistic probes: {name} should be positive, it is {value}")
        if not self.bias_penalty >= 0:
            raise ValueError(f"logistic probes: bias_penalty should not be negative, it is {self.bias_penalty}")


@dataclass(frozen=True, eq=False)
class Probe:
    """An affine readout of hidden states, in their raw coordinates: one row of ``weight`` per class or quantity."""

    weight: Float[Tensor, "outputs d"]
    bias: Float[Tensor, "outputs"]

    def scores(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows outputs"]:
        """The logits of the classes, or the predicted quantities."""
        return x.to(self.weight.dtype) @ self.weight.T + self.bias

    def predict(self, x: Float[Tensor, "*rows d"]) -> Int[Tensor, "*rows"]:
        """The most likely class."""
        return self.scores(x).argmax(-1)


def fit_logistic(
    x: Float[Tensor, "n d"],
    labels: Mapping[str, Int[Tensor, "_"]],
    train: Bool[Tensor, "splits n"] | None = None,
    settings: LogisticSettings | None = None,
    classes: Mapping[str, int] | None = None,
) -> dict[str, list[Probe]]:
    """One probe per feature and split, all in one solve.

    A label is 0 … C − 1, or −1 where the feature is undefined: such rows are left out. ``train`` marks the rows each
    split is trained on (all of them, once, if it is not given). Each probe is the optimum that a regression on its own
    standardized training rows has; what the splits share only makes the way there shorter. ``classes`` gives the
    number of classes where the labels need not show all of them.

    Raises:
        ValueError: for states that are not finite, for labels that do not fit the states or skip a class, and for a
            class without training rows in some split, unless ``bias_penalty`` keeps its intercept finite.
    """
    settings = settings or LogisticSettings()
    check_states(x, "the states")
    train = torch.ones(1, len(x), dtype=torch.bool, device=x.device) if train is None else train.to(x.device)
    labels = {feature: label.to(x.device, torch.long) for feature, label in labels.items()}
    groups = dict[tuple[int, bytes], list[str]]()
    for feature, label in labels.items():
        count = check_labels(feature, label, len(x), (classes or {}).get(feature))
        _check_training(feature, label, train, count, allow_absent=settings.bias_penalty > 0)
        # features with the same classes and the same rows are solved together
        groups.setdefault((count, (label >= 0).cpu().numpy().tobytes()), []).append(feature)
    probes = dict[str, list[Probe]]()
    for (count, _), features in groups.items():
        label = torch.stack([labels[feature] for feature in features])
        rows = label[0] >= 0
        part = slice(None) if rows.all() else rows
        fitted = _fit_group(x[part], label[:, part], train[:, part], count, settings)
        probes |= dict(zip(features, fitted, strict=True))
    return {feature: probes[feature] for feature in labels}


def fit_ridge(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n quantities"],
    train: Bool[Tensor, "splits n"] | None = None,
    penalty: float = 1.0,
) -> list[Probe]:
    """One regression probe per split, in closed form: minimize Σ_i ‖y_i − W z_i − b‖² + penalty ‖W‖².

    z is x standardized by the training rows of the split. Every row enters one Gram matrix of rows that the splits
    treat alike, and each split adds up those it is trained on.

    Raises:
        ValueError: for states or quantities that are not finite, a penalty that is not positive, or a split without
            training rows.
    """
    check_states(x, "the states")
    check_states(y, "the quantities")
    if not penalty > 0:
        raise ValueError(f"ridge probes: penalty should be positive, it is {penalty}")
    train = torch.ones(1, len(x), dtype=torch.bool, device=x.device) if train is None else train.to(x.device)
    if not train.any(1).all():
        raise ValueError(f"ridge probes: split {int(train.any(1).int().argmin())} has no training rows")
    z, mean, deviation = _standardize(x)
    center = y.mean(0)
    both = torch.cat((z, y - center), 1)
    patterns, pattern = train.unique(dim=1, return_inverse=True)
    parts = [both[pattern == i] for i in range(patterns.shape[1])]
    member = patterns.double()
    gram = torch.tensordot(member, torch.stack([(part.T @ part).double() for part in parts]), 1)
    mean_s = torch.tensordot(member, torch.stack([part.double().sum(0) for part in parts]), 1)
    count = train.sum(1).double()[:, None]
    mean_s /= count
    gram -= count[..., None] * mean_s[:, :, None] * mean_s[:, None, :]
    d = x.shape[1]
    # the split's own standardization is only another metric for the penalty
    variance = gram.diagonal(dim1=1, dim2=2)[:, :d] / count
    metric = torch.where(variance > 0, variance, deviation.double().square().reciprocal())
    weight = torch.linalg.solve(gram[:, :d, :d] + penalty * torch.diag_embed(metric), gram[:, :d, d:]).mT
    bias = mean_s[:, d:] - (weight @ mean_s[:, :d, None])[..., 0]
    return [_unstandardized(w, b + center.double(), mean, deviation) for w, b in zip(weight, bias, strict=True)]


def check_states(x: Float[Tensor, "n d"], name: str) -> None:
    """Refuse rows that no probe can be fitted on.

    Raises:
        ValueError: if there is no row, or one holds a value that is not finite.
    """
    if len(x) == 0:
        raise ValueError(f"{name} have no rows")
    finite = x.isfinite().all(1)
    if not finite.all():
        bad = int((~finite).sum())
        first = int(finite.int().argmin())
        raise ValueError(f"{name} hold values that are not finite in {bad} of {len(x)} rows, first in row {first}")


def check_labels(feature: str, label: Int[Tensor, "_"], rows: int, classes: int | None) -> int:
    """The number of classes of a feature.

    Raises:
        ValueError: if the labels do not fit the rows, are out of range, or all of one class.
    """
    if len(label) != rows:
        raise ValueError(f"feature {feature!r} has {len(label)} labels, there are {rows} states")
    low, high = (int(label.min()), int(label.max())) if rows else (-1, -1)
    if high < 0:
        raise ValueError(f"feature {feature!r} is defined nowhere: all {rows} labels are −1")
    count = high + 1 if classes is None else classes
    if low < -1 or high >= count:
        raise ValueError(
            f"feature {feature!r} has labels {low} … {high}; possible are 0 … {count - 1}, −1 if undefined"
        )
    if count < 2 or (classes is None and label[label >= 0].unique().numel() < 2):
        raise ValueError(f"feature {feature!r} shows only class {high}: a probe needs two classes at least")
    return count


def _check_training(
    feature: str, label: Int[Tensor, "n"], train: Bool[Tensor, "splits n"], classes: int, allow_absent: bool
) -> None:
    for split, rows in enumerate(train):
        members = torch.bincount(label[rows & (label >= 0)], minlength=classes)
        if not members.any():
            raise ValueError(f"feature {feature!r} is defined on no training row of split {split}")
        if not (allow_absent or members.all()):
            raise ValueError(
                f"feature {feature!r}: class {int(members.argmin())} has no training rows in split {split}; rows per"
                f" class are {members.tolist()}: merge it with another class, or mark it undefined (−1)"
            )


def _fit_group(
    x: Float[Tensor, "n d"],
    label: Int[Tensor, "features n"],
    train: Bool[Tensor, "splits n"],
    classes: int,
    settings: LogisticSettings,
) -> list[list[Probe]]:
    """Probes of features that have the same number of classes and are defined on the same rows."""
    z, mean, deviation = _standardize(x)
    mask = train.to(z.dtype)
    count = mask.sum(1, keepdim=True)
    # the split's own standardization is only another metric for the penalty
    variance = (mask @ z.square()) / count - ((mask @ z) / count).square()
    metric = torch.where(variance > 10 * torch.finfo(z.dtype).eps, variance, deviation.square().reciprocal())
    penalty = torch.cat((settings.penalty * metric, torch.full_like(count, settings.bias_penalty)), 1) / count
    weight = (mask / count).expand(len(label), -1, -1)
    if settings.balanced:
        size = torch.stack([torch.stack([torch.bincount(y[rows], minlength=classes) for rows in train]) for y in label])
        share = count / (classes * size.clamp_min(1))
        weight = weight * share.gather(2, label[:, None].expand(-1, len(train), -1))
    problem = Problem(
        z=torch.cat((z, z.new_ones(len(z), 1)), 1),
        label=label,
        weight=weight,
        penalty=penalty.double().expand(len(label), -1, -1),
        classes=classes,
    )
    theta = solve(problem, settings.tolerance, settings.steps).permute(1, 2, 0, 3)
    return [
        [_unstandardized(one[:, :-1], one[:, -1], mean, deviation) for one in feature.unbind()]
        for feature in theta.unbind()
    ]


def _standardize(
    x: Float[Tensor, "n d"],
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Rows of mean zero and variance one, at least in single precision; what is constant becomes zero."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    variance, mean = torch.var_mean(x, 0, correction=0)
    deviation = variance.sqrt()
    deviation[deviation <= 10 * torch.finfo(x.dtype).eps * mean.abs()] = 1
    return (x - mean) / deviation, mean, deviation


def _unstandardized(weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor) -> Probe:
    raw = weight / deviation.double()
    return Probe(raw.to(mean.dtype), (bias - raw @ mean.double()).to(mean.dtype))
