"""The colors of the workbench, light and dark: as variables for the page, and filled in for files."""

import re
from importlib.resources import files

LIGHT = {
    "paper": "#ffffff",
    "wash": "#f6f7f9",
    "ink": "#15191f",
    "soft": "#545d6b",
    "rule": "#dde1e7",
    "grid": "#e7eaee",
    "ground": "#eef0f3",
    "lane": "#bcc3cd",
    "edge": "#7f8996",
    "other": "#cbd1d9",
    "ghost": "#858f9c",
    "hue-0": "#0069a8",
    "hue-1": "#c2510a",
    "hue-2": "#00805c",
    "hue-3": "#a63d7b",
    "hue-4": "#8a6a00",
    "hue-5": "#5b54c4",
    "hue-6": "#56616f",
    "hue-7": "#b0303a",
}

DARK = {
    "paper": "#0f1317",
    "wash": "#161b20",
    "ink": "#e7ebf0",
    "soft": "#9ba6b4",
    "rule": "#2c343d",
    "grid": "#232a32",
    "ground": "#181e24",
    "lane": "#46505c",
    "edge": "#76818e",
    "other": "#3a434e",
    "ghost": "#8f99a6",
    "hue-0": "#57aee8",
    "hue-1": "#f2894b",
    "hue-2": "#35c79b",
    "hue-3": "#e088bd",
    "hue-4": "#dcb944",
    "hue-5": "#a7a1ff",
    "hue-6": "#a4afbc",
    "hue-7": "#ff8a8f",
}


def page_style() -> str:
    """All style of the page: the variables, how drawings look, and how the page does."""
    light, dark = (";".join(f"--{name}:{color}" for name, color in one.items()) for one in (LIGHT, DARK))
    looks = "\n".join(resource(name) for name in ("drawing.css", "style.css", "strips.css"))
    return f":root{{{light}}}\n.dark{{{dark}}}\n{looks}"


def file_style(*, dark: bool = False) -> str:
    """How drawings look, with the colors filled in: programs that draw SVG seldom know variables."""
    colors = DARK if dark else LIGHT
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colors.get(found[1], found[0]), resource("drawing.css"))


def resource(name: str) -> str:
    """A file of this package."""
    return files("innerspace.app").joinpath(name).read_text(encoding="utf-8")
