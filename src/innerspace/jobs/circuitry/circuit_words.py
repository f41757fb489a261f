"""What a study of circuits comes to, in words that follow from the numbers: figures to begin with, then remarks."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.measure.estimate import Estimate


def headlines(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """What came of it, in a few figures."""
    rows = report["agreement"]
    done = [row["template"] for row in rows if row["does"]]
    lines = [
        {
            "label": "agreement of subject and verb",
            "value": f"{len(done)} of {len(rows)}",
            "note": f"templates in which the network is above chance: {', '.join(done) or 'none'}",
        }
    ]
    if done:
        first = report["small_circuits"][0]
        own = [one for one in report["small_circuits"] if one["template"] == first["template"] and not one["trivial"]]
        last = [one for one in own if one["site"] == own[-1]["site"]]
        told = [f"{one['kind']} {_short(one['needed'][0]['parts'])}" for one in last if one["needed"][0]["parts"]]
        pca = next(one for one in report["small_circuits"] if one["trivial"] and one["site"] == own[-1]["site"])
        level = first["needed"][0]["level"]
        note = f"{', '.join(told)}; principal components {_short(pca['needed'][0]['parts'])} ({first['template']})"
        best = min((_mean(one["needed"][0]["parts"]) for one in last), default=float("inf"))
        value = "–" if best == float("inf") else f"{best:.0f} latents"
        lines.append({"label": f"for {level:.0%} of the margin at {own[-1]['site']}", "value": value, "note": note})
        found = report["circuits"]["rows"]
        top = max(found, key=lambda row: row["faithfulness"].mean)
        chance = f"random ones have {max(top['random'].mean, 0.0):.0%}; {top['kind']}, {top['template']}"
        label = f"faithfulness of {report['circuits']['nodes']} nodes"
        lines.append({"label": label, "value": f"{top['faithfulness'].mean:.0%}", "note": f"at best; {chance}"})
    axes = report["first_position"][-1]
    divergence = [axis["divergence"]["mean"] for axis in axes["all"]]
    place = sorted(divergence, reverse=True).index(divergence[0]) + 1
    note = f"of {len(divergence)} principal directions at {axes['site']}, by what resampling it costs the output"
    lines.append({"label": "the first principal direction", "value": f"place {place}", "note": note})
    return lines


def remarks(report: Mapping[str, Any], missing: Sequence[str]) -> list[str]:
    """Plain sentences on what the numbers allow to say."""
    rows, said = report["agreement"], list[str]()
    for row in rows:
        if not row["does"]:
            said.append(_undone(row))
    if missing:
        said.append(f"{len(missing)} pairs of prompts could not be written in the tokenizer's words: {missing[0]}.")
    if "circuits" in report:
        said += [_fewest(report, site) for site in dict.fromkeys(one["site"] for one in report["small_circuits"])]
        said += [_unequal(report), _ranked(report)]
    said += [_axis(one) for one in report["first_position"]]
    return said


def _undone(row: Mapping[str, Any]) -> str:
    """Why there is nothing to look for."""
    words = (
        f"{_capital(row['template'])}: the network does not do the task, so that there is no circuit to look for: the "
        f"margin is {_interval(row['margin'])} nats, {_interval(row['pairs'])} of the pairs are right"
    )
    if row["unlike"] is None:
        return f"{words}."
    return f"{words}; with another noun of the other number the margin is {_interval(row['unlike'])}."


def _fewest(report: Mapping[str, Any], site: str) -> str:
    """Which kind of dictionary needs the fewest latents, which the seeds do not tell from it, and the trivial basis."""
    own = [one for one in report["small_circuits"] if one["site"] == site]
    level, told, trivial = own[0]["needed"][0]["level"], list[str](), list[str]()
    for template in dict.fromkeys(one["template"] for one in own):
        rows = [one for one in own if one["template"] == template]
        kinds = {one["kind"]: one["needed"][0]["parts"] for one in rows if not one["trivial"]}
        known = {kind: parts for kind, parts in kinds.items() if parts is not None}
        trivial += [_short(one["needed"][0]["parts"]) for one in rows if one["trivial"]]
        if not known:
            told.append(f"{template}, none")
            continue
        best = min(known, key=lambda kind: known[kind].mean)
        near = [kind for kind, parts in kinds.items() if kind != best and not _above(parts, known[best])]
        tie = f" (not clearly fewer than {' or '.join(near)})" if near else ""
        told.append(f"{template}, {best} with {known[best].mean:.0f}{tie}")
    return (
        f"Fewest latents for {level:.0%} of the margin at {site}: {'; '.join(told)}. Principal components need "
        f"{' and '.join(trivial)}."
    )


def _unequal(report: Mapping[str, Any]) -> str:
    """How far the dictionaries themselves are apart, so that no more is read into the comparison than there is."""
    rows = report["circuits"]["dictionaries"]
    spans = {key: [row[key].mean for row in rows] for key in ("l0", "ce_increase")}
    l0, loss = (f"{min(values):.2g} to {max(values):.2g}" for values in spans.values())
    return (
        f"Between kinds and sites the dictionaries have an L0 of {l0} and cost {loss} nats of cross-entropy, and what "
        f"they do not explain is ablated with the rest: compared are these dictionaries, not ways of training as such."
    )


def _ranked(report: Mapping[str, Any]) -> str:
    """How well gradients tell effects that were found one by one."""
    rows = report["circuits"]["gradients"]
    ends = [
        f"{name} {min(row[key] for row in rows):.2f} to {max(row[key] for row in rows):.2f}"
        for key, name in (("patching", "attribution patching"), ("integrated", "integrated gradients"))
    ]
    return (
        f"Rank correlation with the effects of latents found one by one: {ends[0]}, {ends[1]}. The latter average over "
        f"states in which all other nodes of the site go along."
    )


def _above(parts: Estimate | None, best: Estimate) -> bool:
    return parts is None or (parts.low is not None and best.high is not None and parts.low > best.high)


def _axis(one: Mapping[str, Any]) -> str:
    """What is known of the first principal direction of all states."""
    first, axes = one["all"][0], one["all"]
    costs = [axis["divergence"]["mean"] for axis in axes]
    rank = sorted(costs, reverse=True).index(costs[0]) + 1
    ratio = one["norm_at_first"] / one["norm_beyond"]
    random = sum(axis["divergence"]["mean"] for axis in one["random"]) / len(one["random"])
    return (
        f"{one['site']}: states at position 0 have {ratio:.1f} times the norm of the others; the first principal "
        f"direction has a |cosine| of {first['outlier']:.2f} with the way to them. Resampled at the other positions it "
        f"costs {costs[0]:.3g} nats, {_nth(rank)}most of {len(costs)} directions; random directions cost "
        f"{random:.2g} on average."
    )


def _nth(rank: int) -> str:
    return {1: "the ", 2: "the second ", 3: "the third "}.get(rank, f"the {rank}th ")


def _interval(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:.2f} ({found['low']:.2f} to {found['high']:.2f})".replace("-", "−")


def _short(parts: Estimate | None) -> str:
    return "more than there are in some seeds" if parts is None else f"{parts.mean:.0f}"


def _mean(parts: Estimate | None) -> float:
    return float("inf") if parts is None else parts.mean


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
