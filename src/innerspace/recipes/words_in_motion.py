"""Words in motion on embedded simulated traffic: probe, steer and judge a small RedMotion, in minutes, offline."""

from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.partitions.learned import Finding
from innerspace.jobs.subspaces import Verifying
from innerspace.measure.part_labels import Reading
from innerspace.motion.forecasters.redmotion import RedMotionSettings
from innerspace.motion.framing import Framing
from innerspace.motion.training import Training

job = WordsInMotion(
    # the published width; a simulated scene has at most five other agents
    forecaster=RedMotionSettings(width=128, framing=Framing(agents=6, lines=24)),
    training=Training(steps=1100, weight_decay=0.1),
    subspaces=Finding(unit=8, steps=450, merging=False, rows=15_000, held_out=6_000, randoms=3),
    verifying=Verifying(
        exchanges=50, judged=640, among=5120, queries=18, reading=Reading(splits=3, rotations=1, most=1500)
    ),
)
