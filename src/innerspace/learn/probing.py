"""What can be read from hidden states, and where: every feature at every site, on held-out scenes, beside baselines.

Each seed holds out a random part of the scenes. Besides the scores on them, three numbers guard against fooling
oneself. The *majority* baseline is what ignoring the state scores. The *control task* (Hewitt and Liang 2019) asks the
same probe for labels that mean nothing: each state belongs to a cell, and each cell has a random label. A linguistic
control labels word types; hidden states have none, so a cell is a Voronoi cell: all states that are closest in
direction to one of some randomly drawn states. As with word types, the label is a function of the input alone, is the
same for held-out scenes, and can only be memorized. Its classes are equally frequent: scored by balanced accuracy, task
and control then have the same chance level, and no control class is too rare to be learned. *Selectivity* is the gap
between the two: a probe with so much capacity, or so few rows, that it could learn anything has none. The *online
code* (Voita and Titov 2020) asks how short the labels become when they are sent in growing blocks, each coded by a
probe fitted on those before it. *Compression* is how many times shorter that is than log C per label; states that say
nothing reach log C over the entropy of the labels, which is 1 for equally frequent classes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from innerspace.learn.probes import LogisticSettings, Probe, check_labels, check_states, fit_logistic
from innerspace.measure.estimate import Estimate
from innerspace.measure.probing import Classification, balanced_accuracy, classify, over_splits
from innerspace.value import Value

FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Where the blocks of the online code end."""


@dataclass(frozen=True)
class ProbingSettings(Value):
    """The protocol: ``seeds`` random splits, each of which holds out one of ``parts`` equal parts of the scenes.

    ``cells`` is the number of cells of the control task; there are fewer where a cell would have less than ten rows.
    """

    seeds: int = 5
    parts: int = 5
    cells: int = 512
    logistic: LogisticSettings = LogisticSettings()

    def __post_init__(self) -> None:
        for name, value, least in (("seeds", self.seeds, 1), ("parts", self.parts, 2), ("cells", self.cells, 2)):
            if value < least:
                raise ValueError(f"probing: {name} should be at least {least}, it is {value}")


@dataclass(frozen=True)
class ProbeScore(Value):
    """How well one feature is read at one site, over the seeds; everything is measured on held-out scenes.

    ``majority`` is the accuracy of always naming the largest class; the chance level of the balanced accuracy is one
    over ``classes``. ``control`` is the balanced accuracy on the control task, ``selectivity`` the gap to it.
    """

    site: str
    feature: str
    rows: int
    classes: int
    balanced_accuracy: Estimate
    accuracy: Estimate
    auroc: Estimate
    majority: Estimate
    control: Estimate
    selectivity: Estimate
    compression: Estimate


def probe(
    states: Mapping[str, Float[Tensor, "n _"]],
    labels: Mapping[str, Int[Tensor, "_"]],
    scenes: Int[Tensor, "n"],
    settings: ProbingSettings | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> list[ProbeScore]:
    """Score every feature at every site.

    Args:
        states: the hidden states of each site, one row per sample.
        labels: the class of each sample by feature, −1 where it is undefined.
        scenes: what must not be torn apart by a split, per sample.
        settings: the protocol.
        classes: the names of each feature's classes, for messages; without them the labels tell how many there are.

    Raises:
        ValueError: before any work, for states that are not finite, labels that do not fit them, a class without
            members, and a class in too few scenes to be both trained on and held out.
    """
    settings = settings or ProbingSettings()
    for site, x in states.items():
        check_states(x, f"the states of {site!r}")
    counts = _check_classes(labels, scenes, settings.parts, classes or {})
    folds = [deal_scenes(scenes, labels, settings.parts, seed) for seed in range(settings.seeds)]
    held_out = torch.stack(folds) == 0
    for seed, test in enumerate(held_out):
        _check_split(labels, counts, test, seed)
    return [
        score
        for site, x in states.items()
        for score in _probe_site(site, x, labels, counts, scenes, held_out, settings)
    ]


def deal_scenes(
    scenes: Int[Tensor, "n"], labels: Mapping[str, Int[Tensor, "n"]], parts: int, seed: int
) -> Int[Tensor, "n"]:
    """The part of each row, 0 … parts − 1: scenes stay whole, and rare classes are spread as evenly as can be.

    Scenes are dealt like cards, in random order but those with the rarest class first.
    """
    generator = torch.Generator().manual_seed(seed)
    _, scene = scenes.cpu().unique(return_inverse=True)
    count = int(scene.max()) + 1
    present = torch.cat([_presence(scene, label.cpu(), count) for label in labels.values()], 1)
    rarity = present.sum(0).argsort(stable=True).argsort()
    rank = torch.where(present, rarity, len(rarity)).amin(1)
    shuffled = torch.randperm(count, generator=generator)
    order = shuffled[rank[shuffled].argsort(stable=True)]
    part = torch.empty(count, dtype=torch.long)
    part[order] = torch.randperm(parts, generator=generator)[torch.arange(count) % parts]
    return part[scene].to(scenes.device)


def control_labels(x: Float[Tensor, "n d"], classes: int, cells: int, seed: int) -> Int[Tensor, "n"]:
    """A random class for each cell of states, each class for equally many cells.

    Directions are compared after standardization: among lengths, the few states near the mean would be closest to all.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = max(min(cells, len(x) // 10), classes)
    anchors = torch.randperm(len(x), generator=generator)[:cells].to(x.device)
    deviation, mean = torch.std_mean(x, 0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1)
    directions = torch.nn.functional.normalize((x[anchors] - mean) / deviation)
    cell = torch.cat([((chunk - mean) / deviation @ directions.T).argmax(1) for chunk in x.split(4096)])
    label = torch.arange(cells)[torch.randperm(cells, generator=generator)] % classes
    return label.to(x.device)[cell]


def online_code(
    x: Float[Tensor, "n d"],
    labels: Mapping[str, Int[Tensor, "n"]],
    scenes: Int[Tensor, "n"],
    classes: Mapping[str, int],
    settings: LogisticSettings,
    seed: int,
) -> dict[str, float]:
    """The compression of each feature's labels: the length of the uniform code over that of the online code.

    The scenes are sent in random order, in blocks that end at ``FRACTIONS`` of the rows and never within a scene. Each
    block is coded by a probe fitted on all rows before it, the first one uniformly. Probes of the code weigh all rows
    alike and penalize the intercepts too, so that a class not seen so far has a finite code.
    """
    generator = torch.Generator().manual_seed(seed)
    _, scene = scenes.cpu().unique(return_inverse=True)
    turn = torch.randperm(int(scene.max()) + 1, generator=generator)[scene]
    turn, order = turn.sort(stable=True)
    ends = torch.tensor([math.ceil(fraction * len(x)) for fraction in FRACTIONS])
    bounds = sorted(set(torch.searchsorted(turn, turn[ends - 1], right=True).tolist()))
    x, sent = x[order.to(x.device)], {feature: label[order.to(label.device)] for feature, label in labels.items()}
    unweighted = replace(settings, balanced=False, bias_penalty=settings.penalty)
    bits = dict.fromkeys(labels, 0.0)
    for start, stop in pairwise([0, *bounds]):
        known = {feature: label[:start] for feature, label in sent.items() if (label[:start] >= 0).any()}
        probes = fit_logistic(x[:start], known, settings=unweighted, classes=classes) if known else {}
        for feature, label in sent.items():
            new = label[start:stop]
            if feature in probes:
                nats = _cross_entropy(probes[feature][0], x[start:stop], new)
            else:
                nats = int((new >= 0).sum()) * math.log(classes[feature])
            bits[feature] += nats / math.log(2)
    return {f: int((label >= 0).sum()) * math.log2(classes[f]) / bits[f] for f, label in labels.items()}


def _probe_site(
    site: str,
    x: Float[Tensor, "n d"],
    labels: Mapping[str, Int[Tensor, "n"]],
    counts: Mapping[str, int],
    scenes: Int[Tensor, "n"],
    held_out: Bool[Tensor, "seeds n"],
    settings: ProbingSettings,
) -> list[ProbeScore]:
    scenes, held_out = scenes.to(x.device), held_out.to(x.device)
    labels = {feature: label.to(x.device) for feature, label in labels.items()}
    fitted = fit_logistic(x, labels, ~held_out, settings.logistic, counts)
    results = {feature: list[_Result]() for feature in labels}
    for seed, test in enumerate(held_out):
        random = {count: control_labels(x, count, settings.cells, seed) for count in sorted(set(counts.values()))}
        nonsense = {f: torch.where(label >= 0, random[counts[f]], -1) for f, label in labels.items()}
        controls = fit_logistic(x, nonsense, ~test[None], settings.logistic, counts)
        sent = {feature: label[~test] for feature, label in labels.items()}
        compression = online_code(x[~test], sent, scenes[~test], counts, settings.logistic, seed)
        for feature, label in labels.items():
            rows = test & (label >= 0)
            scores = classify(fitted[feature][seed].scores(x[rows]), label[rows])
            control = balanced_accuracy(controls[feature][0].predict(x[rows]), nonsense[feature][rows])
            results[feature].append(_Result(scores, control, compression[feature]))

    def over(values: Iterable[float]) -> Estimate:
        return over_splits(list(values), overlap=1 / (settings.parts - 1))

    return [
        ProbeScore(
            site=site,
            feature=feature,
            rows=int((labels[feature] >= 0).sum()),
            classes=counts[feature],
            balanced_accuracy=over(r.scores.balanced_accuracy for r in result),
            accuracy=over(r.scores.accuracy for r in result),
            auroc=over(r.scores.auroc for r in result),
            majority=over(r.scores.majority for r in result),
            control=over(r.control for r in result),
            selectivity=over(r.scores.balanced_accuracy - r.control for r in result),
            compression=over(r.compression for r in result),
        )
        for feature, result in results.items()
    ]


class _Result(NamedTuple):
    """One feature at one site under one seed."""

    scores: Classification
    control: float
    compression: float


def _check_classes(
    labels: Mapping[str, Int[Tensor, "_"]],
    scenes: Int[Tensor, "n"],
    parts: int,
    classes: Mapping[str, Sequence[str]],
) -> dict[str, int]:
    """The number of classes of each feature, each of which must occur in as many scenes as there are parts."""
    _, scene = scenes.cpu().unique(return_inverse=True)
    groups = int(scene.max()) + 1
    if groups < parts:
        raise ValueError(
            f"{groups} scenes cannot be split into {parts} parts: give more scenes, or ask for fewer parts"
        )
    counts = dict[str, int]()
    for feature, label in labels.items():
        names = classes.get(feature)
        counts[feature] = check_labels(feature, label, len(scenes), None if names is None else len(names))
        spread = _presence(scene, label.cpu(), groups, counts[feature]).sum(0)
        if (least := int(spread.min())) < parts:
            c = int(spread.argmin())
            name = f"class {c}" if names is None else f"class {c} ({names[c]!r})"
            raise ValueError(
                f"feature {feature!r}: {name} occurs in {least or 'none'} of {groups} scenes, {parts} at least are"
                " needed to train on it and to hold it out: merge it with another class, or mark it undefined (−1)"
            )
    return counts


def _check_split(
    labels: Mapping[str, Int[Tensor, "n"]], counts: Mapping[str, int], test: Bool[Tensor, "n"], seed: int
) -> None:
    for feature, label in labels.items():
        for side, rows in (("trained on", ~test), ("held out", test)):
            members = torch.bincount(label[rows & (label >= 0)], minlength=counts[feature])
            if not members.all():
                raise ValueError(
                    f"feature {feature!r}: with seed {seed}, no row of class {int(members.argmin())} is {side}: merge"
                    " it with another class, mark it undefined (−1), or ask for fewer parts"
                )


def _presence(
    scene: Int[Tensor, "n"], label: Int[Tensor, "n"], scenes: int, classes: int | None = None
) -> Bool[Tensor, "scenes classes"]:
    """Which class occurs in which scene."""
    present = torch.zeros(scenes, classes or int(label.max()) + 1, dtype=torch.bool)
    defined = label >= 0
    present[scene[defined], label[defined]] = True
    return present


def _cross_entropy(probe: Probe, x: Float[Tensor, "n d"], label: Int[Tensor, "n"]) -> float:
    return float(torch.nn.functional.cross_entropy(probe.scores(x).double(), label, ignore_index=-1, reduction="sum"))
