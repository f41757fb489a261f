"""A run of Words in motion that is as small as can be, once for all walks."""

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.dictionaries.end_to_end import EndToEnd
from innerspace.jobs.inputs.data import Data
from innerspace.jobs.job import execute
from innerspace.jobs.motion.control_loop import Looping
from innerspace.jobs.motion.optimized import Optimized
from innerspace.jobs.motion.steering import Steering
from innerspace.jobs.motion.vectors import Dictionaries
from innerspace.jobs.partitions.learned import Finding
from innerspace.jobs.subspaces import Verifying
from innerspace.learn.fit import FitConfig
from innerspace.learn.probing import ProbingSettings
from innerspace.learn.steering_vectors import SteeringFit
from innerspace.measure.control_loop import Loop
from innerspace.measure.part_labels import Reading
from innerspace.motion.forecasters.redmotion import RedMotionSettings
from innerspace.motion.framing import Framing
from innerspace.motion.training import Training


@pytest.fixture(scope="session")
def tiny() -> WordsInMotion:
    """Everything the job does, with the smallest numbers that it can be done with."""
    framing = Framing(history=11, future=30, stride=5, agents=4, lines=8)
    return WordsInMotion(
        data=Data(scenes=120),
        forecaster=RedMotionSettings(framing=framing, width=16, red_tokens=4, decoder_layers=1, modes=3),
        training=Training(steps=30, batch_size=32, warm_up=5, evaluate_every=15, checkpoint_every=15),
        sites=("agent.2",),
        probing=ProbingSettings(seeds=2),
        online_epochs=1,
        methods=("mean_difference", "regression"),
        dictionaries=Dictionaries(kinds=("topk",), latents=16, k=4, batch=64, fit=FitConfig(steps=30, log_every=15)),
        end_to_end=EndToEnd(steps=6, batch=8),
        optimized=Optimized(batch=16, batches=2, fit=SteeringFit(steps=4)),
        steering=Steering(points=5, randoms=2, samples=24),
        looping=Looping(speeds=(-10.0, 10.0), headings=(5.0,), samples=12, pilot=12, loop=Loop(passes=6)),
        subspaces=Finding(unit=4, steps=16, seeds=2, rows=300, held_out=150, randoms=2),
        verifying=Verifying(exchanges=8, judged=100, among=200, queries=3, reading=Reading(splits=2, rotations=1)),
        seeds=2,
        scenes_shown=2,
    )


@pytest.fixture(scope="session")
def finished(tiny: WordsInMotion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished run; nobody writes there."""
    # what is steady for every test is not yet so when the first one asks for this
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    execute(tiny, folder, Console(file=StringIO()))
    return folder
