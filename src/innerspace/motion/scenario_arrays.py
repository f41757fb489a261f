"""Scenarios in the layout of ScenarioNet as arrays: its dictionary, flattened into one ``.npz`` file each.

ScenarioNet ships pickles, and to open a pickle is to run whatever it says. They are refused; whoever trusts theirs
converts them once, where that does no harm::

    for path in Path("scenarios").rglob("sd_*.pkl"):
        np.savez_compressed(path.with_suffix(".npz"), **flatten(pickle.loads(path.read_bytes())))

The names of the arrays are the keys of the dictionary, joined by slashes: ``tracks/<id>/type``, and with a row for
each step ``tracks/<id>/state/position`` and likewise ``heading``, ``velocity``, ``valid``, ``length``, ``width`` and
``height``; ``map_features/<id>/type`` and ``map_features/<id>/polyline`` or ``polygon``; ``metadata`` is JSON text with
``scenario_id``, ``ts``, ``current_time_index``, ``sdc_id`` and ``tracks_to_predict``. Others are not read.

How velocities were made depends on the data set; those of Waymo are differences to the step before.

Quanyi Li et al., ScenarioNet: Open-Source Platform for Large-Scale Traffic Scenario Simulation and Modeling, NeurIPS
2023.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Bool, Float

from innerspace.motion.arrays import Arrays
from innerspace.motion.recordings import QUIET, Recorded, Recording, check_rate, drawn
from innerspace.motion.sources import Skipped
from innerspace.motion.waymo import HZ, MOST_STATES

_STATE = {"position": 2, "heading": 1, "velocity": 2, "valid": 1, "length": 1, "width": 1, "height": 1}
_METADATA = ("scenario_id", "ts", "current_time_index", "sdc_id", "tracks_to_predict")


@final
@dataclass(frozen=True)
class ScenarioArrays(Recorded):
    """Files ``*.npz`` of flattened scenarios; see ``Recorded`` for the settings.

    Times that do not follow each other at ``hz`` make a scenario skipped. A track with a state that is missing or has
    another length is left out, and counted by the state's name.
    """

    hz: float = HZ

    patterns: ClassVar[tuple[str, ...]] = ("*.npz",)

    def _check(self, place: Path) -> None:
        pickled = (
            [place]
            if place.is_file()
            else [path for ending in ("pkl", "pickle") for path in place.rglob(f"*.{ending}")]
        )
        if pickled and pickled[0].suffix in (".pkl", ".pickle"):
            raise ValueError(
                f"{pickled[0].name} is a pickle: to open it is to run what it says. Where you trust it, convert it: "
                "np.savez_compressed(path.with_suffix('.npz'), **flatten(pickle.loads(path.read_bytes()))) "
                "with flatten of innerspace.motion.scenario_arrays"
            )

    def _recordings(self, place: Path, record: str) -> Iterator[Recording | Skipped]:
        try:
            with Arrays(place) as arrays:
                recording = self._recording(arrays)
        except ValueError as error:
            yield Skipped(record, str(error))
        else:
            yield recording

    @QUIET
    def _recording(self, arrays: Arrays) -> Recording:
        """The scenario of a file.

        Raises:
            ValueError: if what makes a scenario is missing or damaged.
        """
        metadata, remarks = _metadata(arrays), list[str]()
        seconds, now = metadata["ts"], metadata["current_time_index"]
        check_rate(seconds, self.hz)
        steps = len(seconds)
        names = [
            name.removeprefix("tracks/").removesuffix("/type") for name in arrays.names() if _is_type(name, "tracks")
        ]
        if not names:
            raise ValueError("tracks/<id>/type is missing: there are no tracks")
        if len(names) * steps > MOST_STATES:
            raise ValueError(f"there are {len(names) * steps} states; at most {MOST_STATES} are read")
        lost = Counter[str]()
        found = {name: state for name in names if (state := _track(arrays, name, steps, lost)) is not None}
        if not found:
            raise ValueError(f"no track has {steps} values of every state; first wrong is {next(iter(lost))}")
        remarks += [f"{state} is missing, or not {steps} numbers, in {n} tracks: left out" for state, n in lost.items()]
        asked = metadata["asked"]
        if absent := sorted(asked - set(names)):
            remarks.append(f"{len(absent)} tracks to forecast are none of the {len(names)}, as {absent[0][:40]!r}")
        lines, odd = _lines(arrays)
        remarks += [f"unknown map feature {name[:40]!r}: {n} left out" for name, n in odd.most_common(5)]
        values = np.stack([state for state, _ in found.values()])
        return Recording(
            name=metadata["scenario_id"],
            category=[_text(arrays[f"tracks/{name}/type"]).lower() for name in found],
            position=values[..., :2],
            heading=values[..., 2],
            velocity=values[..., 3:5],
            size=values[..., 5:],
            valid=np.stack([valid for _, valid in found.values()]),
            asked=np.array([name in asked for name in found], dtype=bool),
            lines=lines,
            now=now,
            hz=self.hz,
            remarks=remarks,
        )


def flatten(scenario: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A scenario's dictionary, as ScenarioNet has it, as arrays for ``np.savez_compressed``; see the file's head."""
    out = dict[str, np.ndarray]()
    for name, track in scenario["tracks"].items():
        out[f"tracks/{name}/type"] = np.array(str(track["type"]))
        out |= {f"tracks/{name}/state/{state}": np.asarray(track["state"][state]) for state in _STATE}
    for name, feature in scenario["map_features"].items():
        out[f"map_features/{name}/type"] = np.array(str(feature["type"]))
        out |= {
            f"map_features/{name}/{shape}": np.asarray(feature[shape], dtype=np.float64)
            for shape in ("polyline", "polygon")
            if shape in feature
        }
    metadata = {name: scenario["metadata"][name] for name in _METADATA if name in scenario["metadata"]}
    metadata["ts"] = np.asarray(metadata["ts"], dtype=np.float64).tolist()
    metadata["tracks_to_predict"] = [str(name) for name in metadata.get("tracks_to_predict", ())]
    out["metadata"] = np.array(json.dumps(metadata))
    return out


def _metadata(arrays: Arrays) -> dict[str, Any]:
    try:
        data = json.loads(_text(arrays["metadata"]))
        if missing := [name for name in _METADATA if name not in data]:
            raise ValueError(f"{missing[0]} is missing")
        return {
            "scenario_id": str(data["scenario_id"]),
            "ts": np.array(data["ts"], dtype=float).reshape(len(data["ts"])),
            "current_time_index": int(data["current_time_index"]),
            "asked": {str(data["sdc_id"]), *(str(name) for name in data["tracks_to_predict"])},
        }
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"metadata: {type(error).__name__}: {str(error)[:200]}") from None


def _text(array: np.ndarray) -> str:
    if array.shape != () or array.dtype.kind != "U":
        raise ValueError(f"text should be there, not an array of shape {array.shape} of {array.dtype}")
    return str(array[()])


def _is_type(name: str, group: str) -> bool:
    return name.startswith(f"{group}/") and name.endswith("/type") and len(name) > len(group) + len("//type")


def _track(
    arrays: Arrays, name: str, steps: int, lost: Counter[str]
) -> tuple[Float[np.ndarray, "steps 8"], Bool[np.ndarray, "steps"]] | None:
    columns = dict[str, np.ndarray]()
    for state, width in _STATE.items():
        key = f"tracks/{name}/state/{state}"
        array = arrays[key] if key in arrays else np.zeros(0)
        # scalars have no second axis, or one of length one; of a position the height above ground is not needed
        rows = array.reshape(len(array), -1) if array.ndim and array.size else np.zeros((0, 1))
        fits = len(rows) == steps and (rows.shape[1] == 1 if width == 1 else 2 <= rows.shape[1] <= 3)
        if not fits or array.dtype.kind not in "biuf":
            lost[state] += 1
            return None
        columns[state] = rows[:, :width].astype(np.float64)
    valid = columns.pop("valid")[:, 0] != 0
    return np.concatenate(list(columns.values()), axis=1), valid


def _lines(arrays: Arrays) -> tuple[list[tuple[str, np.ndarray]], Counter[str]]:
    """The map features with a shape, and how many there are of each type that is not known."""
    lines, odd = list[tuple[str, np.ndarray]](), Counter[str]()
    for name in arrays.names():
        if not _is_type(name, "map_features"):
            continue
        place, kind = name.removesuffix("/type"), _text(arrays[name])
        shape = next((shape for shape in ("polyline", "polygon") if f"{place}/{shape}" in arrays), None)
        if shape is None:
            continue
        known, scene_kind = _line_kind(kind)
        points = arrays[f"{place}/{shape}"]
        if not known or points.ndim != 2 or points.shape[1] not in (2, 3) or points.dtype.kind not in "iuf":
            odd[kind if not known else f"{kind} without points"] += 1
            continue
        # the area of a crossing is drawn around, that of a lane is not: what counts there is its middle
        if shape == "polyline" or scene_kind not in ("lane", "bike_lane"):
            lines += drawn(scene_kind, points[:, :2].astype(np.float64), closed=shape == "polygon")
    return lines, odd


def _line_kind(kind: str) -> tuple[bool, str | None]:
    """Whether a type of map feature is known, and what it is in a scene; areas to drive or to walk on are nothing."""
    match kind.split("_"):
        case ["LANE", "BIKE", *_]:
            return True, "bike_lane"
        case ["DRIVEWAY"] | ["ROAD", "EDGE", "SIDEWALK"]:
            return True, None
        case ["LANE", *_]:
            return True, "lane"
        case ["ROAD", "LINE", "BROKEN", *_]:
            return True, "dashed_mark"
        case ["ROAD", "LINE", "SOLID", *_]:
            return True, "solid_mark"
        case ["ROAD", "LINE", *_] | ["UNKNOWN", "LINE"] | ["SPEED", "BUMP"]:
            return True, "other_mark"
        case ["ROAD", "EDGE", *_] | ["UNKNOWN"]:
            return True, "road_edge"
        case ["CROSSWALK"]:
            return True, "crossing"
        case _:
            return False, None
