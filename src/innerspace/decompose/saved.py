"""Autoencoders from files, whichever they are: the file names the class, out of those that there are here."""

from pathlib import Path

from innerspace.checkpoint import load_state
from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.convolutional import Convolutional
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.koopman import Koopman
from innerspace.decompose.mixer import Mixer
from innerspace.decompose.sequence import Sequencewise

_CLASSES: dict[str, type[Autoencoder]] = {
    kind.__name__: kind for kind in (Dictionary, Convolutional, Mixer, Sequencewise, Koopman)
}


def load(path: Path) -> Autoencoder:
    """Read what any autoencoder's ``save`` wrote, ready for use (in evaluation mode).

    Raises:
        ValueError: if the file is missing, damaged or holds something else, naming it.
    """
    state = load_state(path)
    if (kind := state.get("kind")) not in _CLASSES:
        raise ValueError(f"{path} holds none of {', '.join(_CLASSES)} but {kind or ', '.join(state)}")
    return _CLASSES[kind].restored(state)
