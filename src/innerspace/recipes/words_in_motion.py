"""Words in motion on embedded simulated traffic: probe, steer and judge a small RedMotion, in minutes, offline."""

from innerspace.jobs.control import WordsInMotion
from innerspace.motion.forecasters.redmotion import RedMotionSettings
from innerspace.motion.framing import Framing
from innerspace.motion.training import Training

job = WordsInMotion(
    # the published width; a simulated scene has at most five other agents
    forecaster=RedMotionSettings(width=128, framing=Framing(agents=6, lines=24)),
    training=Training(steps=1100, weight_decay=0.1),
)
