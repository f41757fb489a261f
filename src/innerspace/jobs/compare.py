"""Decompositions compared: any set of them, at one site of a language model or a forecaster, by the same measures.

What is told of hidden states in how many bits, what can be read from single parts, what steering along them does,
whether they carry one variable and no other, whether another seed finds the same, and what all that costs. Everything
is chosen on data to fit to and judged on others, beside random rotations and directions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape

from innerspace.jobs.comparison.comparing import Findings, Measuring, judge, stable
from innerspace.jobs.comparison.comparing_words import headlines, remarks
from innerspace.jobs.comparison.entrants import (
    Entrant,
    Independent,
    Made,
    Materials,
    Ndm,
    Principal,
    RandomDirections,
    RandomRotation,
    Sparse,
    Vectors,
)
from innerspace.jobs.comparison.grounds import Ground, SceneGround, TextGround
from innerspace.jobs.dictionaries.lessons import Course
from innerspace.jobs.inputs.scenes import SceneData, SceneReading
from innerspace.jobs.inputs.subject import Subject
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.job import Job, Run
from innerspace.jobs.partitions.suites import Asking
from innerspace.measure.isolation import Variable
from innerspace.measure.rate import Passes


@dataclass(frozen=True)
class Compare(Job):
    """Compare decompositions of one site's hidden states: fidelity, reading, steering, isolation, stability, cost.

    ``data`` is a language model with its text, or a forecaster with its scenes. Every entrant is made ``seeds`` times,
    from ``rows`` hidden states; dictionaries by ``course``. Variables are those of the ``suites`` of a language model,
    or of ``exchanges`` pairs of a forecaster's agents for each feature.
    """

    data: TextData | SceneData = field(default_factory=TextData)
    site: str = "resid.0"
    entrants: tuple[Entrant, ...] = (
        Vectors("probe_normal"),
        Vectors(),
        Sparse(),
        Ndm(),
        Principal(),
        Independent(),
        RandomRotation(),
        RandomDirections(),
    )
    seeds: int = 3
    rows: int = 20_000
    course: Course = field(default_factory=Course)
    suites: tuple[Asking, ...] = ()
    exchanges: int = 100
    measuring: Measuring = field(default_factory=Measuring)

    def check(self) -> None:
        """Refuse entrants that cannot be told apart, and too little to judge by.

        A forecaster's run is looked for first of all when the job begins.
        """
        if isinstance(self.data, SceneData):
            self.data.data.check()
        else:
            self.data.check()
        names = [entrant.name for entrant in self.entrants]
        if not names:
            raise ValueError("no entrant was named, so there is nothing to compare")
        if double := [name for i, name in enumerate(names) if name in names[:i]]:
            raise ValueError(f"two entrants are called {double[0]!r}; leave one out, or give saved ones a name")
        for entrant in self.entrants:
            entrant.check()
        if self.seeds < 1 or self.rows < 100 or self.exchanges < 2:
            raise ValueError(
                f"a seed, 100 rows and 2 exchanges are needed at least, given {self.seeds}, {self.rows}, "
                f"{self.exchanges}"
            )
        if self.suites and isinstance(self.data, SceneData):
            raise ValueError("prompt suites are for language models; the agents of a forecaster are exchanged by words")

    def run(self, run: Run) -> Path:
        """Make all, judge all, and write the page."""
        self.data.check()
        subject = self.data.open(run)
        ground = self.ground(subject)
        run.say(f"[bold]1[/] {escape(subject.description)}")
        fit = ground.sample(subject.sample(-(-2 * self.rows // subject.batch_tokens) + 1), self.rows)
        held = ground.sample(subject.held_out(), self.measuring.held_out)
        choosing, judging, notes = _used(*ground.variables())
        run.say(f"[bold]2[/] {len(self.entrants)} entrants, {self.seeds} seeds each")
        made, missing = self.make(run, ground, Materials(run, ground, fit, self.seeds, self.course))
        run.say("[bold]3[/] the same measures for all")
        passes = Passes(subject.model, list(subject.held_out(self.measuring.judged)), ground.site, subject.where)
        ordering = Passes(subject.model, list(subject.sample(self.measuring.ordering)), ground.site, subject.where)
        arena = (fit, held, passes, ordering, choosing, judging)
        findings = list[Findings]()
        for entrant, own in run.track(made, "judging"):
            each = [judge(one, *arena, self.measuring) for one in own]
            findings.append(Findings(entrant.name, entrant.kind, each, stable([one.what for one in own], held)))
        read = {one.label for one in findings[0].seeds[0].readable}
        notes += [f"{name}: too rare among the held-out states to be read." for name in held.labels if name not in read]
        section = self.section(ground, findings, judging, passes)
        report = {
            "title": f"Decompositions of {subject.network}, compared",
            "question": "Which way of taking hidden states apart serves best: to compress, read, steer, or isolate?",
            "headlines": headlines(section),
            "remarks": [*remarks(section), *missing, *notes],
            "comparison": section,
            "notes": {"comparison": self.note(subject, passes)},
        }
        return run.conclude(self, report, seeds=range(self.seeds), data=subject.description, device=subject.device)

    def ground(self, subject: Subject) -> Ground:
        """What there is to judge by.

        Raises:
            ValueError: for an unknown site.
        """
        replicates = self.measuring.replicates
        if isinstance(subject, SceneReading):
            return SceneGround(subject, self.site, self.exchanges, replicates)
        return TextGround(subject, self.site, self.suites, replicates)

    def make(
        self, run: Run, ground: Ground, materials: Materials
    ) -> tuple[list[tuple[Entrant, list[Made]]], list[str]]:
        """All entrants, and a sentence for each that cannot be made."""
        made, missing = list[tuple[Entrant, list[Made]]](), list[str]()
        for entrant in self.entrants:
            folder = run.folder / "entrants" / "".join(c if c.isalnum() else "-" for c in entrant.name)
            folder.mkdir(parents=True, exist_ok=True)
            own = Materials(Run(folder, run.console), ground, materials.fit, self.seeds, self.course)
            try:
                made.append((entrant, entrant.make(own)))
            except ValueError as error:
                missing.append(f"No {entrant.name}: {error}")
                run.say(f"  no {entrant.name}: {escape(str(error))}")
        if not made:
            raise ValueError(f"no entrant could be made: {'; '.join(missing)}")
        return made, missing

    def section(
        self, ground: Ground, findings: Sequence[Findings], variables: Sequence[Variable], passes: Passes
    ) -> Mapping[str, Any]:
        """The section (``report.compare.comparison``)."""
        return {
            "site": ground.site,
            "output": ground.output,
            "documents": ground.subject.documents,
            "judged": len(passes.documents.unique()),
            "bits": self.measuring.bits,
            "budget": self.measuring.budget,
            "seeds": self.seeds,
            "tokens": self.course.tokens if any(isinstance(one, Sparse) for one in self.entrants) else None,
            "width": ground.subject.model.site(ground.site).width,
            "variables": [
                {"name": one.name, "rows": len(one.clean), "whole": one.whole_effect.to_json()} for one in variables
            ],
            "entrants": [one.to_json() for one in findings],
        }

    def note(self, subject: Subject, passes: Passes) -> str:
        """What the captions of the section end on."""
        count = len(passes.documents.unique())
        over = f"{self.seeds} seeds, intervals over them" if self.seeds > 1 else f"intervals over {subject.documents}"
        return f"Judged on {len(passes.documents):,} states of {count} held-out {subject.documents}; {over}."


def _used(
    choosing: list[Variable], judging: list[Variable], notes: list[str]
) -> tuple[list[Variable], list[Variable], list[str]]:
    """The variables that the network is found to use at the site: those whose whole state has an effect for sure."""
    sure = [all((one.whole_effect.low or 0.0) > 0 for one in pair) for pair in zip(choosing, judging, strict=True)]
    left = [
        f"{one.name}: exchanging the whole state at the site has no sure effect, so that no part can be judged by it."
        for one, kept in zip(judging, sure, strict=True)
        if not kept
    ]
    chosen = [[one for one, kept in zip(side, sure, strict=True) if kept] for side in (choosing, judging)]
    return chosen[0], chosen[1], [*notes, *left]
