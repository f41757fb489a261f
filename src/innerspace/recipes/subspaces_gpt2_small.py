"""Subspaces of GPT-2 small behind blocks 4, 6, 8 and 9, with the published settings and the five published tests.

On one graphics card, for hours.
"""

from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.partitions.learned import Finding
from innerspace.jobs.partitions.suites import Asking
from innerspace.jobs.subspaces import SubspacesJob, Verifying
from innerspace.language.corpora import Corpus
from innerspace.language.sources import Hub
from innerspace.learn.partitioning import PUBLISHED

job = SubspacesJob(
    data=TextData(
        model="gpt2",
        corpus=Corpus(Hub("JeanKaddour/minipile"), 1024, "none", eos=True, held_out=0.01, tokens=6_000_000),
        batch=16,
        skip=0,
    ),
    sites=("resid.4", "resid.6", "resid.8", "resid.9"),
    finding=Finding(custom=PUBLISHED["gpt2-small"], rows=4_194_304, held_out=32_768),
    verifying=Verifying(suites=(Asking("ioi"), Asking("greater-than")), supervised=500),
)
