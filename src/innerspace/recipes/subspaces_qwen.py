"""Subspaces of Qwen2.5-1.5B in the middle of block 11: what the context says against what the network remembers.

On one graphics card, with the published settings.
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
        model="Qwen/Qwen2.5-1.5B",
        corpus=Corpus(Hub("JeanKaddour/minipile"), 2048, "none", eos=True, held_out=0.01, tokens=6_000_000),
        batch=16,
        skip=0,
    ),
    sites=("resid_mid.11",),
    finding=Finding(custom=PUBLISHED["qwen2.5-1.5b"], rows=4_194_304, held_out=32_768),
    verifying=Verifying(suites=(Asking("conflict", site="resid_mid.11"),)),
)
