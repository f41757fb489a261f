"""What the job on unseen data refuses, before and when it begins."""

import dataclasses
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from innerspace.jobs.inputs.data import Data
from innerspace.jobs.job import Job, Run
from innerspace.jobs.unseen import Shifts, Unseen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shifts": Shifts(speeds=(0.5, 0.0))}, "speed: the factor should be positive and finite, it is 0.0"),
        ({"shifts": Shifts(lateral=(-1.0,))}, "the limit should be positive, it is -1.0"),
        ({"shifts": Shifts(rates=(0.0,))}, "hz should be positive and finite, it is 0.0"),
        ({"temperatures": ()}, "temperatures should be positive"),
        ({"temperatures": (-0.5, 0.5)}, "temperatures should be positive .both signs are tried., they are"),
        ({"temperatures": (0.5, 0.1)}, "temperatures should rise, they are"),
        ({"scenes": 5}, "scenes should be at least 10, it is 5"),
        ({"agents": 0}, "agents should be at least 1, it is 0"),
        ({"other": Data(seed=4)}, "other data are given, but transfer is off"),
        ({"transfer": True, "other": Data(kind="av2")}, "data.kind av2 needs data.path"),
        ({"data": Data(kind="av2")}, "data.kind av2 needs data.path"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Unseen(), **changes).check()


def test_the_job_comes_back_from_json() -> None:
    job = Unseen(trained=Path("x"), shifts=Shifts(speeds=(0.6,), rates=()), transfer=True, other=Data(seed=9))
    assert Job.from_json(job.to_json()) == job
    assert len(Shifts().each()) == 12


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent holds no forecaster; give the folder of a words-in-motion run"):
        Unseen(trained=tmp_path / "absent").run(Run(tmp_path, Console(file=StringIO())))
