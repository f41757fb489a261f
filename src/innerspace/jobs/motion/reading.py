"""What can be read from the hidden states: probes and collapse, by site and feature, as the report holds them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.learn.online_probes import OnlineProbes
from innerspace.learn.probing import ProbeScore
from innerspace.measure.collapse import Collapse, Compared, collapse
from innerspace.measure.probing import balanced_accuracy
from innerspace.motion.words import UNDEFINED, Labels


def readable(
    labels: Labels, groups: Int[Tensor, "n"], least: int = 10, spread: int = 2
) -> tuple[dict[str, Int[Tensor, "n"]], dict[str, tuple[str, ...]], list[str]]:
    """Labels to probe for: classes with ``least`` members, in at least ``spread`` groups, counted anew.

    Probes need a class in as many groups as the groups are split into parts. Gives the labels, the names of the classes
    that are kept, and a sentence for everything that is left out.
    """
    kept, names, left_out = dict[str, Tensor](), dict[str, tuple[str, ...]](), list[str]()
    for feature in labels.vocabulary.features:
        ids = labels.classes[feature.name]
        new, classes = torch.full_like(ids, UNDEFINED), list[str]()
        for i, name in enumerate(feature.classes):
            here = ids == i
            members, places = int(here.sum()), len(groups[here].unique())
            if members >= least and places >= spread:
                new[here] = len(classes)
                classes.append(name)
            else:
                left_out.append(
                    f"{feature.name} {name!r} is not probed for: {members} members in {places} scenes (or logs), "
                    f"{least} in {spread} are needed"
                )
        if len(classes) < 2:
            left_out.append(f"{feature.name} is not probed for: fewer than two of its words are left")
            continue
        kept[feature.name], names[feature.name] = new, tuple(classes)
    return kept, names, left_out


def probe_section(scores: Sequence[ProbeScore]) -> dict[str, Any]:
    """The probe heat map."""
    return {
        "sites": list(dict.fromkeys(score.site for score in scores)),
        "features": list(dict.fromkeys(score.feature for score in scores)),
        "chance": {score.feature: 1 / score.classes for score in scores},
        "cells": [
            {
                "site": score.site,
                "feature": score.feature,
                "balanced": score.balanced_accuracy.to_json(),
                "accuracy": score.accuracy.to_json(),
                "auroc": score.auroc.to_json(),
                "majority": score.majority.mean,
                "control": score.control.mean,
                "selectivity": score.selectivity.to_json(),
                "compression": score.compression.mean,
                "rows": score.rows,
            }
            for score in scores
        ],
    }


def online_section(
    states: Mapping[str, Float[Tensor, "n d"]],
    labels: Mapping[str, Int[Tensor, "n"]],
    classes: Mapping[str, Sequence[str]],
    fitted: int,
    epochs: int,
) -> dict[str, dict[str, float]]:
    """The paper's online probes: trained on the first ``fitted`` rows, the balanced accuracy on the others.

    A class that has no row among the others does not count.
    """
    probes = OnlineProbes({site: x.shape[1] for site, x in states.items()}, {f: len(c) for f, c in classes.items()})
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(fitted, generator=generator).split(64):
            probes.step({site: x[rows] for site, x in states.items()}, {f: y[rows] for f, y in labels.items()})
    table = dict[str, dict[str, float]]()
    for site, x in states.items():
        for feature, y in labels.items():
            known = (y >= 0) & (torch.arange(len(y)) >= fitted)
            found = balanced_accuracy(probes.probe(site, feature).predict(x[known]), y[known])
            table.setdefault(site, {})[feature] = found
    return table


def measure_collapse(
    states: Mapping[str, Float[Tensor, "n d"]],
    labels: Mapping[str, Int[Tensor, "n"]],
    classes: Mapping[str, Sequence[str]],
    groups: Int[Tensor, "n"],
    seed: int,
) -> list[Collapse]:
    """Collapse of every site towards every feature, each beside labels permuted by scene."""
    generator = torch.Generator().manual_seed(seed)
    return [
        collapse(x, labels[feature], classes[feature], generator, feature=feature, site=site, groups=groups)
        for site, x in states.items()
        for feature in labels
    ]


def collapse_section(found: Sequence[Collapse]) -> list[dict[str, Any]]:
    """The collapse table."""

    def null(compared: Compared) -> dict[str, float]:
        return {"mean": compared.null_mean, "low": compared.null_low, "high": compared.null_high}

    return [
        {
            "site": item.site,
            "feature": item.feature,
            "nc1": item.nc1.value,
            "cdnv": item.cdnv.value,
            "cdnv_ratio_of_means": item.cdnv_ratio_of_means.value,
            "directional_cdnv": item.directional_cdnv.value,
            "std": item.std_of_normalized,
            "null": {
                "nc1": null(item.nc1),
                "cdnv": null(item.cdnv),
                "directional_cdnv": null(item.directional_cdnv),
            },
        }
        for item in found
    ]
