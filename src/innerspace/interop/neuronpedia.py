"""Neuronpedia's feature files: pages of features in the batches that its importer reads, explanations in and out.

A batch holds for every feature how often it is on, the histogram of its activations, examples with tokens and values,
and the tokens that it pushes. What is not measured here (neurons alike, correlations) stays empty, as they have it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from innerspace.interop.files import Settings, parse_json, text, write_json
from innerspace.interop.places import Source, layer
from innerspace.language.pieces import Pieces
from innerspace.measure.activations import Activations, Captioned
from innerspace.value import Value

_EMPTY = (
    *(f"neuron_alignment_{name}" for name in ("indices", "values", "l1")),
    *(f"correlated_neurons_{name}" for name in ("indices", "l1", "pearson")),
    *(f"correlated_features_{name}" for name in ("indices", "l1", "pearson")),
    *(f"logits_hist_data_bar_{name}" for name in ("heights", "values")),
    "decoder_weights_dist",
)


@dataclass(frozen=True)
class Explanation(Value):
    """What somebody says that a feature is on for, and which model or person said it."""

    latent: int
    text: str
    author: str = ""


def write(
    path: Path,
    source: Source,
    features: Sequence[tuple[Activations, Mapping[str, Sequence[Mapping[str, Any]]]]],
    pieces: Pieces,
    *,
    name: str,
    dataset: str = "",
    prompts: int = 0,
    tokens_in_prompt: int = 0,
) -> None:
    """Write a batch: of each feature what it is on for (``observe``) and what it pushes (``DirectPath.pushed``).

    ``name`` is that of the set of dictionaries, ``prompts`` sequences of ``tokens_in_prompt`` tokens were read.

    Raises:
        ValueError: for no feature, two of one latent, a site without a layer, or examples that are no text.
    """
    latents = [found.latent for found, _ in features]
    if not latents or len({*latents}) < len(latents):
        raise ValueError(f"a batch holds features, each once; these are {latents}")
    counted = {"n_prompts_total": prompts, "n_tokens_in_prompt": tokens_in_prompt, "dataset": dataset}
    entries = [{**_feature(found, pushed, pieces), **counted} for found, pushed in features]
    number = 0 if source.site == "embed" else layer(source.site)
    write_json(path, {"model_id": source.model, "layer": number, "sae_set": name, "features": entries})


def write_explanations(path: Path, source: Source, explanations: Sequence[Explanation], *, name: str) -> None:
    """Write explanations one a line, with the keys of their exports; ``name`` is that of the set of dictionaries.

    Raises:
        ValueError: for no explanation, or a site without a layer.
    """
    if not explanations:
        raise ValueError("there is no explanation to write")
    number = 0 if source.site == "embed" else layer(source.site)
    place = {"modelId": source.model, "layer": f"{number}-{name}"}
    rows = (
        place | {"index": str(one.latent), "description": one.text, "explanationModelName": one.author}
        for one in explanations
    )
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_explanations(path: Path) -> list[Explanation]:
    """The explanations of a feature's file, of a list of them, or of an export with one explanation a line.

    Raises:
        ValueError: for a file that is missing, damaged, or holds no such thing.
    """
    content = text(path)
    lines = [line for line in content.splitlines() if line.strip()] if path.suffix == ".jsonl" else [content]
    found = list[Explanation]()
    for item in [parse_json(path, line) for line in lines]:
        for entry in cast(list[Any], item) if isinstance(item, list) else [item]:
            found += _explanations(Settings(str(path), entry))
    return found


def _feature(found: Activations, pushed: Mapping[str, Sequence[Mapping[str, Any]]], pieces: Pieces) -> dict[str, Any]:
    entry: dict[str, Any] = {"feature_index": found.latent, "frac_nonzero": found.density}
    for theirs, ours in (("pos", "up"), ("neg", "down")):
        entry[f"{theirs}_str"] = [row["token"] for row in pushed[ours]]
        entry[f"{theirs}_values"] = [float(row["value"]) for row in pushed[ours]]
    middles = [(low + high) / 2 for low, high in zip(found.edges, found.edges[1:], strict=False)]
    entry |= {"freq_hist_data_bar_values": middles, "freq_hist_data_bar_heights": list(found.counts)}
    total, examples = sum(found.counts), list[dict[str, Any]]()
    shares = _shares(found, total)
    for band in found.bands:
        for example in band.examples:
            if isinstance(example, Captioned):
                raise ValueError(f"Neuronpedia shows text; latent {found.latent} has {example.caption!r} as an example")
            said = {"bin_min": band.low, "bin_max": band.high, "bin_contains": shares[band.name]}
            examples.append(said | {"tokens": pieces.of(example.ids), "values": list(example.values)})
    return {**entry, "activations": examples, **{name: [] for name in _EMPTY}}


def _shares(found: Activations, total: int) -> dict[str, float]:
    """Which share of a latent's activations a band holds: those of quantiles equally many, the top what it shows."""
    bands = [band.name for band in found.bands if band.name != "top"]
    shares = {name: 1 / len(bands) for name in bands}
    top = next((len(band.examples) for band in found.bands if band.name == "top"), 0)
    return {**shares, "top": top / total if total else 0.0}


def _explanations(entry: Settings) -> list[Explanation]:
    if isinstance(several := entry.raw("explanations"), list):
        own = entry.raw("index")
        inner = (Settings(f"{entry.where}, explanations", item) for item in cast(list[Any], several))
        return [_explanation(item, own) for item in inner]
    return [_explanation(entry, None)]


def _explanation(entry: Settings, own: object) -> Explanation:
    index = own if "index" not in entry else entry.raw("index")
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 10:
        index = int(index)
    if isinstance(index, bool) or not isinstance(index, int | float) or not math.isfinite(index) or index != int(index):
        raise ValueError(f"{entry.where}: index should be the number of a feature, it is {index!r}")
    if index < 0 or not (said := entry.word("description")):
        raise ValueError(f"{entry.where}: feature {int(index)} has no description")
    return Explanation(int(index), said, entry.word("explanationModelName") or entry.word("explanationModel"))
