"""Objects as a notebook shows them: tables and small charts in HTML that ask for nothing from outside."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from html import escape

import torch

from innerspace.decompose.autoencoder import Autoencoder, SparseAutoencoder
from innerspace.decompose.directions import Directions
from innerspace.decompose.subspaces import Subspaces
from innerspace.measure.steering import Curve
from innerspace.network.model import Model
from innerspace.network.trace import Trace
from innerspace.report.numerals import number
from innerspace.report.plots import Chart, Scale

# the surroundings' own ink, so that the view is as readable on a dark page as on a light one
_STYLE = """<style>
.ins-view { color: inherit; font-size: 13px; line-height: 1.4 }
.ins-view table { border-collapse: collapse; font-variant-numeric: tabular-nums; color: inherit; background: none }
.ins-view th, .ins-view td { padding: 2px 9px; text-align: left; border-bottom: 1px solid rgba(128,128,128,.35) }
.ins-view td.n, .ins-view th.n { text-align: right }
.ins-view caption { caption-side: top; text-align: left; font-weight: 600; padding: 2px 0 4px; color: inherit }
.ins-view svg { width: 340px; max-width: 100%; overflow: visible }
.ins-view svg text { fill: currentColor; font-size: 10px }
.ins-view svg text.x { text-anchor: middle } .ins-view svg text.y { text-anchor: end }
.ins-view svg .axes path { stroke: currentColor; stroke-opacity: .18; fill: none }
.ins-view svg .axes path.zero { stroke-opacity: .5 }
.ins-view svg .line { fill: none; stroke: #3b8ed0; stroke-width: 1.8 }
.ins-view svg .band { fill: #3b8ed0; opacity: .22 }
.ins-view svg .dot { fill: #3b8ed0 } .ins-view svg .range { fill: currentColor; opacity: .07 }
</style>"""


@dataclass(frozen=True)
class View:
    """What a notebook shows of an object; ``text`` is what a terminal shows."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return f'<div class="ins-view">{_STYLE}{self.html}</div>'

    def __repr__(self) -> str:
        return self.text


@singledispatch
def view(item: object) -> View:
    """A model's sites, the angles of directions, a dictionary's latents, the sizes of subspaces, a trace, a curve.

    Raises:
        ValueError: for anything else.
    """
    raise ValueError(
        f"there is no view of a {type(item).__name__}; there are views of a Model, Trace, Directions, Subspaces, "
        f"Curve, and of dictionaries and other autoencoders"
    )


@view.register
def _(item: Model) -> View:
    rows = [(s.name, s.width, s.axes, f"{s.io} of {s.module}") for s in item.sites.values()]
    caption = f"{type(item.module).__name__}, {len(rows)} sites"
    return View(_table(caption, ("site", "width", "axes", "where"), rows), repr(item))


@view.register
def _(item: Trace) -> View:
    kinds = {"output": item.output, "hidden state": item.hidden}
    rows = [
        (name, kind, " × ".join(map(str, tensor.shape)), str(tensor.dtype).removeprefix("torch."))
        for kind, tensors in kinds.items()
        for name, tensor in tensors.items()
    ]
    return View(_table("A pass", ("name", "what", "shape", "type"), rows), repr(item))


@view.register
def _(item: Directions) -> View:
    told = [(o.feature, f"{o.negative} → {o.positive}", o.method or "by hand", o.site) for o in item.origins]
    gaps, angles = item.gap.tolist(), item.angles().tolist()
    head = ("feature", "from → to", "method", "site", "gap", *(f"∠ {i + 1}" for i in range(len(item))))
    rows = [(*first, gap, *map(_Angle, row)) for first, gap, row in zip(told, gaps, angles, strict=True)]
    caption = f"{len(item)} directions of width {item.width}; angles in degrees"
    return View(_table(caption, head, rows), repr(item))


@view.register
def _(item: Autoencoder) -> View:
    norms = item.directions.detach().norm(dim=-1)
    rows: list[tuple[object, ...]] = [
        ("width", item.width),
        ("latents", item.latents),
        ("scale", float(item.scale)),
        ("norms of directions", f"{number(float(norms.min()))} to {number(float(norms.max()))}"),
    ]
    if isinstance(item, SparseAutoencoder):
        rows.insert(2, ("nonlinearity", repr(item.nonlinearity)))
        if int(item.silent.max()):
            rows.append(("latents on in the last batch seen in training", int((item.silent == 0).sum())))
    if item.home is not None:
        rows.append(("belongs to", f"{item.home.site} of {item.home.model}"))
    return View(_table(type(item).__name__, ("", ""), rows), repr(item))


@view.register
def _(item: Subspaces) -> View:
    rows = [(i, size, f"{100 * size / item.width:.1f} %") for i, size in enumerate(item.sizes)]
    caption = f"{len(rows)} subspaces of width {item.width}"
    return View(_table(caption, ("part", "dimensions", "share"), rows), repr(item))


@view.register
def _(item: Curve) -> View:
    means = [one.mean for one in item.response]
    ends = [bound for one in item.response for bound in (one.low, one.high)]
    chart = Chart(Scale.over(item.tau), Scale.over([*means, *ends], include=0.0), x_label="τ", y_label="response")
    chart.shade(*item.range)
    chart.band(item.tau, [one.low for one in item.response], [one.high for one in item.response], "")
    chart.line(item.tau, means, "")
    chart.dots(item.tau, means, [str(one) for one in item.response], "")
    rows = [(name, str(getattr(item, name))) for name in ("slope", "r2", "pearson", "straightness")]
    return View(chart.svg("Response by temperature") + _table("", ("", ""), rows), str(item))


@dataclass(frozen=True)
class _Angle:
    """An angle in degrees, the more tinted the farther from square."""

    degrees: float


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    numeric = [bool(rows) and all(isinstance(row[i], int | float | _Angle) for row in rows) for i in range(len(head))]
    sides = [' class="n"' if right else "" for right in numeric]
    titles = "".join(f"<th{side}>{escape(name)}</th>" for side, name in zip(sides, head, strict=True))
    top = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    lines = ["".join(_cell(item, side) for item, side in zip(row, sides, strict=True)) for row in rows]
    return f"<table>{title}{top}<tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"


def _cell(item: object, side: str) -> str:
    if isinstance(item, _Angle):
        tint = abs(float(torch.tensor(item.degrees).deg2rad().cos()))
        return f'<td{side} style="background: rgba(59,142,208,{0.55 * tint:.2f})">{item.degrees:.0f}</td>'
    text = str(item) if isinstance(item, int | str) else number(float(str(item)))
    return f"<td{side}>{escape(text)}</td>"
