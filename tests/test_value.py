from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from innerspace.value import Value, read_json


@dataclass(frozen=True)
class Shape(Value):
    pass


@dataclass(frozen=True)
class Circle(Shape):
    radius: float = 1.0


@dataclass(frozen=True)
class Box(Shape):
    sides: tuple[float, ...] = (1.0, 2.0)
    corner: tuple[int, str] = (0, "left")


@dataclass(frozen=True)
class Drawing(Value):
    shapes: tuple[Shape, ...] = ()
    main: Circle | Box | None = None
    mode: Literal["fill", "line"] = "fill"
    path: Path = Path("x")
    weights: dict[str, float] | None = None
    tokens: Literal["all", "last"] | int = "all"
    kind: str = "sketch"


def test_values_come_back_from_json(tmp_path: Path) -> None:
    drawing = Drawing((Circle(2.5), Box((3.0,))), Box(), "line", Path("a/b"), {"w": 1.0}, -1)
    assert Drawing.from_json(drawing.to_json()) == drawing
    drawing.save(tmp_path / "drawing.json")
    assert Drawing.load(tmp_path / "drawing.json") == drawing


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"colour": 1}, "unknown field 'colour' of Drawing; it has shapes, main"),
        ({"mode": "dots"}, "Drawing.mode should be one of 'fill', 'line', not 'dots'"),
        ({"shapes": [{"class": "Star"}]}, r"shapes\[0\]: unknown class 'Star'; possible are Box, Circle, Shape"),
        ({"main": {"class": "Star"}}, "main: unknown class 'Star'; possible are Box, Circle"),
        ({"main": {"class": "Circle", "radius": "wide"}}, "main.radius should be float, not 'wide'"),
        ({"main": {"class": "Box", "corner": [1]}}, "corner should have 2 entries, it has 1"),
        ({"path": 3}, "path should be Path, not 3"),
        ({"class": "Circle"}, "unknown class 'Circle'; possible are Drawing"),
    ],
)
def test_what_is_not_known_is_refused(data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Drawing.from_json(data)


def test_whole_numbers_serve_as_floats_and_truth_values_do_not() -> None:
    assert Circle.from_json({"radius": 2}) == Circle(2.0)
    with pytest.raises(ValueError, match="radius"):
        Circle.from_json({"radius": True})


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file at"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_json(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        Circle(complex(1)).to_json()  # pyright: ignore
