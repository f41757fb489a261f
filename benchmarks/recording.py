"""Where a benchmark's numbers go: a JSON file and a page in markdown, with the machine, the versions and the date."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

_RESULTS = Path(__file__).parent / "results"


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on, and when."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    found = {"date": date.today().isoformat(), "processor": next(names, platform.processor())}
    found |= {"cores": os.cpu_count(), "threads": threads, "torch": torch.__version__}
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def save(name: str, title: str, header: Mapping[str, Any], results: object, lines: Sequence[str]) -> None:
    """Write both files and print the lines."""
    print("\n".join(lines))
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / f"{name}.json").write_text(json.dumps({**header, "results": results}, indent=1) + "\n")
    told = ", ".join(f"{key} {value}" for key, value in header.items())
    (_RESULTS / f"{name}.md").write_text("\n".join([f"# {title}", "", told, "", *lines]) + "\n")
