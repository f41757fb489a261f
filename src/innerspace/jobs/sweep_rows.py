"""What a sweep finds: a cell for every vector, rows over seeds, and whether sparse refinement makes steering linear."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from innerspace.jobs.steering import MEASURES, Judged, off_target
from innerspace.jobs.vectors import PLAIN, Fitted
from innerspace.measure.estimate import Estimate, over_seeds
from innerspace.motion.forecast_metrics import ForecastScores
from innerspace.value import Value

DENSE = "koopman"
"""The autoencoder whose code is not sparse."""

_MORE, _LESS = "more linear", "less linear"

LINEARITY = ("pearson", "r2", "straightness")


@dataclass(frozen=True)
class Cell(Value):
    """One vector, judged: linearity of its response, what is within reach, what else moves, and its autoencoder.

    ``span`` is the response at the ends of the range on which the curve is monotone, in percent, m/s² or degrees;
    ``side`` the largest change of another measure over that of its own, both in spreads of unsteered agents;
    ``feasible`` the change of the share of forecasts that can be driven, at the stronger end. ``latents`` is 0, and
    ``explained`` and ``l0`` are None, where no autoencoder took part.
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

    @staticmethod
    def of(fitted: Fitted, forecaster: str, site: str, tokens: str, latents: int) -> "Cell":
        """The cell of a vector that is not judged yet."""
        return Cell(forecaster, site, tokens, fitted.feature.name, fitted.method, latents, fitted.seed)

    @property
    def key(self) -> str:
        """What tells it from all other cells of a sweep."""
        place = (self.forecaster, self.site, self.tokens, self.feature, self.method, self.latents, self.seed)
        return " | ".join(map(str, place))

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Where it steers, and what."""
        return self.forecaster, self.site, self.tokens, self.feature


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
    return Cell(
        *(getattr(cell, name) for name in ("forecaster", "site", "tokens", "feature", "method", "latents", "seed")),
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
    """A row for every way and place, with intervals over seeds."""
    groups = dict[tuple[Any, ...], list[Cell]]()
    for cell in cells:
        groups.setdefault((*cell.place, cell.method, cell.latents), []).append(cell)
    names = ("forecaster", "site", "tokens", "feature", "method", "latents")
    return [
        {
            **dict(zip(names, key, strict=True)),
            "unit": MEASURES[key[3]].unit,
            "seeds": len(group),
            **{name: over_seeds([getattr(cell, name) for cell in group]).to_json() for name in LINEARITY},
            "span": [sum(cell.span[i] for cell in group) / len(group) for i in (0, 1)],
            "side": over_seeds([cell.side for cell in group]).to_json(),
            "feasible": over_seeds([cell.feasible for cell in group]).to_json(),
            "explained": _mean([cell.explained for cell in group]),
            "l0": _mean([cell.l0 for cell in group]),
        }
        for key, group in groups.items()
    ]


def linearity_by_sparsity(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The claim that enforcing sparsity makes the response more linear, taken as a hypothesis.

    Every refined vector is paired with the plain one of the same place and seed. The gain of a kind is averaged over
    places within each seed, and its interval is that over seeds. Beside the sparse kinds stands one whose code is
    dense: what it gains is not owed to sparsity.
    """
    plain = {(*cell.place, cell.seed): cell for cell in cells if cell.method == PLAIN}
    rows = list[dict[str, Any]]()
    refined = [cell for cell in cells if cell.latents and (*cell.place, cell.seed) in plain]
    for feature in dict.fromkeys(cell.feature for cell in refined):
        for method in dict.fromkeys(cell.method for cell in refined):
            own = [cell for cell in refined if (cell.feature, cell.method) == (feature, method)]
            if not own:
                continue
            row: dict[str, Any] = {"feature": feature, "method": method, "sparse": method != DENSE}
            for name in (*LINEARITY, "side"):
                by_seed = dict[int, list[float]]()
                for cell in own:
                    gain = getattr(cell, name) - getattr(plain[(*cell.place, cell.seed)], name)
                    by_seed.setdefault(cell.seed, []).append(gain)
                row[name] = over_seeds([sum(gains) / len(gains) for gains in by_seed.values()]).to_json()
            row["wins"] = sum(cell.r2 > plain[(*cell.place, cell.seed)].r2 for cell in own) / len(own)
            row["vectors"] = len(own)
            row["l0"] = _mean([cell.l0 for cell in own])
            row["verdict"] = _verdict(Estimate.from_json({"class": "Estimate", **row["r2"]}))
            rows.append(row)
    return rows


def conclusions(
    cells: Sequence[Cell],
    scores: Mapping[str, Mapping[str, ForecastScores]],
    seeds: int,
    reach: Mapping[str, float],
) -> dict[str, Any]:
    """The headline figures and the sentences with which the page begins.

    A vector that hardly moves anything is easily linear: the best is sought among those that change their feature by
    half of ``reach`` or more on both sides, and there among those whose side effects stay below a fifth.
    """
    headlines, remarks = list[dict[str, str]](), list[str]()
    for name, found in scores.items():
        own, baseline = next(iter(found.values())), found["constant velocity"]
        headlines.append(
            {
                "label": f"{name}, minADE",
                "value": f"{own.min_ade:.2f} m",
                "note": f"constant velocity {baseline.min_ade:.2f} m",
            }
        )
    rows = overview(cells)
    for name in scores:
        for feature in dict.fromkeys(cell.feature for cell in cells):
            mine = [row for row in rows if row["forecaster"] == name and row["feature"] == feature]
            mine = [row for row in mine if -row["span"][0] >= reach[feature] / 2 <= row["span"][1]]
            if not mine:
                remarks.append(
                    f"{name}, {feature}: no vector reaches ±{reach[feature] / 2:g} {MEASURES[feature].unit}."
                )
                continue
            clean = [row for row in mine if row["side"]["mean"] <= 1 / 5] or mine
            best = max(clean, key=lambda row: row["r2"]["mean"])
            way = best["method"].replace("_", " ") + (f", {best['latents']} latents" if best["latents"] else "")
            remarks.append(
                f"{name}, {feature}: the most linear vector is {way} at {best['site']} ({best['tokens']}), Pearson "
                f"{best['pearson']['mean']:.3f}, R² {best['r2']['mean']:.3f} over {best['span'][0]:+.3g} … "
                f"{best['span'][1]:+.3g} {best['unit']}, side effects {best['side']['mean']:.2f} of its own effect"
                + ("." if best["side"]["mean"] <= 1 / 5 else "; none at this forecaster stays below a fifth.")
            )
    tested = linearity_by_sparsity(cells)
    clear = [row for row in tested if row["verdict"] in (_MORE, _LESS)]
    remarks += [_answer(row) for row in clear]
    if tested:
        remarks.append(
            f"The claim that sparsity makes steering more linear: of {len(tested)} pairs of feature and autoencoder, "
            f"{sum(row['verdict'] == _MORE for row in clear)} are clearly more linear than the plain vectors, "
            f"{sum(row['verdict'] == _LESS for row in clear)} clearly less; the others show no clear difference."
        )
    remarks.append(f"{len(cells):,} vectors were judged, {seeds} seeds each.")
    return {"headlines": headlines, "remarks": remarks}


def _answer(row: Mapping[str, Any]) -> str:
    gain = row["r2"]
    ends = f" (95 %: {gain['low']:+.3f} to {gain['high']:+.3f})".replace("-", "−")
    kind = f"{row['method']} autoencoder" if row["sparse"] else f"dense {row['method']} autoencoder"
    return (
        f"Refining {row['feature']} vectors by a {kind} changes R² by {gain['mean']:+.3f}".replace("-", "−")
        + f"{ends}; it is higher for "
        f"{100 * row['wins']:.0f} % of {row['vectors']} vectors: {row['verdict']}."
    )


def _verdict(gain: Estimate) -> str:
    if gain.low is None or gain.high is None:
        return "one seed only"
    if gain.low > 0:
        return _MORE
    return _LESS if gain.high < 0 else "no clear difference"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(torch.tensor(known, dtype=torch.float64).mean()) if known else None
