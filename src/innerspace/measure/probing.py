"""How well classes are read: accuracy, balanced accuracy, AUROC, confusion, and intervals over repeated splits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.measure.estimate import Estimate, over_seeds
from innerspace.value import Value


@dataclass(frozen=True)
class Classification(Value):
    """How well scores tell classes apart; ``majority`` is the accuracy of always naming the largest class."""

    accuracy: float
    balanced_accuracy: float
    auroc: float
    majority: float


def classify(logits: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]) -> Classification:
    """Every score of one readout, on rows that it was not fitted on; undefined rows (−1) are left out.

    Raises:
        ValueError: if a class has no member among the rows.
    """
    logits, labels = logits[labels >= 0], labels[labels >= 0]
    predicted = logits.argmax(1)
    return Classification(
        accuracy=accuracy(predicted, labels),
        balanced_accuracy=balanced_accuracy(predicted, labels),
        auroc=auroc(logits.double().log_softmax(1), labels),
        majority=majority(labels),
    )


def confusion(predicted: Int[Tensor, "n"], labels: Int[Tensor, "n"], classes: int) -> Int[Tensor, "classes classes"]:
    """How many rows of a class (first axis) were taken for which (second axis)."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def accuracy(predicted: Int[Tensor, "n"], labels: Int[Tensor, "n"]) -> float:
    """The fraction of rows that are right."""
    return float((predicted == labels).double().mean())


def balanced_accuracy(predicted: Int[Tensor, "n"], labels: Int[Tensor, "n"]) -> float:
    """The mean over the classes that occur of the fraction of their rows that are right; 1/C for a constant guess."""
    counts = confusion(predicted, labels, int(torch.maximum(predicted, labels).max()) + 1).double()
    present = counts.sum(1) > 0
    return float((counts.diagonal() / counts.sum(1))[present].mean())


def majority(labels: Int[Tensor, "n"]) -> float:
    """The accuracy of always naming the largest class."""
    return int(torch.bincount(labels).max()) / len(labels)


def auroc(scores: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]) -> float:
    """The area under the ROC curve, one class against the rest, averaged over the classes.

    The area of class c is the chance that a row of c has a higher score of c than a row of another class, ties counted
    half (Mann and Whitney). Scores of different rows are compared, so they should be (log-)probabilities, not logits.

    Raises:
        ValueError: if a class has no member among the rows, or all of them.
    """
    areas = list[float]()
    for c, score in enumerate(scores.unbind(1)):
        member = labels == c
        positive, negative = int(member.sum()), int((~member).sum())
        if not (positive and negative):
            raise ValueError(f"the AUROC of class {c} is undefined: {positive} of {len(labels)} rows are its members")
        _, level, size = score.unique(return_inverse=True, return_counts=True)
        # twice the mean rank of each level of ties: whole numbers, so nothing is rounded
        rank = 2 * size.cumsum(0) - size + 1
        twice = int(rank[level][member].sum()) - positive * (positive + 1)
        areas.append(twice / (2 * positive * negative))
    return sum(areas) / len(areas)


def r_squared(predicted: Float[Tensor, "n quantities"], target: Float[Tensor, "n quantities"]) -> list[float]:
    """The explained fraction of each quantity's variance, 1 − Σ (y − ŷ)² / Σ (y − ȳ)².

    Raises:
        ValueError: if a quantity is constant.
    """
    total = (target - target.mean(0)).double().square().sum(0)
    if not (total > 0).all():
        raise ValueError(f"quantity {int(total.argmin())} is constant: there is no variance to explain")
    return (1 - (target - predicted).double().square().sum(0) / total).tolist()


def over_splits(samples: Sequence[float], overlap: float) -> Estimate:
    """Mean over J random splits of the same rows with the interval mean ± t √(1/J + overlap) s.

    Such splits share most of their training rows, so their scores vary less than those of fresh rows would.
    ``overlap``, the ratio of held-out to training rows, makes up for it (Nadeau and Bengio, Inference for the
    generalization error, 2003). A single split has no interval.

    Raises:
        ValueError: if there is no sample.
    """
    plain = over_seeds(samples)
    if plain.high is None:
        return plain
    half = (plain.high - plain.mean) * math.sqrt(1 + len(samples) * overlap)
    return Estimate(plain.mean, plain.mean - half, plain.mean + half)
