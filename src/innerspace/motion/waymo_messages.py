"""The messages of the Waymo Open Motion data set, as far as they are read: names, numbers and types of their fields.

They are built when this is imported, into a pool of their own, so that they live beside Waymo's own package. Fields
that are not listed are ignored by the parser.

Waymo Open Dataset, scenario.proto and map.proto.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "innerspace.waymo"

_Field = tuple[int, str]
"""A number and a type: a scalar's name or a message's, with ``*`` behind it where the field repeats."""

MESSAGES: dict[str, dict[str, _Field]] = {
    "ObjectState": {
        "center_x": (2, "double"),
        "center_y": (3, "double"),
        "length": (5, "float"),
        "width": (6, "float"),
        "height": (7, "float"),
        "heading": (8, "float"),
        "velocity_x": (9, "float"),
        "velocity_y": (10, "float"),
        "valid": (11, "bool"),
    },
    "Track": {"id": (1, "int32"), "object_type": (2, "int32"), "states": (3, "ObjectState*")},
    "RequiredPrediction": {"track_index": (1, "int32")},
    "MapPoint": {"x": (1, "double"), "y": (2, "double")},
    "LaneCenter": {"type": (2, "int32"), "polyline": (8, "MapPoint*")},
    "RoadLine": {"type": (1, "int32"), "polyline": (2, "MapPoint*")},
    "RoadEdge": {"type": (1, "int32"), "polyline": (2, "MapPoint*")},
    "StopSign": {"position": (2, "MapPoint")},
    "Crosswalk": {"polygon": (1, "MapPoint*")},
    "SpeedBump": {"polygon": (1, "MapPoint*")},
    "MapFeature": {
        "id": (1, "int64"),
        "lane": (3, "LaneCenter"),
        "road_line": (4, "RoadLine"),
        "road_edge": (5, "RoadEdge"),
        "stop_sign": (7, "StopSign"),
        "crosswalk": (8, "Crosswalk"),
        "speed_bump": (9, "SpeedBump"),
    },
    "Scenario": {
        "timestamps_seconds": (1, "double*"),
        "tracks": (2, "Track*"),
        "scenario_id": (5, "string"),
        "sdc_track_index": (6, "int32"),
        "map_features": (8, "MapFeature*"),
        "current_time_index": (10, "int32"),
        "tracks_to_predict": (11, "RequiredPrediction*"),
    },
}
"""The fields of every message. Enumerations are read as the numbers that they are stored as."""

_ONE_OF = {"MapFeature": ("feature_data", ("lane", "road_line", "road_edge", "stop_sign", "crosswalk", "speed_bump"))}


def _described() -> descriptor_pb2.FileDescriptorProto:
    """``MESSAGES`` as a compiler of proto files would describe them."""
    proto = descriptor_pb2.FieldDescriptorProto
    scalars = {name: getattr(proto, f"TYPE_{name.upper()}") for name in ("double", "float", "int32", "int64", "bool")}
    scalars["string"] = proto.TYPE_STRING
    file = descriptor_pb2.FileDescriptorProto(name="innerspace/waymo.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        group, members = _ONE_OF.get(name, ("", ()))
        if group:
            message.oneof_decl.add(name=group)
        for field_name, (number, kind) in fields.items():
            label = proto.LABEL_REPEATED if kind.endswith("*") else proto.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=label)
            base = kind.removesuffix("*")
            field.type = scalars.get(base, proto.TYPE_MESSAGE)
            if base not in scalars:
                field.type_name = f".{_PACKAGE}.{base}"
            if field_name in members:
                field.oneof_index = 0
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(_described().SerializeToString())


def message_class(name: str) -> Any:
    """The class of one of ``MESSAGES``."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


Scenario = message_class("Scenario")
"""A scenario: what a record of the data set's shards holds."""
