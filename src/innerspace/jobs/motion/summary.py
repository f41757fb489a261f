"""What a run of Words in motion comes to: tables of the report that need no figure of their own, and its opening."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from innerspace.decompose.directions import Directions
from innerspace.jobs.inputs.data import Splits
from innerspace.jobs.inputs.parts import chunks
from innerspace.jobs.motion.steering import Judged
from innerspace.jobs.motion.vectors import OPTIMIZED, Fitted
from innerspace.measure.estimate import Estimate, over_seeds
from innerspace.measure.forecasts import forecast
from innerspace.motion.forecast_metrics import Forecast, ForecastScores, constant_velocity, score
from innerspace.motion.framing import Batch
from innerspace.motion.suppression import few
from innerspace.motion.training import Trained
from innerspace.motion.words import Vocabulary
from innerspace.network.model import Model

BARS = {"speed": 0.95, "agent": 0.95, "direction": 0.85, "acceleration": 0.85}
"""The balanced accuracy from which a feature counts as readable."""


@torch.no_grad()
def judge_forecasts(model: Model, batch: Batch) -> dict[str, ForecastScores]:
    """The forecaster beside the constant-velocity baseline, both with K modes and with the most likely one only."""
    parts = [forecast(model.run(chunk).output) for chunk in chunks(batch)]
    whole = Forecast(torch.cat([f.trajectory for f in parts]), torch.cat([f.probability for f in parts]))
    whole = few(whole, batch.target.kind)
    single = Forecast(whole.most_likely()[:, None], torch.ones_like(whole.probability[:, :1]))
    name = type(model.module).__name__
    return {
        name: score(whole, batch.future, batch.future_valid),
        f"{name}, most likely mode": score(single, batch.future, batch.future_valid),
        "constant velocity": score(constant_velocity(batch), batch.future, batch.future_valid),
    }


def forecaster_section(
    network: nn.Module, trained: Trained, scores: Mapping[str, ForecastScores], splits: Splits
) -> dict[str, Any]:
    """Size, scores and learning curve."""
    return {
        "name": type(network).__name__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "metrics": [
            {
                "model": name,
                "split": f"test, {len(splits.test)} scenes",
                "min_ade": entry.min_ade,
                "min_fde": entry.min_fde,
                "miss_rate": entry.miss_rate,
                "brier_min_fde": entry.brier_min_fde,
                "rows": entry.rows,
            }
            for name, entry in scores.items()
        ],
        "loss": {
            "step": [point.step for point in trained.curve],
            "train": [point.loss for point in trained.curve],
            "held_out": [point.held_out for point in trained.curve],
        },
    }


def vectors_section(vectors: Sequence[Fitted]) -> dict[str, Any]:
    """Angles between all vectors, with their norms and gaps."""
    together = Directions.concatenate([fitted.direction for fitted in vectors])
    names = [f"{fitted.feature.name} · {fitted.method.replace('_', ' ')}" for fitted in vectors]
    return {
        "names": names,
        "angles": together.angles().tolist(),
        "rows": [
            {
                "name": name,
                "feature": fitted.feature.name,
                "method": fitted.method,
                "site": fitted.direction.origins[0].site,
                "norm": float(fitted.direction.norm[0]),
                "gap": float(fitted.direction.gap[0]),
            }
            for name, fitted in zip(names, vectors, strict=True)
        ],
    }


def thresholds(vocabulary: Vocabulary) -> list[dict[str, str]]:
    """Where one word ends and the next begins."""
    slow, fast = f"{vocabulary.slow_speed:.2f} m/s", f"{vocabulary.fast_speed:.2f} m/s"
    turn, band = f"{vocabulary.turn:g}°", f"{vocabulary.dead_band:g} m/s²"
    rules = {
        "speed": {
            "low": f"mean speed up to {slow}",
            "moderate": f"{slow} to {fast}",
            "high": f"from {fast}",
            "backwards": f"below −{vocabulary.stationary:g} m/s along the heading",
        },
        "acceleration": {
            "decelerating": f"below −{band}",
            "constant": f"within ±{band}",
            "accelerating": f"above {band}",
        },
        "direction": {
            "stationary": f"not faster than {vocabulary.stationary:g} m/s",
            "straight": f"heading changes by at most {turn} over the history",
            "right": f"by more than {turn} to the right",
            "left": f"by more than {turn} to the left",
        },
    }
    return [
        {"feature": feature, "class": name, "rule": rule}
        for feature, words in rules.items()
        for name, rule in words.items()
    ]


def opening(
    report: Mapping[str, Any], randoms: Sequence[Judged], speed: Judged | None, remarks: Sequence[str]
) -> dict[str, Any]:
    """The headline figures and the plain sentences with which the page begins."""
    headlines, sentences = list[dict[str, str]](), list[str]()
    metrics = {row["model"]: row for row in report["forecaster"]["metrics"]}
    model, baseline = next(iter(metrics.values())), metrics["constant velocity"]
    headlines.append(
        {
            "label": "forecast error, minADE",
            "value": f"{model['min_ade']:.2f} m",
            "note": f"constant velocity {baseline['min_ade']:.2f} m, {model['rows']} held-out agents",
        }
    )
    if model["min_ade"] >= baseline["min_ade"]:
        sentences.append("The forecaster does not beat constant velocity here, so what follows says little.")
    single = next(row for name, row in metrics.items() if name.endswith("most likely mode"))
    if single["min_ade"] >= baseline["min_ade"]:
        sentences.append(
            f"The forecaster's most likely mode alone does not beat constant velocity: {single['min_ade']:.2f} m "
            f"against {baseline['min_ade']:.2f} m."
        )
    for feature, bar in BARS.items():
        cells = [cell for cell in report["probes"]["cells"] if cell["feature"] == feature]
        if not cells:
            continue
        best = max(cells, key=lambda cell: cell["balanced"]["mean"])
        headlines.append(
            {
                "label": f"{feature} read by a probe",
                "value": f"{100 * best['balanced']['mean']:.1f} %",
                "note": f"balanced accuracy at {best['site']}; selectivity {best['selectivity']['mean']:.2f}",
            }
        )
        if best["balanced"]["mean"] < bar:
            sentences.append(
                f"{feature.capitalize()} is read less well than hoped: balanced accuracy "
                f"{best['balanced']['mean']:.2f} at its best site, below {bar:.2f}."
            )
    if speed is not None and speed.curve is not None:
        curve = speed.curve
        headlines.append(
            {
                "label": "speed steered, linearity",
                "value": f"r = {curve.pearson.mean:.3f}",
                "note": f"R² {curve.r2.mean:.3f}; {curve.span[0]:+.0f} % … {curve.span[1]:+.0f} % within reach",
            }
        )
        chance = random_share(speed, randoms)
        headlines.append(
            {
                "label": "random directions of equal norm",
                "value": f"{100 * chance.mean:.1f} %",
                "note": f"of the speed vector's effect (95 %: {_percents(chance)}), {len(randoms)} directions",
            }
        )
    sentences += _nonlinear(report["calibration"]) + _side_effects(report["offtarget"])
    for row in report["refinement"]:
        if row["feature"] == "speed" and row["measure"] == "pearson":
            sentences.append(
                f"Refining the speed vector by the {row['dictionary']} dictionary, linearity (Pearson, "
                f"{row['plain']['mean']:.4f} plain, {row['refined']['mean']:.4f} refined): {row['verdict']}."
            )
    return {"headlines": headlines, "remarks": [*sentences, *remarks]}


def _nonlinear(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every feature whose plain vector does not act linearly, and what the optimized one does."""
    by_method = {
        method: {row["feature"]: row for row in reversed(curves) if not row["control"] and row["method"] == method}
        for method in ("mean_difference", OPTIMIZED)
    }
    sentences = list[str]()
    for feature, row in by_method["mean_difference"].items():
        if row["pearson"] < 0.95:
            other = by_method[OPTIMIZED].get(feature)
            sentences.append(
                f"The {feature} vector does not act linearly: r = {row['pearson']:.2f} over τ = {row['tau'][0]:+.2g} … "
                f"{row['tau'][-1]:+.2g}; it is monotone for τ = {row['range'][0]:+.2g} … {row['range'][1]:+.2g}"
                + ("." if other is None else f". The optimized one has r = {other['pearson']:.3f}.")
            )
    return sentences


def _side_effects(table: Mapping[str, Any]) -> list[str]:
    """A sentence for every vector that moves another measure more than a fifth as much as its own."""
    sentences = list[str]()
    for steered, method, changes in zip(table["steered"], table["methods"], table["normalized"], strict=True):
        own = dict(zip(table["measured"], map(abs, changes), strict=True))
        aim = own.pop(steered, None)
        if aim is not None and own and max(own.values()) > aim / 5:
            worst, change = max(own.items(), key=itemgetter(1))
            kind = f"{method} " if method == OPTIMIZED else ""
            sentences.append(
                f"The {kind}{steered} vector also moves {worst}: by {change:.2f} of its spread, {steered} by {aim:.2f}."
            )
    return sentences


def few_groups(groups: int, unit: str) -> list[str]:
    """A warning where so few groups were split that intervals say little."""
    if groups >= 20:
        return []
    return [
        f"Probes are split by {unit}, of which there are only {groups}: a split holds out half of them, and the "
        "intervals over splits say more about these than about traffic at large. Windows of a log overlap, so the "
        "intervals of steering curves are too narrow."
    ]


def captions(splits: Splits, samples: int, seeds: int, probe_seeds: int, unit: str) -> dict[str, str]:
    """By section, the split that its figures stand on."""
    test = f"Test split ({len(splits.test)} scenes), to which nothing was fitted."
    curves = f"{samples} agents of the test split, to which nothing was fitted; intervals by bootstrap over scenes."
    return {
        "scenes": test,
        "probes": f"{probe_seeds} random splits by {unit} of the fit and test parts.",
        "collapse": f"The same hidden states as the probes'; labels are shuffled by {unit}.",
        "calibration": f"{curves} Vectors of {seeds} seeds: scenes drawn with replacement, dictionaries trained anew.",
        "control_loop": "One agent of each scene of the test split; intervals by bootstrap over scenes.",
        "refinement": f"{curves} Intervals over {seeds} seeds, plain and refined paired by seed.",
        "offtarget": curves,
        "feasibility": curves,
        "dictionaries": "Hidden states of all valid tokens; trained on the fit split, judged on the test split.",
        "end_to_end": f"Judged on one agent of each of the {len(splits.test)} scenes of the test split.",
    }


def random_share(speed: Judged, randoms: Sequence[Judged]) -> Estimate:
    """How much random directions of equal norm move the speed, as a share of what the speed vector does.

    The mean of |response| at the two outermost temperatures, so that damage which both signs do alike counts as well;
    averaged over directions, with their 95 % interval.
    """

    def strength(item: Judged) -> float:
        assert item.curve is not None
        return (abs(item.curve.response[0].mean) + abs(item.curve.response[-1].mean)) / 2

    return over_seeds([strength(item) / strength(speed) for item in randoms])


def _percents(share: Estimate) -> str:
    assert share.low is not None
    assert share.high is not None
    return f"{100 * share.low:.1f} to {100 * share.high:.1f} %"
