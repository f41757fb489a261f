"""Apollo Research's end-to-end dictionaries (Braun et al. 2024): a ``.pt`` of tensors, and ``final_config.yaml``.

A released file holds one dictionary, a checkpoint of a run one for each position. Theirs are ReLU dictionaries that
subtract nothing before encoding and divide by the norms of the decoder's rows in every pass, as ``Form.decoder`` =
``normalized`` does. They were trained on hidden states of a network whose weights TransformerLens had centered:
subtract from every hidden state of the stream its mean over the width before encoding.
"""

from pathlib import Path
from typing import Any, cast

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import ReLU
from innerspace.interop.archives import read_torch
from innerspace.interop.files import Settings, Weights, text
from innerspace.interop.places import Source, from_hook, home
from innerspace.interop.plain import Plain

_DOTS = 2
"""How many dots a hook of theirs has: blocks-6-hook_resid_pre."""

_LONGEST, _DEEPEST = 2**16, 20
"""The bytes of settings in YAML, and how deep they are nested."""


def read(path: Path, *, position: str = "", network: str = "") -> Dictionary:
    """The dictionary in a ``.pt``, ready for use; ``position`` is its hook's name, needed where there are several.

    ``network`` is as in ``saelens.read``.

    Raises:
        ValueError: for a file that is missing, damaged or holds code, no such position, or several and none named.
    """
    weights = read_torch(path)
    found = positions(weights.names)
    if found:
        if not position and len(found) > 1:
            raise ValueError(f"{path} holds several dictionaries; name one position of {', '.join(found)}")
        if (position := position or found[0]) not in found:
            raise ValueError(f"{path} has no position {position!r}; it has {', '.join(found)}")
        weights = weights.within(_prefix(position))
    belongs = home(Source(site=from_hook(position)), network) if position else None
    return _plain(weights).dictionary(belongs, norms="normalized")


def positions(names: list[str]) -> list[str]:
    """The hooks of which a checkpoint holds dictionaries; none in a released file, which holds one."""
    marked = (name.partition(".") for name in names if not name.startswith(("encoder.", "decoder.")))
    return sorted({first.replace("-", ".", _DOTS) for first, _, _ in marked})


def source(path: Path) -> list[Source]:
    """The network and the sites that a ``final_config.yaml`` names.

    Raises:
        ValueError: if it is missing or damaged, or holds what is no plain setting.
    """
    settings = Settings(str(path), _yaml(path))
    places = settings.section("saes")
    if isinstance(named := cast(Any, places.raw("sae_positions")), str):
        named = [named]
    if not isinstance(named, list) or not all(isinstance(name, str) for name in cast(list[Any], named)):
        raise ValueError(f"{path}: sae_positions should be names of hooks, they are {named!r}")
    model = settings.word("tlens_model_name")
    return [Source(model, from_hook(name)) for name in cast(list[str], named)]


def _prefix(position: str) -> str:
    return position.replace(".", "-") + "."


def _plain(weights: Weights) -> Plain:
    # their runs keep the layer inside a sequence, their releases do not
    first = "encoder.0" if "encoder.0.weight" in weights else "encoder"
    shape = weights.shape(f"{first}.weight")
    if len(shape) != 2:
        raise ValueError(f"{weights.where}: {first}.weight should be a matrix, it has the shape {list(shape)}")
    latents, width = shape
    encoder, bias = weights.take(f"{first}.weight", latents, width), weights.take(f"{first}.bias", latents)
    decoder, decoder_bias = weights.take("decoder.weight", width, latents), weights.take("decoder.bias", width)
    weights.done()
    if (decoder.norm(dim=0) == 0).any():
        raise ValueError(f"{weights.where}: a column of decoder.weight is zero, so it has no direction")
    return Plain(ReLU(), encoder, bias, decoder.T.contiguous(), decoder_bias, False, {})


def _yaml(path: Path) -> object:
    """What YAML of plain settings says; references, by which few bytes become many, are refused."""
    try:
        import yaml
    except ImportError:
        raise ValueError("final_config.yaml is read with pyyaml: pip install 'innerspace[exchange]'") from None
    content, depth = text(path, _LONGEST), 0
    try:
        for event in yaml.parse(content, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{path} refers to itself, which settings do not")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ValueError(f"{path} is no YAML of plain settings: it is nested more than {_DEEPEST} times")
        return yaml.safe_load(content)
    except (yaml.YAMLError, RecursionError, KeyError, AttributeError, TypeError) as error:
        # a tag may claim a kind that its value is not
        raise ValueError(f"{path} is no YAML of plain settings: {repr(error)[:200]}") from None
