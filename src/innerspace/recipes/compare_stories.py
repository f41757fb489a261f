"""Eleven decompositions of stories260K behind block 3 by the same measures, in minutes; give the model's folder.

The folder of a small Llama (5 layers, width 64) in Hugging Face format and any TinyStories text serve:
``innerspace run compare-stories --data.model FOLDER --data.corpus.source.paths stories.json``.
"""

from dataclasses import replace
from pathlib import Path

from innerspace.jobs.compare import Compare
from innerspace.jobs.comparison.comparing import Measuring
from innerspace.jobs.comparison.entrants import (
    Independent,
    Ndm,
    Principal,
    RandomDirections,
    RandomRotation,
    Sparse,
    Vectors,
)
from innerspace.jobs.dictionaries.lessons import Course
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.partitions.learned import Finding
from innerspace.jobs.partitions.suites import Asking
from innerspace.language.corpora import Corpus
from innerspace.language.sources import Files
from innerspace.learn.fit import FitConfig
from innerspace.learn.partitioning import Partitioning

job = Compare(
    data=TextData(
        model="stories260K",
        # the network was trained on single line breaks
        corpus=Corpus(Files((Path("stories.json"),)), 128, "sequence", eos=False, replace=(("\n\n", "\n"),)),
        batch=16,
    ),
    site="resid.3",
    entrants=(
        Vectors("probe_normal"),
        Vectors("mean_difference"),
        Sparse("local", 0.12),
        Sparse("e2e", 0.1),
        Sparse("e2e+ds", 0.1),
        Ndm(Finding(custom=replace(Partitioning.fast(64, unit=8, steps=300), merges=None))),
        Principal(8),
        Principal(),
        Independent(),
        RandomRotation(8),
        RandomDirections(),
    ),
    rows=16_000,
    course=Course(tokens=150_000, fit=FitConfig(rate=3e-3, schedule="cosine", warmup=0.05, cooldown=0.0)),
    suites=(Asking("stories", prompts=160),),
    measuring=Measuring(judged=48),
)
