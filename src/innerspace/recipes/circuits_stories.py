"""Feature circuits of subject-verb agreement in stories260K, in minutes; give the model's folder.

The folder of a small Llama (5 layers, width 64) in Hugging Face format and any TinyStories text serve:
``innerspace run circuits-stories --data.model FOLDER --data.corpus.source.paths stories.json``. Dictionaries of a
finished run are taken instead of new ones with ``--making.run RUN``.
"""

from pathlib import Path

from innerspace.jobs.circuitry.agreement import AskingNumber
from innerspace.jobs.circuitry.wired import Makings
from innerspace.jobs.circuits import Circuits
from innerspace.jobs.dictionaries.lessons import Course
from innerspace.jobs.inputs.text import TextData
from innerspace.language.corpora import Corpus
from innerspace.language.sources import Files
from innerspace.learn.fit import FitConfig

job = Circuits(
    data=TextData(
        model="stories260K",
        # the network was trained on single line breaks
        corpus=Corpus(Files((Path("stories.json"),)), 128, "sequence", eos=False, replace=(("\n\n", "\n"),)),
        batch=8,
    ),
    sites=("resid.1", "resid.3"),
    making=Makings(
        course=Course(tokens=500_000, fit=FitConfig(rate=3e-3, schedule="cosine", warmup=0.05, cooldown=0.0)),
    ),
    asking=AskingNumber("stories"),
)
