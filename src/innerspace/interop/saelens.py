"""SAELens folders: ``cfg.json`` beside ``sae_weights.safetensors``, since version 3; written as version 6 does.

What of their settings maps to what of ours:

| theirs | ours |
|---|---|
| standard, topk, jumprelu, gated | ReLU, TopK, JumpReLU, Gated |
| jumprelu that says it was trained as batchtopk with a whole k, or a training checkpoint of batchtopk | BatchTopK |
| ``apply_b_dec_to_input`` | ``Form.pre_bias`` |
| ``rescale_acts_by_decoder_norm`` | folded: W_enc, b_enc times the norms of W_dec, which become one |
| ``normalize_activations`` = expected_average_only_in | ``Dictionary.scale`` = 1 / ``input_factor`` |
| ``reshape_activations`` = hook_z | nothing: ``heads.i`` are the heads side by side |

Normalization row by row (layer_norm, constant_norm_rescale) has no place in a dictionary and is refused, as are
whitening that was not folded, single heads, transcoders, and codes that are negative or take several steps.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import BatchTopK, Gated, JumpReLU, Nonlinearity, ReLU, TopK
from innerspace.interop.files import Settings, Weights, member, read_safetensors, write_json, write_safetensors
from innerspace.interop.places import Source, from_hook, home, placed, to_hook
from innerspace.interop.plain import Plain, gate, gate_numbers, log_thresholds, thresholds

_CONFIG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"

_DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}

_NORMALIZATION = {
    "layer_norm": "every row is divided by its own deviation; give the dictionary rows that are normalized so",
    "constant_norm_rescale": "every row is divided by its own norm; give the dictionary rows that are normalized so",
    "covariance_whitening": "the whitening is in no file; fold it (fold_activation_whitening) and save again",
}


def read(folder: Path, *, network: str = "", input_factor: float | None = None) -> Dictionary:
    """The dictionary in a folder, ready for use (in evaluation mode).

    ``network`` is the hash of the network to which it belongs, ``Model.fingerprint``: a file knows only a name. Without
    it the dictionary has no ``home``. ``input_factor`` is what hidden states are multiplied by before they are encoded,
    for files that say so (``normalize_activations`` = expected_average_only_in).

    Raises:
        ValueError: for files that are missing or damaged, and settings that a dictionary cannot express, naming them.
    """
    settings = _settings(folder)
    _check(settings)
    _check_normalization(settings, input_factor)
    weights = read_safetensors(member(folder, _WEIGHTS))
    width, latents = settings.whole("d_in"), settings.whole("d_sae")
    dtype = settings.word("dtype", "float32").removeprefix("torch.")
    if dtype not in _DTYPES:
        settings.refuse("dtype", f"it should be one of {', '.join(_DTYPES)}")

    def take(name: str, *shape: int) -> Tensor:
        # they round to the type of the settings when they load
        taken = weights.take(name, *shape).to(_DTYPES[dtype])
        return taken.to(torch.float64 if dtype == "float64" else torch.float32)

    _drop_unit_scaling(weights)
    architecture = _architecture(settings)
    encoder, decoder = take("W_enc", width, latents).T.contiguous(), take("W_dec", latents, width)
    decoder_bias = take("b_dec", width)
    nonlinearity, numbers = ReLU(), dict[str, Tensor]()
    if architecture == "gated":
        r_mag, b_gate, b_mag = (take(name, latents) for name in ("r_mag", "b_gate", "b_mag"))
        nonlinearity, bias, numbers = Gated(), b_gate, gate_numbers(r_mag, b_gate, b_mag)
    else:
        bias = take("b_enc", latents)
    match architecture:
        case "topk":
            nonlinearity = TopK(settings.whole("k"))
        case "jumprelu":
            nonlinearity, numbers = _jump(settings, take("threshold", latents))
        case "batchtopk":
            nonlinearity, numbers = BatchTopK(settings.whole("k")), _threshold(weights.take("topk_threshold"), settings)
        case _:
            pass
    weights.done()
    if settings.flag("rescale_acts_by_decoder_norm", architecture == "batchtopk"):
        norms = decoder.norm(dim=-1)
        if not ((norms > 0) & norms.isfinite()).all():
            settings.refuse("rescale_acts_by_decoder_norm", "a row of W_dec is zero, or its norm overflows")
        encoder, bias, decoder = encoder * norms[:, None], bias * norms, decoder / norms[:, None]
    centered = settings.flag("apply_b_dec_to_input", True)
    plain = Plain(nonlinearity, encoder, bias, decoder, decoder_bias, centered, numbers)
    return plain.dictionary(home(source(folder), network), scale=1.0 if input_factor is None else 1 / input_factor)


def source(folder: Path) -> Source:
    """To which network and site a folder says that its dictionary belongs.

    Raises:
        ValueError: if its settings are missing or damaged.
    """
    about = _settings(folder).section("metadata")
    return Source(about.word("model_name"), from_hook(about.word("hook_name")))


def write(dictionary: Dictionary, folder: Path, source: Source = Source()) -> None:
    """Write a dictionary as SAELens does; its mean and scale fold into the weights, its codes stay what they are.

    Raises:
        ValueError: for a nonlinearity that SAELens does not know, a BatchTopK without a threshold, or another site.
    """
    source = placed(source, dictionary.home)
    plain = Plain.of(dictionary)
    tensors = {"W_enc": plain.encoder.T, "W_dec": plain.decoder, "b_dec": plain.decoder_bias}
    about: dict[str, Any] = {"sae_lens_version": "6.0.0", "sae_lens_training_version": None}
    about |= {"model_name": source.model, "hook_name": to_hook(source.site)}
    settings: dict[str, Any] = {"d_in": dictionary.width, "d_sae": dictionary.latents}
    settings |= {"dtype": str(plain.decoder.dtype).removeprefix("torch."), "device": "cpu"}
    settings |= {"apply_b_dec_to_input": plain.centered, "normalize_activations": "none"}
    settings["reshape_activations"] = "hook_z" if source.site.startswith("heads.") else "none"
    match plain.nonlinearity:
        case ReLU():
            settings["architecture"] = "standard"
        case TopK(k):
            settings |= {"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": False}
        case JumpReLU() | BatchTopK():
            settings["architecture"], tensors["threshold"] = "jumprelu", thresholds(plain)
        case Gated():
            settings["architecture"] = "gated"
            tensors |= gate(plain)._asdict()
        case other:
            raise ValueError(f"SAELens knows no {type(other).__name__}; ReLU, TopK, BatchTopK, JumpReLU, Gated it does")
    if isinstance(plain.nonlinearity, BatchTopK):
        about |= {"training_architecture": "batchtopk", "training_architecture_details": {"k": plain.nonlinearity.k}}
    if not isinstance(plain.nonlinearity, Gated):
        tensors["b_enc"] = plain.encoder_bias
    write_safetensors(folder / _WEIGHTS, tensors)
    write_json(folder / _CONFIG, {**settings, "metadata": about})


def _settings(folder: Path) -> Settings:
    """Settings as version 6 writes them, whatever the version."""
    path = member(folder, _CONFIG)
    found = Settings.of(path)
    version = found.section("metadata").word("sae_lens_version") or found.word("sae_lens_version")
    if (major := re.match(r"\d{1,4}", version)) and int(major[0]) >= 6:
        return found
    hook = found.word("hook_name") or found.word("hook_point")
    about: dict[str, Any] = {"model_name": found.word("model_name"), "hook_name": hook}
    data: dict[str, Any] = {"d_in": found.whole("d_in"), "d_sae": found.whole("d_sae"), "metadata": about}
    data |= {"dtype": found.word("dtype", "float32"), "architecture": found.word("architecture", "standard")}
    data["apply_b_dec_to_input"] = found.flag("apply_b_dec_to_input", True)
    data["reshape_activations"] = found.word("reshape_activations", "hook_z" if "hook_z" in hook else "none")
    for key in ("hook_head_index", "hook_point_head_index"):
        if key in found:
            about["hook_head_index"] = found.whole(key)
    activation = found.word("activation_fn") or found.word("activation_fn_str", "relu")
    if activation == "topk":
        data |= {"architecture": "topk", "k": found.section("activation_fn_kwargs").whole("k")}
    elif activation != "relu":
        raise ValueError(f"{path}: activation_fn_str = {activation!r} cannot be read here; relu and topk can")
    if found.flag("finetuning_scaling_factor"):
        found.refuse("finetuning_scaling_factor", "codes are scaled after encoding; fold the factor into W_dec")
    data["normalize_activations"] = _old_normalization(found)
    return Settings(found.where, data)


def _old_normalization(found: Settings) -> str:
    """Version 2 had a flag where later ones have a word."""
    try:
        return found.word("normalize_activations", "none")
    except ValueError:
        return "expected_average_only_in" if found.flag("normalize_activations") else "none"


def _check(settings: Settings) -> None:
    if "hook_head_index" in settings.section("metadata"):
        settings.section("metadata").refuse("hook_head_index", "a dictionary of one head has no site of its own")
    if settings.word("reshape_activations", "none") not in ("none", "hook_z"):
        settings.refuse("reshape_activations", "only none and hook_z are known")


def _architecture(settings: Settings) -> str:
    known = ("standard", "topk", "jumprelu", "gated", "batchtopk")
    if (name := settings.word("architecture")) not in known:
        settings.refuse("architecture", f"a dictionary is one of {', '.join(known)}")
    return name


def _drop_unit_scaling(weights: Weights) -> None:
    """Older files hold a scaling of codes that was never used: ones."""
    if "scaling_factor" in weights:
        factor = weights.take("scaling_factor", *weights.shape("scaling_factor"))
        if not (factor == 1).all():
            raise ValueError(f"{weights.where}: scaling_factor is not one everywhere; fold it into W_dec")


def _jump(settings: Settings, threshold: Tensor) -> tuple[Nonlinearity, dict[str, Tensor]]:
    """JumpReLU; or BatchTopK, if the file remembers that it was one of a whole k."""
    about = settings.section("metadata")
    if about.word("training_architecture") == "batchtopk" and threshold[0] > 0 and (threshold == threshold[0]).all():
        details = about.section("training_architecture_details")
        if "k" in details:
            return BatchTopK(details.whole("k")), _threshold(threshold[0], settings)
    return JumpReLU(), {"log_threshold": log_thresholds(threshold)}


def _threshold(threshold: Tensor, settings: Settings) -> dict[str, Tensor]:
    if not threshold > 0:
        raise ValueError(f"{settings.where}: the threshold is {float(threshold)}, so the BatchTopK was never trained")
    return {"threshold": threshold, "last": threshold}


def _check_normalization(settings: Settings, input_factor: float | None) -> None:
    """A factor is given exactly where one belongs."""
    normalization = settings.word("normalize_activations", "none")
    if normalization == "expected_average_only_in":
        if input_factor is None:
            settings.refuse("normalize_activations", "no file holds the factor; give it as input_factor")
        elif not 0 < input_factor < math.inf:
            raise ValueError(f"input_factor should be positive, it is {input_factor}")
    elif normalization != "none":
        why = _NORMALIZATION.get(normalization, "only none and expected_average_only_in are known")
        settings.refuse("normalize_activations", why)
    elif input_factor is not None:
        raise ValueError(f"{settings.where}: normalize_activations = 'none', so there is no input_factor to give")
