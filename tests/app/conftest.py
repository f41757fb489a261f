"""A finished run of Words in motion with vectors and little else, and its workbench as a server, once for all."""

import asyncio
import contextlib
import gc
import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from app.studied_runs import language_run, motion_run, place  # noqa: F401
from innerspace.app.serve import prepare
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.dictionaries.end_to_end import EndToEnd
from innerspace.jobs.job import execute
from innerspace.jobs.motion.vectors import Dictionaries
from walks.conftest import tiny  # noqa: F401

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Within this folder gradio may leave event loops and sockets to the collector of garbage."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


def _close_idle_loops() -> None:
    """Close what gradio opens and leaves: when it is collected, that is told in the midst of some other test."""
    gc.collect()
    for thing in gc.get_objects():
        # an instance of a proxy would be asked what it is
        if issubclass(type(thing), asyncio.BaseEventLoop) and not (thing.is_running() or thing.is_closed()):
            # one may have lost its files before
            with contextlib.suppress(ValueError, OSError):
                thing.close()


@pytest.fixture(scope="module", autouse=True)
def _swept() -> Iterator[None]:
    yield
    _close_idle_loops()


@pytest.fixture(scope="session")
def folder(tiny: WordsInMotion, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The folder of the run; nobody writes there."""
    torch.set_num_threads(1)
    job = replace(
        tiny,
        sites=("agent.0", "agent.2"),
        dictionaries=Dictionaries(kinds=()),
        end_to_end=EndToEnd(steps=0),
        looping=None,
        subspaces=None,
        online_epochs=0,
        seeds=1,
    )
    made = tmp_path_factory.mktemp("served") / "tiny"
    execute(job, made, Console(file=StringIO()))
    return made


@pytest.fixture(scope="module")
def workbench(folder: Path) -> Iterator[tuple[Any, str]]:
    """The workbench and its address, served from a copy of the run."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the workbench needs the extra 'app'")
    prepare("127.0.0.1", 0)
    from innerspace.app.held import Held
    from innerspace.app.page import Workbench

    bench = Workbench(Held.open(folder))
    yield bench, bench.start(port=0)
    bench.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
