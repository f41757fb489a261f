"""A report on subspaces of the size and the shape of a true one, made of arithmetic and a seeded generator."""

import math
from functools import cache
from typing import Any

import numpy as np

from innerspace.report.page import render
from report.mock_dictionaries import TEXT, around

Report = dict[str, Any]

SIZES = {"resid.1": (16, 12, 12, 8, 8, 4, 4), "resid.3": (20, 12, 8, 8, 8, 4, 4)}
METHODS = ("NDM", "identity", "random", "PCA, small first", "PCA, large first", "ICA", "dictionary clusters", "DAS")
LABELS = {"token": 12, "previous token": 12, "position": 8, "in a quotation": 2}
LEVELS = {"cosine": [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95], "distance": [0.9, 0.7, 0.5, 0.35, 0.25, 0.15]}
SHOW = 8


def mock_subspaces(queries: int = 12, states: int = 300) -> Report:
    """Every section of subspaces, with numbers that behave as such numbers do."""
    rng = np.random.default_rng(0)
    return {
        "title": "Subspaces of a small language model",
        "question": "Do the parts of a partition that was learned without labels carry one variable each?",
        "notes": {"patching": "Held-out prompts, seed 0.", "dependence": "12 800 queries, 98 304 keys."},
        "patching": _patching(rng),
        "part_labels": [_labels(site, LABELS, rng) for site in SIZES],
        "preimages": _preimages(queries, _contexts(states, rng), rng),
        "dependence": [_dependence(site, rng) for site in SIZES],
        "weight_paths": _weights(rng),
        "subspace_training": [_run(site, kind, rng) for site in SIZES for kind in ("fast", "paper")],
    }


def mock_forecaster_subspaces() -> Report:
    """What there is of it for a forecaster: words of motion, and paths instead of contexts."""
    rng = np.random.default_rng(1)
    classes = {"speed": 3, "acceleration": 3, "direction": 4, "agent": 3}
    return {
        "title": "Subspaces of a motion forecaster",
        "part_labels": [_labels("resid.1", classes, rng)],
        "preimages": _preimages(6, [_trip(rng) for _ in range(120)], rng),
    }


@cache
def mock_subspace_page() -> str:
    """The page of the mock report."""
    return render(mock_subspaces())


def parts(site: str) -> list[Report]:
    words = ("current token", "", "previous token", "position", "inside a quotation", "", "")
    return [{"size": size, **({"words": told} if told else {})} for size, told in zip(SIZES[site], words, strict=True)]


def _patching(rng: np.random.Generator) -> Report:
    suites = [
        ("Which name", "name of the subject", "resid.1", 3.81, 0.95, 4),
        ("He or she", "gender of the subject", "resid.3", 4.81, 0.61, 2),
        ("Quotation", "inside or outside of a quotation", "resid.3", 1.97, 0.5, 3),
    ]
    published = {"NDM": 0.71, "identity": 0.21, "random": 0.205, "PCA, small first": 0.375, "PCA, large first": 0.319}

    def gini(mean: float) -> Report:
        return {
            "effect": around(mean, 0.05),
            "per_dimension": around(0.9 * mean, 0.05),
            "per_variance": around(1.05 * mean, 0.06),
            "mean": around(mean, 0.03),
            "normalized": around(1.1 * mean, 0.03),
        }

    def method(name: str, site: str, whole: float, share: float, best: int) -> Report:
        learned = name in ("NDM", "DAS")
        sizes = (4, 60) if name == "DAS" else SIZES[site]
        rest = rng.dirichlet(np.ones(len(sizes))) * (0.2 if learned else 0.8)
        effects = [whole * float(x) for x in rest]
        effects[0 if name == "DAS" else best] += whole * (share if learned else 0.1 * rng.random())
        made = [
            {"size": size, "effect": around(x, 0.06), "necessity": x / whole, "dormant": around(0.1, 0.05)}
            for size, x in zip(sizes, effects, strict=True)
        ]
        known = {"published": {"mean": published[name]}} if name in published else {}
        return {"method": name, "parts": made, "gini": gini(0.7 if learned else 0.25 + 0.1 * rng.random()), **known}

    return {
        "suites": [
            {
                "name": name,
                "variable": variable,
                "site": site,
                "positions": "last token",
                "measure": "drop of the logit difference",
                "prompts": 400,
                "whole": around(whole, 0.1),
                "published_whole": whole,
                "uses": True,
                "methods": [method(one, site, whole, share, best) for one in METHODS],
            }
            for name, variable, site, whole, share, best in suites
        ],
        "overall": [
            {
                "method": name,
                "gini": gini(published.get(name, 0.3)),
                "published": {"mean": published[name]} if name in published else {},
            }
            for name in METHODS
        ],
    }


def _labels(site: str, classes: dict[str, int], rng: np.random.Generator) -> Report:
    count = len(SIZES[site])

    def measure(loss: float) -> Report:
        chance = np.array([1 / c for c in classes.values()])
        random = chance + (1 - chance) * 0.25 * rng.random((count, len(classes)))
        told = random + (0.97 - random) * (rng.random((count, len(classes))) ** 6) - loss
        return {
            "parts": [[around(float(x), 0.02) for x in row] for row in told],
            "random": [[around(float(x), 0.02) for x in row] for row in random],
            "whole": [around(0.97 - loss, 0.01) for _ in classes],
        }

    return {
        "site": site,
        "parts": parts(site),
        "labels": [
            {"name": name, "classes": count, "rows": 4000, "majority": 1.4 / count} for name, count in classes.items()
        ],
        "measures": {"linear": measure(0.0), "neighbors": measure(0.03)},
    }


def _contexts(count: int, rng: np.random.Generator) -> list[Report]:
    pieces = [piece for word in TEXT.split(" ") for piece in (f" {word}",)]
    starts = rng.integers(0, len(pieces) - 22, count)
    return [{"tokens": pieces[start : start + 22], "at": 15} for start in starts.tolist()]


def _trip(rng: np.random.Generator) -> Report:
    speed, turn = float(rng.uniform(0, 15)), float(rng.choice([0.0, 0.0, 0.25, -0.25]))

    def place(t: float) -> list[float]:
        return [speed * math.sin(turn * t) / turn, speed * (1 - math.cos(turn * t)) / turn] if turn else [speed * t, 0]

    words = "turning left" if turn > 0 else "turning right" if turn < 0 else "straight ahead"
    return {
        "caption": f"a <vehicle> {words} at {speed:.0f} m/s",
        "past": [place(t / 10) for t in range(-10, 1)],
        "future": [place(t / 10) for t in range(31)],
    }


def _preimages(queries: int, states: list[Report], rng: np.random.Generator) -> Report:
    edges = np.linspace(-1, 1, 51)

    def hits(low: float, count: int, ordered: bool) -> Report:
        cosine = rng.uniform(low, 1, count)
        cosine = np.sort(cosine)[::-1] if ordered else cosine
        return {
            "state": rng.choice(len(states), count, replace=False).tolist(),
            "cosine": cosine.tolist(),
            "distance": np.sqrt(2 - 2 * cosine).tolist(),
        }

    def part(i: int) -> Report:
        # nothing is close in the last part
        found = hits(0.5, 20, ordered=False) if i < 6 else hits(0.5, 0, ordered=False)
        middle = (edges[1:] + edges[:-1]) / 2
        density = np.exp(-((middle - 0.1) ** 2) / 0.06) + (0.05 * (middle > 0.6) if i < 6 else 0.0)
        every = [sum(value >= level for value in found["cosine"]) for level in LEVELS["cosine"]]
        near = [sum(value <= level for value in found["distance"]) for level in LEVELS["distance"]]
        return {
            "sample": found,
            # all that are close beyond those that were drawn
            "counts": {"cosine": [40 * n for n in every], "distance": [40 * n for n in near]},
            "histogram": np.round(20000 * density / density.sum()).astype(int).tolist(),
            "complement": hits(0.3, SHOW, ordered=True),
        }

    def partition(site: str) -> Report:
        own = parts(site)
        return {
            "site": site,
            "parts": own,
            "shares": [{"cosine": around(0.9 - 0.1 * i, 0.05), "distance": 0.8 - 0.1 * i} for i in range(len(own))],
            "queries": [
                {
                    "considered": 20000,
                    "whole": hits(0.4, SHOW, ordered=True),
                    "parts": [part(i) for i in range(len(own))],
                }
                for _ in range(queries)
            ],
        }

    return {
        "states": states,
        "queries": [{"state": 3 * i, "words": "a name" if i % 2 else ""} for i in range(queries)],
        "levels": LEVELS,
        "default": {"cosine": 0.85, "distance": 0.25},
        "edges": edges.tolist(),
        "show": SHOW,
        "partitions": [partition(site) for site in SIZES],
    }


def _dependence(site: str, rng: np.random.Generator) -> Report:
    count = len(SIZES[site])
    values = rng.gamma(1.2, 0.4, (count, count))
    values[1, 2] = 3.1
    values = np.triu(values, 1) + np.triu(values, 1).T
    p = np.where(values > 1, 0.002, 0.4)
    np.fill_diagonal(p, np.nan)
    tree = [
        {"left": a, "right": b, "height": h}
        for a, b, h in ((1, 2, 0.13), (0, 7, 0.09), (3, 4, 0.06), (8, 9, 0.04), (5, 6, 0.02), (10, 11, 0.01))
    ]
    return {
        "site": site,
        "parts": parts(site),
        "information": [
            [None if i == j else around(float(values[i, j]), 0.05) for j in range(count)] for i in range(count)
        ],
        "p": p.tolist(),
        "baselines": {"identity": around(1.9, 0.1), "random rotation": around(2.8, 0.1)},
        "tree": tree,
        "tree_unit": "nats per dimension",
        "threshold": 0.04,
    }


def _weights(rng: np.random.Generator) -> Report:
    sites = [*SIZES, "resid.4"]
    sizes = {**SIZES, "resid.4": SIZES["resid.3"]}

    def score(source: str, target: str) -> list[list[float]]:
        return (rng.gamma(6, 1 / 6, (len(sizes[target]), len(sizes[source]))) ** 2).tolist()

    paths = [
        {"kind": kind, "source": a, "target": b, "block": block, "head": head, "score": score(a, b)}
        for a, b, blocks in ((sites[0], sites[1], (2, 3)), (sites[1], sites[2], (4,)))
        for kind, block, head in (
            ("stream", None, None),
            *(("mlp", block, None) for block in blocks),
            *(("ov", block, head) for block in blocks for head in range(4)),
        )
    ]
    paths += [
        {"kind": "qk", "source": a, "target": a, "block": block, "head": head, "score": score(a, a)}
        for a, block in ((sites[0], 2), (sites[1], 4))
        for head in range(4)
    ]
    paths[3]["score"][0][2] = 9.5
    touches = [
        {"what": what, "site": sites[0], "block": 2, "head": head, "score": rng.gamma(6, 1 / 6, 7).tolist()}
        for what, head in (("value", 0), ("query", 0), ("key", 0), ("read", None))
    ]
    return {
        "sites": [
            {"site": site, "parts": parts(site) if site in SIZES else [{"size": size} for size in sizes[site]]}
            for site in sites
        ],
        "paths": paths,
        "touches": touches,
    }


def _run(site: str, kind: str, rng: np.random.Generator) -> Report:
    steps = list(range(0, 6001, 60))
    merges = (2000, 3200, 4400)
    start, end = (2.2, 1.1) if site == "resid.1" else (3.4, 2.0)
    pace = 300 if kind == "fast" else 1500
    distance = [
        (end + (start - end) * math.exp(-step / pace) + 0.08 * sum(step > m for m in merges))
        * (1 + 0.004 * rng.normal())
        for step in steps
    ]
    begin = [8] * 8
    final = list(SIZES[site])
    events = [
        {
            "step": m,
            "what": "merge",
            "sizes": begin if i < 2 else final,
            "words": "parts 3 and 7, 0.061 nats per dimension",
        }
        for i, m in enumerate(merges)
    ]
    return {
        "site": site,
        "kind": kind,
        "seed": 0,
        "steps": steps,
        "distance": distance,
        "held_out": [x * 1.03 if i % 10 == 0 else None for i, x in enumerate(distance)],
        "events": [*events, {"step": 5000, "what": "split", "sizes": final}],
        "sizes": final,
        "stopped": "no dependent pair",
        "identity": around(start * 1.02, 0.01),
        "random": around(start * 1.1, 0.02),
        "departure": 3.1e-7,
        "cpu_seconds": 40 if kind == "fast" else 1100,
    }
