"""What every test stands on: shapes checked at run time, two threads, fixed seeds, real data where it lies."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("innerspace", "checking.check")


@pytest.fixture(autouse=True)
def _steady() -> None:
    # on a loaded machine the unset default is many times slower
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real data, or a skip that says where it was sought."""
    place = Path(os.environ.get("INNERSPACE_ASSETS", Path(__file__).parents[2] / "shared" / "assets"))
    if not place.is_dir():
        pytest.skip(f"no real data at {place}; set INNERSPACE_ASSETS to its folder")
    return place
