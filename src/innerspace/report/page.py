"""One self-contained page from the numbers of a run: no external address, light and dark, readable on paper."""

from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from typing import Any

from innerspace.report.blocks import Palette, Section
from innerspace.report.calibration import calibration
from innerspace.report.circuits import agreement, circuits, small_circuits
from innerspace.report.compare import comparison
from innerspace.report.control_loop import control_loop
from innerspace.report.end_to_end import end_to_end
from innerspace.report.explanations import explanations
from innerspace.report.features import features
from innerspace.report.fidelity import fidelity
from innerspace.report.first_position import first_position
from innerspace.report.geometry import geometry
from innerspace.report.ground import cost, data, facts, forecaster, provenance
from innerspace.report.maps import forecasts
from innerspace.report.numerals import bound, plain
from innerspace.report.pareto import pareto
from innerspace.report.part_effects import part_labels, patching
from innerspace.report.preimages import preimages
from innerspace.report.reading import collapse, probes
from innerspace.report.steering import dictionaries, feasibility, offtarget, refinement, vectors
from innerspace.report.subspaces import dependence, subspace_training
from innerspace.report.sweep import sparsity, sweep
from innerspace.report.training import training, training_cost
from innerspace.report.unseen import unseen
from innerspace.report.weight_paths import weight_paths

_Builder = Callable[[Mapping[str, Any], Palette, str], Section]

_OF_DICTIONARIES: dict[str, _Builder] = {
    "pareto": pareto,
    "fidelity": fidelity,
    "geometry": geometry,
    "features": features,
    "training": training,
    "training_cost": training_cost,
}

_OF_SUBSPACES: dict[str, _Builder] = {
    "patching": patching,
    "part_labels": part_labels,
    "preimages": preimages,
    "dependence": dependence,
    "weight_paths": weight_paths,
    "subspace_training": subspace_training,
}

_OF_CIRCUITS: dict[str, _Builder] = {
    "agreement": agreement,
    "small_circuits": small_circuits,
    "circuits": circuits,
    "first_position": first_position,
}

_SECTIONS: dict[str, _Builder] = {
    "comparison": comparison,
    "explanations": explanations,
    **_OF_CIRCUITS,
    "sweep": sweep,
    "sparsity": sparsity,
    "scenes": forecasts,
    "probes": probes,
    "collapse": collapse,
    "unseen": unseen,
    "calibration": calibration,
    "refinement": refinement,
    "vectors": vectors,
    "control_loop": control_loop,
    "offtarget": offtarget,
    "feasibility": feasibility,
    "dictionaries": dictionaries,
    "end_to_end": end_to_end,
    **_OF_SUBSPACES,
    **_OF_DICTIONARIES,
    "forecaster": forecaster,
    "data": data,
    "cost": cost,
    "provenance": provenance,
}
"""The sections in their order, by the key of the report that each of them shows."""

_RUNS = ("fidelity", "training", "training_cost")

_OPENING = ("title", "question", "headlines", "remarks", "interval", "notes", "job")


def render(report: Mapping[str, Any]) -> str:
    """The page of a report; the same numbers give the same bytes.

    Each known key becomes a section, a missing one leaves its section out, and what is not known is listed under
    *Other numbers*. ``notes`` may hold, by key, a sentence that ends the captions of a section: its split, its seeds.

    Raises:
        ValueError: where a section lacks a field or contradicts itself, naming it; if jinja2 is not installed.
    """
    record: dict[str, Any] = plain(report)
    notes = record.get("notes", {})
    if strangers := sorted(set(notes) - set(_SECTIONS)):
        raise ValueError(f"no section {strangers[0]!r} for a note; there are {', '.join(_SECTIONS)}")
    palette = Palette.of(_features(record))
    sections = [
        _build(key, build, record, palette, notes.get(key, ""))
        for key, build in _SECTIONS.items()
        if key in record or (key == "provenance" and "job" in record)
    ]
    if others := {key: item for key, item in record.items() if key not in _SECTIONS and key not in _OPENING}:
        lead = "Numbers that have no figure of their own."
        sections.append(Section("others", "Other numbers", lead, (facts(others),)))
    # the sections on subspaces show contexts as those on dictionaries do, those on circuits paths as those on subspaces
    drawn = {**_OF_SUBSPACES, **_OF_CIRCUITS}
    kept = {"dictionaries": {**_OF_DICTIONARIES, **drawn, "comparison": comparison}, "subspaces": drawn}
    parts = ["page", *(part for part, keys in kept.items() if any(key in record for key in keys))]
    style, script = ("".join(_resource(f"{part}.{ending}") for part in parts) for ending in ("css", "js"))
    return _template().render(report=record, sections=sections, style=style, script=script)


def _build(key: str, build: _Builder, record: Mapping[str, Any], palette: Palette, note: str) -> Section:
    try:
        return build(record, palette, note)
    except KeyError as error:
        raise ValueError(f"the report's section {key!r} lacks {error}") from None


def _template() -> Any:
    try:
        import jinja2
    except ImportError:
        raise ValueError("the page needs jinja2: pip install 'innerspace[report]'") from None
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["bound"] = bound
    return environment.from_string(_resource("page.html.jinja"))


def _resource(name: str) -> str:
    return files("innerspace.report").joinpath(name).read_text(encoding="utf-8")


def _features(record: Mapping[str, Any]) -> Iterator[str]:
    """Every name that is drawn in a color of its own, in the order of the page."""
    yield from record.get("probes", {}).get("features", ())
    for scene in record.get("scenes", ()):
        yield from (entry["vector"] for entry in scene.get("steered", ()))
    for key in ("sweep", "collapse", "calibration", "refinement", "feasibility"):
        yield from (row["feature"] for row in record.get(key, ()) if "feature" in row)
    yield from (row["feature"] for row in record.get("vectors", {}).get("rows", ()) if "feature" in row)
    yield from (row["feature"] for row in record.get("control_loop", {}).get("requests", ()))
    yield from record.get("offtarget", {}).get("steered", ())
    yield from (record[key]["vector"]["feature"] for key in ("unseen",) if key in record)
    yield from record.get("data", {}).get("classes", {})
    yield from _kinds(record)


def _kinds(record: Mapping[str, Any]) -> Iterator[str]:
    """Every kind of training that is drawn in a color of its own."""
    yield from (one["kind"] for one in record.get("comparison", {}).get("entrants", ()))
    yield from (one["kind"] for one in record.get("explanations", {}).get("kinds", ()))
    yield from (one["kind"] for one in record.get("small_circuits", ()))
    yield from (kind for one in record.get("first_position", ()) for kind in one["kinds"])
    compared = (record.get(key, {}).get("runs", ()) for key in ("pareto", "end_to_end"))
    for runs in (*compared, *(record.get(key, ()) for key in _RUNS)):
        yield from (run["kind"] for run in runs if "kind" in run)
    geometry = record.get("geometry", {})
    for rows in (geometry.get("similarity", ()), geometry.get("map", {}).get("dictionaries", ())):
        yield from (row["kind"] for row in rows if "kind" in row)
    yield from (one["kind"] for one in record.get("features", {}).get("dictionaries", ()) if "kind" in one)
    yield from (run["kind"] for run in record.get("subspace_training", ()))
    yield from (label["name"] for one in record.get("part_labels", ()) for label in one["labels"])
