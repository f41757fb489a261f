"""Explanations of dictionaries' latents: made of examples, judged on others, and compared between kinds of training.

For a language model latents are explained in tokens and what stands around them, for a forecaster in motion words; or
by any language model that can be asked. Everything is of held-out documents (scenes), parted anew for every seed into
those to explain by and those to judge on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.saved import load
from innerspace.explain.endpoint import Endpoint
from innerspace.explain.examples import Sampling
from innerspace.explain.explainer import Rules
from innerspace.explain.interpret import Subjects, explain, watch
from innerspace.explain.local_model import LocalModel
from innerspace.explain.reading import Reader, SceneReader, TextReader, read, spread
from innerspace.explain.scores import Resampling
from innerspace.interop.places import Source as Place
from innerspace.jobs.dictionaries.explained import Of, Source, export, headlines, page_features, remarks, section
from innerspace.jobs.dictionaries.lessons import Course, Lesson, check_lessons, train_lessons
from innerspace.jobs.inputs.scenes import SceneData, SceneReading
from innerspace.jobs.inputs.subject import Subject
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.job import Job, Run


@dataclass(frozen=True)
class Explain(Job):
    """Explain ``latents`` of every kind of dictionary, judge the explanations, and compare the kinds.

    Dictionaries are those of the ``lessons``, trained for this, or, where one is given, those in the ``folder`` of a
    finished run that belong to the site, of all ``kinds`` where none is named. Of every kind ``latents`` are drawn from
    those that are eligible, without replacement, as many from each of its dictionaries. ``sequences`` held-out ones are
    read (of a forecaster: agents, one of each scene). Examples are drawn ``seeds`` times. ``shown`` latents of each
    kind are on the page with their contexts.
    """

    data: TextData | SceneData = field(default_factory=TextData)
    site: str = "resid.0"
    lessons: tuple[Lesson, ...] = ()
    folder: Path | None = None
    kinds: tuple[str, ...] = ()
    course: Course = field(default_factory=Course)
    explainer: Rules | Endpoint | LocalModel = field(default_factory=Rules)
    judge: Rules | Endpoint | LocalModel = field(default_factory=Rules)
    latents: int = 40
    sampling: Sampling = field(default_factory=Sampling)
    seeds: int = 3
    sequences: int = 640
    shown: int = 10
    replicates: int = 1000

    def check(self) -> None:
        """Refuse what leaves nothing to explain, or nobody who can judge it."""
        if self.folder is None:
            check_lessons(self.lessons)
        if strangers := [lesson.name for lesson in self.lessons if lesson.site != self.site]:
            raise ValueError(f"{strangers[0]} is at another site than {self.site!r}, where latents are explained")
        if min(self.latents, self.seeds, self.sequences, self.replicates) < 1 or self.shown < 0:
            raise ValueError("latents, seeds, sequences and replicates should be at least 1, shown not negative")
        if isinstance(self.judge, Rules) and not isinstance(self.explainer, Rules):
            raise ValueError(
                f"a judge that checks rules cannot judge what {type(self.explainer).__name__} says; take a judge that "
                "reads, Endpoint or LocalModel"
            )
        if isinstance(self.data, TextData):
            self.data.check()
        else:
            self.data.data.check()

    def run(self, run: Run) -> Path:
        """Read, explain, judge, and write the page."""
        self.data.check()
        explainer, judge = self.explainer.open()
        if self.judge != self.explainer:
            _, judge = self.judge.open()
        subject = self.data.open(run)
        run.say(f"[bold]1[/] {escape(subject.description)}")
        sources = self.dictionaries(run, subject)
        run.say(f"[bold]2[/] {len(sources)} dictionaries; which latents are on in enough {subject.documents}")
        held, reader = list(subject.held_out(self.sequences)), _reader(subject)
        chosen, eligible = self.drawn(subject, sources, held, reader)
        run.say(f"[bold]3[/] where {sum(map(len, chosen))} latents and their neighbors are on")
        watched = [
            watch(one.what, self.site, own, self.sampling.near) for one, own in zip(sources, chosen, strict=True)
        ]
        material = read(subject.model, held, watched, reader, where=subject.where)
        resampling = Resampling(material.group, self.replicates)
        found = list[Of]()
        kinds = list(dict.fromkeys(one.kind for one in sources))
        for number, kind in enumerate(run.track(kinds, "explaining and judging")):
            own = [latents if one.kind == kind else [] for one, latents in zip(sources, chosen, strict=True)]
            subjects = Subjects.of(material, watched, own, self.sampling.near)
            came = explain(material, subjects, (explainer, judge), self.sampling, self.seeds, resampling, number=number)
            able, all_ = (
                sum(count for one, count in zip(sources, counts, strict=True) if one.kind == kind)
                for counts in (eligible, [len(one.what.parts) for one in sources])
            )
            found.append(Of(kind, came, len(subjects.latents), able, all_))
        run.say("[bold]4[/] the page")
        part = section(found, sources, self.sampling, self.seeds)
        report: dict[str, Any] = {
            "title": f"Latents of {subject.network}, explained",
            "question": "What are single latents on for, can it be said in words, and do the words hold elsewhere?",
            "headlines": headlines(part),
            "remarks": remarks(part, subject.documents, type(self.explainer).__name__, type(self.judge).__name__),
            "explanations": part,
            "notes": {"explanations": _note(self, subject, material.group)},
        }
        if self.shown:
            report["features"] = page_features(subject, self.site, sources, found, held, self.shown)
        if isinstance(self.data, TextData):
            export(run.folder, found, sources, Place(self.data.model, self.site))
        seeds = range(self.seeds)
        return run.conclude(self, report, seeds=seeds, data=subject.description, device=subject.device)

    def dictionaries(self, run: Run, subject: Subject) -> list[Source]:
        """The dictionaries with their names and kinds.

        Raises:
            ValueError: for a folder without dictionaries of this site and network, or of the kinds that are named.
        """
        if self.folder is None:
            trained = train_lessons(run, subject, self.lessons, self.course)
            return [Source(one.lesson.name, one.lesson.kind, one.lesson.seed, one.dictionary.eval()) for one in trained]
        paths = sorted((self.folder / "dictionaries").glob(f"{self.site}-*.safetensors"))
        found = [source for path in paths if (source := self._saved(path, subject)) is not None]
        if not found:
            there = ", ".join(sorted(path.stem for path in (self.folder / "dictionaries").glob("*.safetensors")))
            raise ValueError(
                f"{self.folder} holds no dictionaries at {self.site!r}"
                f"{' of ' + ', '.join(self.kinds) if self.kinds else ''}; there are {there or 'none at all'}"
            )
        return sorted(found, key=lambda one: (self._order(one.kind), one.kind, one.seed))

    def drawn(
        self, subject: Subject, sources: Sequence[Source], held: Sequence[Any], reader: Reader
    ) -> tuple[list[list[int]], list[int]]:
        """Latents of every dictionary, drawn without replacement, and how many were eligible."""
        documents = spread(subject.model, held, [(one.what, self.site) for one in sources], reader, where=subject.where)
        chosen, eligible = list[list[int]](), list[int]()
        for one, counts in zip(sources, documents, strict=True):
            able = (counts >= self.sampling.documents).nonzero().flatten()
            share = -(-self.latents // sum(other.kind == one.kind for other in sources))
            order = torch.randperm(len(able), generator=torch.Generator().manual_seed(one.seed))
            chosen.append(able[order[:share]].sort().values.tolist())
            eligible.append(len(able))
        return chosen, eligible

    def _saved(self, path: Path, subject: Subject) -> Source | None:
        """A dictionary of a run by its name, SITE-KIND-SEED or SITE-KIND-COEFFICIENT-SEED."""
        kind, _, seed = path.stem.removeprefix(f"{self.site}-").rpartition("-")
        if not seed.isdecimal() or (self.kinds and kind not in self.kinds):
            return None
        what = load(path)
        if isinstance(what, Dictionary):
            what.check(subject.model.fingerprint(), self.site, subject.model.site(self.site).width)
        return Source(path.stem, kind, int(seed), what)

    def _order(self, kind: str) -> int:
        return self.kinds.index(kind) if self.kinds else 0 if kind.startswith("local") else 1


def _reader(subject: Subject) -> Reader:
    return SceneReader(subject.vocabulary) if isinstance(subject, SceneReading) else TextReader(subject.tokenizer)


def _note(job: Explain, subject: Subject, groups: torch.Tensor) -> str:
    return (
        f"Held-out {subject.documents}: {len(groups.unique()):,}, one half to explain by and the other to judge on, "
        f"parted anew for each of {job.seeds} seeds; 95 % intervals of {job.replicates:,} bootstrap copies over "
        f"{subject.documents} and latents."
    )
