"""Subspaces of stories260K at every site, verified on names, she or he, objects and quotations; give its folder.

The folder of a small Llama (5 layers, width 64) in Hugging Face format and any TinyStories text serve:
``innerspace run subspaces-stories --data.model FOLDER --data.corpus.source.paths stories.json``.
"""

from dataclasses import replace
from pathlib import Path

from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.partitions.learned import Finding
from innerspace.jobs.partitions.suites import Asking
from innerspace.jobs.subspaces import SubspacesJob, Verifying
from innerspace.language.corpora import Corpus
from innerspace.language.sources import Files
from innerspace.learn.partitioning import Partitioning

job = SubspacesJob(
    data=TextData(
        model="stories260K",
        # the network was trained on single line breaks
        corpus=Corpus(Files((Path("stories.json"),)), 128, "sequence", eos=False, replace=(("\n\n", "\n"),)),
        batch=16,
    ),
    sites=tuple(f"resid.{block}" for block in range(5)),
    finding=Finding(
        # more queries than the preset's find closer neighbors here; what would merge, the dendrogram tells
        custom=replace(Partitioning.fast(64, unit=8, steps=800), queries=1024, merges=None),
        rows=60_000,
        held_out=10_000,
    ),
    verifying=Verifying(suites=(Asking("stories", prompts=200),), supervised=100, supervised_size=8),
)
