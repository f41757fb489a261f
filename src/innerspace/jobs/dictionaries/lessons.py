"""Lessons: dictionaries to train, what judges each, and the training of many on one network and its data."""

import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from innerspace.checkpoint import load_state
from innerspace.decompose.base import Home
from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import Nonlinearity, ReLU
from innerspace.decompose.sparse import on_per_row
from innerspace.jobs.inputs.subject import Subject
from innerspace.jobs.job import Run
from innerspace.learn.callbacks import Bar, Checkpoint, DeadLatents, Log, Measure
from innerspace.learn.fit import Callback, FitConfig, Phase, Record, Student, fit_together
from innerspace.learn.objectives import Reconstruction, Sparsity, Term
from innerspace.learn.passes import OUTPUT
from innerspace.learn.presets import Preset
from innerspace.learn.spliced import Moments, Precision, spliced, survey
from innerspace.learn.trials import Occasion, Trials
from innerspace.measure.flops import flops, peak
from innerspace.parallel import Share
from innerspace.value import Value, read_json

SILENT = 100_000
"""Tokens without firing after which a latent counts as dead while training."""


@dataclass(frozen=True)
class Lesson(Value):
    """A dictionary to train at a site: its form, and what judges it.

    ``kind`` and ``coefficient`` say what it is in tables. ``begins`` is a file of a dictionary to start from, or the
    name of another lesson of the job; else it begins anew, normalized for the site's hidden states, or taking them as
    they are where ``normalized`` is false.
    """

    site: str
    kind: str = "local"
    coefficient: float | None = None
    seed: int = 0
    latents: int = 1024
    nonlinearity: Nonlinearity = field(default_factory=ReLU)
    form: Form = field(default_factory=Form)
    objective: tuple[Term, ...] = (Reconstruction(), Sparsity(0.1))
    later: tuple[Phase, ...] = ()
    rate: float = 1.0
    normalized: bool = True
    begins: str = ""

    @staticmethod
    def of(preset: Preset, site: str, latents: int, *, kind: str, coefficient: float | None, seed: int = 0) -> "Lesson":
        """What a paper trains, at a site."""
        return Lesson(
            site,
            kind,
            coefficient,
            seed,
            latents,
            preset.nonlinearity,
            preset.form(latents),
            preset.objective,
            preset.later,
            normalized=preset.normalized,
        )

    @property
    def name(self) -> str:
        """The name of its files."""
        strength = "" if self.coefficient is None else f"-{self.coefficient:g}"
        return f"{self.site}-{self.kind}{strength}-{self.seed}"

    @property
    def compared(self) -> frozenset[str]:
        """All places behind the site that any of its terms compares."""
        terms = [*self.objective, *(term for phase in self.later for term in phase.objective)]
        return frozenset[str]().union(*(term.needs for term in terms))


@dataclass(frozen=True)
class Course(Value):
    """How lessons are given: Adam's settings, the budget of tokens, and how many dictionaries share a teacher.

    ``tokens`` are those of the stream; what does not count is among them. ``restart`` lets dead latents begin anew so
    many times before the rate falls. ``snapshots`` are taken so many times. The steps of ``fit`` follow from the
    tokens, which they have to agree with where they are set; its seed is the lesson's and cannot be set.
    """

    tokens: int = 4_200_000
    fit: FitConfig = field(default_factory=FitConfig)
    together: int = 12
    precision: Precision = "float32"
    restart: int = 0
    snapshots: int = 8
    surveyed: int = 64

    def __post_init__(self) -> None:
        if min(self.tokens, self.together, self.snapshots, self.surveyed) < 1 or self.restart < 0:
            raise ValueError(f"tokens, together, snapshots and surveyed should be at least 1, restart 0: {self}")
        if self.fit.seed != FitConfig.seed:
            raise ValueError(f"every lesson has a seed of its own: set that, and not fit.seed to {self.fit.seed}")

    def config(self, batch_tokens: int, seed: int) -> FitConfig:
        """The loop's settings, with as many steps as the budget of tokens makes.

        Raises:
            ValueError: if ``fit`` was set to another number of steps.
        """
        steps = -(-self.tokens // (batch_tokens * self.fit.accumulate))
        if self.fit.steps not in (FitConfig.steps, steps):
            raise ValueError(
                f"{self.tokens:,} tokens are {steps:,} steps of {self.fit.accumulate} × {batch_tokens:,}, and "
                f"fit.steps is {self.fit.steps:,}: set one to go with the other, or leave that at {FitConfig.steps:,}"
            )
        return replace(self.fit, steps=steps, seed=seed, log_every=max(1, min(self.fit.log_every, steps // 40)))


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """A lesson and its dictionary, the log of its training, and what that cost."""

    lesson: Lesson
    dictionary: Dictionary
    history: list[Record]
    cost: Mapping[str, Any]


def check_lessons(lessons: Sequence[Lesson]) -> None:
    """Refuse lessons that cannot be told apart, or that begin with what is not there.

    Raises:
        ValueError: naming the lesson.
    """
    names = [lesson.name for lesson in lessons]
    if not names:
        raise ValueError("no dictionary was asked for")
    if double := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"two lessons are called {double[0]!r}; they should differ in site, kind, coefficient or seed")
    for lesson in lessons:
        if lesson.begins and lesson.begins not in names and not Path(lesson.begins).is_file():
            raise ValueError(f"{lesson.name} begins with {lesson.begins!r}, which is neither a lesson nor a file")


def train_lessons(run: Run, subject: Subject, lessons: Sequence[Lesson], course: Course) -> list[Trained]:
    """Train all, or take them from the run's folder where they lie complete or begun."""
    sites = sorted({site for lesson in lessons for site in (lesson.site, *(lesson.compared - {OUTPUT}))})
    course.config(subject.batch_tokens, seed=0)  # refuses, before anything is run
    for site in sites:
        subject.model.site(site)
    moments = survey(subject.model, subject.sample(course.surveyed), sites, subject.where)
    groups = list(_groups(lessons, course.together))
    trained = list[Trained]()
    for number, group in enumerate(groups):
        run.say(f"  {number + 1} of {len(groups)}: {', '.join(lesson.name for lesson in group)}")
        trained += _train(run, subject, group, course, moments)
    order = [lesson.name for lesson in lessons]
    return sorted(trained, key=lambda item: order.index(item.lesson.name))


def _groups(lessons: Sequence[Lesson], together: int) -> Iterator[list[Lesson]]:
    """Lessons that share a teacher: of one seed, whose stream they read, after what they begin with."""
    names = {lesson.name for lesson in lessons}
    for later in (False, True):
        for seed in sorted({lesson.seed for lesson in lessons}):
            own = [item for item in lessons if item.seed == seed and (item.begins in names) == later]
            yield from (own[i : i + together] for i in range(0, len(own), together))


def _train(
    run: Run, subject: Subject, lessons: Sequence[Lesson], course: Course, moments: Mapping[str, Moments]
) -> list[Trained]:
    folder = run.folder / "dictionaries"
    paths = [folder / f"{lesson.name}.safetensors" for lesson in lessons]
    if all(path.is_file() and path.with_suffix(".json").is_file() for path in paths):
        return [_taken(lesson, path) for lesson, path in zip(lessons, paths, strict=True)]
    seed = lessons[0].seed
    config = course.config(subject.batch_tokens, seed)
    home = subject.model.fingerprint()
    students = [
        Student(
            _beginning(lesson, moments[lesson.site], home, folder).to(subject.device),
            lesson.objective,
            lesson.site,
            lesson.name,
            lesson.later,
            lesson.rate,
        )
        for lesson in lessons
    ]
    sites = sorted({lesson.site for lesson in lessons})
    variance = {site: found.variance for site, found in moments.items()}
    stream = spliced(
        subject.model, subject.stream(seed), sites, variance, where=subject.where, precision=course.precision
    )
    snapshot = folder / f"{lessons[0].name}.snapshot"
    every = max(1, config.steps // course.snapshots)
    callbacks: list[Callback] = [Measure(_held_out(subject, sites, variance, course.precision), every)]
    if course.restart:
        span = max(1, int((1 - config.cooldown) * config.steps / (course.restart + 1)))
        callbacks.append(DeadLatents(span, SILENT))
    callbacks.append(Checkpoint(snapshot, every))
    if Share.mine().rank == 0:
        callbacks += [Log(folder / f"{lessons[0].name}.log.jsonl"), Bar(run.console)]
    parts = [_flops(stream, student, subject.batch_tokens) for student in students]
    begun = load_state(snapshot)["step"] if snapshot.is_file() else 0
    cpu = time.process_time()
    loop, seconds = fit_together(students, stream, config, callbacks)
    cpu = time.process_time() - cpu
    # what was shared counts for all alike, and an interrupted fit is timed by what was left of it
    shared = (seconds - sum(student.seconds for student in students)) / len(students)
    scale = config.steps / max(config.steps - begun, 1)
    trained = list[Trained]()
    for lesson, student, path, part in zip(lessons, students, paths, parts, strict=True):
        history = [record for record in loop.history if record.get("student") == lesson.name]
        tokens = config.steps * config.accumulate * subject.batch_tokens
        own = (student.seconds + shared) * scale
        cost = _cost(tokens, own, cpu / seconds * own, part, course.precision)
        dictionary = student.what
        assert isinstance(dictionary, Dictionary)
        if Share.mine().rank == 0:
            dictionary.save(path)
            path.with_suffix(".json").write_text(json.dumps({"cost": cost, "history": history}) + "\n")
        trained.append(Trained(lesson, dictionary, history, cost))
    if Share.mine().rank == 0:
        snapshot.unlink(missing_ok=True)
    rate, count = (
        sum(float(item.cost[key]) for item in trained) / len(trained)
        for key in ("tokens_per_second", "flops_per_token")
    )
    run.say(f"    {rate:,.0f} tokens a second for each dictionary, {count:,.0f} operations a token")
    return trained


def _taken(lesson: Lesson, path: Path) -> Trained:
    record: Any = read_json(path.with_suffix(".json"))
    return Trained(lesson, Dictionary.load(path), record["history"], record["cost"])


def _beginning(lesson: Lesson, moments: Moments, model: str, folder: Path) -> Dictionary:
    width = len(moments.mean)
    if lesson.begins:
        file = Path(lesson.begins)
        dictionary = Dictionary.load(file if file.is_file() else folder / f"{lesson.begins}.safetensors")
        dictionary.check(model, lesson.site, width)
        return dictionary
    return Dictionary(
        width,
        lesson.latents,
        lesson.nonlinearity,
        mean=moments.mean.cpu() if lesson.normalized else None,
        scale=moments.variance**0.5 if lesson.normalized else 1.0,
        seed=lesson.seed,
        form=lesson.form,
        home=Home(model, lesson.site),
    )


def _held_out(subject: Subject, sites: Sequence[str], variance: Mapping[str, float], precision: Precision) -> Any:
    """What a few held-out batches say of a student while it learns."""
    stream = spliced(
        subject.model, subject.stream(0, held_out=True), sites, variance, where=subject.where, precision=precision
    )
    occasions = [stream.draw({OUTPUT}) for _ in range(2)]

    @torch.no_grad()
    def judge(student: Student) -> Record:
        student.what.eval()
        kl, on, left = 0.0, 0.0, 0.0
        for occasion in occasions:
            trial = occasion.trial(student.what, student.site, {OUTPUT})
            assert trial.passes is not None
            kl += float(trial.passes.divergence())
            on += float(on_per_row(trial.code.z).double().mean())
            left += float((trial.clean - trial.reconstruction).square().sum(-1).mean() / trial.variance)
        student.what.train()
        count = len(occasions)
        what = student.what
        assert isinstance(what, Dictionary)
        dead = float((what.silent >= SILENT).double().mean())
        return {"held_out_kl": kl / count, "l0": on / count, "held_out_unexplained": left / count, "dead": dead}

    return judge


def _flops(stream: Trials, student: Student, tokens: int) -> dict[str, float]:
    """Operations for each token of the stream: the clean pass, what follows from the dictionary on, and the gradients.

    Counted on one batch before training, of which nothing stays.
    """
    objective, _ = student.at(0.0)
    needs = frozenset[str]().union(*(term.needs for term in objective))
    state, occasions, losses = stream.state(), list[Occasion](), list[Tensor]()
    student.what.eval()

    def judge() -> None:
        trial = occasions[0].trial(student.what, student.site, needs)
        losses.append(torch.stack([term(trial) for term in objective]).sum())

    # a first pass may look at the network's form, which is no part of a step
    occasions.append(stream.draw(needs))
    judge()
    occasions.clear()
    losses.clear()
    found = {
        "clean pass": flops(lambda: occasions.append(stream.draw(needs))),
        "dictionary and second pass": flops(judge),
        "gradients": flops(lambda: torch.autograd.backward(losses)),
    }
    student.what.zero_grad()
    stream.restore(state)
    return {name: count / tokens for name, count in found.items()}


def _cost(tokens: int, seconds: float, cpu: float, parts: Mapping[str, float], precision: Precision) -> dict[str, Any]:
    """What one dictionary cost; where several shared a teacher, its share of their time."""
    cuda = torch.cuda.is_available()
    memory = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    total = sum(parts.values())
    device = torch.cuda.get_device_name() if cuda else "CPU"
    best = peak(device, precision)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "tokens_per_second": tokens / seconds,
        "flops_per_token": total,
        "flops_parts": dict(parts),
        "flops_per_second": total * tokens / seconds,
        "peak_share": None if best is None else total * tokens / seconds / best,
        "peak_bytes": memory,
        "device": device,
    }
