"""Decompositions from files, whichever they are: the file names the class, out of those that there are here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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

_AUTOENCODERS: dict[str, type[Autoencoder]] = {
    kind.__name__: kind for kind in (Dictionary, Convolutional, Mixer, Sequencewise, Koopman)
}
_OTHERS: dict[str, Callable[[Path], Decomposition]] = {
    "innerspace directions": Directions.load,
    "innerspace subspaces": Subspaces.load,
}


def load(path: Path | str) -> Decomposition:
    """Read what any decomposition's ``save`` wrote, ready for use (in evaluation mode); nothing is unpickled.

    Raises:
        ValueError: if the file is missing, damaged or holds something else, naming it.
    """
    path = Path(path)
    state = load_state(path)
    kind = _kind(state)
    if (other := _OTHERS.get(kind.rpartition(" ")[0])) is not None:
        return other(path)
    if kind not in _AUTOENCODERS:
        raise ValueError(f"{path} holds none of {', '.join(_NAMES)} but {kind or ', '.join(state)}")
    return _AUTOENCODERS[kind].restored(state)


def load_autoencoder(path: Path | str) -> Autoencoder:
    """The same, where an autoencoder is expected.

    Raises:
        ValueError: as ``load``, and for another decomposition.
    """
    found = load(path)
    if not isinstance(found, Autoencoder):
        raise ValueError(f"{path} holds {type(found).__name__}, not one of {', '.join(_AUTOENCODERS)}")
    return found


_NAMES = (*_AUTOENCODERS, "Directions", "Subspaces")


def _kind(state: Mapping[str, Any]) -> str:
    """The class of an autoencoder, or the format of another decomposition."""
    return str(state.get("kind") or state.get("format") or "")
