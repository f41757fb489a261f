"""EleutherAI's sparsify folders: ``cfg.json`` beside ``sae.safetensors``; a folder is named by its hookpoint.

Theirs are TopK or GroupMax dictionaries that subtract b_dec before encoding. Transcoders and skip connections have no
place in a dictionary and are refused.
"""

from pathlib import Path
from typing import Any

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import GroupMax, TopK
from innerspace.interop.files import Settings, member, read_safetensors, write_json, write_safetensors
from innerspace.interop.places import Source, from_path, home
from innerspace.interop.plain import Plain

_CONFIG, _WEIGHTS = "cfg.json", "sae.safetensors"


def read(folder: Path, *, network: str = "") -> Dictionary:
    """The dictionary in a folder, ready for use (in evaluation mode); ``network`` as in ``saelens.read``.

    Raises:
        ValueError: for files that are missing or damaged, and settings that a dictionary cannot express, naming them.
    """
    settings = Settings.of(member(folder, _CONFIG))
    if (activation := settings.word("activation", "topk")) not in ("topk", "groupmax"):
        settings.refuse("activation", "only topk and groupmax are known")
    if settings.flag("transcode"):
        settings.refuse("transcode", "it writes another hidden state than it reads, which no dictionary does")
    if settings.flag("skip_connection"):
        settings.refuse("skip_connection", "what goes around the code is in no direction")
    width, latents = settings.whole("d_in"), settings.whole("num_latents") if "num_latents" in settings else 0
    latents = latents or width * settings.whole("expansion_factor")
    weights = read_safetensors(member(folder, _WEIGHTS))
    encoder, bias = weights.take("encoder.weight", latents, width), weights.take("encoder.bias", latents)
    decoder, decoder_bias = weights.take("W_dec", latents, width), weights.take("b_dec", width)
    weights.done()
    k = settings.whole("k")
    plain = Plain(TopK(k) if activation == "topk" else GroupMax(k), encoder, bias, decoder, decoder_bias, True, {})
    return plain.dictionary(home(source(folder), network))


def source(folder: Path) -> Source:
    """The site that the folder's name says."""
    return Source(site=from_path(folder.resolve().name))


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary as sparsify does; its mean and scale fold into the weights.

    Raises:
        ValueError: for another nonlinearity than TopK and GroupMax.
    """
    plain = Plain.of(dictionary).recentered(True)
    if not isinstance(plain.nonlinearity, TopK | GroupMax):
        raise ValueError(f"sparsify knows TopK and GroupMax, not {type(plain.nonlinearity).__name__}")
    unit = bool((plain.decoder.norm(dim=-1) - 1).abs().max() < 1e-5)
    tensors = {"encoder.weight": plain.encoder, "encoder.bias": plain.encoder_bias}
    write_safetensors(folder / _WEIGHTS, {**tensors, "W_dec": plain.decoder, "b_dec": plain.decoder_bias})
    settings: dict[str, Any] = {
        "activation": type(plain.nonlinearity).__name__.lower(),
        "expansion_factor": 32,
        "normalize_decoder": unit,
        "k": plain.nonlinearity.k,
    }
    settings |= {"num_latents": dictionary.latents, "multi_topk": False, "skip_connection": False, "transcode": False}
    write_json(folder / _CONFIG, {**settings, "d_in": dictionary.width})
