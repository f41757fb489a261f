"""Folders of dictionary_learning: ``config.json`` beside ``ae.pt``, of which only tensors are ever read.

Their class decides which tensors there are. AutoEncoder subtracts its bias before encoding, AutoEncoderNew and
JumpReluAutoEncoder do not; all others do. ``ae.safetensors`` holds the same tensors without a pickle; it is read in
place of ``ae.pt`` where it exists, and written on request. Their own loader knows ``ae.pt`` only.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import BatchTopK, Gated, JumpReLU, ReLU, TopK
from innerspace.interop.archives import read_torch, write_torch
from innerspace.interop.files import (
    Settings,
    Weights,
    member,
    read_safetensors,
    write_json,
    write_safetensors,
)
from innerspace.interop.places import Source, from_path, home, layer, placed
from innerspace.interop.plain import Plain, gate, gate_numbers, log_thresholds, thresholds

_CONFIG = "config.json"
_PARTS = {"resid_post": "resid", "attention_out": "attn", "mlp_out": "mlp"}

File = Literal["ae.pt", "ae.safetensors"]


def read(folder: Path, *, network: str = "") -> Dictionary:
    """The dictionary in a folder, ready for use (in evaluation mode); ``network`` as in ``saelens.read``.

    Raises:
        ValueError: for files that are missing or damaged or hold code, and classes that a dictionary cannot express.
    """
    trainer = Settings.of(member(folder, _CONFIG)).section("trainer")
    if (name := trainer.word("dict_class")) not in _READERS:
        trainer.refuse("dict_class", f"it should be one of {', '.join(_READERS)}")
    safe = (folder / "ae.safetensors").exists()
    weights = read_safetensors(member(folder, "ae.safetensors")) if safe else read_torch(member(folder, "ae.pt"))
    plain = _READERS[name](weights, trainer)
    weights.done()
    return plain.dictionary(home(source(folder), network))


def source(folder: Path) -> Source:
    """To which network and site a folder says that its dictionary belongs.

    Raises:
        ValueError: if its settings are missing or damaged.
    """
    trainer = Settings.of(member(folder, _CONFIG)).section("trainer")
    name = trainer.word("submodule_name")
    part, _, number = name.partition("_layer_")
    site = f"{_PARTS[part]}.{int(number)}" if part in _PARTS and number.isdecimal() else from_path(name)
    return Source(trainer.word("lm_name"), site)


def write(dictionary: Dictionary, folder: Path, source: Source = Source(), *, file: File = "ae.pt") -> None:
    """Write a dictionary as dictionary_learning does; its mean and scale fold into the weights.

    Raises:
        ValueError: for a nonlinearity that it does not know, a BatchTopK without a threshold, or another site.
    """
    source = placed(source, dictionary.home)
    plain = Plain.of(dictionary)
    trainer: dict[str, Any] = {"activation_dim": dictionary.width, "dict_size": dictionary.latents}
    trainer |= {"lm_name": source.model, "layer": None, "submodule_name": source.site}
    kind = source.site.partition(".")[0]
    if kind in _PARTS.values():
        trainer["layer"] = layer(source.site)
        part = next(name for name, own in _PARTS.items() if own == kind)
        trainer["submodule_name"] = f"{part}_layer_{trainer['layer']}"
    name, tensors = _written(plain)
    trainer["dict_class"] = name
    if isinstance(plain.nonlinearity, TopK | BatchTopK):
        trainer["k"] = plain.nonlinearity.k
    (write_torch if file == "ae.pt" else write_safetensors)(folder / file, tensors)
    write_json(folder / _CONFIG, {"trainer": trainer})


def _written(plain: Plain) -> tuple[str, dict[str, Tensor]]:
    """The class that a dictionary becomes, and its tensors."""
    linear = {"encoder.weight": plain.encoder, "decoder.weight": plain.decoder.T}
    match plain.nonlinearity:
        case ReLU() if plain.centered:
            return "AutoEncoder", {**linear, "encoder.bias": plain.encoder_bias, "bias": plain.decoder_bias}
        case ReLU():
            return "AutoEncoderNew", {**linear, "encoder.bias": plain.encoder_bias, "decoder.bias": plain.decoder_bias}
        case Gated():
            gated = gate(plain.recentered(True))
            biases = {"gate_bias": gated.b_gate, "mag_bias": gated.b_mag, "decoder_bias": plain.decoder_bias}
            return "GatedAutoEncoder", {**linear, "r_mag": gated.r_mag, **biases}
        case JumpReLU():
            moved = plain.recentered(False)
            matrices = {"W_enc": plain.encoder.T, "W_dec": plain.decoder, "threshold": thresholds(plain)}
            return "JumpReluAutoEncoder", {**matrices, "b_enc": moved.encoder_bias, "b_dec": plain.decoder_bias}
        case TopK(k) | BatchTopK(k):
            batch = isinstance(plain.nonlinearity, BatchTopK)
            biases = {"encoder.bias": plain.recentered(True).encoder_bias, "b_dec": plain.decoder_bias}
            threshold = plain.numbers["threshold"].float() if batch else torch.tensor(-1.0)
            chosen = {"k": torch.tensor(k, dtype=torch.int32), "threshold": threshold}
            return "BatchTopKSAE" if batch else "AutoEncoderTopK", {**linear, **biases, **chosen}
        case other:
            raise ValueError(
                f"dictionary_learning knows no {type(other).__name__}; ReLU, TopK, BatchTopK, JumpReLU, Gated it does"
            )


def _linear(weights: Weights) -> tuple[Tensor, Tensor]:
    """The encoder and the decoder of torch's linear layers, as rows."""
    shape = weights.shape("encoder.weight")
    if len(shape) != 2:
        raise ValueError(f"{weights.where}: encoder.weight should be a matrix, it has the shape {list(shape)}")
    latents, width = shape
    encoder = weights.take("encoder.weight", latents, width)
    return encoder, weights.take("decoder.weight", width, latents).T.contiguous()


def _matrices(weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encoder, its bias, decoder, its bias, of classes with parameters of their own."""
    shape = weights.shape("W_enc")
    if len(shape) != 2:
        raise ValueError(f"{weights.where}: W_enc should be a matrix, it has the shape {list(shape)}")
    width, latents = shape
    encoder, bias = weights.take("W_enc", width, latents).T.contiguous(), weights.take("b_enc", latents)
    return encoder, bias, weights.take("W_dec", latents, width), weights.take("b_dec", width)


def _relu(weights: Weights, trainer: Settings) -> Plain:  # noqa: ARG001
    encoder, decoder = _linear(weights)
    bias, decoder_bias = weights.take("encoder.bias", len(encoder)), weights.take("bias", decoder.shape[1])
    return Plain(ReLU(), encoder, bias, decoder, decoder_bias, True, {})


def _relu_uncentered(weights: Weights, trainer: Settings) -> Plain:  # noqa: ARG001
    encoder, decoder = _linear(weights)
    bias, decoder_bias = weights.take("encoder.bias", len(encoder)), weights.take("decoder.bias", decoder.shape[1])
    return Plain(ReLU(), encoder, bias, decoder, decoder_bias, False, {})


def _gated(weights: Weights, trainer: Settings) -> Plain:  # noqa: ARG001
    encoder, decoder = _linear(weights)
    r_mag, b_gate, b_mag = (weights.take(name, len(encoder)) for name in ("r_mag", "gate_bias", "mag_bias"))
    decoder_bias = weights.take("decoder_bias", decoder.shape[1])
    return Plain(Gated(), encoder, b_gate, decoder, decoder_bias, True, gate_numbers(r_mag, b_gate, b_mag))


def _jump(weights: Weights, trainer: Settings) -> Plain:  # noqa: ARG001
    parts = _matrices(weights)
    threshold = log_thresholds(weights.take("threshold", len(parts[0])))
    return Plain(JumpReLU(), *parts, False, {"log_threshold": threshold})


def _topk(weights: Weights, trainer: Settings) -> Plain:
    encoder, decoder = _linear(weights)
    k = _k(weights, trainer)
    # theirs is used only where a caller asks for it
    weights.drop("threshold")
    bias, decoder_bias = weights.take("encoder.bias", len(encoder)), weights.take("b_dec", decoder.shape[1])
    return Plain(TopK(k), encoder, bias, decoder, decoder_bias, True, {})


def _batch_topk(weights: Weights, trainer: Settings) -> Plain:
    encoder, decoder = _linear(weights)
    what, numbers = BatchTopK(_k(weights, trainer)), _threshold(weights)
    bias, decoder_bias = weights.take("encoder.bias", len(encoder)), weights.take("b_dec", decoder.shape[1])
    return Plain(what, encoder, bias, decoder, decoder_bias, True, numbers)


def _matryoshka(weights: Weights, trainer: Settings) -> Plain:
    parts = _matrices(weights)
    what, numbers = BatchTopK(_k(weights, trainer)), _threshold(weights)
    sizes = weights.take("group_sizes", *weights.shape("group_sizes"))
    prefixes = tuple(int(end) for end in sizes.flatten().cumsum(0).tolist())
    if not prefixes or prefixes[-1] != len(parts[0]):
        raise ValueError(f"{weights.where}: group_sizes should add up to {len(parts[0])} latents: {sizes.tolist()}")
    return Plain(what, *parts, True, numbers, prefixes)


def _k(weights: Weights, trainer: Settings) -> int:
    k = trainer.whole("k")
    if "k" in weights and (own := int(weights.take("k"))) != k:
        raise ValueError(f"{weights.where} says k = {own}, {trainer.where} says {k}")
    return k


def _threshold(weights: Weights) -> dict[str, Tensor]:
    threshold = weights.take("threshold")
    if not threshold > 0:
        raise ValueError(f"{weights.where}: the threshold is {float(threshold)}, so the BatchTopK was never trained")
    return {"threshold": threshold, "last": threshold}


_READERS: dict[str, Callable[[Weights, Settings], Plain]] = {
    "AutoEncoder": _relu,
    "AutoEncoderNew": _relu_uncentered,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}
