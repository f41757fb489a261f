"""Latents of a words-in-motion run's dictionaries explained in motion words and tested on held-out scenes.

After ``innerspace demo``: ``innerspace run explain-motion --folder runs/demo --data.forecaster runs/demo``. The data
should be the run's. Local, end-to-end and balanced dictionaries are compared, all seeds of each.
"""

from pathlib import Path

from innerspace.explain.examples import Sampling
from innerspace.jobs.explain import Explain
from innerspace.jobs.inputs.scenes import SceneData

job = Explain(
    data=SceneData(Path("runs/demo"), batch=32),
    site="agent.2",
    folder=Path("runs/demo"),
    kinds=("local", "e2e", "balanced"),
    latents=60,
    sampling=Sampling(shown=20, others=200, near=3, documents=40),
)
