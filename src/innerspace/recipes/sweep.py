"""Control vectors of three forecasters by every method and autoencoder, early and late in their histories."""

from innerspace.jobs.motion.optimized import Optimized
from innerspace.jobs.motion.steering import Steering
from innerspace.jobs.motion.vectors import Dictionaries
from innerspace.jobs.sweep import Sweep
from innerspace.learn.fit import FitConfig
from innerspace.motion.forecasters.hptr import HptrSettings
from innerspace.motion.forecasters.redmotion import RedMotionSettings
from innerspace.motion.forecasters.wayformer import WayformerSettings
from innerspace.motion.framing import Framing
from innerspace.motion.training import Training

framing = Framing(agents=6, lines=24)
job = Sweep(
    forecasters=(
        RedMotionSettings(width=128, framing=framing),
        WayformerSettings(width=128, framing=framing),
        HptrSettings(width=128, framing=framing),
    ),
    training=Training(steps=1100, weight_decay=0.1),
    learning_rates=(2e-3, 1e-3, 2e-3),
    dictionaries=Dictionaries(kinds=("relu", "topk", "conv", "koopman"), fit=FitConfig(steps=400, log_every=200)),
    latents=(64,),
    optimized=Optimized(seeds=3),
    steering=Steering(points=7, samples=150),
)
