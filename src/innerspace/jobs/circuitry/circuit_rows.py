"""The rows of a study of circuits, as the page shows them: numbers over seeds, gradients judged, drawings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from innerspace.interventions import Read
from innerspace.jobs.circuitry.agreement import Behavior, Question
from innerspace.jobs.circuitry.wired import Wired
from innerspace.jobs.inputs.subject import Subject
from innerspace.measure.attribution import attributed, exact, rank_correlation
from innerspace.measure.circuits import Circuit, Faithfulness, Scored, SmallCircuits
from innerspace.measure.estimate import Estimate, over_seeds
from innerspace.measure.nodes import Node, Passage


def behavior_rows(questions: Sequence[Question], behaviors: Sequence[Behavior]) -> list[dict[str, Any]]:
    """The section on what the network does (``report.circuits.agreement``)."""
    return [
        {"template": question.name, "example": question.test.example, "does": found.does, **found.to_json()}
        for question, found in zip(questions, behaviors, strict=True)
    ]


def pooled(found: Sequence[SmallCircuits]) -> list[Estimate]:
    """The curves of several seeds as one: means with the interval over seeds, of a single one that over prompts."""
    return [over(list(points)) for points in zip(*(one.faithfulness for one in found), strict=True)]


def needed(found: Sequence[SmallCircuits], chance: Sequence[SmallCircuits], i: int, level: float) -> dict[str, Any]:
    """How many latents are needed for a level, and how many seeds ever reach it; the same in random orders."""

    def told(own: Sequence[SmallCircuits]) -> tuple[Estimate | None, int]:
        parts = [one.needed[i].parts for one in own]
        known = [one for one in parts if one is not None]
        # a mean over those seeds alone that reach it would flatter
        return (over(known) if len(known) == len(parts) else None), len(known)

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
        "faithfulness": over([one.faithfulness for one in judged]),
        "completeness": over([one.completeness for one in judged]),
        "random": over([one.faithfulness for one in chance]),
        "spliced": over([one.spliced_share for one in judged]),
        "errors": over_seeds([float(count) for count in errors]),
    }


def compared(question: Question, site: str, one: Wired, steps: int, most: int) -> dict[str, Any]:
    """How well gradients rank the effects of latents at a site that are found one by one."""
    passages = question.passages("train", {site: one.vias[site]}, most=1)
    active = _active(passages, site)
    drawn = torch.randperm(len(active), generator=torch.Generator().manual_seed(one.seed))
    chosen = active[drawn[:most]]
    truth = exact(passages, [Node(site, int(part)) for part in chosen]).mean(0)
    ways = {
        name: attributed(passages, steps=points)[site].sum(1).mean(0)[chosen]
        for name, points in (("patching", 0), ("integrated", steps))
    }
    return {
        "template": question.name,
        "site": site,
        "kind": one.kind,
        "latents": len(chosen),
        "active": len(active),
        **{name: rank_correlation(found, truth) for name, found in ways.items()},
        "points": {"exact": truth.tolist(), **{name: found.tolist() for name, found in ways.items()}},
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


def groups_of(passages: Sequence[Passage[Any]]) -> Tensor:
    """The groups of all rows."""
    known = [passage.asked.group for passage in passages]
    return torch.cat([group for group in known if group is not None])


def _node(node: Node) -> dict[str, Any]:
    return {"site": node.site, "part": node.part, "place": node.place}


def over(found: Sequence[Estimate]) -> Estimate:
    """The mean over seeds with its interval; a single one keeps the interval over prompts."""
    return found[0] if len(found) == 1 else over_seeds([one.mean for one in found])
