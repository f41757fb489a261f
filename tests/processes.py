"""Test files that run themselves as scripts, whose processes are forks, so that torch is imported once for all."""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def fork(act: Callable[[], None]) -> int:
    """A process that does something and ends."""
    if child := os.fork():
        return child
    try:
        act()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def script(file: str, *arguments: str) -> None:
    """Run a test file."""
    places = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, places))}
    command = [sys.executable, file, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
