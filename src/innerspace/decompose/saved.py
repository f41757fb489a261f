"""Decompositions from files, whichever they are: the file names the class, out of those that there are here."""

from pathlib import Path

from innerspace.checkpoint import load_state
from innerspace.decompose.autoencoder import Autoencoder
from innerspace.decompose.base import Decomposition
from innerspace.decompose.convolutional import Convolutional
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.directions import Directions
from innerspace.decompose.koopman import Koopman
from innerspace.decompose.mixer import Mixer
from innerspace.decompose.sequence import Sequencewise
from innerspace.decompose.subspaces import Subspaces

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


def load_any(path: Path) -> Decomposition:
    """Read what the ``save`` of an autoencoder, of directions or of subspaces wrote.

    Raises:
        ValueError: if the file is missing, damaged or holds something else, naming it.
    """
    match str(load_state(path).get("format", "")).rpartition(" ")[0]:
        case "innerspace directions":
            return Directions.load(path)
        case "innerspace subspaces":
            return Subspaces.load(path)
        case _:
            return load(path)
