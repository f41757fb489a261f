"""Runs with dictionaries and subspaces, of a tiny language model and a tiny forecaster, as their jobs leave them."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from innerspace.decompose.nonlinearities import TopK
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.dictionaries.lessons import Course, Lesson, train_lessons
from innerspace.jobs.dictionary import DictionaryJob
from innerspace.jobs.inputs.parts import Parts
from innerspace.jobs.job import Run
from innerspace.jobs.motion.vectors import Dictionaries
from innerspace.jobs.partitions.learned import Finding, harvest, learn
from innerspace.learn.fit import FitConfig
from innerspace.learn.objectives import Downstream, OutputKL, Reconstruction
from innerspace.motion.forecasters.known import load_model
from walks.test_dictionaries import place, text  # noqa: F401

SITE = "resid.1"
LOCAL, E2E, BOTH = (f"{SITE}-{kind}-0" for kind in ("local", "e2e", "e2e+ds"))
PARTS = f"{SITE}-0"
SAID = "the word seven, and what follows it"


def lessons() -> tuple[Lesson, ...]:
    size = {"latents": 48, "nonlinearity": TopK(4)}
    return (
        Lesson(SITE, "local", objective=(Reconstruction(),), **size),
        Lesson(SITE, "e2e", objective=(OutputKL(),), **size),
        Lesson(SITE, "e2e+ds", objective=(OutputKL(), Downstream(("resid.2",))), **size),
    )


@pytest.fixture(scope="session")
def language_run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Three kinds of dictionaries and a partition of a random Llama's states; nobody writes there."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("studied") / "words"
    folder.mkdir()
    course = Course(tokens=128 * 24, fit=FitConfig(rate=3e-3, log_every=8), together=4, snapshots=1, surveyed=4)
    job, run = DictionaryJob(text(place), lessons(), course), Run(folder, Console(file=StringIO()))
    job.save(folder / "job.json")
    reading = job.data.open(run)
    train_lessons(run, reading, job.lessons, course)
    finding = Finding(unit=8, steps=20, merging=False, seeds=1, rows=600, held_out=300, randoms=1)
    store, _ = harvest(run, reading, [SITE], finding)
    learn(run, reading, store, SITE, finding)
    latents = [{"dictionary": LOCAL, "latent": 3, "text": SAID}]
    (folder / "report.json").write_text(json.dumps({"explanations": {"latents": latents}}))
    return folder


@pytest.fixture(scope="session")
def motion_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run of words in motion, with dictionaries and a partition beside its vectors; nobody writes there."""
    own = tmp_path_factory.mktemp("studied") / "motion"
    shutil.copytree(folder, own)
    job, model, run = WordsInMotion.load(own / "job.json"), load_model(own), Run(own, Console(file=StringIO()))
    framing = job.forecaster.framing
    reading = job.reading(model, Parts.of(job.data.read(framing), framing, job.vocabulary), batch=12)
    finding = Finding(unit=4, steps=16, merging=False, seeds=1, rows=300, held_out=100, randoms=1)
    store, _ = harvest(run, reading, [job.site], finding)
    learn(run, reading, store, job.site, finding)
    settings = Dictionaries(("topk", "relu"), latents=16, k=4, batch=64, fit=FitConfig(steps=30, log_every=15))
    rows = store.rows(job.site, torch.arange(len(store))).float()
    for kind in settings.kinds:
        settings.train(rows, kind, 0, own / "dictionaries")
    return own
