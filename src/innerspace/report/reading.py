"""The sections on reading: can a feature be told from the hidden states, and how sharply do its classes stand apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from innerspace.report.blocks import Cell, Figure, Palette, Panel, Section, Table, Tables
from innerspace.report.numerals import Estimate, estimate, interval, number, phrase, spoken
from innerspace.report.plots import NARROW, Chart, Scale

_MEASURES = (
    ("balanced", "Balanced accuracy", "tinted from chance to 1"),
    ("auroc", "Area under the ROC curve", "tinted from 0.5 to 1"),
    ("selectivity", "Selectivity", "accuracy beyond a control task, tinted from 0 to 1"),
    ("compression", "Compression", "of the labels' description length, tinted from 1 to the largest"),
)

_SPREADS = (
    ("nc1", "NC1", "within-class over between-class scatter", True),
    ("cdnv", "CDNV", "class-distance normalized variance", True),
    ("directional_cdnv", "Directional CDNV", "variance along the line between the means", True),
    ("std", "Standard deviation", "of normalized hidden states", False),
)


def probes(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """Heat maps by site and feature, one for each measure, and every number in a table."""
    sites, features = report["probes"]["sites"], report["probes"]["features"]
    cells = {(cell["site"], cell["feature"]): cell for cell in report["probes"]["cells"]}
    if strangers := [key for key in cells if key[0] not in sites or key[1] not in features]:
        raise ValueError(f"probe cell {strangers[0]} is outside of sites {sites} and features {features}")
    chance = {feature: report["probes"]["chance"].get(feature, 0.0) for feature in features}
    largest = max([2.0, *(cell["compression"] for cell in cells.values() if cell.get("compression") is not None)])

    def floor(measure: str, feature: str) -> tuple[float, float]:
        ends = {"balanced": (chance[feature], 1.0), "auroc": (0.5, 1.0), "selectivity": (0.0, 1.0)}
        return ends.get(measure, (1.0, largest))

    def cell(measure: str, site: str, feature: str) -> Cell:
        if (entry := cells.get((site, feature))) is None:
            return Cell("")
        value, (low, high) = estimate(entry[measure]), floor(measure, feature)
        heat = None if value.mean is None else (value.mean - low) / (high - low)
        return Cell(number(value.mean, 2), interval(value, 2), _probe_tip(entry), palette[feature], heat)

    def head(measure: str, feature: str) -> Cell:
        known = measure == "balanced" and chance[feature] > 0
        return Cell(feature, f"chance {number(chance[feature], 2)}" if known else "", hue=palette[feature])

    maps = tuple(
        Table(
            f"{title}: {words}.",
            (Cell("site"), *(head(key, feature) for feature in features)),
            tuple((Cell(site), *(cell(key, site, feature) for feature in features)) for site in sites),
            "heat",
        )
        for key, title, words in _MEASURES
    )
    caption = (
        "Linear probes by site (rows, in order of depth) and feature (columns); the second line is the 95 % interval. "
        + note
    )
    lead = "Is a feature readable? A linear classifier on frozen hidden states, beside what chance and a control give."
    return Section("probes", "Probes", lead, (Tables(caption, maps), _probe_table(report["probes"]["cells"], palette)))


def collapse(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """How tight the classes are by depth, beside the same numbers under shuffled labels."""
    rows = report["collapse"]
    sites = list(dict.fromkeys(row["site"] for row in rows))
    panels = tuple(
        Panel(title, _by_depth(rows, sites, key, log, palette, title), words) for key, title, words, log in _SPREADS
    )
    caption = (
        "Spread of the classes by site, smaller is sharper; dotted lines and bands are the mean and 95 % interval "
        "under shuffled labels. " + note
    )
    features = list(dict.fromkeys(row["feature"] for row in rows))
    key = (*((f"line {palette[feature]}", feature) for feature in features), ("line null", "shuffled labels"))
    others = [key for key in rows[0] if key not in ("site", "feature", "null", *(key for key, *_ in _SPREADS))]
    head = ("site", "feature", "NC1", "shuffled", "CDNV", "shuffled", "directional CDNV", "shuffled", "std")
    head += tuple(map(spoken, others))
    lines = tuple(
        (
            Cell(row["site"]),
            Cell(row["feature"], hue=palette[row["feature"]]),
            *(
                Cell(text)
                for measure in ("nc1", "cdnv", "directional_cdnv")
                for text in (number(row[measure]), phrase(_null(row, measure)))
            ),
            *(Cell(number(row[measure])) for measure in ("std", *others)),
        )
        for row in rows
    )
    table = Table("Collapse by site and feature.", tuple(map(Cell, head)), lines, fold="Every number")
    lead = "How sharply do the classes of a feature stand apart, and is it more than shuffled labels would show?"
    return Section("collapse", "Collapse", lead, (Figure(caption, panels, key=key), table))


def _probe_tip(entry: Mapping[str, Any]) -> str:
    lines = [
        f"{entry['feature']} at {entry['site']}",
        f"balanced accuracy {phrase(estimate(entry['balanced']))}",
        f"accuracy {phrase(estimate(entry['accuracy']))}, largest class {number(entry['majority'])}",
        f"AUROC {phrase(estimate(entry['auroc']))}",
        f"selectivity {phrase(estimate(entry['selectivity']))}, control {number(entry['control'])}",
        f"compression {number(entry['compression'])} × · {number(entry['rows'])} rows",
    ]
    return "\n".join(lines)


def _probe_table(cells: Sequence[Mapping[str, Any]], palette: Palette) -> Table:
    head = (
        *("site", "feature", "balanced accuracy", "accuracy", "largest class", "AUROC", "control"),
        *("selectivity", "compression", "rows"),
    )
    rows = tuple(
        (
            Cell(cell["site"]),
            Cell(cell["feature"], hue=palette[cell["feature"]]),
            _estimated(cell["balanced"]),
            _estimated(cell["accuracy"]),
            Cell(number(cell["majority"])),
            _estimated(cell["auroc"]),
            Cell(number(cell["control"])),
            _estimated(cell["selectivity"]),
            Cell(number(cell["compression"])),
            Cell(number(cell["rows"])),
        )
        for cell in cells
    )
    return Table("Probes by site and feature, 95 % intervals.", tuple(map(Cell, head)), rows, fold="Every number")


def _estimated(item: object) -> Cell:
    return Cell(number(estimate(item).mean), interval(estimate(item)))


def _null(row: Mapping[str, Any], measure: str) -> Estimate:
    return estimate(row.get("null", {}).get(measure))


def _by_depth(
    rows: Sequence[Mapping[str, Any]], sites: Sequence[str], key: str, log: bool, palette: Palette, title: str
) -> str:
    nulls = [_null(row, key) for row in rows]
    scale = Scale.over([row[key] for row in rows] + [end for null in nulls for end in null], log=log)
    chart = Chart(Scale.of(sites), scale, x_label="site", width=NARROW)
    for feature in dict.fromkeys(row["feature"] for row in rows):
        own = sorted((row for row in rows if row["feature"] == feature), key=lambda row: sites.index(row["site"]))
        depth, null = [float(sites.index(row["site"])) for row in own], [_null(row, key) for row in own]
        values = [row[key] for row in own]
        chart.band(depth, [item.low for item in null], [item.high for item in null], palette[feature])
        chart.line(depth, [item.mean for item in null], f"null {palette[feature]}")
        chart.line(depth, values, palette[feature])
        tips = [_depth_tip(row, title, key) for row in own]
        chart.dots(depth, values, tips, palette[feature])
    return chart.svg(f"{title} by site for each feature")


def _depth_tip(row: Mapping[str, Any], title: str, key: str) -> str:
    null = _null(row, key)
    shuffled = f"\nshuffled labels {phrase(null)}" if null.mean is not None else ""
    return f"{row['feature']} at {row['site']}\n{title} {number(row[key])}{shuffled}"
