"""Feature circuits: by which latents, and which edges between them, a language model makes subject and verb agree.

Marks et al., "Sparse Feature Circuits", arXiv 2403.19647, on dictionaries that were trained locally, end to end, and
end to end with downstream reconstruction (Braun et al., arXiv 2405.12241, appendix I, who found the comparison
inconclusive). The job reads top to bottom: does the network do the task at all, dictionaries, how few latents of one
site suffice, circuits across sites, how far gradients can be trusted, and what is spent on position 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape

from innerspace.jobs.circuitry.agreement import AskingNumber, Question
from innerspace.jobs.circuitry.circuit_rows import (
    behavior_rows,
    circuit_row,
    compared,
    graph,
    groups_of,
    needed,
    over,
    pooled,
    random_circuit,
)
from innerspace.jobs.circuitry.circuit_words import headlines, remarks
from innerspace.jobs.circuitry.wired import PCA, Makings, Wired, principal, random_order
from innerspace.jobs.inputs.subject import Subject
from innerspace.jobs.inputs.text import TextData
from innerspace.jobs.job import Job, Run
from innerspace.measure.attribution import attributed
from innerspace.measure.circuits import (
    Circuit,
    Faithfulness,
    SmallCircuits,
    circuit_of,
    faithfulness,
    small_circuits,
    with_edges,
)
from innerspace.measure.estimate import over_seeds
from innerspace.measure.first_position import first_position
from innerspace.measure.splicing import TokenLoss, splice_fidelity
from innerspace.value import Value


@dataclass(frozen=True)
class Tracing(Value):
    """How circuits are found and judged.

    Effects are integrated gradients of ``steps`` points. Circuits have the ``nodes`` strongest nodes, and drawings the
    ``edges`` strongest edges. Small circuits have the first ``counts`` latents of one site; how many are needed is told
    for each of ``levels``; beside them stand the principal components of ``rows`` states. ``compared`` latents' effects
    are found one by one on a batch. ``directions`` of position 0 and dictionaries are judged on ``sequences`` held-out
    ones.
    """

    steps: int = 10
    nodes: int = 32
    edges: int = 48
    counts: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    levels: tuple[float, ...] = (0.5, 0.8)
    rows: int = 16_000
    compared: int = 128
    directions: int = 25
    sequences: int = 48
    replicates: int = 500

    def __post_init__(self) -> None:
        if list(self.counts) != sorted({*self.counts}) or not self.counts or self.counts[0] < 0:
            raise ValueError(f"counts should be growing numbers of latents, they are {list(self.counts)}")
        if min(self.steps, self.nodes, self.edges, self.directions, self.sequences) < 1 or self.compared < 3:
            raise ValueError(f"numbers of what is judged and shown should be positive: {self}")


@dataclass(frozen=True)
class Circuits(Job):
    """Find the circuits of subject-verb agreement in dictionaries of some sites of a language model."""

    data: TextData = field(default_factory=TextData)
    sites: tuple[str, ...] = ("resid.1", "resid.3")
    making: Makings = field(default_factory=Makings)
    asking: AskingNumber = field(default_factory=AskingNumber)
    tracing: Tracing = field(default_factory=Tracing)

    def check(self) -> None:
        """Refuse what contradicts itself before long work starts."""
        self.data.check()
        self.making.check()
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ValueError(f"sites should be named, each once; they are {list(self.sites)}")

    def run(self, run: Run) -> Path:
        """Do everything, and write the page."""
        subject = self.data.open(run)
        names = [subject.model.site(site).name for site in self.sites]
        names.sort(key=list(subject.model.sites).index)
        run.say(f"[bold]1[/] {escape(subject.description)}")
        questions = self.asking.questions(subject)
        behaviors = [question.behavior() for question in questions]
        done = [question for question, found in zip(questions, behaviors, strict=True) if found.does]
        run.say(f"  the network agrees in {len(done)} of {len(questions)} templates")
        run.say(f"[bold]2[/] dictionaries at {', '.join(names)}")
        wired = self.making.make(run, subject, names)
        report: dict[str, Any] = {"agreement": behavior_rows(questions, behaviors)}
        if done:
            run.say("[bold]3[/] how few latents suffice")
            everyone = [*wired, principal(subject, names, self.tracing.rows)]
            report["small_circuits"] = small(run, done, names, everyone, self.tracing)
            run.say("[bold]4[/] circuits")
            report["circuits"] = self.circuits(run, subject, done, names, wired)
        run.say("[bold]5[/] position 0 and principal directions")
        report["first_position"] = [self.study(subject, site, wired) for site in names]
        report |= {
            "title": f"Feature circuits of {subject.network}",
            "question": "Which latents make subject and verb agree, and how few of them are enough?",
            "headlines": headlines(report),
            "remarks": remarks(report, [words for question in questions for words in question.missing]),
        }
        return run.conclude(
            self, report, seeds=(one.seed for one in wired), data=subject.description, device=subject.device
        )

    def circuits(
        self, run: Run, subject: Subject, done: Sequence[Question], sites: Sequence[str], wired: Sequence[Wired]
    ) -> dict[str, Any]:
        """The section on circuits (``report.circuits.circuits``)."""
        tracing = self.tracing
        rows, graphs, gradients = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
        folder = run.folder / "circuits"
        folder.mkdir(exist_ok=True)
        for question in run.track(done, "circuits"):
            for kind, own in by_kind(wired).items():
                judged, chance = list[Faithfulness](), list[Faithfulness]()
                circuits = list[Circuit]()
                for one in own:
                    train, test = (question.passages(side, one.vias) for side in ("train", "test"))
                    effects = attributed(train, steps=tracing.steps)
                    circuit = circuit_of(effects, question.places, top=tracing.nodes, groups=groups_of(train))
                    if one is own[0]:
                        wide = with_edges(circuit, train, replicates=tracing.replicates)
                        circuit = wide.pruned_edges(top=tracing.edges)
                        graphs.append(graph(subject, question, one, circuit))
                    circuit.save(folder / f"{question.train.structure}-{kind}-{one.seed}.json")
                    circuits.append(circuit)
                    judged.append(faithfulness(test, circuit, replicates=tracing.replicates))
                    other = random_circuit(effects, question.places, tracing.nodes, one.seed)
                    chance.append(faithfulness(test, other, replicates=tracing.replicates))
                rows.append(circuit_row(question, kind, circuits, judged, chance))
                gradients += [compared(question, site, own[0], tracing.steps, tracing.compared) for site in sites]
        return {
            "nodes": tracing.nodes,
            "steps": tracing.steps,
            "rows": rows,
            "gradients": gradients,
            "graphs": graphs,
            "dictionaries": [row for site in sites for row in self.fidelity(subject, site, wired)],
        }

    def fidelity(self, subject: Subject, site: str, wired: Sequence[Wired]) -> list[dict[str, Any]]:
        """What the network loses through each kind of dictionary at a site, the mean over seeds."""
        rows = list[dict[str, Any]]()
        for kind, own in by_kind(wired).items():
            found = [
                splice_fidelity(
                    subject.model,
                    subject.held_out(self.tracing.sequences),
                    site,
                    one.vias[site],
                    where=subject.where,
                    downstream=(),
                    replicates=20,
                )
                for one in own
            ]
            loss = [one.loss for one in found if isinstance(one.loss, TokenLoss)]
            rows.append(
                {
                    "site": site,
                    "kind": kind,
                    "l0": over_seeds([one.l0.mean for one in found]),
                    "ce_increase": over_seeds([one.ce_increase.mean for one in loss]),
                    "explained_variance": over_seeds([one.explained_variance.mean for one in found]),
                    "alive": over_seeds([float(one.alive) for one in found]),
                    "latents": found[0].latents,
                }
            )
        return rows

    def study(self, subject: Subject, site: str, wired: Sequence[Wired]) -> dict[str, Any]:
        """The section on position 0 (``report.first_position.first_position``) of a site."""
        batches = list(subject.held_out(self.tracing.sequences))
        found = first_position(
            subject.model,
            batches,
            site,
            {f"{one.kind}·{one.seed}": one.vias[site] for one in wired},
            directions=self.tracing.directions,
            replicates=self.tracing.replicates,
        ).to_json()
        return found | {
            "kinds": list(by_kind(wired)),
            "seeds": {kind: len(own) for kind, own in by_kind(wired).items()},
        }


def by_kind(wired: Iterable[Wired]) -> dict[str, list[Wired]]:
    """Those that differ by their seed only."""
    groups = dict[str, list[Wired]]()
    for one in wired:
        groups.setdefault(one.kind, []).append(one)
    return groups


def small(
    run: Run, done: Sequence[Question], sites: Sequence[str], everyone: Sequence[Wired], tracing: Tracing
) -> list[dict[str, Any]]:
    """The section on small circuits (``report.small_circuits.small_circuits``): a row for template, site and kind."""
    rows = list[dict[str, Any]]()
    tasks = [(question, site, kind) for question in done for site in sites for kind in by_kind(everyone)]
    for question, site, kind in run.track(tasks, "small circuits"):
        found, chance, whole = list[SmallCircuits](), list[SmallCircuits](), list[Faithfulness]()
        for one in by_kind(everyone)[kind]:
            vias = {site: one.vias[site]}
            train, test = (question.passages(side, vias) for side in ("train", "test"))
            effects = attributed(train, steps=tracing.steps)[site].sum(1).double()[:, :-1]
            order = effects.mean(0).abs().argsort(descending=True).tolist()
            counts = [count for count in tracing.counts if count < len(order)]
            counts += [len(order)] * (tracing.counts[-1] >= len(order))
            settings: dict[str, Any] = {"levels": tracing.levels, "replicates": tracing.replicates}
            found.append(small_circuits(test, site, order, counts, **settings))
            drawn = random_order(effects.abs().amax(0) > 0, one.seed)
            chance.append(small_circuits(test, site, drawn, counts, **settings))
            whole.append(faithfulness(test, Circuit(question.places, ()), replicates=tracing.replicates))
        rows.append(
            {
                "template": question.name,
                "site": site,
                "kind": kind,
                "trivial": kind == PCA,
                "seeds": len(found),
                "counts": found[0].counts,
                "faithfulness": pooled(found),
                "random": pooled(chance),
                "spliced": over([one.spliced_share for one in whole]),
                "needed": [needed(found, chance, i, level) for i, level in enumerate(tracing.levels)],
            }
        )
    return rows
