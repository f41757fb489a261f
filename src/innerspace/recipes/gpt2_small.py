"""GPT-2 small before blocks 2, 6 and 10: the nine dictionaries of Braun et al. 2024 at like cross-entropies (Table 2).

On one graphics card, hours: ``innerspace run gpt2-small --data.device cuda``; on several, under ``torchrun``.
"""

from dataclasses import replace

from innerspace.jobs.dictionaries.lessons import Course, Lesson
from innerspace.jobs.dictionary import DictionaryJob
from innerspace.jobs.inputs.text import TextData
from innerspace.language.corpora import Corpus
from innerspace.language.sources import Hub
from innerspace.learn.presets import Braun2024, Kind

KINDS: tuple[Kind, ...] = ("local", "e2e", "e2e+ds")
PRESETS = {(layer, kind): Braun2024.gpt2_small(kind, layer) for layer in (2, 6, 10) for kind in KINDS}

job = DictionaryJob(
    data=TextData(
        model="gpt2",
        corpus=Corpus(Hub("Skylion007/openwebtext"), 1024, "none", eos=True, held_out=0.01, tokens=420_000_000),
        batch=8,
        skip=0,
    ),
    lessons=tuple(
        # hidden states before block i are those behind block i - 1
        Lesson.of(preset, f"resid.{layer - 1}", 60 * 768, kind=kind, coefficient=preset.sparsity)
        for (layer, kind), preset in PRESETS.items()
    ),
    course=Course(
        tokens=409_600_000,
        fit=replace(Braun2024("e2e", 3.0).config(25_000), accumulate=2),
        together=3,
        precision="bfloat16",
        snapshots=50,
    ),
)
