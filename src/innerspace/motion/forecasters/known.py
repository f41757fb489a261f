"""The forecasters that there are, and one of them from a folder."""

from pathlib import Path
from typing import Any

from innerspace.motion.forecasters.forecaster import Forecaster, ForecasterSettings, load_weights
from innerspace.motion.forecasters.hptr import HptrSettings
from innerspace.motion.forecasters.redmotion import RedMotionSettings
from innerspace.motion.forecasters.wayformer import WayformerSettings
from innerspace.network.model import Model

AnyForecaster = HptrSettings | RedMotionSettings | WayformerSettings


def load(folder: Path) -> Forecaster[Any]:
    """Read what ``save`` wrote of any forecaster that there is, in evaluation mode.

    Raises:
        ValueError: if a file is missing or damaged, or the weights do not fit the settings, naming what differs.
    """
    return load_weights(ForecasterSettings.load(folder / "settings.json"), folder)


def load_model(folder: Path) -> Model:
    """The same, with its sites."""
    network = load(folder)
    return Model(network, network.settings.family)
