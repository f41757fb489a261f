"""Nine decompositions of a words-in-motion run's forecaster by the same measures, in minutes; give the run's folder.

After ``innerspace demo``: ``innerspace run compare-motion --data.forecaster runs/demo``. The data should be the run's.
"""

from innerspace.decompose.nonlinearities import TopK
from innerspace.jobs.compare import Compare
from innerspace.jobs.comparison.comparing import Measuring
from innerspace.jobs.comparison.entrants import (
    Independent,
    Ndm,
    Principal,
    RandomDirections,
    RandomRotation,
    Sparse,
    Vectors,
)
from innerspace.jobs.dictionaries.lessons import Course
from innerspace.jobs.inputs.scenes import SceneData
from innerspace.jobs.partitions.learned import Finding
from innerspace.learn.fit import FitConfig

job = Compare(
    data=SceneData(batch=32),
    site="agent.2",
    entrants=(
        Vectors("probe_normal"),
        Vectors("mean_difference"),
        Sparse("local", latents=256, nonlinearity=TopK(8)),
        Sparse("e2e", latents=256, nonlinearity=TopK(8)),
        Ndm(Finding(unit=8, steps=300, merging=False)),
        Principal(8),
        Principal(),
        Independent(),
        RandomRotation(8),
        RandomDirections(),
    ),
    rows=12_000,
    course=Course(tokens=40_000, fit=FitConfig(rate=3e-3, cooldown=0.5)),
    measuring=Measuring(judged=96, ordering=2),
)
