"""Dictionaries of a network's hidden states: train one or several on one network, judge them, and show them.

Braun et al., "Identifying Functionally Important Features with End-to-End Sparse Dictionary Learning", NeurIPS 2024,
arXiv 2405.12241, and what came since: any dictionary, any mixture of terms, any number of both in one run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape

from innerspace.jobs.dictionaries.features import Member, features_section, geometry_section
from innerspace.jobs.dictionaries.judging import Judged, cost_rows, fidelity_rows, headline, judge_all, training_rows
from innerspace.jobs.dictionaries.lessons import Course, Lesson, check_lessons, train_lessons
from innerspace.jobs.inputs.scenes import SceneData
from innerspace.jobs.inputs.subject import Subject
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.job import Job, Run
from innerspace.measure.activations import frequencies
from innerspace.parallel import Share
from innerspace.value import Value


@dataclass(frozen=True)
class Showing(Value):
    """How much is judged and shown: held-out sequences, and features of each dictionary on the page."""

    sequences: int = 320
    features: int = 40

    def __post_init__(self) -> None:
        if min(self.sequences, self.features) < 1:
            raise ValueError(f"at least one sequence and one feature should be shown: {self}")


@dataclass(frozen=True)
class DictionaryJob(Job):
    """Train dictionaries of a network's hidden states, and judge them by what the network loses.

    ``data`` is a language model with its text, or a forecaster with its scenes.
    """

    data: TextData | SceneData = field(default_factory=TextData)
    lessons: tuple[Lesson, ...] = ()
    course: Course = field(default_factory=Course)
    showing: Showing = field(default_factory=Showing)

    def check(self) -> None:
        """Refuse lessons that cannot be told apart or begin with nothing."""
        check_lessons(self.lessons)
        self.data.check()

    def run(self, run: Run) -> Path:
        """Do everything, and write the page."""
        subject = self.data.open(run)
        judged = train_and_judge(run, subject, self.lessons, self.course, self.showing)
        story = {
            "title": f"Dictionaries of {subject.network}",
            "question": "What are the hidden states made of, and what does the network lose when only that is kept?",
            "headlines": [headline(item) for item in judged[:4]],
            "remarks": [],
        }
        return tell(run, self, subject, judged, self.showing, story)


def train_and_judge(
    run: Run, subject: Subject, lessons: Sequence[Lesson], course: Course, showing: Showing
) -> list[Judged]:
    """The dictionaries, and what the network loses through each."""
    run.say(f"[bold]1[/] {escape(subject.description)}")
    run.say(f"[bold]2[/] {len(lessons)} dictionaries")
    trained = train_lessons(run, subject, lessons, course)
    run.say("[bold]3[/] what the network loses through them")
    return judge_all(run, subject, trained, showing.sequences)


def tell(
    run: Run,
    job: Job,
    subject: Subject,
    judged: Sequence[Judged],
    showing: Showing,
    story: Mapping[str, Any],
) -> Path:
    """Write the page, in the first process of several."""
    if Share.mine().rank:
        return run.folder / "report.html"
    run.say("[bold]4[/] single features, and how they lie")
    where, tokenizer = subject.where, subject.tokenizer
    held = list(subject.held_out(showing.sequences))
    readers = [(item.trained.dictionary, item.trained.lesson.site) for item in judged]
    members = [
        Member(one.name, one.kind, one.coefficient, one.seed, one.site, item.trained.dictionary, share > 0)
        for item, share in zip(judged, frequencies(subject.model, held, readers, where=where), strict=True)
        for one in (item.trained.lesson,)
    ]
    shown = [members[judged.index(item)] for item in _one_of_each_kind(judged)]
    features = features_section(
        subject.model,
        held,
        shown,
        count=showing.features,
        tokenizer=tokenizer,
        where=where,
        seed=0,
        caption=subject.caption,
    )
    geometry, notes = geometry_section(
        subject.model, held, _comparable(members, shown), tokenizer=tokenizer, where=where, features=features
    )
    held_out = f"{judged[0].fidelity.tokens:,} tokens of {judged[0].fidelity.documents} held-out {subject.documents}"
    caption = f"Judged on {held_out}, which no dictionary was trained on."
    report = {
        **story,
        "remarks": [*story["remarks"], *notes],
        "training": training_rows(judged),
        "training_cost": cost_rows(judged),
        "fidelity": fidelity_rows(judged),
        "features": features,
        "geometry": geometry,
        "notes": {"fidelity": caption} | ({"pareto": caption} if "pareto" in story else {}),
    }
    seeds = (item.trained.lesson.seed for item in judged)
    data = f"{subject.description}; judged on {held_out}"
    return run.conclude(job, report, seeds=seeds, data=data, device=subject.device)


def _comparable(members: Sequence[Member], shown: Sequence[Member]) -> list[Member]:
    """The dictionaries that are shown, and those of other seeds that were trained alike."""
    alike = {(one.site, one.kind, one.coefficient) for one in shown}
    return [one for one in members if (one.site, one.kind, one.coefficient) in alike]


def _one_of_each_kind(judged: Sequence[Judged]) -> list[Judged]:
    """Of every site and kind the dictionary of the first seed whose L0 is the median."""
    groups = dict[tuple[str, str], list[Judged]]()
    for item in judged:
        groups.setdefault((item.trained.lesson.site, item.trained.lesson.kind), []).append(item)
    first = min(item.trained.lesson.seed for item in judged)
    chosen = list[Judged]()
    for own in groups.values():
        ranked = sorted(
            (item for item in own if item.trained.lesson.seed == first) if len(own) > 1 else own,
            key=lambda item: item.fidelity.l0.mean,
        )
        chosen.append(ranked[len(ranked) // 2])
    return chosen
