"""What control under shifts comes to, in words: the headline figures and the plain sentences that open the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.jobs.motion.shifted import CONTROLLED, ORACLE, RANDOM, RESCALED, UNCONTROLLED
from innerspace.measure.estimate import Estimate
from innerspace.measure.steering import Curve

GOAL = 0.5
"""The share of the gap between no control and the oracle that control should close."""

Row = Mapping[str, Any]


def opening(rows: Sequence[Row], curve: Curve, *, recorded: bool) -> dict[str, Any]:
    """The headlines, and a sentence for everything that a reader should not have to find out alone.

    The headlines are of the first shift that opens a gap and that only the future tells of.
    """
    unseen = [row for row in rows if not row["seen"] and row["closed"][CONTROLLED] is not None]
    headlines = _headlines(unseen[0]) if unseen else []
    plain = rows[0]["methods"][UNCONTROLLED]
    headlines.append(
        {
            "label": "forecast error without a shift, minFDE",
            "value": f"{plain['min_fde'].mean:.2f} m",
            "note": f"minADE {plain['min_ade'].mean:.2f} m, mAP {plain['map'].mean:.2f}; {rows[0]['rows']} agents",
        }
    )
    remarks = [sentence for row in rows for sentence in _sentences(row)]
    if not unseen:
        remarks.insert(0, "No shift of futures alone opens a gap that the speed vector could close.")
    if idle := [row["shift"] for row in rows if row["closed"][CONTROLLED] is None and row["tau"] == 0]:
        remarks.append(f"Nothing is asked for, and no temperature helps noticeably: {'; '.join(idle)}.")
    if beyond := [row for row in rows if not row["reached"]]:
        remarks += [
            f"{row['shift']}: the wanted change of {row['wanted']:+.0f} % is out of reach of the calibration curve "
            f"({curve.span[0]:+.0f} % to {curve.span[1]:+.0f} %); the nearest end, τ = {row['tau']:+.2f}, is used."
            for row in beyond
        ]
    if short := [row for row in rows if row["complete"] < 0.9 * rows[0]["complete"]]:
        shares = "; ".join(f"{row['shift']} ({100 * row['complete']:.0f} %)" for row in short)
        remarks.append(f"Not all paths are known to the last waypoint; the others are judged where they end: {shares}.")
    if recorded:
        remarks.append(
            "Windows of a log overlap, and scenes of one log are no independent ones: intervals over scenes are too "
            "narrow."
        )
    return {"headlines": headlines, "remarks": remarks}


def _headlines(row: Row) -> list[dict[str, str]]:
    closed, rescaled, random = (row["closed"][method] for method in (CONTROLLED, RESCALED, RANDOM))
    of = {method: row["methods"][method] for method in (UNCONTROLLED, CONTROLLED, RESCALED, ORACLE)}
    fde = {method: scores["min_fde"].mean for method, scores in of.items()}
    met = "at least half, as hoped" if closed.mean >= GOAL else "less than the half that was hoped for"
    return [
        {
            "label": f"gap closed by control, {row['shift']}",
            "value": f"{100 * closed.mean:.0f} %",
            "note": f"of minFDE, uncontrolled to oracle ({_percents(closed)}); {met}",
        },
        {
            "label": f"minFDE under control, {row['shift']}",
            "value": f"{fde[CONTROLLED]:.2f} m",
            "note": f"uncontrolled {fde[UNCONTROLLED]:.2f} m, oracle τ {fde[ORACLE]:.2f} m",
        },
        {
            "label": f"minFDE of rescaled forecasts, {row['shift']}",
            "value": f"{fde[RESCALED]:.2f} m",
            "note": f"closes {100 * rescaled.mean:.0f} % of the same gap ({_percents(rescaled)})",
        },
        {
            "label": f"gap closed by random vectors, {row['shift']}",
            "value": f"{100 * random.mean:.0f} %",
            "note": f"of equal norm at the same τ = {row['tau']:+.2f} ({_percents(random)})",
        },
        {
            "label": f"mAP, {row['shift']}",
            "value": f"{of[CONTROLLED]['map'].mean:.2f}",
            "note": f"uncontrolled {of[UNCONTROLLED]['map'].mean:.2f}, rescaled {of[RESCALED]['map'].mean:.2f}",
        },
    ]


def _sentences(row: Row) -> list[str]:
    """What control does under a shift, and whether rescaling does better."""
    closed, change = row["closed"][CONTROLLED], row["against"][CONTROLLED]["min_fde"]
    if closed is None and row["tau"] == 0:
        return []
    if closed is None:
        return [
            f"{row['shift']}: no temperature helps noticeably; control at τ = {row['tau']:+.2f} changes minFDE by "
            f"{change.mean:+.2f} m ({_meters(change)}); {_rivalry(row['against_rescaled']['min_fde'])}."
        ]
    if row["tau"] == 0:
        best = row["against"][ORACLE]["min_fde"].mean
        return [
            f"{row['shift']}: the history tells the new speed, so that calibration asks for no change; the best "
            f"temperature, τ = {row['oracle_tau']:+.2f}, would change minFDE by {best:+.2f} m."
        ]
    words = (
        f"{row['shift']}: control at τ = {row['tau']:+.2f} changes minFDE by {change.mean:+.2f} m ({_meters(change)}), "
        f"{100 * closed.mean:.0f} % of the gap to the best temperature ({_percents(closed)}); "
        f"{_rivalry(row['against_rescaled']['min_fde'])}."
    )
    precision = row["against"][CONTROLLED]["map"]
    if change.mean < 0 and precision.high is not None and precision.high < 0:
        words += f" Yet mAP falls by {-precision.mean:.2f}."
    if closed.mean < GOAL:
        words += f" The best temperature would be τ = {row['oracle_tau']:+.2f}."
    return [words]


def _rivalry(difference: Estimate) -> str:
    amount = f"{abs(difference.mean):.2f} m"
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return f"plain rescaling of the forecasts does about as well (difference {_meters(difference)})"
    return f"plain rescaling of the forecasts is {amount} {'better' if difference.mean > 0 else 'worse'}"


def _percents(share: Estimate) -> str:
    if share.low is None or share.high is None:
        return "no interval"
    return f"{100 * share.low:.0f} to {100 * share.high:.0f} %"


def _meters(length: Estimate) -> str:
    if length.low is None or length.high is None:
        return "no interval"
    return f"{length.low:+.2f} to {length.high:+.2f} m"
