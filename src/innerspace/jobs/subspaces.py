"""Subspaces of a network's hidden states: learned without labels, verified by patching, read by their preimages.

Huang and Hahn, "Decomposing Representation Space into Interpretable Subspaces with Unsupervised Learning", arXiv
2508.01916. The job reads top to bottom as the method: hidden states, partitions by neighbor distance, how dependent
their parts are, what every part carries from one input to another, what can be told from it, and a page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.harvest.store import Store
from innerspace.jobs.inputs.scenes import SceneData, SceneReading
from innerspace.jobs.inputs.subject import Subject
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.job import Job, Run
from innerspace.jobs.motion.steering import MEASURES
from innerspace.jobs.partitions.exchanges import exchanges
from innerspace.jobs.partitions.learned import (
    LEARNED,
    Finding,
    Held,
    Learned,
    beside,
    distances,
    harvest,
    learn,
    training_rows,
)
from innerspace.jobs.partitions.looking import (
    Album,
    SceneAlbum,
    TextAlbum,
    labels_row,
    names_of,
    preimages_section,
    told_best,
)
from innerspace.jobs.partitions.patches import (
    Found,
    Partitions,
    Test,
    exchanged,
    patching_section,
    strongest,
    supervised,
)
from innerspace.jobs.partitions.suites import Asking
from innerspace.language.causal_lm import LoadedLM
from innerspace.learn.dendrogram import dendrogram
from innerspace.learn.dependence import dependence
from innerspace.learn.neighbors import Neighborhood
from innerspace.measure.part_labels import Reading
from innerspace.measure.weight_paths import weight_paths
from innerspace.motion.words import label
from innerspace.value import Value


@dataclass(frozen=True)
class Verifying(Value):
    """How partitions are verified and shown.

    ``suites`` are asked of a language model; agents are exchanged by their words, ``exchanges`` pairs of each.
    ``supervised`` steps teach a subspace of ``supervised_size`` dimensions by labels, the upper bound; none leaves it
    out. ``queries`` states are shown with their preimages. ``judged`` held-out states among ``among`` of those learned
    from tell distances and dependence.
    """

    suites: tuple[Asking, ...] = ()
    exchanges: int = 120
    supervised: int = 0
    supervised_size: int = 8
    queries: int = 24
    judged: int = 2048
    among: int = 20_000
    reading: Reading = Reading()

    def __post_init__(self) -> None:
        if min(self.exchanges, self.queries, self.supervised_size) < 1 or min(self.judged, self.among) < 2:
            raise ValueError(f"numbers of what is judged and shown should be positive: {self}")


@dataclass(frozen=True)
class SubspacesJob(Job):
    """Find the subspaces of some sites of a network, and verify that they carry variables.

    ``data`` is a language model with its text, or a forecaster with its scenes.
    """

    data: TextData | SceneData = field(default_factory=TextData)
    sites: tuple[str, ...] = ("resid.0",)
    finding: Finding = field(default_factory=Finding)
    verifying: Verifying = field(default_factory=Verifying)

    def check(self) -> None:
        """Refuse what contradicts itself before long work starts."""
        self.data.check()
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ValueError(f"sites should be named, each once; they are {list(self.sites)}")

    def run(self, run: Run) -> Path:
        """Do everything, and write the page."""
        subject = self.data.open(run)
        run.say(f"[bold]1[/] {subject.description}")
        sections = study(run, subject, self.sites, self.finding, self.verifying, first=2)
        report = {
            "title": f"Subspaces of {subject.network}",
            "question": "Do the hidden states fall into subspaces that act as the network's variables?",
            **sections,
        }
        return run.conclude(
            self, report, seeds=range(self.finding.seeds), data=subject.description, device=subject.device
        )


def study(
    run: Run, subject: Subject, sites: Sequence[str], finding: Finding, verifying: Verifying, *, first: int
) -> dict[str, Any]:
    """Find and verify; gives the sections of the report, with headlines. ``first`` numbers the steps on the console."""
    model, names = subject.model, [subject.model.site(site).name for site in sites]
    run.say(f"[bold]{first}[/] hidden states of {', '.join(names)}")
    tests, remarks = tests_for(subject, names, verifying)
    store, held = harvest(run, subject, names, finding)
    album = album_of(subject, held)
    run.say(f"[bold]{first + 1}[/] subspaces, {finding.seeds} seeds each")
    report: dict[str, Any] = {"subspace_training": [], "dependence": [], "part_labels": []}
    learned, partitions = dict[str, list[Learned]](), dict[str, Partitions]()
    for site in names:
        learned[site] = learn(run, subject, store, site, finding)
        partitions[site], left_out = beside(learned[site], held.states[site], finding.randoms)
        remarks += left_out
        near = Neighborhood(held.states[site][: verifying.judged], some(store, site, verifying.among))
        found = distances(partitions[site], near.keys, near.queries)
        report["subspace_training"] += training_rows(learned[site], found, finding.name)
        report["dependence"].append(dependence_row(site, partitions[site], near))
        told, unread = labels_row(site, learned[site][0].what, held, album, verifying.reading)
        report["part_labels"].append(told)
        remarks += unread
        run.say(f"  {site}: {', '.join('+'.join(map(str, one.what.sizes)) for one in learned[site])}")
    run.say(f"[bold]{first + 2}[/] what the parts carry")
    effects = list[Found]()
    for test in run.track(tests, "patching"):
        effects.append(exchanged(model, test, partitions[test.site], held.states[test.site]))
    if effects:
        report["patching"] = patching_section(model, effects, partitions)
        for suite, test in zip(report["patching"]["suites"], tests, strict=True):
            bound = supervised(model, test, verifying.supervised_size, verifying.supervised)
            suite["methods"] += [] if bound is None else [bound]
    shown = {site: learned[site][0].what for site in names}
    report["preimages"] = preimages_section(shown, held, album, verifying.queries)
    _name_parts(report, effects)
    if len(names) > 1 and not isinstance(subject, SceneReading):
        try:
            paths = weight_paths(model, shown).to_json()
            report["weight_paths"] = {
                "sites": [{"site": row["site"], "parts": row["parts"]} for row in report["part_labels"]],
                **paths,
            }
        except ValueError as error:
            remarks.append(f"no paths through the weights: {error}")
    if not any(row["labels"] for row in report["part_labels"]):
        del report["part_labels"]
    return report | {"headlines": headlines(learned, effects), "remarks": remarks}


def tests_for(subject: Subject, sites: Sequence[str], verifying: Verifying) -> tuple[list[Test], list[str]]:
    """What is exchanged at the sites: prompts of the suites, or agents that move otherwise; and what is not, and why.

    Raises:
        ValueError: for suites that the network's tokenizer cannot express, or that are asked of a forecaster.
    """
    if isinstance(subject, SceneReading):
        if verifying.suites:
            raise ValueError("prompt suites are for language models; the agents of a forecaster are exchanged by words")
        return _agents(subject, sites, verifying)
    loaded = LoadedLM(subject.model, subject.tokenizer)
    tests = [test for asking in verifying.suites for test in asking.tests(loaded, sites, subject.device)]
    return tests, [f"{test.name}: {words}" for test in tests for words in test.missing]


def album_of(subject: Subject, held: Held) -> Album:
    """How held-out states are shown."""
    if isinstance(subject, SceneReading):
        vocabulary = subject.vocabulary
        return SceneAlbum(held, subject, [label(one.target, one.dt, vocabulary) for one in held.batches])
    return TextAlbum(held, subject.tokenizer)


def some(store: Store, site: str, count: int) -> Float[Tensor, "n d"]:
    """Random states of those that were learned from."""
    chosen = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))[:count].sort().values
    return store.rows(site, chosen).float()


def dependence_row(site: str, partitions: Partitions, near: Neighborhood, shuffles: int = 2) -> dict[str, Any]:
    """The section on dependence (``report.subspaces.dependence``) of the first learned partition of a site."""
    what = partitions[LEARNED][0]
    parts = [{"size": size} for size in what.sizes]
    if len(parts) < 2:
        return {"site": site, "parts": parts, "information": [[None]]}
    found = dependence(what, near, shuffles=shuffles)
    above = torch.ones_like(found.information, dtype=torch.bool).triu(1)
    others = {
        method: float(dependence(several[0], near).information[above].mean())
        for method, several in partitions.items()
        if method != LEARNED
    }
    tree = dendrogram(what, near)
    return {
        "site": site,
        "parts": parts,
        "information": _matrix(found.information),
        "p": _matrix(found.p),
        "baselines": others,
        "tree": [{"left": one.sides[0], "right": one.sides[1], "height": one.height} for one in tree.joints],
        "tree_unit": "nats per dimension",
    }


def headlines(learned: Mapping[str, Sequence[Learned]], effects: Sequence[Found]) -> list[dict[str, str]]:
    """What came of it, in a few figures."""
    lines = list[dict[str, str]]()
    for one in effects[:4]:
        best, random = one.effects[LEARNED][0].parts[strongest(one, LEARNED)], one.effects["random"]
        chance = max(abs(part.sufficiency.mean) for each in random for part in each.parts)
        note = f"of the whole state's effect at {one.test.site} is that of part {best.parts[0]} alone ({best.size} "
        note += f"dimensions); of random parts of these sizes the strongest has {chance:.0%}"
        lines.append({"label": one.test.name, "value": f"{best.sufficiency.mean:.0%}", "note": note})
    if lines:
        return lines
    sizes = {site: several[0].what.sizes for site, several in learned.items()}
    return [
        {"label": site, "value": f"{len(own)} parts", "note": f"of {' + '.join(map(str, own))} dimensions"}
        for site, own in list(sizes.items())[:4]
    ]


def _agents(subject: SceneReading, sites: Sequence[str], verifying: Verifying) -> tuple[list[Test], list[str]]:
    labels, known = (label(one.target, one.dt, subject.vocabulary) for one in (subject.test, subject.fit))
    found, left_out = list[Test](), list[str]()
    for feature in subject.vocabulary.features:
        if feature.name not in MEASURES:
            continue
        title = f"{feature.name}: {feature.positive} or {feature.negative}"
        measure = f"drop of the {MEASURES[feature.name].label.split(',')[0]}"
        try:
            for site in sites:
                pairs = exchanges(subject.model, site, subject.test, labels, feature, verifying.exchanges, seed=0)
                taught = exchanges(subject.model, site, subject.fit, known, feature, 256, seed=1)
                found.append(Test(feature.name, title, site, "all steps", measure, pairs, taught, pairs))
        except ValueError as error:
            left_out.append(f"{feature.name} is not exchanged: {error}")
    return found, left_out


def _matrix(found: Float[Tensor, "s s"]) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in found.tolist()]


def _name_parts(report: dict[str, Any], effects: Sequence[Found]) -> None:
    """Say in every section what a part was found to tell best, and what it carries."""
    for row in report["part_labels"]:
        words = [[f"tells {word}"] if word else [] for word in told_best(row)]
        for one in effects:
            if one.test.site == row["site"]:
                words[strongest(one, LEARNED)].append(f"carries {one.test.name}")
        listed = [report["part_labels"], report["dependence"], report["preimages"]["partitions"]]
        for own in (item for section in listed for item in section if item["site"] == row["site"]):
            own["parts"] = names_of(own["parts"], [", ".join(each) for each in words])
