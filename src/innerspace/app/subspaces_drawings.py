"""What the tab on subspaces shows and gives away: states alike in a part, what an exchange changes, code for it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from innerspace.app.exports import links
from innerspace.app.palette import LIGHT, file_style
from innerspace.app.strips import Picture, Strip, changes, strip
from innerspace.app.studied import code_imports, code_of
from innerspace.app.subspaces import SHOWN, Exchanged, Found, Partitions, SubspacesView
from innerspace.measure.preimages import Hits
from innerspace.report.numerals import number
from innerspace.report.plots import Chart, Scale
from innerspace.report.preimages import drawing as trip
from innerspace.report.preimages import extent_of, path_of

KEY = "subspaces"
"""The tab's name in the address."""

_STEPS = f"\n.steps {{ fill: {LIGHT['hue-0']}; fill-opacity: .15; stroke: {LIGHT['hue-0']}; stroke-width: 1.5 }}"
_ENDS = ("as it is", "part exchanged")
_PATHS = (("ghost", "as it is"), ("hue-0", "part exchanged"), ("hue-1", "whole state exchanged"), ("ink", "the other"))


def draw(partitions: Partitions, view: SubspacesView) -> str:
    """The query, the states like it, a histogram, and what an exchange changes.

    Raises:
        ValueError: for what there is not, or a text that cannot be read.
    """
    found, changed = partitions.find(view), partitions.exchange(view)
    own = found.preimages.parts[0][view.part]
    close, whole = _near(own.sample, view.cosine), found.preimages.whole[0]
    shown = [found.query, *(found.album.state(row) for hits in (close, whole) for row in hits.row.tolist())]
    side = extent_of(shown)
    columns = (
        (f"Alike in part {view.part}", close, _counted(found, view)),
        ("Nearest in the whole space", whole, "for contrast, whatever the part holds"),
    )
    lists = "".join(
        f'<section class="feature"><h3>{title}</h3><p class="quiet">{note}</p>{_states(found, hits, side)}</section>'
        for title, hits, note in columns
    )
    query = (
        f'<section class="feature"><h3>The query</h3>{_state(found.query, side, "")}{_histogram(found, view)}</section>'
    )
    exchange = "" if changed is None else _exchange(changed, view)
    return f'<div class="features">{query}{lists}</div>{exchange}{links(view, KEY)}{view.mark(KEY)}'


def picture(partitions: Partitions, view: SubspacesView) -> str:
    """The same as an SVG file."""
    found, changed, page = partitions.find(view), partitions.exchange(view), Picture()
    page.heading(headline(partitions, view))
    _picture_state(page, found.query, "")
    page.drawing(_histogram(found, view), 340, 170)
    own = found.preimages.parts[0][view.part]
    for title, hits in (
        (f"Alike in part {view.part}: {_counted(found, view)}", _near(own.sample, view.cosine)),
        ("Nearest in the whole space", found.preimages.whole[0]),
    ):
        page.heading(title)
        for row, cosine in zip(hits.row.tolist(), hits.cosine.tolist(), strict=True):
            _picture_state(page, found.album.state(row), f"{cosine:.2f}")
    if changed is not None:
        page.heading(f"Part {view.part} exchanged")
        page.changes(changed.part)
        if changed.paths:
            page.drawing(_paths(changed.paths), 420, 420)
            page.note("gray: as it is; blue: part exchanged; orange: whole state exchanged; dotted: the other")
    return page.svg(file_style() + _STEPS)


def headline(partitions: Partitions, view: SubspacesView) -> str:
    """What a view shows, in a line."""
    size = partitions.sizes(view.partition)[view.part]
    query = f"“{view.text}”" if view.text else f"state {view.state}"
    return f"{view.partition}, part {view.part} of {size} dimensions, at a cosine of {view.cosine:g} to {query}"


_CODE = '''"""{headline}."""

import json
from pathlib import Path

import torch

{imports}
from innerspace.decompose.saved import load
from innerspace.harvest.store import Store
{more}from innerspace.interventions import At, Read, patch
from innerspace.measure.preimages import Closeness, Queries, preimages

{loading}
site, part = {site!r}, {part}
store = Store.open(run / "states_held_out")
every = torch.arange(len(store))
states, document = store.rows(site, every).float(), store.places(every).document
{query}
closeness = Closeness(({cosine!r},), (0.25,), {show})
found = preimages(what, states.split(8192), queries, documents=document, closeness=closeness)
own, whole = found.parts[0][part], found.whole[0]
print(f"{{own.within['cosine'][0]}} of {{found.considered[0]}} states are as close in part {{part}}")
record = {{"within": own.within["cosine"][0], "sample": own.sample.to_json(), "whole": whole.to_json()}}
{exchange}
Path("subspaces.json").write_text(json.dumps(record, indent=2))
'''

_ROW = """row = torch.tensor([{query}])
queries = Queries(states[row], row, document[row])"""

_TYPED = """with torch.no_grad():
    hidden = model.run(Text(torch.tensor([{ids}])), {{site: Read()}}, stop=True).hidden[site]
queries = Queries(hidden[0, -1:].float(), torch.tensor([-1]))"""

_PATCHED = """
# the last token's state of one text, in this part, where it stood in the other
clean, other = {clean}, {other}
with torch.no_grad():
    source = model.run(Text(torch.tensor([other])), {{site: Read()}}, stop=True).hidden[site][:, -1:]
    batch = Text(torch.tensor([clean]))
    last = torch.zeros(1, len(clean), dtype=torch.bool)
    last[:, -1] = True
    edit = At(last, patch(what, part, source.expand(1, len(clean), -1)))
    before, after = (
        model.run(batch, edits).output["logits"][0, -1].float().softmax(-1) for edits in ({{}}, {{site: edit}})
    )
record["change"] = (after - before).tolist()"""

_AGENTS = """
data = SceneData.from_json({data!r})
framing = model.module.settings.framing
agents = first_of_each_scene(frame(data.data.read(framing).test, framing))
# the states of one agent, in this part, at the steps at which both are known
clean, other = agents[slice({clean}, {clean} + 1)], agents[slice({other}, {other} + 1)]
with torch.no_grad():
    states = [model.run(batch, {{site: Read()}}, stop=True).hidden[site] for batch in (clean, other)]
    valid = [model.positions(batch, site, states[i], Where("valid")) for i, batch in enumerate((clean, other))]
    edit = At(valid[0] & valid[1], patch(what, part, states[1]))
    before, after = (forecast(model.run(clean, edits).output).most_likely()[0] for edits in ({{}}, {{site: edit}}))
record["before"], record["after"] = before.tolist(), after.tolist()"""


def code(partitions: Partitions, view: SubspacesView) -> str:
    """A program that searches the held-out states and exchanges the part, and writes both to ``subspaces.json``."""
    partitions.find(view)
    saved, studied = partitions.saved(view.partition), partitions.studied
    more, exchange = "from innerspace.language.text import Text\n" if studied.is_text else "", ""
    if view.other.strip() and studied.is_text:
        clean = partitions.text_ids(view.text) if view.text else partitions.context(view.state)
        exchange = _PATCHED.format(clean=clean, other=partitions.text_ids(view.other))
    elif view.other.strip():
        more = "from innerspace.jobs.inputs.scenes import SceneData, first_of_each_scene\n"
        more += "from innerspace.measure.forecasts import forecast\nfrom innerspace.motion.framing import frame\n"
        more += "from innerspace.network.site import Where\n"
        rows = [partitions.agent_row(row) for row in (view.state, int(view.other))]
        exchange = _AGENTS.format(data=studied.data.to_json(), clean=rows[0], other=rows[1])
    query = _TYPED.format(ids=partitions.text_ids(view.text)) if view.text else _ROW.format(query=view.state)
    return _CODE.format(
        headline=headline(partitions, view).replace("\\", "").replace('"', ""),
        imports=code_imports(studied.run),
        more=more,
        loading=code_of(studied.run, {"what": saved.file}),
        site=saved.site,
        part=view.part,
        query=query,
        cosine=view.cosine,
        show=SHOWN,
        exchange=exchange,
    )


def _near(hits: Hits, cosine: float) -> Hits:
    """Of a sample those first drawn within the level, the closest first."""
    drawn = (hits.cosine >= cosine).nonzero().flatten()[:SHOWN]
    order = drawn[hits.cosine[drawn].argsort(descending=True)]
    return Hits(hits.row[order], hits.cosine[order], hits.distance[order])


def _counted(found: Found, view: SubspacesView) -> str:
    within = found.preimages.parts[0][view.part].within["cosine"][0]
    considered = found.preimages.considered[0]
    most = found.preimages.closeness.show
    drawn = f"; {most} of them are drawn at random" if within > most else ""
    return f"{number(within)} of {number(considered)} states have a cosine of {view.cosine:g} or more{drawn}"


def _states(found: Found, hits: Hits, side: int) -> str:
    rows = zip(hits.row.tolist(), hits.cosine.tolist(), strict=True)
    return "".join(_state(found.album.state(row), side, f"{cosine:.2f}") for row, cosine in rows)


def _state(state: Mapping[str, Any], side: int, value: str) -> str:
    """A token in its context, or an agent with where it came from and where it went."""
    if "tokens" in state:
        return strip(_strip(state, value), "hue-0")
    drawn = trip(path_of(state.get("past", ())), path_of(state.get("future", ())), side)
    number_ = f'<span class="on">{value}</span> ' if value else ""
    return f'<div class="agents hits">{drawn}<span>{number_}{escape(state["caption"])}</span></div>'


def _strip(state: Mapping[str, Any], value: str) -> Strip:
    values = [0.0] * len(state["tokens"])
    values[state["at"]] = float(value or 1)
    return Strip(tuple(state["tokens"]), tuple(values), 1.0, state["at"])


def _picture_state(page: Picture, state: Mapping[str, Any], value: str) -> None:
    if "tokens" in state:
        page.strip(_strip(state, value))
    else:
        page.note(f"{value}  {state['caption']}".strip())


def _histogram(found: Found, view: SubspacesView) -> str:
    """How many states have which cosine in the part, with the level."""
    edges, counts = found.preimages.edges, found.preimages.parts[0][view.part].histogram
    top = 1.08 * max(1, *counts)
    chart = Chart(Scale(-1, 1), Scale(0, top), x_label="cosine within the part", y_label="states", height=170)
    chart.steps(edges, [float(count) for count in counts], "", "states of such a cosine")
    chart.rule(view.cosine, "now")
    return chart.svg("Cosines of all states with the query, within the part, and the level")


def _exchange(changed: Exchanged, view: SubspacesView) -> str:
    title = f"Part {view.part} of the query, exchanged"
    if changed.paths:
        key = (
            "".join(f'<li class="{style}"><i></i><span>{words}</span></li>' for style, words in _PATHS[:3])
            + '<li class="truth"><i></i><span>the other, as it is</span></li>'
        )
        words = " · ".join(changed.words)
        body = f'<figure class="stage exchanged">{_paths(changed.paths)}<ul class="key">{key}</ul></figure>'
        return f'<h3>{title}</h3><p class="quiet">{escape(words)}</p>{body}'
    tables = changes(changed.part, f"{title}: the next token", _ENDS) if changed.part else ""
    tables += changes(changed.whole, "The whole state exchanged, for contrast", ("as it is", "exchanged"))
    return f'<div class="panes">{tables}</div>'


def _paths(paths: Sequence[Float[Tensor, "waypoints 2"]]) -> str:
    """Paths in the frame of the agent, which looks upward: as it is, exchanged in part, exchanged, the other's."""
    points = [np.concatenate([np.zeros((1, 2)), one.numpy()]) for one in paths]
    every = np.concatenate(points)
    low, high = every.min(0), every.max(0)
    middle, side = (low + high) / 2, 1.15 * max(float((high - low).max()), 10.0)
    size = 420

    def drawn(one: Float[np.ndarray, "n 2"]) -> str:
        x = size / 2 - (one[:, 1] - middle[1]) / side * size
        y = size / 2 - (one[:, 0] - middle[0]) / side * size
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))

    styles = ("ghost", "mode best hue-0", "mode hue-1", "truth")
    lines = "".join(f'<path class="{style}" d="{drawn(one)}"/>' for style, one in zip(styles, points, strict=True))
    meters = next(step for step in (100, 50, 20, 10, 5, 2) if step <= side / 3)
    bar = (
        f'<path class="bar" d="M16 {size - 16}h{meters / side * size:.1f}"/><text class="scale" x="16" y="{size - 24}" '
    )
    bar += f'font-size="13">{meters} m</text>'
    label = "Likeliest forecasts: as it is, with the part exchanged, with the whole state exchanged, and the other's"
    return f'<svg class="map" viewBox="0 0 {size} {size}" role="img" aria-label="{label}">{lines}{bar}</svg>'
