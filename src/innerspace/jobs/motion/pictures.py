"""A few scenes for the page: what was, what the forecaster says, and what it says under every temperature."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.interventions import At, Steer
from innerspace.jobs.motion.steering import Judged
from innerspace.measure.forecasts import forecast
from innerspace.motion.framing import Batch
from innerspace.motion.scenes import KINDS, LINE_KINDS
from innerspace.motion.sentences import describe
from innerspace.motion.suppression import few
from innerspace.motion.words import Labels
from innerspace.network.model import Model
from innerspace.network.site import Where


def choose(labels: Labels, count: int) -> Int[Tensor, "chosen"]:
    """Rows whose words differ as much as possible: greedily, the row that adds most words not shown so far."""
    words = labels.words()
    known = [i for i, row in enumerate(words) if len(row) == len(labels.vocabulary.features)]
    # the page opens with the first scene, which should be one with something to see
    waiting = sorted(known, key=lambda i: words[i]["direction"] == "stationary")
    shown, chosen = dict[tuple[str, str], int](), list[int]()
    while waiting and len(chosen) < count:
        best = min(waiting, key=lambda i: sum(shown.get(entry, 0) for entry in words[i].items()))
        chosen.append(best)
        waiting.remove(best)
        for entry in words[best].items():
            shown[entry] = shown.get(entry, 0) + 1
    return torch.tensor(chosen, dtype=torch.int64)


@torch.no_grad()
def pictures(
    model: Model, site: str, batch: Batch, names: Sequence[str], labels: Labels, shown: Sequence[Judged], count: int
) -> list[dict[str, Any]]:
    """The scenes, as the page draws them: the target at the origin, looking along +x."""
    rows = choose(labels, count)
    part, words = batch[rows], labels.words()
    sweeps = [(item, *_sweep(model, site, part, item)) for item in shown]
    scenes = list[dict[str, Any]]()
    for i, row in enumerate(rows.tolist()):
        target, others = part.target, part.others
        present = others.valid[i, :, -1]
        scenes.append(
            {
                "name": names[row],
                "words": describe(words[row]),
                "kind": KINDS[int(target.kind[i])],
                "history": _points(target.position[i][target.valid[i]]),
                "truth": _points(part.future[i][part.future_valid[i]]),
                "lines": [
                    {"kind": LINE_KINDS[int(kind)], "points": _points(line[valid])}
                    for line, valid, kind in zip(part.line[i], part.line_valid[i], part.line_kind[i], strict=True)
                    if valid.any()
                ],
                "others": [
                    {
                        "kind": KINDS[int(others.kind[i, j])],
                        "position": _points(others.position[i, j, -1:])[0],
                        "heading": round(float(others.heading[i, j, -1]), 3),
                        "size": [round(float(side), 2) for side in others.size[i, j, :2]],
                    }
                    for j in present.nonzero().flatten().tolist()
                ],
                "size": [round(float(side), 2) for side in target.size[i, :2]],
                "steered": [
                    {
                        "vector": item.fitted.feature.name,
                        "method": item.name,
                        "tau": [round(float(t), 4) for t in tau],
                        "forecasts": [[_points(mode) for mode in modes] for modes in paths[:, i]],
                        "probability": [[round(float(p), 3) for p in entry] for entry in chances[:, i]],
                    }
                    for item, tau, paths, chances in sweeps
                ],
            }
        )
    return scenes


def _sweep(
    model: Model, site: str, batch: Batch, item: Judged
) -> tuple[Float[Tensor, "t"], Float[Tensor, "t batch modes waypoints 2"], Float[Tensor, "t batch modes"]]:
    tau = item.responses["speed"].tau
    steer = [At(Where("valid"), Steer(item.fitted.along, amount)) for amount in tau.tolist()]
    forecasts = [few(forecast(model.run(batch, {site: edit}).output), batch.target.kind) for edit in steer]
    return tau, torch.stack([f.trajectory for f in forecasts]), torch.stack([f.probability for f in forecasts])


def _points(points: Float[Tensor, "n 2"]) -> list[list[float]]:
    return [[round(x, 2), round(y, 2)] for x, y in points.tolist()]
