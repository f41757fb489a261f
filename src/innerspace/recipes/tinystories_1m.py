"""TinyStories-1M behind block 3, 50 latents for each coordinate: local, end-to-end and downstream dictionaries.

A processor suffices: ``innerspace run tinystories-1m``.
"""

from innerspace.jobs.dictionaries.lessons import Course
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.pareto import Pareto
from innerspace.language.corpora import Corpus
from innerspace.language.sources import Hub
from innerspace.learn.fit import FitConfig

job = Pareto(
    data=TextData(
        model="roneneldan/TinyStories-1M",
        corpus=Corpus(Hub("roneneldan/TinyStories"), 512, "none", eos=True, held_out=0.02, tokens=60_000_000),
        batch=20,
    ),
    site="resid.3",
    latents=50 * 64,
    local=(0.03, 0.08, 0.2, 0.5),
    e2e=(0.05, 0.15, 0.4, 1.0),
    e2e_ds=(0.05, 0.15, 0.4, 1.0),
    course=Course(
        tokens=50_000_000, fit=FitConfig(rate=1e-3, schedule="cosine", warmup=0.05, cooldown=0.0), together=12
    ),
)
