"""Local, end-to-end and downstream dictionaries of stories260K compared at equal sparsity; give the model's folder.

The folder of a small Llama (5 layers, width 64) in Hugging Face format and any TinyStories text serve:
``innerspace run stories-pareto --data.model FOLDER --data.corpus.source.paths stories.json``.
"""

from pathlib import Path

from innerspace.jobs.dictionaries.lessons import Course
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.pareto import Pareto
from innerspace.language.corpora import Corpus
from innerspace.language.sources import Files
from innerspace.learn.fit import FitConfig

job = Pareto(
    data=TextData(
        model="stories260K",
        # the network was trained on single line breaks
        corpus=Corpus(Files((Path("stories.json"),)), 128, "sequence", eos=False, replace=(("\n\n", "\n"),)),
        batch=16,
    ),
    site="resid.2",
    latents=1024,
    local=(0.04, 0.12, 0.35),
    e2e=(0.07, 0.4),
    e2e_ds=(0.07, 0.4),
    course=Course(tokens=4_100_000, fit=FitConfig(rate=1e-3, schedule="cosine", warmup=0.05, cooldown=0.0)),
)
