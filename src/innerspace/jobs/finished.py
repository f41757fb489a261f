"""A finished run of Words in motion: its forecaster, and of every feature one control vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from innerspace.decompose.directions import Directions
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.motion.vectors import PLAIN, vectors_of
from innerspace.motion.forecasters.known import load_model
from innerspace.network.model import Model


@dataclass(frozen=True, eq=False)
class Finished:
    """What a run left: the network, its job, the site of its vectors, and by feature the one fitted to all scenes."""

    model: Model
    job: WordsInMotion
    site: str
    vectors: dict[str, Directions]

    @staticmethod
    def load(folder: Path, methods: Sequence[str] = (PLAIN,)) -> "Finished":
        """Read a run's folder; of each feature's vectors the first by the earliest of the ``methods`` that has one.

        Raises:
            ValueError: if the folder holds no complete run, or its vectors belong to another model.
        """
        if not (folder / "directions.safetensors").is_file():
            raise ValueError(f"{folder} holds no complete run: there is no directions.safetensors")
        model = load_model(folder)
        directions = vectors_of(folder, model)
        vectors = dict[str, Directions]()
        for method in reversed(methods):
            # the first of each feature was fitted to all scenes
            for i, found in reversed(list(enumerate(directions.origins))):
                if found.method == method:
                    vectors[found.feature] = Directions(directions.raw[i : i + 1], directions.gap[i : i + 1], [found])
        return Finished(model, WordsInMotion.load(folder / "job.json"), directions.origins[0].site, vectors)
