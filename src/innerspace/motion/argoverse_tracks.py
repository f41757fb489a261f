"""The tables of Argoverse 2 as tracks on one time axis: which types are agents, and which rows are damaged."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from innerspace.motion.roads import FARTHEST, RADIUS, RoadMap
from innerspace.motion.scenes import KINDS, Scene

HZ = 10.0
"""The sampling rate of scenarios and logs."""

SCENARIO_KINDS = {
    "vehicle": "vehicle",
    "bus": "vehicle",
    "pedestrian": "pedestrian",
    "cyclist": "cyclist",
    "motorcyclist": "cyclist",
}
"""The object types of scenarios that are agents, and what they are in a scene."""

LOG_KINDS = {
    **dict.fromkeys(("EGO_VEHICLE", "REGULAR_VEHICLE", "LARGE_VEHICLE", "RAILED_VEHICLE"), "vehicle"),
    **dict.fromkeys(("BUS", "SCHOOL_BUS", "ARTICULATED_BUS"), "vehicle"),
    **dict.fromkeys(("TRUCK", "BOX_TRUCK", "TRUCK_CAB", "VEHICULAR_TRAILER"), "vehicle"),
    **dict.fromkeys(("PEDESTRIAN", "OFFICIAL_SIGNALER", "STROLLER", "WHEELCHAIR"), "pedestrian"),
    **dict.fromkeys(("BICYCLIST", "MOTORCYCLIST", "WHEELED_RIDER"), "cyclist"),
}
"""The object types of sensor logs that are agents, and what they are in a scene."""

NO_AGENTS = (
    *("static", "background", "construction", "unknown", "riderless_bicycle", "BICYCLE", "MOTORCYCLE"),
    *("WHEELED_DEVICE", "ANIMAL", "DOG", "BOLLARD", "CONSTRUCTION_BARREL", "CONSTRUCTION_CONE", "SIGN", "STOP_SIGN"),
    *("MESSAGE_BOARD_TRAILER", "MOBILE_PEDESTRIAN_CROSSING_SIGN", "TRAFFIC_LIGHT_TRAILER"),
)
"""The object types that are left out as known not to be agents."""

Table = dict[str, np.ndarray]
"""Columns by name, of equal length."""


def read_table(path: Path, columns: Mapping[str, type]) -> Table:
    """Columns of a parquet or feather file, none of them empty, with a gap, or with a number that is not finite.

    Raises:
        ValueError: if the file is damaged or a column is missing or of another type, naming the file.
    """
    import pyarrow as pa
    from pyarrow.feather import read_table as read_feather
    from pyarrow.parquet import ParquetFile

    arrow = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    try:
        if path.suffix == ".parquet":
            with ParquetFile(path) as file:
                raw = file.read()
        else:
            raw = read_feather(path, memory_map=False)
        # flipped bytes can make offsets that point outside the file
        raw.validate(full=True)
        present = raw.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is no complete {path.suffix[1:]} file: {_first_line(error)}") from None
    if missing := [name for name in columns if present.count(name) != 1]:
        raise ValueError(f"{path.name} needs one column {missing[0]}; it has {', '.join(present)}")
    if not raw.num_rows:
        raise ValueError(f"{path.name} has no rows")
    table = Table()
    for name, kind in columns.items():
        if raw[name].null_count:
            raise ValueError(f"{path.name}: {name} is missing in {raw[name].null_count} of {raw.num_rows} rows")
        try:
            column = raw[name].cast(arrow[kind])
        except pa.ArrowException as error:
            raise ValueError(f"{path.name}: {name} should hold {kind.__name__}: {_first_line(error)}") from None
        table[name] = np.array(column.to_pylist()) if kind is str else column.to_numpy()
        if kind is float and (bad := np.flatnonzero(~(abs(table[name]) < FARTHEST))).size:
            raise ValueError(
                f"{path.name}: {name} is not finite or beyond {FARTHEST:g} in {bad.size} of {raw.num_rows} rows, "
                f"first in row {bad[0]}"
            )
    return table


def stack(table: Table, *names: str) -> Float[np.ndarray, "rows columns"]:
    """Some columns side by side."""
    return np.stack([table[name] for name in names], axis=-1)


def only_agents(table: Table, kinds: Collection[str], *, track: str, category: str) -> tuple[Table, list[str]]:
    """The rows whose type is in ``kinds``, and one line for each type that is neither there nor in ``NO_AGENTS``.

    Raises:
        ValueError: if there is no agent at all.
    """
    unknown = np.setdiff1d(table[category], (*kinds, *NO_AGENTS)).tolist()
    counts = [len(np.unique(table[track][table[category] == name])) for name in unknown]
    notes = [f"unknown object type {name!r}: {n} tracks left out" for name, n in zip(unknown, counts, strict=True)]
    kept = np.isin(table[category], list(kinds))
    if not kept.any():
        raise ValueError(f"holds no agent, only {', '.join(np.unique(table[category]))}")
    return {name: column[kept] for name, column in table.items()}, notes


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the rows of a table belong in an array of agents × steps; ``first`` is the first row of each agent."""

    agent: Int[np.ndarray, "rows"]
    step: Int[np.ndarray, "rows"]
    first: Int[np.ndarray, "agents"]
    category: list[str]
    valid: Bool[np.ndarray, "agents steps"]

    @classmethod
    def of(cls, track: np.ndarray, category: np.ndarray, step: Int[np.ndarray, "rows"], steps: int) -> "Grid":
        """The grid of a table's columns.

        Raises:
            ValueError: if a track has two rows for one step, or two types.
        """
        names, first, agent = np.unique(track, return_index=True, return_inverse=True)
        if (mixed := np.flatnonzero(category != category[first][agent])).size:
            row = mixed[0]
            raise ValueError(f"track {track[row]} is both {category[first[agent[row]]]} and {category[row]}")
        count = np.bincount(agent * steps + step, minlength=len(names) * steps).reshape(len(names), steps)
        if (count > 1).any():
            double, at = np.argwhere(count > 1)[0]
            raise ValueError(f"track {names[double]} has {count[double, at]} rows for step {at}")
        return cls(agent, step, first, category[first].tolist(), count > 0)

    def kind(self, kinds: Mapping[str, str]) -> Int[np.ndarray, "agents"]:
        """The agents' types in a scene, as ids."""
        return np.array([KINDS.index(kinds[name]) for name in self.category])

    def spread(self, column: Float[np.ndarray, "rows *more"]) -> Float[np.ndarray, "agents steps *more"]:
        """Values of rows in their places, zero elsewhere."""
        out = np.zeros((*self.valid.shape, *column.shape[1:]))
        out[self.agent, self.step] = column
        return out


@dataclass(frozen=True, eq=False)
class Tracks:
    """All agents of a file in the city frame; zero where not valid."""

    kind: Int[np.ndarray, "agents"]
    size: Float[np.ndarray, "agents 3"]
    position: Float[np.ndarray, "agents steps 2"]
    heading: Float[np.ndarray, "agents steps"]
    velocity: Float[np.ndarray, "agents steps 2"]
    valid: Bool[np.ndarray, "agents steps"]

    def scene(self, name: str, group: str, part: slice, now: int, span: slice, road: RoadMap) -> Scene | None:
        """The steps ``part`` as a scene without copying; ``now`` and ``span`` count from its start.

        Targets are the agents that are valid throughout ``span``; without any there is no scene.
        """
        position, valid = self.position[:, part], self.valid[:, part]
        target = np.flatnonzero(valid[:, span].all(axis=1))
        if not target.size:
            return None
        near = road.near(position[target, now], RADIUS)
        return Scene(
            name=name,
            position=position,
            heading=self.heading[:, part],
            velocity=self.velocity[:, part],
            size=self.size,
            kind=self.kind,
            valid=valid,
            target=target,
            line=near.line,
            line_kind=near.kind,
            line_valid=near.valid,
            hz=HZ,
            now=now,
            group=group,
        )


def past_velocity(
    position: Float[np.ndarray, "agents steps 2"],
    valid: Bool[np.ndarray, "agents steps"],
    seconds: Float[np.ndarray, "steps"],
) -> tuple[Float[np.ndarray, "agents steps 2"], Bool[np.ndarray, "agents steps"]]:
    """Differences to the step before, in m/s, and where there are any.

    The first step of a run of valid steps takes the velocity of the second, a step on its own has none.
    """
    velocity = np.zeros_like(position)
    moved = valid[:, 1:] & valid[:, :-1]
    velocity[:, 1:][moved] = (np.diff(position, axis=1) / np.diff(seconds)[:, None])[moved]
    known = np.zeros_like(valid)
    known[:, 1:] = moved
    opens = moved & ~known[:, :-1]
    velocity[:, :-1][opens] = velocity[:, 1:][opens]
    known[:, :-1] |= opens
    return velocity, known


def _first_line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0]
