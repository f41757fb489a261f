"""A run's forecaster and control vectors on other data: nothing is fitted, everything is judged."""

from pathlib import Path

import torch
from rich.table import Table

from innerspace.jobs.finished import Finished
from innerspace.jobs.inputs.data import Data
from innerspace.jobs.motion.steering import MEASURES, Bench
from innerspace.jobs.motion.summary import judge_forecasts
from innerspace.jobs.motion.vectors import Fitted
from innerspace.motion.framing import frame


def evaluate(folder: Path, data: Data) -> Table:
    """Forecast errors, and for every plain control vector its calibration, on the test split of ``data``.

    Raises:
        ValueError: if the folder holds no complete run, or its vectors belong to another model.
    """
    data.check()
    run = Finished.load(folder)
    framing = run.job.forecaster.framing
    splits = data.read(framing)
    test = frame(splits.test, framing)
    table = Table("what", "measure", "value", title=f"{folder.name} on {splits.description}")
    for name, scores in judge_forecasts(run.model, test).items():
        table.add_row(name, "minADE, m", f"{scores.min_ade:.2f}")
        table.add_row(name, "minFDE, m", f"{scores.min_fde:.2f}")
    settings = run.job.steering
    part = test[slice(0, settings.samples)]
    bench = Bench.of(run.model, run.site, part, settings)
    half = settings.points // 2
    tau = torch.arange(-half, half + 1) * (0.5 / half)
    features = {feature.name: feature for feature in run.job.vocabulary.features}
    for name, direction in run.vectors.items():
        if name not in MEASURES:
            continue
        fitted = Fitted(direction, features[name], direction.origins[0].method, 0)
        curve = bench.judge(fitted, fitted.along, tau).curve
        assert curve is not None
        unit = MEASURES[name].unit
        table.add_row(f"{name} vector", "Pearson", f"{curve.pearson.mean:.3f}")
        table.add_row(f"{name} vector", f"span, {unit}", f"{curve.span[0]:+.1f} … {curve.span[1]:+.1f}")
    return table
