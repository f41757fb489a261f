"""The Waymo Open Motion data set as scenes: shards of scenarios, read with protobuf alone.

A shard holds some hundred scenarios of 91 steps at 10 Hz, the current one is 10; those of the test set end there. Its
velocities are differences to the step before, so the current one tells nothing of the future.

* Lanes, marks, road edges, crosswalks and speed bumps become lines, a stop sign a line of one point; speed bumps and
  stop signs are marks of another kind. Driveways are left out, for nothing is drawn there.
* The scenarios of the training set overlap: they are cut from drives of 20 s, and do not say from which. Judge on those
  of the validation set.

Scott Ettinger et al., Large Scale Interactive Motion Forecasting for Autonomous Driving: The Waymo Open Motion Dataset,
ICCV 2021.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Bool, Float

from innerspace.motion.recordings import QUIET, Recorded, Recording, check_rate, drawn
from innerspace.motion.roads import MOST_NODES
from innerspace.motion.sources import Skipped
from innerspace.motion.tfrecord import Damage, read_shard

HZ = 10.0
"""The sampling rate of the data set."""

CATEGORIES: Mapping[int, str] = {0: "unset", 1: "vehicle", 2: "pedestrian", 3: "cyclist", 4: "other"}
"""The types of tracks, by their numbers."""

LANES: Mapping[int, str] = {0: "lane", 1: "lane", 2: "lane", 3: "bike_lane"}
"""What lanes are in a scene: undefined, freeway, surface street, bike lane."""

ROAD_LINES: Mapping[int, str] = {
    **dict.fromkeys((1, 4, 5), "dashed_mark"),
    **dict.fromkeys((2, 3, 6, 7), "solid_mark"),
}
"""What painted lines are in a scene; those not named here, unknown or to be passed from one side, are other marks."""

MOST_STATES = 2_000_000
"""A scenario with more states than this is damage; one of the data set has about 20 000."""

_STATE = ("center_x", "center_y", "heading", "velocity_x", "velocity_y", "length", "width", "height")


@final
@dataclass(frozen=True)
class WaymoScenarios(Recorded):
    """Shards ``*.tfrecord*`` of Waymo's ``Scenario`` messages; see ``Recorded`` for the settings.

    Times that do not follow each other at ``hz`` make a scenario skipped, and so does a field that is missing, unless
    it is one of a track, a state or a line: then that is left out, and counted by the field's name.
    """

    hz: float = HZ

    patterns: ClassVar[tuple[str, ...]] = ("*.tfrecord*",)
    packages: ClassVar[tuple[str, ...]] = ("google.protobuf", "google_crc32c")

    def _recordings(self, place: Path, record: str) -> Iterator[Recording | Skipped]:
        from google.protobuf.message import DecodeError

        from innerspace.motion.waymo_messages import Scenario

        for item in read_shard(place):
            where = f"{record} at byte {item.offset}"
            if isinstance(item, Damage):
                yield Skipped(record, f"byte {item.offset}: {item.reason}")
                continue
            try:
                scenario = Scenario.FromString(item.content)
                yield self._recording(scenario)
            except DecodeError as error:
                yield Skipped(where, f"no scenario: {error}")
            except ValueError as error:
                yield Skipped(where, str(error))

    @QUIET
    def _recording(self, scenario: Any) -> Recording:
        """The scenario of a message.

        Raises:
            ValueError: if a field is missing without which there is none, or times are irregular.
        """
        for field in ("scenario_id", "current_time_index"):
            if not scenario.HasField(field):
                raise ValueError(f"{field} is missing")
        if not isinstance(scenario.scenario_id, str):
            raise ValueError("scenario_id is no text")
        for field in ("timestamps_seconds", "tracks"):
            if not len(getattr(scenario, field)):
                raise ValueError(f"{field} is missing")
        steps, missing, remarks = len(scenario.timestamps_seconds), Counter[str](), list[str]()
        check_rate(np.array(scenario.timestamps_seconds), self.hz)
        complete = [i for i, track in enumerate(scenario.tracks) if len(track.states) == steps]
        if len(complete) * steps > MOST_STATES:
            raise ValueError(f"there are {len(complete) * steps} states; at most {MOST_STATES} are read")
        if lost := len(scenario.tracks) - len(complete):
            remarks.append(f"{lost} tracks have not {steps} states, one for each time: left out")
        state, valid = _states(scenario, complete, steps, missing)
        asked = self._asked(scenario, remarks)
        recording = Recording(
            name=scenario.scenario_id,
            category=[_category(scenario.tracks[i], missing) for i in complete],
            position=state[..., :2],
            heading=state[..., 2],
            velocity=state[..., 3:5],
            size=state[..., 5:],
            valid=valid,
            asked=np.array([i in asked for i in complete], dtype=bool),
            lines=_lines(scenario, missing),
            now=scenario.current_time_index,
            hz=self.hz,
            remarks=remarks,
        )
        remarks += [f"{field} is missing {n} times: what needs it is left out" for field, n in missing.items()]
        return recording

    def _asked(self, scenario: Any, remarks: list[str]) -> set[int]:
        """Which tracks are to be forecast, and that of the ego vehicle."""
        named = {int(entry.track_index) for entry in scenario.tracks_to_predict if entry.HasField("track_index")}
        if scenario.HasField("sdc_track_index"):
            named.add(int(scenario.sdc_track_index))
        elif self.targets == "predict":
            remarks.append("sdc_track_index is missing: the ego vehicle is no target")
        if absent := [i for i in named if not 0 <= i < len(scenario.tracks)]:
            remarks.append(f"{len(absent)} tracks to forecast are none of the {len(scenario.tracks)}, as {absent[0]}")
        return named


def _states(
    scenario: Any, complete: list[int], steps: int, missing: Counter[str]
) -> tuple[Float[np.ndarray, "tracks steps 8"], Bool[np.ndarray, "tracks steps"]]:
    state_of = attrgetter(*_STATE)
    values, valid = np.zeros((len(complete), steps, len(_STATE))), np.zeros((len(complete), steps), dtype=bool)
    for row, track in enumerate(complete):
        for step, state in enumerate(scenario.tracks[track].states):
            if not state.valid:
                continue
            values[row, step], valid[row, step] = state_of(state), True
    # an absent field reads as zero, and only then is it worth while to ask
    for row, step in np.argwhere(valid & (values == 0).any(-1)).tolist():
        state = scenario.tracks[complete[row]].states[step]
        absent = [field for field in _STATE if not state.HasField(field)]
        missing.update(absent)
        valid[row, step] = not absent
    return values, valid


def _category(track: Any, missing: Counter[str]) -> str:
    if not track.HasField("object_type"):
        missing["object_type"] += 1
        return "other"
    return CATEGORIES.get(track.object_type, str(track.object_type))


def _lines(scenario: Any, missing: Counter[str]) -> list[tuple[str, np.ndarray]]:
    lines, total = list[tuple[str, np.ndarray]](), 0
    for feature in scenario.map_features:
        name = feature.WhichOneof("feature_data")
        if name is None:
            continue
        shape, closed, kind = getattr(feature, name), name in ("crosswalk", "speed_bump"), "other_mark"
        match name:
            case "lane":
                points, kind = shape.polyline, LANES.get(shape.type, "lane")
            case "road_line":
                points, kind = shape.polyline, ROAD_LINES.get(shape.type, "other_mark")
            case "road_edge":
                points, kind = shape.polyline, "road_edge"
            case "stop_sign":
                points = [shape.position]
            case _:
                points, kind = shape.polygon, "crossing" if name == "crosswalk" else "other_mark"
        total += len(points)
        if total > MOST_NODES:
            raise ValueError(f"the map has more than {MOST_NODES} points")
        place = np.array([(point.x, point.y) for point in points]).reshape(-1, 2)
        if not place.all():
            absent = [axis for axis in "xy" if not all(point.HasField(axis) for point in points)]
            missing.update(f"{name}.{axis}" for axis in absent)
            if absent:
                continue
        lines += [(kind, place)] if name == "stop_sign" else drawn(kind, place, closed=closed)
    return lines
