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
        told = [f"{one['kind']} {_short(one['needed'][0]['parts'])}" for one in last]
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
    said += [_fewest(report, site) for site in dict.fromkeys(one["site"] for one in report.get("small_circuits", ()))]
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
    """Which kind needs the fewest latents, and whether the seeds tell them apart."""
    own = [one for one in report["small_circuits"] if one["site"] == site]
    told, clear = list[str](), 0
    for template in dict.fromkeys(one["template"] for one in own):
        kinds = {one["kind"]: one["needed"][0]["parts"] for one in own if one["template"] == template}
        known = {kind: parts for kind, parts in kinds.items() if parts is not None}
        if not known:
            told.append(f"{template}: none gets there")
            continue
        best = min(known, key=lambda kind: known[kind].mean)
        apart = all(_above(parts, known[best]) for kind, parts in kinds.items() if kind != best)
        clear += apart
        told.append(f"{template}: {best} ({known[best].mean:.1f})" + ("" if apart else ", not clearly"))
    level = own[0]["needed"][0]["level"]
    words = f"Fewest parts for {level:.0%} of the margin at {site}, principal components among them: {'; '.join(told)}."
    return words + ("" if clear else " Nowhere do the intervals tell the kinds apart.")


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
    return f"{found['mean']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _short(parts: Estimate | None) -> str:
    return "never" if parts is None else f"{parts.mean:.0f}"


def _mean(parts: Estimate | None) -> float:
    return float("inf") if parts is None else parts.mean


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
