"""The section on preimages: states that look alike in one part, in their context, beside those alike in all others.

All of it travels in the page as compact JSON, which the script draws on demand; the first query stands on paper. States
are numbered as they come: a context of tokens is the numbers of its tokens in one vocabulary, a path is drawn already.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, final

from innerspace.report.blocks import Block, Cell, Palette, Preimages, Section, StillFeature, Strip, Table
from innerspace.report.features import visible
from innerspace.report.numerals import estimate, number, phrase
from innerspace.report.subspaces import entitled, part_hue, part_name, part_tip

MEASURES = ("cosine", "distance")

STILL, STRIPS = 3, 6
"""Parts on paper, and states of each."""

_STEPS = 14
"""Points of one drawn path, at most."""


def preimages(report: Mapping[str, Any], palette: Palette, note: str) -> Section:  # noqa: ARG001
    """Which stored states lie close to a query in one part, beside the nearest in the whole space and in the rest.

    ``preimages`` holds

    * ``states``: all that are shown, one entry each. A state of text is ``tokens`` (strings, with their white space)
      and ``at`` (which of them the state is of). One of a scene is ``caption`` (its words) and optionally ``past`` and
      ``future`` (lists of [x, y] in meters in the frame of the agent, which is at [0, 0] and looks along +x);
    * ``queries``: one entry each, of ``state`` (its place in ``states``) and optionally ``words`` (to find it by);
    * ``levels``: by measure, ``cosine`` (rising, from loose to strict) and ``distance`` (falling; the distance to the
      query over the query's length, both within the part); ``default``: by measure, the level at which the page opens;
    * ``edges`` of the histograms of cosines (rising, one more than counts);
    * ``show``: how many states are shown at once;
    * ``partitions``: one entry each, of ``site``, ``parts`` (see ``subspaces.py``), optionally ``name``, and

      * ``shares``, optional: for each part, by measure, the share of queries with a state that close (estimates);
      * ``queries``: one entry for each of the queries, in their order, of ``considered`` (how many states were compared
        with it), ``whole`` (hits: the nearest in the whole space, by cosine, first the nearest) and ``parts``: one
        entry for each part, of

        * ``sample`` (hits **in the order in which they were drawn**, so that the first ``show`` of those within any
          level are a random sample of all that are);
        * ``counts``: by measure, how many states are within each of the levels;
        * ``histogram``: how many of the considered states have a cosine between two edges;
        * ``complement`` (hits: the nearest outside of the part, by cosine, first the nearest).

      Hits are columns of equal length: ``state`` (places in ``states``), ``cosine``, ``distance``.
    """
    given = report["preimages"]
    _check(given)
    packed = _packed(given)
    data = json.dumps(packed, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    scenes = any("caption" in state for state in given["states"])
    what = "agents" if scenes else "tokens in their contexts"
    caption = (
        f"States that lie close to the query within one part: {what}, a random sample of all that are as close as "
    )
    caption += "the slider says, the closest first. Beside them, for contrast, the nearest in the whole space and the "
    caption += "nearest in all other parts together. "
    if scenes and packed["extent"]:
        caption += f"Paths start at the dot and look upward, the past is thin; a square is {packed['extent']} m wide. "
    caption += note
    blocks: list[Block] = [Preimages(caption.strip(), data, tuple(_stills(given, packed)))]
    blocks += [_shares(one, given) for one in given["partitions"] if one.get("shares")]
    lead = "What does a part tell apart? What is common to the states that look alike in it is what it holds."
    return Section("preimages", "Preimages", lead, tuple(blocks))


def _check(given: Mapping[str, Any]) -> None:
    count = len(given["states"])
    for i, state in enumerate(given["states"]):
        if "tokens" in state and not 0 <= state["at"] < len(state["tokens"]):
            raise ValueError(f"state {i} is of token {state['at']}, it has {len(state['tokens'])}")
    for measure in MEASURES:
        if given["default"][measure] not in given["levels"][measure]:
            raise ValueError(f"the default {measure} {given['default'][measure]} should be one of the levels")
    for one in given["partitions"]:
        title = entitled(one)
        if len(one["queries"]) != len(given["queries"]):
            raise ValueError(f"{title} should have an entry for each of {len(given['queries'])} queries")
        for i, query in enumerate(one["queries"]):
            where = f"query {i} at {title}"
            if len(query["parts"]) != len(one["parts"]):
                raise ValueError(f"{where} should have an entry for each of {len(one['parts'])} parts")
            for part in query["parts"]:
                if len(part["histogram"]) != len(given["edges"]) - 1:
                    raise ValueError(f"{where}: a histogram should have one edge more than counts")
                if any(len(part["counts"][measure]) != len(given["levels"][measure]) for measure in MEASURES):
                    raise ValueError(f"{where}: there should be a count for each level")
            groups = [query["whole"], *(part[name] for part in query["parts"] for name in ("sample", "complement"))]
            for hits in groups:
                if len({len(hits[name]) for name in ("state", *MEASURES)}) != 1:
                    raise ValueError(f"{where}: the columns of hits should be equally long")
                if any(not 0 <= state < count for state in hits["state"]):
                    raise ValueError(f"{where}: a hit names a state that is not there; there are {count}")


@final
class _Words:
    """Distinct tokens, numbered as they come."""

    def __init__(self) -> None:
        self.numbers = dict[str, int]()

    def of(self, tokens: Sequence[str]) -> list[int]:
        return [self.numbers.setdefault(token, len(self.numbers)) for token in tokens]


def _packed(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the script reads: short names, two digits behind the point."""
    words, extent = _Words(), extent_of(given["states"])

    def state(one: Mapping[str, Any]) -> list[Any]:
        if "tokens" in one:
            return [words.of(one["tokens"]), one["at"]]
        return [one["caption"], path_of(one.get("past", ())), path_of(one.get("future", ()))]

    def hits(one: Mapping[str, Any]) -> list[Any]:
        rows = zip(one["state"], *(one[measure] for measure in MEASURES), strict=True)
        return [entry for number, *values in rows for entry in (number, *(round(value, 3) for value in values))]

    def part(one: Mapping[str, Any]) -> dict[str, Any]:
        counts = [one["counts"][measure] for measure in MEASURES]
        return {"s": hits(one["sample"]), "n": counts, "h": one["histogram"], "c": hits(one["complement"])}

    def query(one: Mapping[str, Any]) -> dict[str, Any]:
        return {"n": one["considered"], "w": hits(one["whole"]), "p": [part(item) for item in one["parts"]]}

    def partition(one: Mapping[str, Any]) -> dict[str, Any]:
        names = [[part_name(one["parts"], i), part_tip(one["parts"], i), part_hue(i)] for i in range(len(one["parts"]))]
        return {"name": entitled(one), "parts": names, "queries": [query(item) for item in one["queries"]]}

    states = [state(one) for one in given["states"]]
    return {
        "states": states,
        "words": list(words.numbers),
        "queries": [[one["state"], one.get("words", "")] for one in given["queries"]],
        "levels": [given["levels"][measure] for measure in MEASURES],
        "default": [given["levels"][measure].index(given["default"][measure]) for measure in MEASURES],
        "edges": given["edges"],
        "show": given["show"],
        "extent": extent,
        "partitions": [partition(one) for one in given["partitions"]],
    }


def extent_of(states: Sequence[Mapping[str, Any]]) -> int:
    """How many meters a drawing of a path is wide: all but the widest twentieth fit in."""
    sides = sorted(
        # a quarter of a drawing lies behind the agent
        max(
            (max(2 * abs(y), x / 0.75, -x / 0.25) for name in ("past", "future") for x, y in state.get(name, ())),
            default=0,
        )
        for state in states
        if "caption" in state
    )
    return max(10, 10 * math.ceil(sides[int(0.95 * (len(sides) - 1))] / 10)) if any(sides) else 0


def path_of(points: Sequence[Sequence[float]]) -> str:
    """A path with +x upward, of the points that are needed to see it."""
    kept = points[:: -max(1, -(-len(points) // _STEPS))][::-1]
    return "L".join(f"{-y:.1f} {-x:.1f}" for x, y in kept)


def _stills(given: Mapping[str, Any], packed: Mapping[str, Any]) -> list[StillFeature]:
    """The first query on paper: itself and the nearest in the whole space, then what is close in the first parts."""
    if not given["queries"] or not given["partitions"]:
        return []
    one, state, default = given["partitions"][0], given["queries"][0]["state"], given["default"]["cosine"]
    extent, query = packed["extent"], one["queries"][0]

    def strip(label: str, place: int, value: str) -> Strip:
        return _strip(label, given["states"][place], packed["states"][place], value, extent)

    def listed(hits: Mapping[str, Any], chosen: Sequence[int]) -> list[Strip]:
        ordered = sorted(chosen, key=lambda i: -hits["cosine"][i])
        return [strip(number(hits["cosine"][i], 2), hits["state"][i], number(hits["cosine"][i])) for i in ordered]

    whole = listed(query["whole"], range(min(STRIPS, len(query["whole"]["state"]))))
    facts = f"nearest in the whole space of {entitled(one)}, by cosine"
    found = [StillFeature("The query", "hue-6", facts, (strip("query", state, "query"), *whole))]
    for i, part in enumerate(query["parts"][:STILL]):
        close = [j for j, value in enumerate(part["sample"]["cosine"]) if value >= default][:STRIPS]
        count = part["counts"]["cosine"][given["levels"]["cosine"].index(default)]
        words = f"{number(count)} of {number(query['considered'])} states have a cosine of {default:g} or more"
        name = part_tip(one["parts"], i).replace("\n", " · ")
        found.append(
            StillFeature(
                name, part_hue(i), f"{words}, among them" if close else words, tuple(listed(part["sample"], close))
            )
        )
    return found


def _strip(label: str, state: Mapping[str, Any], packed: Sequence[Any], value: str, extent: int) -> Strip:
    if "caption" in state:
        return Strip(label, ((state["caption"], False, "0%", ""),), drawing(packed[1], packed[2], extent))
    parts = [
        (part, blank, "60%", value if i == state["at"] else "")
        for i, token in enumerate(state["tokens"])
        for part, blank in visible(token)
    ]
    return Strip(label, tuple(parts))


def drawing(past: str, future: str, extent: int) -> str:
    """A small square with where an agent came from and where it went; empty without either."""
    if not (past or future):
        return ""
    paths = "".join(
        f'<path class="{name}" d="M{path}"/>' for name, path in (("past", past), ("future", future)) if path
    )
    box = f"{-extent / 2:g} {-0.75 * extent:g} {extent} {extent}"
    return f'<svg class="trip" viewBox="{box}" aria-hidden="true">{paths}<path class="here" d="M0 0h.001"/></svg>'


def _shares(one: Mapping[str, Any], given: Mapping[str, Any]) -> Table:
    if len(one["shares"]) != len(one["parts"]):
        raise ValueError(f"{entitled(one)} should have shares for each of {len(one['parts'])} parts")

    def cell(i: int, measure: str) -> Cell:
        value = estimate(one["shares"][i].get(measure))
        return Cell(number(value.mean, 2), tip=phrase(value), hue=part_hue(i), heat=value.mean)

    rows = tuple(
        (
            Cell(f"part {part_name(one['parts'], i)}", tip=part_tip(one["parts"], i), hue=part_hue(i)),
            Cell(number(one["parts"][i]["size"])),
            *(cell(i, measure) for measure in MEASURES),
            Cell(one["parts"][i].get("words", "")),
        )
        for i in range(len(one["parts"]))
    )
    titles = (f"cosine ≥ {given['default']['cosine']:g}", f"distance ≤ {given['default']['distance']:g} of the length")
    caption = f"Share of the queries at {entitled(one)} for which another state is that close in the part."
    head = ("part", "dimensions", *titles, "what it was found to tell")
    return Table(caption, tuple(map(Cell, head)), rows, fold=f"How often something is that close at {entitled(one)}")
