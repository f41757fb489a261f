"""A run's forecaster and control vectors on other data: nothing is fitted, everything is judged."""

from pathlib import Path

import torch
from rich.table import Table

from innerspace.decompose.directions import Directions
from innerspace.jobs.control import PLAIN, WordsInMotion
from innerspace.jobs.data import Data
from innerspace.jobs.parts import chunks
from innerspace.jobs.steering import MEASURES, Bench
from innerspace.jobs.summary import judge_forecasts
from innerspace.jobs.vectors import Fitted, vectors_of
from innerspace.motion.forecasters.known import load
from innerspace.motion.framing import frame
from innerspace.network.model import Model


def evaluate(folder: Path, data: Data) -> Table:
    """Forecast errors, and for every plain control vector its calibration, on the test split of ``data``.

    Raises:
        ValueError: if the folder holds no complete run, or its vectors belong to another model.
    """
    data.check()
    network = load(folder)
    model = Model(network, network.settings.family)
    directions = vectors_of(folder, model)
    origin = directions.origins[0]
    splits = data.read(network.settings.framing)
    test = frame(splits.test, network.settings.framing)
    table = Table("what", "measure", "value", title=f"{folder.name} on {splits.description}")
    for name, scores in judge_forecasts(model, test).items():
        table.add_row(name, "minADE, m", f"{scores.min_ade:.2f}")
        table.add_row(name, "minFDE, m", f"{scores.min_fde:.2f}")
    job = WordsInMotion.load(folder / "job.json")
    settings = job.steering
    part = test[slice(0, settings.samples)]
    bench = Bench(model, origin.site, chunks(part), part.scene, settings)
    half = settings.points // 2
    tau = torch.arange(-half, half + 1) * (0.5 / half)
    features = {feature.name: feature for feature in job.vocabulary.features if feature.name in MEASURES}
    for i, found in enumerate(directions.origins):
        # the first of each feature was fitted to all scenes
        if found.method != PLAIN or found.feature not in features:
            continue
        one = Directions(directions.raw[i : i + 1], directions.gap[i : i + 1], [found])
        fitted = Fitted(one, features.pop(found.feature), found.method, 0)
        curve = bench.judge(fitted, fitted.along, tau).curve
        assert curve is not None
        unit = MEASURES[found.feature].unit
        table.add_row(f"{found.feature} vector", "Pearson", f"{curve.pearson.mean:.3f}")
        table.add_row(f"{found.feature} vector", f"span, {unit}", f"{curve.span[0]:+.1f} … {curve.span[1]:+.1f}")
    return table
