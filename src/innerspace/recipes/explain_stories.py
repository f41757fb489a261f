"""Latents of local, end-to-end and downstream dictionaries of stories260K explained in rules, and compared.

Behind block 2, all with as many latents on at once; in minutes; give the model's folder, and any TinyStories text:
``innerspace run explain-stories --data.model FOLDER --data.corpus.source.paths stories.json``. With ``--folder RUN``
the dictionaries are those of a finished run on the same text, and none is trained.
"""

from pathlib import Path

from innerspace.decompose.nonlinearities import TopK
from innerspace.explain.examples import Sampling
from innerspace.jobs.dictionaries.lessons import Course, Lesson
from innerspace.jobs.explain import Explain
from innerspace.jobs.inputs.text import TextData
from innerspace.language.corpora import Corpus
from innerspace.language.sources import Files
from innerspace.learn.fit import FitConfig
from innerspace.learn.objectives import Downstream, OutputKL, Reconstruction

SITE, BEHIND = "resid.2", ("resid.3", "resid.4")
OBJECTIVES = {
    "local": (Reconstruction(),),
    "e2e": (OutputKL(),),
    "e2e+ds": (OutputKL(0.5), Downstream(BEHIND, 0.5, "variance")),
}

job = Explain(
    data=TextData(
        model="stories260K",
        # the network was trained on single line breaks; three stories in ten are there to explain by and to judge on
        corpus=Corpus(
            Files((Path("stories.json"),)), 128, "sequence", eos=False, replace=(("\n\n", "\n"),), held_out=0.3
        ),
        batch=16,
    ),
    site=SITE,
    lessons=tuple(
        Lesson(SITE, kind, seed=0, latents=512, nonlinearity=TopK(12), objective=objective)
        for kind, objective in OBJECTIVES.items()
    ),
    course=Course(tokens=1_200_000, fit=FitConfig(rate=3e-3, schedule="cosine", warmup=0.05, cooldown=0.0)),
    sampling=Sampling(shown=20, others=200, near=3),
)
