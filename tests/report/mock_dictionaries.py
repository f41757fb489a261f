"""A report on dictionaries of the size and the shape of a true one, made of arithmetic and a seeded generator."""

import math
from functools import cache
from typing import Any

import numpy as np

from innerspace.report.page import render

Report = dict[str, Any]

KINDS = {"local": (0.3, 1.0, 3.0, 10.0), "e2e": (0.1, 0.4, 1.5, 5.0), "e2e+ds": (0.8, 2.5, 10.0, 35.0)}
SEEDS = (0, 1, 2)
LATENTS = 1024
DICTIONARIES = [{"name": f"{kind} λ {KINDS[kind][1]:g} seed 0", "kind": kind} for kind in KINDS]
DAMAGE = {"local": 1.0, "e2e": 0.47, "e2e+ds": 0.53}
TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play in the garden with her dog, Max.\n"
    'One day, Lily found a big red ball. "Can we share it?" she asked. Max barked and ran after the ball. '
    "They played all day until the sun went down, and then they went home for dinner with Mom and Dad.\n"
)


def mock_dictionaries(features: int = 30, points: int = 150) -> Report:
    """Every section of dictionaries, with numbers that behave as such numbers do."""
    rng = np.random.default_rng(0)
    runs = [(kind, c, i, seed) for kind, own in KINDS.items() for i, c in enumerate(own) for seed in SEEDS]
    return {
        "title": "Dictionaries of a small language model, trained locally and end to end",
        "question": "At equal sparsity, how much less does a dictionary spoil the network's prediction if it is "
        "trained on that prediction?",
        "notes": {"pareto": "Test documents, 65 536 tokens.", "fidelity": "Test documents, 65 536 tokens."},
        "pareto": _pareto([_run(*run, rng) for run in runs]),
        "fidelity": [_fidelity(*run, rng) for run in runs],
        "geometry": {"similarity": _similarity(), "map": _map(points, rng)},
        "features": _features(features, rng),
        "training": [_training(*run, rng) for run in runs],
        "training_cost": [_cost(*run, rng) for run in runs],
    }


def mock_forecaster_dictionaries() -> Report:
    """The same for a forecaster: no tokens, a divergence instead of a cross-entropy."""
    rng = np.random.default_rng(1)
    report = mock_dictionaries(0, 0)
    del report["notes"], report["geometry"], report["training"], report["training_cost"]
    for run in (*report["pareto"]["runs"], *report["fidelity"]):
        run["divergence"] = run.pop("kl")
        for key in ("ce_increase", "ce_clean", "ce_spliced", "top1", "explained_variance_per_token"):
            run.pop(key, None)
    del report["pareto"]["ratios"], report["pareto"]["claims"]
    captions = ("a vehicle turning left at 8 m/s", "a pedestrian <crossing>", "a cyclist braking")
    report["features"]["unit"] = "agents"
    report["features"]["entries"] = [
        {
            **_feature(0, latent, rng),
            "bands": [
                {"name": name, "low": low, "high": high, "examples": [{"caption": c, "value": high} for c in captions]}
                for name, low, high in (("top", 2.0, 3.0), ("50–100 %", 1.0, 2.0))
            ],
            "up": [],
            "down": [],
        }
        for latent in (3, 14)
    ]
    return report


@cache
def mock_dictionary_page() -> str:
    """The page of the mock report."""
    return render(mock_dictionaries())


def around(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _run(kind: str, coefficient: float, i: int, seed: int, rng: np.random.Generator) -> Report:
    l0 = 120 * math.exp(-0.75 * i) * (1 + 0.04 * rng.normal())
    damage = DAMAGE[kind] * 9.0 / l0 * (1 + 0.05 * rng.normal())
    explained = {"local": 0.97 - 0.05 * i, "e2e": -3.0 - i, "e2e+ds": 0.75 - 0.12 * i}[kind] + 0.01 * rng.normal()
    return {
        "kind": kind,
        "coefficient": coefficient,
        "seed": seed,
        "l0": l0,
        "ce_increase": damage,
        "kl": 0.93 * damage,
        "explained_variance": explained,
        "alive": int(LATENTS * (0.95 - 0.13 * i) * (0.8 if kind == "e2e" else 1.0)),
        "latents": LATENTS,
        "tokens": 4_915_200,
    }


def _pareto(runs: list[Report]) -> Report:
    ratios = [
        {
            "kind": kind,
            "of": of,
            "at": at,
            "level": level,
            "own": around(DAMAGE[kind] * scale, 0.01 * scale),
            "reference": around(scale, 0.02 * scale),
            "ratio": around(DAMAGE[kind] * (1 + 0.03 * i), 0.04),
        }
        for kind in ("e2e", "e2e+ds")
        for of, at, levels in (("ce_increase", "l0", (20.0, 30.0, 50.0, 80.0)), ("l0", "ce_increase", (0.1, 0.2, 0.3)))
        for i, level in enumerate(levels)
        for scale in (9.0 / level,)
    ]
    claims = [
        {
            "claim": f"At equal L0, {kind} has at most 0.6 of local's CE increase.",
            "kind": kind,
            "of": "ce_increase",
            "at": "l0",
            "bound": 0.6,
            "ratio": around(value, 0.05),
            "verdict": words,
            "holds": holds,
        }
        for kind, value, words, holds in (
            ("e2e", 0.49, "The whole interval lies below 0.6: the claim holds.", True),
            ("e2e+ds", 0.57, "The interval reaches beyond 0.6: three seeds leave it open.", None),
        )
    ]
    return {"runs": runs, "reference": "local", "ratios": ratios, "claims": claims}


def _fidelity(kind: str, coefficient: float, i: int, seed: int, rng: np.random.Generator) -> Report:
    run = _run(kind, coefficient, i, seed, rng)
    centers = np.arange(0, 200, 10) + 5
    spread = np.exp(-((centers - run["l0"]) ** 2) / (2 * (0.3 * run["l0"]) ** 2))
    logs = np.arange(-5, 0, 0.25)
    firing = np.exp(-((logs + 2.2 + 0.2 * i) ** 2) / 0.8)
    clean = 1.612
    return {
        **{key: run[key] for key in ("kind", "coefficient", "seed", "l0", "alive", "ce_increase", "kl")},
        "ce_clean": clean,
        "ce_spliced": clean + run["ce_increase"],
        "recovered_zero": 1 - run["ce_increase"] / 5.1,
        "recovered_mean": 1 - run["ce_increase"] / 3.2,
        "top1": 0.97 - 0.5 * run["ce_increase"],
        "explained_variance": run["explained_variance"],
        "explained_variance_per_token": run["explained_variance"] - 0.03,
        "norm_ratio": {"local": 0.95, "e2e": 0.42, "e2e+ds": 0.71}[kind],
        "cosine": {"local": 0.97, "e2e": 0.55, "e2e+ds": 0.86}[kind],
        "tokens": 65536,
        "l0_histogram": {"edges": np.arange(0, 201, 10).tolist(), "counts": (65536 * spread / spread.sum()).tolist()},
        "frequency_histogram": {
            "edges": np.arange(-5, 0.01, 0.25).tolist(),
            "counts": np.round(run["alive"] * firing / firing.sum()).tolist(),
            "never": LATENTS - run["alive"],
        },
        "downstream": [
            {"site": f"resid.{layer}", "error": base * DAMAGE[kind] / run["l0"] * (1 + 0.3 * depth)}
            for depth, layer in enumerate((2, 3, 4))
            for base in ({"local": 1.0, "e2e": 60.0 / (1 + 2 * depth), "e2e+ds": 8.0}[kind],)
        ],
    }


def _similarity() -> list[Report]:
    edges = np.linspace(0, 1, 41)
    middle = (edges[1:] + edges[:-1]) / 2

    def row(relation: str, kind: str, other: str, center: float) -> Report:
        counts = np.round(900 * np.exp(-((middle - center) ** 2) / 0.012)).astype(int)
        return {
            "relation": relation,
            "kind": kind,
            "other": other,
            "mean": around(center, 0.006),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            "random": around(0.36, 0.002),
            "covariance": around(0.43, 0.003),
        }

    rows = [row("within", kind, kind, x) for kind, x in zip(KINDS, (0.55, 0.39, 0.51), strict=True)]
    rows += [row("seeds", kind, kind, x) for kind, x in zip(KINDS, (0.83, 0.45, 0.77), strict=True)]
    pairs = (("e2e", "local", 0.44), ("e2e+ds", "local", 0.68), ("e2e+ds", "e2e", 0.47))
    return rows + [row("kinds", *ends, x + d) for a, b, x in pairs for *ends, d in ((a, b, 0.0), (b, a, 0.07))]


def _map(points: int, rng: np.random.Generator) -> Report:
    centers = rng.normal(size=(14, 2)) * 5
    dictionary = [i % len(DICTIONARIES) for i in range(points)]
    place = centers[rng.integers(0, 14, points)] + rng.normal(size=(points, 2)) * 0.7
    return {
        "dictionaries": [dict(one) for one in DICTIONARIES],
        "dictionary": dictionary,
        "latent": [7 * (i // len(DICTIONARIES)) for i in range(points)],
        "x": place[:, 0].tolist(),
        "y": place[:, 1].tolist(),
        "words": [f"{word}, {other}" for word, other in zip(*rng.choice(TEXT.split(), (2, points)), strict=True)],
        "method": "UMAP of the decoder directions by cosine, 15 neighbors, seed 0.",
    }


def _features(count: int, rng: np.random.Generator) -> Report:
    entries = [_feature(i % len(DICTIONARIES), 7 * (i // len(DICTIONARIES)), rng) for i in range(count)]
    counted = "Activations of 1 048 576 test tokens."
    return {"dictionaries": [dict(one) for one in DICTIONARIES], "counted": counted, "entries": entries}


def _tokens() -> list[str]:
    """The text in pieces: words with the space before them, signs and line breaks alone."""
    pieces = TEXT.replace(" ", "\x01 ").replace("\n", "\x01\n\x01")
    for sign in ',.?"':
        pieces = pieces.replace(sign, f"\x01{sign}")
    return [piece for piece in pieces.split("\x01") if piece]


def _feature(dictionary: int, latent: int, rng: np.random.Generator) -> Report:
    tokens, largest = _tokens(), float(np.exp(1.2 + 0.4 * rng.normal()))
    shares = [(1.0, 0.97), (1.0, 0.7), (0.7, 0.45), (0.45, 0.25), (0.25, 0.1), (0.1, 0.01)]
    names = ["top", "80–100 %", "60–80 %", "40–60 %", "20–40 %", "0–20 %"]
    favorite = int(rng.integers(0, len(tokens)))

    def example(high: float, low: float, sharp: bool) -> Report:
        peak = favorite if sharp else int(rng.integers(0, len(tokens)))
        start = max(0, min(peak - 12, len(tokens) - 24))
        values = [0.0] * 24
        values[peak - start] = largest * float(rng.uniform(low, high))
        for i in range(24):
            if i != peak - start and rng.random() < 0.07:
                values[i] = 0.4 * values[peak - start] * float(rng.random())
        return {"tokens": tokens[start : start + 24], "values": values}

    edges = np.linspace(0, largest, 31)
    return {
        "dictionary": dictionary,
        "latent": latent,
        "density": float(10 ** rng.normal(-2.2, 0.5)),
        "max": largest,
        "histogram": {"edges": edges.tolist(), "counts": [int(20000 * math.exp(-0.28 * i)) for i in range(30)]},
        "bands": [
            {
                "name": n,
                "low": lo * largest,
                "high": hi * largest,
                "examples": [example(hi, lo, n == "top") for _ in range(5 if n == "top" else 4)],
            }
            for n, (hi, lo) in zip(names, shares, strict=True)
        ],
        "neighbors": [{"latent": 7 * k, "cosine": 0.71 - 0.04 * k} for k in range(1, 7)],
        "similar": [
            {"dictionary": other, "latent": 7 * k, "cosine": 0.9 - 0.08 * k}
            for other in range(len(DICTIONARIES))
            if other != dictionary
            for k in range(3)
        ],
        "up": [{"token": t, "value": 2.4 - 0.2 * k} for k, t in enumerate(rng.choice(tokens, 8).tolist())],
        "down": [{"token": t, "value": -1.9 + 0.2 * k} for k, t in enumerate(rng.choice(tokens, 8).tolist())],
    }


def _training(kind: str, coefficient: float, i: int, seed: int, rng: np.random.Generator) -> Report:
    tokens = [163840 * step for step in range(1, 31)]
    run = _run(kind, coefficient, i, seed, rng)

    def falling(start: float, end: float, noise: float) -> list[float]:
        return [(end + (start - end) * math.exp(-t / 4e5)) * (1 + noise * rng.normal()) for t in tokens]

    def at_times(values: list[float]) -> list[float | None]:
        return [value if k % 5 == 4 else None for k, value in enumerate(values)]

    curves: Report = {
        "loss": falling(3.0, 2 * run["kl"], 0.03),
        "sparsity": falling(1.5, run["kl"] / 2, 0.02),
        "l0": falling(430.0, run["l0"], 0.01),
        "dead": [0.3 * (1 - math.exp(-t / 2e6)) * (1 + i) / 4 for t in tokens],
        "held_out_kl": at_times(falling(2.0, run["kl"], 0.01)),
        "held_out_ce": at_times(falling(2.2, run["ce_increase"], 0.01)),
    }
    if kind == "local":
        curves["reconstruction"] = falling(1.0, 0.1 + 0.05 * i, 0.03)
    else:
        curves["output_kl"] = falling(3.0, run["kl"], 0.03)
    return {"kind": kind, "coefficient": coefficient, "seed": seed, "tokens": tokens, "curves": curves}


def _cost(kind: str, coefficient: float, i: int, seed: int, rng: np.random.Generator) -> Report:
    encoder = {"prefix": 0.15e6, "encoder": 0.13e6, "decoder": 0.13e6, "dictionary_backward": 0.39e6}
    network = {} if kind == "local" else {"teacher": 0.24e6, "student": 0.24e6, "student_backward": 0.25e6}
    parts = encoder | network
    return {
        "kind": kind,
        "coefficient": coefficient,
        "seed": seed,
        "tokens": 4_915_200,
        "tokens_per_second": (21000 if kind == "local" else 9000) * (1 + 0.02 * rng.normal()),
        "flops_per_token": sum(parts.values()),
        "flops_parts": parts,
        "cpu_seconds": (240 if kind == "local" else 560) * (1 + 0.02 * rng.normal()),
        "seconds": (238 if kind == "local" else 551) * (1 + 0.02 * rng.normal()),
        "peak_bytes": int(4.1e8 + 2e6 * rng.normal()),
        "peak_share": None,
        "device": "cpu, 1 thread",
    }
