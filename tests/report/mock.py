"""A report of the size and the shape of a true one, made of arithmetic and a seeded generator."""

import math
from functools import cache

import numpy as np

from innerspace.report.page import render
from report.mock_scenes import INTERVAL, METHODS, TAU, Report, mock_scenes

FEATURES = ("speed", "acceleration", "direction", "agent")
SITES = ("agent.0", "agent.1", "agent.2")
CLASSES = {
    "speed": {"low": 2914, "moderate": 1987, "high": 1099},
    "acceleration": {"decelerating": 1322, "constant": 3391, "accelerating": 1287},
    "direction": {"stationary": 702, "straight": 3816, "right": 744, "left": 738},
    "agent": {"vehicle": 4210, "pedestrian": 1104, "cyclist": 686},
}


def mock_report(scenes: int = 2) -> Report:
    """Every section, with numbers that behave as such numbers do."""
    rng = np.random.default_rng(0)
    return {
        "title": "Words in motion: reading and steering a motion forecaster",
        "question": "Are speed, acceleration, direction and agent type readable from the hidden states of a trained "
        "motion forecaster, and does adding a vector along one of them change the forecast accordingly?",
        "headlines": [
            _headline("Speed is readable", "0.94", "balanced accuracy at agent.2, 0.93 to 0.95; chance is 0.33"),
            _headline("Speed is steerable", "r = 0.99", "Pearson correlation of response and τ, 3 seeds, 0.98 to 0.99"),
            _headline("Usable range", "−42 to +51 %", "change of mean speed while 95 % of forecasts stay feasible"),
            _headline("SAE refinement", "no gain", "R² changes by +0.004, −0.006 to 0.013, over 3 seeds"),
            _headline("Off-target", "0.18", "largest normalized change of what was not steered: direction by agent"),
            _headline("Cost", "+1.3 %", "time of a steered pass against a plain one, 0.7 to 1.9 %"),
        ],
        "remarks": [
            "Speed, acceleration and agent type are readable from the first site on; direction only from the second.",
            "Speed and acceleration vectors are nearly parallel (14°), so steering one moves the other.",
            "The direction vector does not steer stationary agents.",
            "Random vectors of the same norm change mean speed by less than 3 %.",
        ],
        "interval": INTERVAL,
        "notes": {
            "scenes": "Test split, six scenes picked by class before steering, seed 0.",
            "probes": "Trained on 4 200 and counted on 1 800 held-out targets, 3 seeds.",
            "collapse": "Held-out split, seed 0, 200 permutations.",
            "calibration": "Test split, 900 targets, bootstrap over scenes.",
            "refinement": "Test split, bootstrap over scenes and 3 seeds.",
            "vectors": "Fitted on the train split, seed 0.",
            "control_loop": "Test split, one agent of each scene.",
            "offtarget": "Test split at τ = 0.6, 3 seeds.",
            "feasibility": "Test split, 3 seeds.",
            "forecaster": "Seed 0.",
        },
        "data": _data(),
        "forecaster": _forecaster(rng),
        "scenes": mock_scenes(scenes),
        "probes": _probes(rng),
        "collapse": _collapse(rng),
        "vectors": _vectors(),
        "calibration": _calibration(rng),
        "control_loop": _control_loop(),
        "offtarget": _offtarget(rng),
        "feasibility": _feasibility(),
        "dictionaries": _dictionaries(rng),
        "refinement": _refinement(rng),
        "cost": {
            "plain_ms": around(4.81, 0.05),
            "steered_ms": around(4.87, 0.05),
            "ratio": around(1.013, 0.006),
            "hook_us": 21.4,
            "plain_bytes": 48_000_000,
            "extra_bytes": 512_000,
            "by_site": {
                "device": "cpu",
                "rows": 64,
                "plain_ms": around(4.81, 0.05),
                "sites": [
                    {
                        "site": site,
                        "ratio": around(1.01 + 0.002 * i, 0.006),
                        "added_ms": around(0.05, 0.02),
                        "extra_bytes": 360_000,
                        "peak_bytes": None if i else 120_000,
                    }
                    for i, site in enumerate(SITES)
                ],
            },
        },
        "provenance": {
            "class": "Provenance",
            "innerspace": "0.1.0",
            "commit": "836dc3c5f0a1b2c3d4e5f60718293a4b5c6d7e8f",
            "python": "3.12.4",
            "torch": "2.13.0+cpu",
            "numpy": "2.4.6",
            "platform": "Linux-6.1-x86_64-with-glibc2.36",
            "device": "cpu",
            "threads": 2,
            "seeds": [0, 1, 2],
            "data": "simulated scenes, seed 7",
            "started": "2026-11-20T13:40:00+00:00",
            "seconds": 1834.2,
        },
        "job": {
            "class": "WordsInMotion",
            "seeds": [0, 1, 2],
            "framing": {"class": "Framing", "history": 11, "future": 60, "stride": 2},
            "calibration": {"tau": TAU, "control": ["random", "negated"], "bootstrap": None},
        },
    }


@cache
def mock_page() -> str:
    """The page of the mock report."""
    return render(mock_report())


def around(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _headline(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _control_loop() -> Report:
    def row(feature: str, unit: str, request: float, way: str, mode: str = "additive") -> Report:
        share = {"loop": 0.9, "curve": 0.1, "random": 0.02}[way]
        return {
            "feature": feature,
            "unit": unit,
            "request": request,
            "way": way,
            "mode": mode,
            "reached": around(share, 0.03),
            "outcomes": {"reached": share, "limited": 0.0, "not monotone": 1 - share} if way != "curve" else {},
            "tau": [0.1, 0.2, 0.3],
            "change": [0.2, 0.3, 0.4],
            "passes": 14,
            "error": [0.2, 0.8, 1.4],
            "others": {"heading": 2.0},
            "feasible": 0.8,
            "feasible_before": 0.9,
            "shift": 3.2,
        }

    asked = [("speed", "%", x) for x in (-30.0, 30.0)] + [("direction", "°", x) for x in (-20.0, 20.0)]
    ways = (("loop", "additive"), ("loop", "angular"), ("curve", "additive"), ("random", "additive"))
    price = {"change": 0.3, "shift": 1.2}
    return {
        "samples": 64,
        "share": 1.0,
        "passes": 16,
        "requests": [row(*one, *way) for one in asked for way in (*ways, ways[-1])],
        "paired": [{"feature": "speed", "unit": "%", "request": 30.0, "rows": 7, "vector": price, "random": price}],
        "modes": [
            {
                "mode": mode,
                "tau": [-1.0, 0.0, 1.0],
                "response": [around(x, 1.0) for x in (-40.0, 0.0, 45.0)],
                "feasible": [0.7, 0.9, 0.6],
                "pearson": around(0.99, 0.003),
                "r2": around(0.98, 0.01),
                "span": [-40.0, 45.0],
            }
            for mode in ("additive", "norm-preserving", "angular")
        ],
    }


def _data() -> Report:
    rules = {
        ("speed", "low"): "mean speed < 6.94 m/s",
        ("speed", "moderate"): "6.94 ≤ mean speed < 13.89 m/s",
        ("speed", "high"): "mean speed ≥ 13.89 m/s",
        ("direction", "right"): "heading change < −15°",
        ("direction", "left"): "heading change > 15°",
    }
    return {
        "description": "Simulated traffic on intersections, curves and straight roads at 10 Hz: 1.1 s of history, "
        "6 s of future; scenes are split by drive.",
        "splits": [
            {"name": "train", "scenes": 3000, "targets": 6000},
            {"name": "held-out", "scenes": 600, "targets": 1200},
            {"name": "test", "scenes": 600, "targets": 1180},
        ],
        "classes": CLASSES,
        "thresholds": [{"feature": f, "class": c, "rule": rule} for (f, c), rule in rules.items()],
        "skipped": [{"name": "test/0412", "reason": "the target is not valid at the current step"}],
    }


def _forecaster(rng: np.random.Generator) -> Report:
    steps = list(range(0, 12001, 500))
    train = [1.4 + 3.2 * math.exp(-step / 2200) + 0.04 * rng.normal() for step in steps]
    keys = ("min_ade", "min_fde", "miss_rate", "brier_min_fde", "rows")
    metrics = [
        ("RedMotion", "held-out", (around(0.61, 0.02), around(1.32, 0.05), around(0.17, 0.01), 1.84, 1200)),
        ("constant velocity", "held-out", (around(2.41, 0.09), around(6.02, 0.2), around(0.63, 0.02), 6.02, 1200)),
    ]
    return {
        "name": "RedMotion",
        "parameters": 1843210,
        "metrics": [{"model": m, "split": s, **dict(zip(keys, row, strict=True))} for m, s, row in metrics],
        "loss": {
            "step": steps,
            "train": train,
            "held_out": [x + 0.12 + 0.00001 * s for x, s in zip(train, steps, strict=True)],
        },
    }


def _probes(rng: np.random.Generator) -> Report:
    base = {"speed": 0.9, "acceleration": 0.71, "direction": 0.5, "agent": 0.93}
    cells: list[Report] = []
    for depth, site in enumerate(SITES):
        for feature in FEATURES:
            value = min(0.98, base[feature] + 0.05 * depth * (3 if feature == "direction" else 1) + 0.01 * rng.normal())
            counts = CLASSES[feature]
            cells.append(
                {
                    "site": site,
                    "feature": feature,
                    "balanced": around(value, 0.012),
                    "accuracy": around(min(0.99, value + 0.02), 0.01),
                    "auroc": around(1 - (1 - value) / 3, 0.006),
                    "majority": max(counts.values()) / sum(counts.values()),
                    "control": 0.41,
                    "selectivity": around(value - 0.41, 0.015),
                    "compression": 1.2 + 4 * (value - 0.4) ** 2 * 4,
                    "rows": 1800,
                }
            )
    return {
        "sites": list(SITES),
        "features": list(FEATURES),
        "chance": {feature: 1 / len(CLASSES[feature]) for feature in FEATURES},
        "cells": cells,
    }


def _collapse(rng: np.random.Generator) -> list[Report]:
    rows: list[Report] = []
    for depth, site in enumerate(SITES):
        for i, feature in enumerate(FEATURES):
            factor = (1 + i) * 0.8**depth * math.exp(0.05 * rng.normal())
            null = {"nc1": 310.0, "cdnv": 155.0, "directional_cdnv": 41.0}
            rows.append(
                {
                    "site": site,
                    "feature": feature,
                    "nc1": 3.1 * factor,
                    "cdnv": 1.4 * factor,
                    "directional_cdnv": 0.21 * factor,
                    "std": 0.071 + 0.004 * depth - 0.003 * i,
                    "null": {key: around(value * (1 + 0.1 * i), value * 0.2) for key, value in null.items()},
                }
            )
    return rows


def _vectors() -> Report:
    names = [f"{feature} · {method}" for feature in FEATURES for method in METHODS]
    between = {(0, 1): 14.0, (0, 2): 96.0, (0, 3): 41.0, (1, 2): 93.0, (1, 3): 57.0, (2, 3): 101.0}
    angles = [[0.0] * len(names) for _ in names]
    for i in range(len(names)):
        for j in range(len(names)):
            if i != j:
                a, b = sorted((i // 2, j // 2))
                angles[i][j] = 11.3 if a == b else between[a, b] + (i % 2 + j % 2)
    rows = [
        {
            "name": name,
            "feature": FEATURES[i // 2],
            "method": METHODS[i % 2],
            "site": "agent.2",
            "norm": 4.2 + i / 3,
            "gap": 3.9,
        }
        for i, name in enumerate(names)
    ]
    return {"names": names, "angles": angles, "rows": rows}


def _calibration(rng: np.random.Generator) -> list[Report]:
    measures = {
        "speed": ("relative mean speed [%]", "%", 52.0),
        "acceleration": ("mean acceleration [m/s²]", "m/s²", 1.1),
        "direction": ("final heading [°]", "°", 17.0),
        "agent": ("relative mean speed [%]", "%", 31.0),
    }
    curves: list[Report] = []
    for feature, (measure, unit, gain) in measures.items():
        for m, method in enumerate(METHODS):
            for seed in range(3):
                slope = gain * (1 + 0.06 * rng.normal() + 0.05 * m)
                curves.append(_curve(feature, measure, unit, method, seed, slope, 0.08 * gain, False))
        curves.append(_curve(feature, measure, unit, "random", 0, 0.03 * gain, 0.05 * gain, "random"))
        curves.append(_curve(feature, measure, unit, METHODS[0], 0, -0.97 * gain, 0.05 * gain, "negated"))
    return curves


def _curve(
    feature: str, measure: str, unit: str, method: str, seed: int, slope: float, width: float, control: bool | str
) -> Report:
    values = [slope * (math.tanh(1.1 * tau) + 0.12 * tau) for tau in TAU]
    return {
        "feature": feature,
        "measure": measure,
        "unit": unit,
        "method": method,
        "site": "agent.2",
        "seed": seed,
        "tau": TAU,
        "response": [around(value, width * (0.2 + abs(tau))) for value, tau in zip(values, TAU, strict=True)],
        "pearson": 0.991 - 0.002 * seed,
        "r2": 0.981 - 0.003 * seed,
        "straightness": 0.962,
        "slope": slope,
        "range": [None, None] if control else [-0.8, 0.6 + 0.1 * seed],
        "span": None if control else [values[1], values[8]],
        "inverse": [] if control else [{"response": round(-0.5 * slope, 1), "tau": -0.43}],
        "control": control,
    }


def _offtarget(rng: np.random.Generator) -> Report:
    units = ["%", "m/s²", "°", "m"]
    strength = np.array([[1, 0.62, 0.03, 0.35], [0.55, 1, -0.05, 0.2], [-0.04, 0.02, 1, 0.6], [-0.4, -0.2, 0.18, 0.5]])
    scale = np.array([31.0, 0.8, 11.0, 4.0])
    change = strength * scale * (1 + 0.02 * rng.normal(size=strength.shape))
    return {
        "steered": list(FEATURES),
        "methods": ["mean_difference"] * len(FEATURES),
        "measured": ["speed", "acceleration", "direction", "lateral offset"],
        "units": units,
        "change": [[around(float(x), float(0.06 * s)) for x, s in zip(row, scale, strict=True)] for row in change],
        "normalized": strength.tolist(),
    }


def _feasibility() -> list[Report]:
    return [
        {
            "feature": feature,
            "tau": TAU,
            "share": [around(min(0.995, 1 - 0.06 * (i + 1) * tau**4), 0.008) for tau in TAU],
            "min_ade_shift": [0.3 * (i + 1) * tau**2 for tau in TAU],
        }
        for i, feature in enumerate(FEATURES)
    ]


def _dictionaries(rng: np.random.Generator) -> list[Report]:
    kinds = (("ReLU", 256), ("ReLU", 512), ("TopK", 256), ("JumpReLU", 256))
    return [
        {
            "kind": kind,
            "latents": latents,
            "seed": seed,
            "explained": 0.95 + 0.01 * rng.random(),
            "l0": 18 + 3 * rng.random(),
            "alive": 0.93,
            "loss_clean": 1.42,
            "loss_spliced": 1.47,
            "loss_mean_ablated": 4.91,
            "recovered": 0.985,
        }
        for kind, latents in kinds
        for seed in range(3)
    ]


def _refinement(rng: np.random.Generator) -> list[Report]:
    rows: list[Report] = []
    for feature in FEATURES:
        for measure, base in (("pearson", 0.98), ("r2", 0.96), ("straightness", 0.93)):
            gain = 0.008 * rng.normal()
            verdict = "better" if gain > 0.008 else "worse" if gain < -0.008 else "no difference beyond the interval"
            ends = {"plain": around(base, 0.008), "refined": around(base + gain, 0.007)}
            rows.append({"feature": feature, "measure": measure, **ends, "dictionary": "ReLU 256", "verdict": verdict})
    return rows
