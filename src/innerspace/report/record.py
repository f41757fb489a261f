"""What a run leaves behind for people and machines: its numbers, where they come from, and the page that shows them."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from innerspace.report.numerals import plain
from innerspace.report.page import render
from innerspace.value import Value


@dataclass(frozen=True)
class Provenance(Value):
    """With what, where and when numbers were made; ``seconds`` is how long it took, ``started`` a time in ISO form."""

    innerspace: str
    commit: str
    python: str
    torch: str
    numpy: str
    platform: str
    device: str
    threads: int
    seeds: tuple[int, ...]
    data: str
    started: str
    seconds: float

    @classmethod
    def collect(
        cls, *, seeds: Sequence[int], data: str, started: datetime, seconds: float, device: str = "cpu"
    ) -> "Provenance":
        """The provenance of what this process has just computed."""
        return cls(
            innerspace=version("innerspace"),
            commit=_commit(),
            python=platform.python_version(),
            torch=str(torch.__version__),
            numpy=np.__version__,
            platform=platform.platform(),
            device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
            threads=torch.get_num_threads(),
            seeds=tuple(seeds),
            data=data,
            started=started.isoformat(timespec="seconds"),
            seconds=round(seconds, 1),
        )


def write(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ``report.json`` and ``report.html``.

    The numbers keep seven significant digits; those that are not finite become ``null``.

    Raises:
        ValueError: for what neither JSON nor the page can hold, naming it.
    """
    record: dict[str, Any] = plain(report)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(_pretty(record) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render(record), encoding="utf-8")


def _commit() -> str:
    """The commit of this code, marked where files were changed since; ``unknown`` outside of its own repository."""
    here = Path(__file__).parent

    def git(*command: str) -> str:
        return subprocess.run(("git", "-C", str(here), *command), capture_output=True, text=True, check=True).stdout

    try:
        # an installed copy may lie in a repository that is not ours
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "HEAD").strip() + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _pretty(item: Any, indent: str = "") -> str:
    """Indented JSON whose short entries and lists of numbers stay on one line."""
    line = json.dumps(item, ensure_ascii=False)
    if not isinstance(item, dict | list) or len(line) <= 100 or (isinstance(item, list) and "{" not in line):
        return line
    inner = indent + " "
    if isinstance(item, list):
        return "[\n" + ",\n".join(inner + _pretty(entry, inner) for entry in item) + f"\n{indent}]"
    rows = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {_pretty(entry, inner)}" for key, entry in item.items())
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
