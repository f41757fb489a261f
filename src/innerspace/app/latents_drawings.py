"""What the tab on latents shows and gives away: a latent's page, the nearest in other dictionaries, code for it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from innerspace.app.exports import links
from innerspace.app.language import LanguageView
from innerspace.app.language_drawings import KEY as LANGUAGE
from innerspace.app.latents import Latents, LatentsView
from innerspace.app.palette import file_style
from innerspace.app.strips import Picture, Strip, plain_token, strip, token
from innerspace.app.studied import Saved, code_imports, code_of
from innerspace.report.numerals import number
from innerspace.report.plots import Chart, Scale

KEY = "latents"
"""The tab's name in the address."""

BESIDE = 3
"""How many contexts are shown of a latent of another dictionary, and in the picture."""


def draw(latents: Latents, view: LatentsView) -> str:
    """The page of a latent, and its nearest in the other dictionaries beside it.

    Raises:
        ValueError: for a latent that there is not.
    """
    shown = latents.show(view)
    own, *others = zip(shown.members, shown.entries, shown.cosines, shown.explanations, strict=True)
    first = _feature(*own, hue="hue-0", whole=True, unit=latents.studied.unit)
    beside = "".join(
        _feature(*one, hue=f"hue-{1 + i % 7}", whole=False, unit=latents.studied.unit) for i, one in enumerate(others)
    )
    if beside:
        beside = f'<h3>Nearest in the other dictionaries of this site and seed</h3><div class="features">{beside}</div>'
    notes = " ".join([shown.counted, *(f"{words[:1].upper()}{words[1:]}." for words in shown.missing)])
    steered = ""
    if latents.studied.is_text:
        query = LanguageView(what=view.dictionary, part=view.latent).query(LANGUAGE)
        steered = f'<p class="links"><a href="?tab={LANGUAGE}&amp;{escape(query)}">Steer along this latent</a></p>'
    return f'{first}{steered}{beside}<p class="quiet">{escape(notes)}</p>{links(view, KEY)}{view.mark(KEY)}'


def picture(latents: Latents, view: LatentsView) -> str:
    """The latent and its nearest as an SVG file."""
    shown, page = latents.show(view), Picture()
    for i, (saved, entry, cosine, words) in enumerate(
        zip(shown.members, shown.entries, shown.cosines, shown.explanations, strict=True)
    ):
        page.heading(_title(saved, entry, cosine) + (f": {words}" if words else ""))
        page.note(_facts(entry, latents.studied.unit) + _pushes(entry))
        if not i:
            page.drawing(_histogram(entry), 340, 150)
        for example in _examples(entry)[: 5 if not i else BESIDE]:
            if "caption" in example:
                page.note(f"{number(example['value'])}  {example['caption']}")
            else:
                page.strip(_strip(example, entry), f"hue-{i % 8}")
    return page.svg(file_style() + _STEPS)


_STEPS = "\n.steps { fill: #0069a8; fill-opacity: .15; stroke: #0069a8; stroke-width: 1.5 }"


_CODE = '''"""{headline}."""

import json
from pathlib import Path

import torch

{imports}
from innerspace.decompose.saved import load
{more}from innerspace.measure.activations import Selection, Watched, observe
from innerspace.measure.neighbors import nearest
from innerspace.network.site import Where

{loading}
dictionaries = {{{dictionaries}}}
site, where = {site!r}, Where("valid", skip={skip})

{batches}

# one of {own} and its nearest in the others
latents = {latents}
watched = [Watched(dictionaries[name], site, torch.tensor([latent])) for name, latent in latents.items()]
found = observe(model, batches, watched, where=where, selection=Selection(top=5), caption={caption})
row = dictionaries[{own!r}].directions[latents[{own!r}]][None].detach()
rows = list()
for (name, latent), (one,) in zip(latents.items(), found.latents, strict=True):
    cosine = nearest(row, dictionaries[name].directions[latent][None].detach()).similarity.item()
    rows.append({{"dictionary": name, **one.to_json(), "cosine": cosine}})
    print(f"{{name}} {{latent}}: cosine {{cosine:.2f}}, on at {{one.density:.2%}}, at most {{one.max:.3g}}")
Path("latents.json").write_text(json.dumps(rows, indent=2))
'''

_TEXTS = """shards, numbers = TokenShards.open(run / "tokens"), torch.arange({count})
batches = [shards.rows("held_out", numbers[start : start + {batch}]) for start in range(0, {count}, {batch})]"""

_SCENES = """data = SceneData.from_json({data!r})
framing = model.module.settings.framing
agents = first_of_each_scene(frame(data.data.read(framing).test, framing))[:{count}]
batches = chunks(agents, 50)"""


def code(latents: Latents, view: LatentsView) -> str:
    """A program that finds where the latents are on and writes it to ``latents.json``."""
    shown, studied = latents.show(view), latents.studied
    names = {f"what{i}": one.file for i, one in enumerate(shown.members)}
    batches, more, caption = held_out_code(latents)
    return _CODE.format(
        headline=_title(shown.members[0], shown.entries[0], 1.0).replace('"', ""),
        imports=code_imports(studied.run),
        more=more,
        loading=code_of(studied.run, names),
        dictionaries=", ".join(f"{one.name!r}: what{i}" for i, one in enumerate(shown.members)),
        site=shown.members[0].site,
        skip=studied.where.skip,
        batches=batches,
        own=shown.members[0].name,
        latents={one.name: int(entry["latent"]) for one, entry in zip(shown.members, shown.entries, strict=True)},
        caption=caption,
    )


def held_out_code(latents: Latents) -> tuple[str, str, str]:
    """The lines that read what was held out, their imports, and what describes it."""
    studied = latents.studied
    count = sum(map(len, studied.held_out()))
    if studied.is_text:
        size = len(studied.held_out()[0])
        return (
            _TEXTS.format(count=count, batch=size),
            "from innerspace.language.shards import TokenShards\n",
            "None",
        )
    more = "from innerspace.jobs.inputs.parts import chunks\n"
    more += "from innerspace.jobs.inputs.scenes import Captions, SceneData, first_of_each_scene\n"
    more += "from innerspace.motion.framing import frame\n"
    return _SCENES.format(data=studied.data.to_json(), count=count), more, "Captions(data.vocabulary)"


def _feature(
    saved: Saved, entry: Mapping[str, Any], cosine: float, words: str, *, hue: str, whole: bool, unit: str
) -> str:
    """A latent: what is known of it, a histogram, and where it is on."""
    said = f"<p>{escape(words)}</p>" if words else ""
    facts = f'<p class="quiet">{escape(_facts(entry, unit))}</p>'
    pushed = "".join(
        f'<h4>Pushes {way} (logit by a unit)</h4><ul class="pairs">{_pushed(entry[way])}</ul>'
        for way in ("up", "down")
        if entry[way]
    )
    examples = _examples(entry) if whole else _examples(entry)[:BESIDE]
    shown = "".join(_example(one, entry, hue) for one in examples)
    title = f"<h3>{escape(_title(saved, entry, cosine))}</h3>"
    if not whole:
        return f'<section class="feature">{title}{said}{facts}{pushed}{shown}</section>'
    alike = "".join(f"<li>{row['latent']} <b>{row['cosine']:.2f}</b></li>" for row in entry["neighbors"])
    alike = f'<h4>Alike in the same dictionary (cosine)</h4><ul class="pairs">{alike}</ul>' if alike else ""
    bands = "".join(
        f"<h4>{escape(band['name'])} · {number(band['low'])} to {number(band['high'])}</h4>"
        + "".join(_example(one, entry, hue) for one in band["examples"])
        for band in entry["bands"][1:]
    )
    more = f"<details><summary>Contexts from every fifth of its activations</summary>{bands}</details>" if bands else ""
    left = f'<div class="feature">{facts}{_histogram(entry)}{pushed}{alike}</div>'
    return (
        f'<section class="feature">{title}{said}<div class="features">{left}'
        f'<div class="feature"><h4>Where it is most on</h4>{shown}{more}</div></div></section>'
    )


def _title(saved: Saved, entry: Mapping[str, Any], cosine: float) -> str:
    near = f", cosine {cosine:.2f}" if cosine < 1 else ""
    return f"{saved.kind} · latent {entry['latent']}{near}"


def _facts(entry: Mapping[str, Any], unit: str) -> str:
    if not entry["max"]:
        return f"never on at the {unit} that were held out"
    return f"on at {number(100 * entry['density'], 2)} % of {unit}, at most {number(entry['max'])}"


def _pushes(entry: Mapping[str, Any]) -> str:
    words = ", ".join(plain_token(row["token"]) for row in entry["up"][:5])
    return f"; pushes up {words}" if words else ""


def _pushed(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"<li>{token(row['token'])} <b>{number(row['value'], 2, sign=True)}</b></li>" for row in rows)


def _examples(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The strongest contexts."""
    return list(entry["bands"][0]["examples"]) if entry["bands"] else []


def _example(one: Mapping[str, Any], entry: Mapping[str, Any], hue: str) -> str:
    if "caption" in one:
        return f'<p class="agents hits"><span class="on">{number(one["value"])}</span> {escape(one["caption"])}</p>'
    return strip(_strip(one, entry), hue)


def _strip(one: Mapping[str, Any], entry: Mapping[str, Any]) -> Strip:
    return Strip(tuple(one["tokens"]), tuple(one["values"]), float(entry["max"]))


def _histogram(entry: Mapping[str, Any]) -> str:
    edges, counts = entry["histogram"]["edges"], entry["histogram"]["counts"]
    chart = Chart(
        Scale(0.0, edges[-1]),
        Scale(0.0, 1.08 * max([*counts, 1])),
        x_label="activation",
        y_label="positions",
        height=150,
    )
    chart.steps(edges, counts, "", "how many positions have such an activation")
    return chart.svg("How strongly it is on, where it is on at all")
