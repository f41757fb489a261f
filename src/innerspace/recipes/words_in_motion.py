"""Words in motion on embedded simulated traffic: probe, steer and judge a small RedMotion, in minutes, offline."""

from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.partitions import Finding
from innerspace.jobs.subspaces import Verifying
from innerspace.motion.forecasters.redmotion import RedMotionSettings
from innerspace.motion.framing import Framing
from innerspace.motion.training import Training

job = WordsInMotion(
    # the published width; a simulated scene has at most five other agents
    forecaster=RedMotionSettings(width=128, framing=Framing(agents=6, lines=24)),
    training=Training(steps=1100, weight_decay=0.1),
    subspaces=Finding(unit=16, steps=400, rows=15_000, held_out=6_000),
    verifying=Verifying(exchanges=100, judged=1024, among=8192, queries=18),
)
