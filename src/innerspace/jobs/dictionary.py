"""Dictionaries of a language model: train one or several on one network and one text, judge them, and show them.

Braun et al., "Identifying Functionally Important Features with End-to-End Sparse Dictionary Learning", NeurIPS 2024,
arXiv 2405.12241, and what came since: any dictionary, any mixture of terms, any number of both in one run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from innerspace.jobs.features import Member, features_section, geometry_section
from innerspace.jobs.job import Job, Run
from innerspace.jobs.judging import Judged, cost_rows, fidelity_rows, judge_all, training_rows
from innerspace.jobs.lessons import Course, Lesson, check_lessons, train_lessons
from innerspace.jobs.text import Reading, TextData
from innerspace.learn.parallel import Share
from innerspace.measure.activations import frequencies
from innerspace.report.record import Provenance, write
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
    """Train dictionaries of a language model's hidden states, and judge them by what the network loses."""

    text: TextData = field(default_factory=TextData)
    lessons: tuple[Lesson, ...] = ()
    course: Course = field(default_factory=Course)
    showing: Showing = field(default_factory=Showing)

    def check(self) -> None:
        """Refuse lessons that cannot be told apart or begin with nothing."""
        check_lessons(self.lessons)
        self.text.check()

    def run(self, run: Run) -> Path:
        """Do everything, and write the page."""
        started = datetime.now(UTC)
        reading = self.text.open(run)
        judged = train_and_judge(run, reading, self.lessons, self.course, self.showing)
        headlines = [
            {
                "label": item.trained.lesson.name,
                "value": f"{item.loss.ce_increase.mean:+.3f} nats",
                "note": f"cross-entropy, at L0 {item.fidelity.l0.mean:.1f}; {item.fidelity.alive} latents alive",
            }
            for item in judged[:4]
        ]
        story = {
            "title": "Dictionaries of a language model",
            "question": "What are the hidden states made of, and what does the network lose when only that is kept?",
            "headlines": headlines,
            "remarks": [],
        }
        return tell(run, self, reading, judged, self.showing, story, started)


def train_and_judge(
    run: Run, reading: Reading, lessons: Sequence[Lesson], course: Course, showing: Showing
) -> list[Judged]:
    """The dictionaries, and what the network loses through each."""
    tokens = reading.shards.manifest
    run.say(f"[bold]1[/] text: {tokens.train.tokens:,} tokens to train on, {tokens.held_out.tokens:,} held out")
    run.say(f"[bold]2[/] {len(lessons)} dictionaries")
    trained = train_lessons(run, reading, lessons, course)
    run.say("[bold]3[/] what the network loses through them")
    return judge_all(run, reading, trained, showing.sequences)


def tell(
    run: Run,
    job: Job,
    reading: Reading,
    judged: Sequence[Judged],
    showing: Showing,
    story: Mapping[str, Any],
    started: datetime,
) -> Path:
    """Write the page, in the first process of several."""
    page = run.folder / "report.html"
    if Share.mine().rank:
        return page
    run.say("[bold]4[/] single features, and how they lie")
    where, tokenizer = reading.data.where, reading.tokenizer
    held = list(reading.held_out(showing.sequences))
    readers = [(item.trained.dictionary, item.trained.lesson.site) for item in judged]
    members = [
        Member(one.name, one.kind, one.coefficient, one.seed, one.site, item.trained.dictionary, share > 0)
        for item, share in zip(judged, frequencies(reading.model, held, readers, where=where), strict=True)
        for one in (item.trained.lesson,)
    ]
    shown = [members[judged.index(item)] for item in _one_of_each_kind(judged)]
    features = features_section(
        reading.model, held, shown, count=showing.features, tokenizer=tokenizer, where=where, seed=0
    )
    geometry, notes = geometry_section(
        reading.model, held, _comparable(members, shown), tokenizer=tokenizer, where=where, features=features
    )
    held_out = f"{judged[0].fidelity.tokens:,} tokens of {judged[0].fidelity.documents} held-out documents"
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
        "job": job,
        "provenance": Provenance.collect(
            seeds=sorted({item.trained.lesson.seed for item in judged}),
            data=f"{reading.data.model}; {held_out}; {reading.shards.manifest.train.tokens:,} training tokens",
            started=started,
            seconds=(datetime.now(UTC) - started).total_seconds(),
            device=reading.data.device,
        ),
    }
    write(run.folder, report)
    return page


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
