"""A finished run of Words in motion: its forecaster, and of every feature the plain control vector."""

from dataclasses import dataclass
from pathlib import Path

from innerspace.decompose.directions import Directions
from innerspace.jobs.control import PLAIN, WordsInMotion
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
    def load(folder: Path) -> "Finished":
        """Read a run's folder.

        Raises:
            ValueError: if the folder holds no complete run, or its vectors belong to another model.
        """
        if not (folder / "directions.safetensors").is_file():
            raise ValueError(f"{folder} holds no complete run: there is no directions.safetensors")
        model = load_model(folder)
        directions = Directions.load(folder / "directions.safetensors")
        if (origin := directions.origins[0]).model != model.fingerprint():
            raise ValueError(
                f"the vectors in {folder} were fitted to model {origin.model}, this is {model.fingerprint()}"
            )
        vectors = dict[str, Directions]()
        for i, found in enumerate(directions.origins):
            # the first of each feature was fitted to all scenes
            if found.method == PLAIN and found.feature not in vectors:
                vectors[found.feature] = Directions(directions.raw[i : i + 1], directions.gap[i : i + 1], [found])
        return Finished(model, WordsInMotion.load(folder / "job.json"), origin.site, vectors)
