"""Every file of ``examples/`` runs as a user would run it, and what it prints holds what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_and_calibrates(path: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", path], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(r"Pearson (-?[\d.]+)", done.stdout)
    assert float(found) > 0.98
    # in the table speeds rise with the temperatures, and random directions move them less
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r"[+-]\d\.\d{3} ", line)]
    assert len(rows) >= 5
    tau, speed = ([float(row[i]) for row in rows] for i in (0, 1))
    assert tau == sorted(tau)
    assert speed == sorted(speed)
    assert all(abs(change) > float(row[-2]) for change, row in zip(speed, rows, strict=True) if change)
    assert not list(tmp_path.iterdir())


def test_there_is_an_example() -> None:
    assert EXAMPLES
