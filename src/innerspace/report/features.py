"""The section on single features: what they fire on by quantile, what they push, and who is like them.

All features travel in the page as compact JSON, which the script draws on demand; the first few stand on paper. A
context of tokens is packed as one string: three letters for each token, its number in a vocabulary that all contexts
share, base 64.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from innerspace.report.blocks import Browser, Palette, Section, StillFeature, Strip
from innerspace.report.numerals import number

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

STILL = 4
"""Features on paper."""

_INVISIBLE = re.compile("([\\s\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff])")
_MARKS = {" ": "·", "\n": "↵", "\t": "⇥"}


def features(report: Mapping[str, Any], palette: Palette, note: str) -> Section:
    """A browser of features.

    ``features`` holds

    * ``dictionaries``: a list of ``name`` (as on the map) and ``kind``;
    * ``counted``, optional: a sentence on what the activations were taken from;
    * ``unit``, optional: what it is that a feature fires on, in the plural; ``tokens`` if not given;
    * ``entries``: one for each feature:

      * ``dictionary`` (its place in that list), ``latent`` (its number there), ``density`` (share of the tokens on
        which it fires, 0 to 1), ``max`` (its largest activation);
      * ``histogram`` of nonzero activations: ``edges`` (rising, one more than counts) and ``counts``;
      * ``bands``, the strongest first: ``name`` (``top``, ``80–100 %`` of the nonzero activations), ``low``, ``high``
        (activations) and ``examples``. An example of text is ``tokens`` (strings, with their white space) and
        ``values`` (their activations, as many; 0 where the feature is off); any other is ``caption`` (a few words) and
        ``value`` (its activation);
      * ``neighbors`` in the same dictionary: ``latent``, ``cosine`` of the directions, most similar first;
      * ``similar`` in the others: ``dictionary``, ``latent``, ``cosine``;
      * ``up`` and ``down``: what it pushes most, a list of ``token`` and ``value`` (change of the logit by one unit of
        activation); empty lists where there are no tokens;
      * ``explanation``, optional: what it is said to be on for, with ``judged``: how well that was found to hold.
    """
    given = report["features"]
    names, entries, unit = given["dictionaries"], given["entries"], given.get("unit", "tokens")
    for one in entries:
        _check(one, len(names))
    vocabulary = _Vocabulary()
    hues = [palette[one["kind"]] for one in names]
    packed = {
        "dictionaries": [{"name": one["name"], "hue": hue} for one, hue in zip(names, hues, strict=True)],
        "features": [_pack(one, vocabulary) for one in entries],
        "words": vocabulary.words,
        "unit": unit,
        "letters": ALPHABET,
    }
    data = json.dumps(packed, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    static = tuple(
        _still(one, names[one["dictionary"]]["name"], hues[one["dictionary"]], unit) for one in entries[:STILL]
    )
    caption = (
        "Contexts are shaded by the activation, whose number shows on pointing at a token or with the arrow keys; "
        f"bands are quantiles of the nonzero activations. {given.get('counted', '')} {note}"
    )
    lead = f"What do single features stand for? {number(len(entries))} of them, not only where they fire most."
    return Section("features", "Features", lead, (Browser(caption.strip(), data, static),))


def visible(text: str) -> list[tuple[str, bool]]:
    """A token in parts, with whether each stands for something that would not be seen: space, line break, control."""
    parts = [part for part in _INVISIBLE.split(text) if part]
    return [(_mark(part), True) if _INVISIBLE.fullmatch(part) else (part, False) for part in parts] or [("∅", True)]


def _mark(character: str) -> str:
    return _MARKS.get(character, f"U+{ord(character):04X}")


@final
class _Vocabulary:
    """Distinct tokens, numbered as they come."""

    def __init__(self) -> None:
        self._numbers = dict[str, int]()

    @property
    def words(self) -> list[str]:
        return list(self._numbers)

    def number(self, token: str) -> int:
        return self._numbers.setdefault(token, len(self._numbers))

    def pack(self, tokens: Iterable[str]) -> str:
        numbers = [self._numbers.setdefault(token, len(self._numbers)) for token in tokens]
        return "".join(ALPHABET[n >> 12] + ALPHABET[n >> 6 & 63] + ALPHABET[n & 63] for n in numbers)


def _check(one: Mapping[str, Any], dictionaries: int) -> None:
    where = f"feature {one['latent']} of dictionary {one['dictionary']}"
    if not 0 <= one["dictionary"] < dictionaries:
        raise ValueError(f"{where}: there are {dictionaries} dictionaries")
    if len(one["histogram"]["edges"]) != len(one["histogram"]["counts"]) + 1:
        raise ValueError(f"{where}: a histogram should have one edge more than counts")
    for example in (example for band in one["bands"] for example in band["examples"]):
        if "tokens" in example and len(example["tokens"]) != len(example["values"]):
            raise ValueError(f"{where}: {len(example['tokens'])} tokens with {len(example['values'])} values")


def _pack(one: Mapping[str, Any], vocabulary: _Vocabulary) -> dict[str, Any]:
    """Short names and three significant digits: nobody reads more from a shade."""

    def pushed(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [[vocabulary.number(row["token"]), _short(row["value"])] for row in rows]

    def example(item: Mapping[str, Any]) -> list[Any]:
        if "caption" in item:
            return [item["caption"], _short(item["value"])]
        on = [(i, _short(value)) for i, value in enumerate(item["values"]) if value]
        return [vocabulary.pack(item["tokens"]), [entry for pair in on for entry in pair]]

    return {
        "d": one["dictionary"],
        "n": one["latent"],
        "f": _short(one["density"]),
        "m": _short(one["max"]),
        "h": [list(map(_short, one["histogram"]["edges"])), one["histogram"]["counts"]],
        "b": [
            [band["name"], _short(band["low"]), _short(band["high"]), list(map(example, band["examples"]))]
            for band in one["bands"]
        ],
        "s": [[row["latent"], _short(row["cosine"])] for row in one["neighbors"]],
        "o": [[row["dictionary"], row["latent"], _short(row["cosine"])] for row in one["similar"]],
        "u": pushed(one["up"]),
        "l": pushed(one["down"]),
        **({"e": one["explanation"], "j": one["judged"]} if "explanation" in one else {}),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _still(one: Mapping[str, Any], name: str, hue: str, unit: str) -> StillFeature:
    largest = one["max"] or 1.0
    facts = f"fires on {number(100 * one['density'], 2)} % of {unit}, at most {number(one['max'])}"
    for title, key in (("pushes up", "up"), ("pushes down", "down")):
        if one[key]:
            words = ", ".join("".join(part for part, _ in visible(row["token"])) for row in one[key][:5])
            facts += f"; {title} {words}"
    if "explanation" in one:
        facts = f"{one['explanation']} ({one['judged']}); {facts}"
    strips = tuple(_strip(band, example, largest) for band in one["bands"] for example in band["examples"][:2])
    return StillFeature(f"{name} · feature {one['latent']}", hue, facts, strips)


def _strip(band: Mapping[str, Any], example: Mapping[str, Any], largest: float) -> Strip:
    if "caption" in example:
        value = example["value"]
        return Strip(band["name"], ((example["caption"], False, _tint(value, largest), number(value)),))
    pairs = zip(example["tokens"], example["values"], strict=True)
    return Strip(
        band["name"],
        tuple(
            (part, blank, _tint(value, largest), number(value) if value else "")
            for token, value in pairs
            for part, blank in visible(token)
        ),
    )


def _tint(value: float, largest: float) -> str:
    return f"{8 + 52 * min(max(value / largest, 0.0), 1.0):.0f}%"
