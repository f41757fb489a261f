"""Feature circuits: by which latents, and which edges between them, a language model makes subject and verb agree.

Marks et al., "Sparse Feature Circuits", arXiv 2403.19647, on dictionaries that were trained locally, end to end, and
end to end with downstream reconstruction (Braun et al., arXiv 2405.12241, appendix I, who found the comparison
inconclusive). The job reads top to bottom: does the network do the task at all, dictionaries, how few latents of one
site suffice, circuits across sites, how far gradients can be trusted, and what is spent on position 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from torch import Tensor

from innerspace.interventions import Read
from innerspace.jobs.agreement import AskingNumber, Behavior, Question
from innerspace.jobs.circuit_words import headlines, remarks
from innerspace.jobs.job import Job, Run
from innerspace.jobs.subject import Subject
from innerspace.jobs.text import TextData
from innerspace.jobs.wired import PCA, Makings, Wired, principal, random_order
from innerspace.measure.attribution import Node, Passage, attributed, exact, rank_correlation
from innerspace.measure.circuits import (
    Circuit,
    Faithfulness,
    Scored,
    SmallCircuits,
    circuit_of,
    faithfulness,
    small_circuits,
    with_edges,
)
from innerspace.measure.estimate import Estimate, over_seeds
from innerspace.measure.first_position import first_position
from innerspace.measure.splicing import TokenLoss, splice_fidelity
from innerspace.report.record import Provenance, write
from innerspace.value import Value


@dataclass(frozen=True)
class Tracing(Value):
    """How circuits are found and judged.

    Effects are integrated gradients of ``steps`` points. Circuits have the ``nodes`` strongest nodes, and drawings the
    ``edges`` strongest edges. Small circuits have the first ``counts`` latents of one site; how many are needed is told
    for each of ``levels``. ``compared`` latents' effects are found one by one on a batch. ``directions`` of position 0
    and dictionaries are judged on ``sequences`` held-out ones.
    """

    steps: int = 10
    nodes: int = 32
    edges: int = 48
    counts: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    levels: tuple[float, ...] = (0.5, 0.8)
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
        started = datetime.now(UTC)
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
            everyone = [*wired, principal(subject, names)]
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
            "job": self,
            "provenance": Provenance.collect(
                seeds=sorted({one.seed for one in wired}),
                data=subject.description,
                started=started,
                seconds=(datetime.now(UTC) - started).total_seconds(),
                device=subject.device,
            ),
        }
        write(run.folder, report)
        return run.folder / "report.html"

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
                    circuit = circuit_of(effects, question.places, top=tracing.nodes, groups=_groups(train))
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
                gradients += [compared(question, site, own[0], tracing) for site in sites]
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


def behavior_rows(questions: Sequence[Question], behaviors: Sequence[Behavior]) -> list[dict[str, Any]]:
    """The section on what the network does (``report.circuits.agreement``)."""
    return [
        {"template": question.name, "example": question.test.example, "does": found.does, **found.to_json()}
        for question, found in zip(questions, behaviors, strict=True)
    ]


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
                "spliced": _over([one.spliced_share for one in whole]),
                "needed": [needed(found, chance, i, level) for i, level in enumerate(tracing.levels)],
            }
        )
    return rows


def pooled(found: Sequence[SmallCircuits]) -> list[Estimate]:
    """The curves of several seeds as one: means with the interval over seeds, of a single one that over prompts."""
    return [_over(list(points)) for points in zip(*(one.faithfulness for one in found), strict=True)]


def needed(found: Sequence[SmallCircuits], chance: Sequence[SmallCircuits], i: int, level: float) -> dict[str, Any]:
    """How many latents are needed for a level, and how many seeds ever reach it; the same in random orders."""

    def told(own: Sequence[SmallCircuits]) -> tuple[Estimate | None, int]:
        parts = [one.needed[i].parts for one in own]
        known = [one for one in parts if one is not None]
        # a mean over those seeds alone that reach it would flatter
        return (_over(known) if len(known) == len(parts) else None), len(known)

    (parts, reached), (random, by_chance) = told(found), told(chance)
    return {"level": level, "parts": parts, "reached": reached, "random": random, "random_reached": by_chance}


def random_circuit(effects: Mapping[str, Tensor], places: Sequence[str], count: int, seed: int) -> Circuit:
    """As many nodes, drawn from all that have any effect in any row."""
    there = [
        Node(site, part if part < found.shape[2] - 1 else None, place)
        for site, found in effects.items()
        for place, part in (found != 0).any(0).nonzero().tolist()
    ]
    drawn = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return Circuit(tuple(places), tuple(Scored(there[i], Estimate(0.0)) for i in drawn))


def circuit_row(
    question: Question,
    kind: str,
    circuits: Sequence[Circuit],
    judged: Sequence[Faithfulness],
    chance: Sequence[Faithfulness],
) -> dict[str, Any]:
    """What circuits of one kind have of the metric, over seeds."""
    errors = [sum(scored.node.part is None for scored in circuit.nodes) for circuit in circuits]
    return {
        "template": question.name,
        "kind": kind,
        "seeds": len(judged),
        "faithfulness": _over([one.faithfulness for one in judged]),
        "completeness": _over([one.completeness for one in judged]),
        "random": _over([one.faithfulness for one in chance]),
        "spliced": _over([one.spliced_share for one in judged]),
        "errors": over_seeds([float(count) for count in errors]),
    }


def compared(question: Question, site: str, one: Wired, tracing: Tracing) -> dict[str, Any]:
    """How well gradients rank the effects of latents at a site that are found one by one."""
    passages = question.passages("train", {site: one.vias[site]}, most=1)
    ways = {name: attributed(passages, steps=steps)[site].sum(1).mean(0)[:-1] for name, steps in
            (("patching", 0), ("integrated", tracing.steps))}  # fmt: skip
    active = _active(passages, site)
    drawn = torch.randperm(len(active), generator=torch.Generator().manual_seed(one.seed))
    chosen = active[drawn[: tracing.compared]]
    truth = exact(passages, [Node(site, int(part)) for part in chosen]).mean(0)
    correlations = {name: rank_correlation(found[chosen], truth) for name, found in ways.items()}
    signed = {f"{name}_r": _pearson(found[chosen], truth) for name, found in ways.items()}
    points = [[float(x) for x in values[chosen]] if name else truth.tolist() for name, values in
              (("", truth), *ways.items())]  # fmt: skip
    keys = ("exact", *ways)
    return {
        "template": question.name,
        "site": site,
        "kind": one.kind,
        "latents": len(chosen),
        "active": len(active),
        **correlations,
        **signed,
        "points": dict(zip(keys, points, strict=True)),
    }


def graph(subject: Subject, question: Question, one: Wired, circuit: Circuit) -> dict[str, Any]:
    """A circuit as it is drawn, with the tokens on which its latents fire most."""
    about = {site: fires_on(subject, site, one, circuit) for site in one.vias}
    return {
        "template": question.name,
        "kind": one.kind,
        "seed": one.seed,
        "sites": list(one.vias),
        "places": list(circuit.places),
        "nodes": [
            {**_node(scored.node), "effect": scored.effect, "about": about[scored.node.site].get(scored.node.part, "")}
            for scored in circuit.nodes
        ],
        "edges": [
            {"source": _node(edge.source), "target": _node(edge.target), "effect": edge.effect}
            for edge in circuit.edges
        ],
    }


@torch.no_grad()
def fires_on(subject: Subject, site: str, one: Wired, circuit: Circuit, most: int = 4) -> dict[int | None, str]:
    """The tokens at the strongest activations of a circuit's latents, on some training text."""
    parts = sorted({s.node.part for s in circuit.nodes if s.node.site == site and s.node.part is not None})
    if not parts:
        return {}
    codes, tokens = list[Tensor](), list[Tensor]()
    for batch in subject.sample(8):
        x = subject.model.run(batch, {site: Read()}, stop=True).hidden[site]
        chosen = subject.model.positions(batch, site, x, subject.where)
        codes.append(one.vias[site].encode(x[chosen]).z[:, parts])
        tokens.append(batch.ids[chosen])
    code, token = torch.cat(codes), torch.cat(tokens)
    found = dict[int | None, str]()
    for column, part in enumerate(parts):
        best = code[:, column].topk(min(24, len(code)))
        own: list[int] = token[best.indices[best.values > 0]].tolist()
        ranked = [one for one, _ in Counter(own).most_common(most)]
        found[part] = " ".join(_shown(subject.tokenizer, one) for one in ranked)
    return found


def _shown(tokenizer: Any, token: int) -> str:
    words = str(tokenizer.convert_ids_to_tokens(token))
    return words.replace("▁", "_").replace("Ġ", "_").replace("<0x0A>", "⏎")


def _active(passages: Sequence[Passage[Any]], site: str) -> Tensor:
    """The latents that are on somewhere in the prompts, or in what stands instead."""
    on = [
        (passage.own[site].code[passage.chosen] != passage.instead[site].code[passage.chosen]).any(0)
        for passage in passages
    ]
    return torch.stack(on).any(0).nonzero().flatten()


def _groups(passages: Sequence[Passage[Any]]) -> Tensor:
    known = [passage.asked.group for passage in passages]
    return torch.cat([group for group in known if group is not None])


def _node(node: Node) -> dict[str, Any]:
    return {"site": node.site, "part": node.part, "place": node.place}


def _over(found: Sequence[Estimate]) -> Estimate:
    """The mean over seeds with its interval; a single one keeps the interval over prompts."""
    return found[0] if len(found) == 1 else over_seeds([one.mean for one in found])


def _pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.double(), b.double())))[0, 1])
