"""Pythia-70M behind block 3: TopK dictionaries trained locally, end to end, and locally with the divergence at the end.

Gao et al. 2024 (TopK, AuxK) and Karvonen 2025 (the divergence for the last steps), three seeds of each.
"""

from innerspace.jobs.dictionaries.lessons import Course, Lesson
from innerspace.jobs.dictionary import DictionaryJob
from innerspace.jobs.inputs.text import TextData
from innerspace.language.corpora import Corpus
from innerspace.language.sources import Hub
from innerspace.learn.fit import FitConfig
from innerspace.learn.objectives import AuxK, OutputKL
from innerspace.learn.presets import Gao2024, Karvonen2025

K, LATENTS, SITE = 32, 16 * 512, "resid.3"
local = Gao2024(K, aux=256, dead_after=1_000_000)

job = DictionaryJob(
    data=TextData(
        model="EleutherAI/pythia-70m",
        corpus=Corpus(Hub("monology/pile-uncopyrighted"), 512, "none", eos=True, held_out=0.01, tokens=110_000_000),
        batch=16,
    ),
    lessons=tuple(
        lesson
        for seed in range(3)
        for lesson in (
            Lesson.of(local, SITE, LATENTS, kind="local", coefficient=None, seed=seed),
            Lesson.of(
                Karvonen2025(local, share=0.1), SITE, LATENTS, kind="local, then KL", coefficient=None, seed=seed
            ),
            Lesson(SITE, "e2e", None, seed, LATENTS, local.nonlinearity, objective=(OutputKL(), AuxK(256, 1 / 32))),
        )
    ),
    course=Course(tokens=100_000_000, fit=FitConfig(rate=4e-4), together=3, snapshots=20),
)
