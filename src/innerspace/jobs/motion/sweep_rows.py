"""What a sweep finds: a cell for every vector, rows over seeds, the best way, and whether sparsity makes it linear."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from innerspace.jobs.motion.steering import MEASURES, Judged, off_target
from innerspace.jobs.motion.vectors import PLAIN, Fitted
from innerspace.measure.estimate import Estimate, over_seeds
from innerspace.motion.forecast_metrics import ForecastScores
from innerspace.value import Value

DENSE = "koopman"
"""The autoencoder whose code is not sparse."""

_MORE, _LESS = "more linear", "less linear"

LINEARITY = ("pearson", "r2", "straightness")

LINEAR = 0.95
"""The R² from which a response counts as linear."""

CLEAN = 1 / 5
"""Up to this share of its own effect a vector's side effects count as small."""

Way = tuple[str, str, str, int]
"""Site, token rule, method and number of latents: how a vector is fitted, and where it steers."""


@dataclass(frozen=True)
class Cell(Value):
    """One vector, judged: linearity of its response, what is within reach, what else moves, and its autoencoder.

    ``span`` is the response at the ends of the range on which the curve is monotone, in percent, m/s² or degrees;
    ``side`` the largest change of another measure over that of its own, both in spreads of unsteered agents;
    ``feasible`` the change of the share of forecasts that can be driven, at the stronger end. ``latents`` is 0, and
    ``explained`` and ``l0`` are None, where no autoencoder took part. ``trained`` is the forecaster's training seed.
    ``held_out`` cells are of agents on which no way was chosen.
    """

    forecaster: str
    site: str
    tokens: str
    feature: str
    method: str
    latents: int
    seed: int
    pearson: float = 0.0
    r2: float = 0.0
    straightness: float = 0.0
    span: tuple[float, float] = (0.0, 0.0)
    side: float = 0.0
    feasible: float = 0.0
    explained: float | None = None
    l0: float | None = None
    trained: int = 0
    held_out: bool = False

    @staticmethod
    def of(fitted: Fitted, forecaster: str, trained: int, site: str, tokens: str, latents: int) -> "Cell":
        """The cell of a vector that is not judged yet."""
        place = (forecaster, site, tokens, fitted.feature.name)
        return Cell(*place, fitted.method, latents, fitted.seed, trained=trained)

    @property
    def key(self) -> str:
        """What tells it from all other cells of a sweep."""
        place = (*self.place, self.method, self.latents, *self.repetition, self.held_out)
        return " | ".join(map(str, place))

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Where it steers, and what."""
        return self.forecaster, self.site, self.tokens, self.feature

    @property
    def way(self) -> Way:
        """How it was fitted, and where it steers."""
        return self.site, self.tokens, self.method, self.latents

    @property
    def repetition(self) -> tuple[int, int]:
        """The seeds of the forecaster and of the vector."""
        return self.trained, self.seed


def judged_cell(cell: Cell, judged: Judged, fidelity: Mapping[str, float]) -> Cell:
    """The cell with what its vector does; ``fidelity`` is its autoencoder's."""
    curve = judged.curve
    assert curve is not None
    moved = off_target([judged])
    changes = dict(zip(moved["measured"], map(abs, moved["normalized"][0]), strict=True))
    own = changes.pop(cell.feature)
    feasible = judged.responses["feasible"]
    base = feasible.value[feasible.tau == 0].mean()
    ends = feasible.value[[0, -1]].mean(1) - base
    return replace(
        cell,
        pearson=curve.pearson.mean,
        r2=curve.r2.mean,
        straightness=curve.straightness.mean,
        span=curve.span,
        side=max(changes.values()) / own if own else float("inf"),
        feasible=float(ends.min()),
        explained=fidelity.get("explained"),
        l0=fidelity.get("l0"),
    )


def overview(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for every way and place, with intervals over seeds: the forecaster's where it has several."""
    groups = dict[tuple[Any, ...], list[Cell]]()
    for cell in cells:
        groups.setdefault((*cell.place, cell.method, cell.latents), []).append(cell)
    names = ("forecaster", "site", "tokens", "feature", "method", "latents")
    return [
        {
            **dict(zip(names, key, strict=True)),
            "unit": MEASURES[key[3]].unit,
            "seeds": len(group),
            **{name: _over(group, name).to_json() for name in (*LINEARITY, "side", "feasible")},
            "span": [sum(cell.span[i] for cell in group) / len(group) for i in (0, 1)],
            "explained": _mean([cell.explained for cell in group]),
            "l0": _mean([cell.l0 for cell in group]),
        }
        for key, group in groups.items()
    ]


def best_ways(cells: Sequence[Cell], reach: Mapping[str, float]) -> dict[str, Way]:
    """By feature the way that is best for a forecaster, to be reported on agents that did not choose it.

    A vector that hardly moves anything is easily linear and clean: candidates change their feature by half of ``reach``
    or more on both sides. Of those that are linear, the one with the least side effects; the most linear where none is.
    A feature that no vector moves so far is left out.
    """
    found = dict[str, Way]()
    rows = overview(cells)
    for feature in dict.fromkeys(cell.feature for cell in cells):
        mine = [row for row in rows if row["feature"] == feature]
        mine = [row for row in mine if -row["span"][0] >= reach[feature] / 2 <= row["span"][1]]
        if not mine:
            continue
        linear = [row for row in mine if row["r2"]["mean"] >= LINEAR]
        best = (
            min(linear, key=lambda row: row["side"]["mean"]) if linear else max(mine, key=lambda row: row["r2"]["mean"])
        )
        found[feature] = (best["site"], best["tokens"], best["method"], best["latents"])
    return found


def linearity_by_sparsity(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The claim that enforcing sparsity makes the response more linear, taken as a hypothesis.

    Every refined vector is paired with the plain one of the same place and seed. The gain of a kind is averaged over
    places within each seed, and its interval is that over seeds: the forecaster's where it has several. Beside the
    sparse kinds stands one whose code is dense: what it gains is not owed to sparsity.
    """
    plain = {(*cell.place, cell.repetition): cell for cell in cells if cell.method == PLAIN}
    several = len({cell.trained for cell in cells}) > 1
    rows = list[dict[str, Any]]()
    refined = [cell for cell in cells if cell.latents and (*cell.place, cell.repetition) in plain]
    for feature in dict.fromkeys(cell.feature for cell in refined):
        for method in dict.fromkeys(cell.method for cell in refined):
            own = [cell for cell in refined if (cell.feature, cell.method) == (feature, method)]
            if not own:
                continue
            row: dict[str, Any] = {"feature": feature, "method": method, "sparse": method != DENSE}
            for name in (*LINEARITY, "side"):
                by_seed = dict[int, list[float]]()
                for cell in own:
                    gain = getattr(cell, name) - getattr(plain[(*cell.place, cell.repetition)], name)
                    by_seed.setdefault(cell.trained if several else cell.seed, []).append(gain)
                row[name] = over_seeds([sum(gains) / len(gains) for gains in by_seed.values()]).to_json()
            row["wins"] = sum(cell.r2 > plain[(*cell.place, cell.repetition)].r2 for cell in own) / len(own)
            row["vectors"] = len(own)
            row["l0"] = _mean([cell.l0 for cell in own])
            row["verdict"] = _verdict(Estimate.from_json({"class": "Estimate", **row["r2"]}))
            rows.append(row)
    return rows


def conclusions(
    cells: Sequence[Cell],
    chosen: Sequence[Cell],
    scores: Mapping[str, Sequence[Mapping[str, ForecastScores]]],
    reach: Mapping[str, float],
) -> dict[str, Any]:
    """The headline figures and the sentences with which the page begins.

    ``scores`` are those of every forecaster, by training seed. The ``chosen`` vectors were judged on agents that did
    not choose them.
    """
    headlines, remarks = list[dict[str, str]](), list[str]()
    for name, found in scores.items():
        own = over_seeds([next(iter(one.values())).min_ade for one in found])
        ends = "" if own.low is None or own.high is None else f"{own.low:.2f} to {own.high:.2f}; "
        baseline = found[0]["constant velocity"].min_ade
        headlines.append(
            {
                "label": f"{name}, minADE",
                "value": f"{own.mean:.2f} m",
                "note": f"{ends}constant velocity {baseline:.2f} m",
            }
        )
    rows = overview(chosen)
    for name in scores:
        for feature in dict.fromkeys(cell.feature for cell in cells):
            mine = [row for row in rows if (row["forecaster"], row["feature"]) == (name, feature)]
            if not mine:
                remarks.append(
                    f"{name}, {feature}: no vector reaches ±{reach[feature] / 2:g} {MEASURES[feature].unit}."
                )
            remarks += [_best(name, feature, row) for row in mine]
    tested = linearity_by_sparsity(cells)
    clear = [row for row in tested if row["verdict"] in (_MORE, _LESS)]
    remarks += [_answer(row) for row in clear]
    if tested:
        remarks.append(
            f"The claim that sparsity makes steering more linear: of {len(tested)} pairs of feature and autoencoder, "
            f"{sum(row['verdict'] == _MORE for row in clear)} are clearly more linear than the plain vectors, "
            f"{sum(row['verdict'] == _LESS for row in clear)} clearly less; the others show no clear difference."
        )
    remarks.append(f"{len(cells):,} vectors were judged.")
    return {"headlines": headlines, "remarks": remarks}


def _best(name: str, feature: str, row: Mapping[str, Any]) -> str:
    way = row["method"].replace("_", " ") + (f", {row['latents']} latents" if row["latents"] else "")
    clean = row["side"]["mean"] <= CLEAN
    low, high = (f"{end:+.3g}".replace("-", "−") for end in row["span"])
    return (
        f"{name}, {feature}: the best vector is {way} at {row['site']} ({row['tokens']}); on agents that did not "
        f"choose it, Pearson {row['pearson']['mean']:.3f}, R² {row['r2']['mean']:.3f} over {low} … {high} "
        f"{row['unit']}, side effects {row['side']['mean']:.2f} of its own effect"
        + ("." if clean else ", which is above a fifth.")
    )


def _answer(row: Mapping[str, Any]) -> str:
    gain = row["r2"]
    ends = f" (95 %: {gain['low']:+.3f} to {gain['high']:+.3f})".replace("-", "−")
    kind = f"{row['method']} autoencoder" if row["sparse"] else f"dense {row['method']} autoencoder"
    return (
        f"Refining {row['feature']} vectors by a {kind} changes R² by {gain['mean']:+.3f}".replace("-", "−")
        + f"{ends}; it is higher for "
        f"{100 * row['wins']:.0f} % of {row['vectors']} vectors: {row['verdict']}."
    )


def _over(group: Sequence[Cell], name: str) -> Estimate:
    """A figure over training seeds, each with the mean of its vectors; over vectors where there is one training."""
    by_training = dict[int, list[float]]()
    for cell in group:
        by_training.setdefault(cell.trained, []).append(getattr(cell, name))
    means = [sum(values) / len(values) for values in by_training.values()]
    return over_seeds(means if len(means) > 1 else next(iter(by_training.values())))


def _verdict(gain: Estimate) -> str:
    if gain.low is None or gain.high is None:
        return "one seed only"
    if gain.low > 0:
        return _MORE
    return _LESS if gain.high < 0 else "no clear difference"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(torch.tensor(known, dtype=torch.float64).mean()) if known else None
