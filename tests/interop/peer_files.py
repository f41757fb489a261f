"""Files as other tools write them, made by hand, and what those tools make of hidden states, from their files alone.

Each ``*_outputs`` is an independent reading: plain JSON and tensors, and the tool's own formula, in single precision.
What is written here was opened by the tools themselves in ``benchmarks/exchange.py``.
"""

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

WIDTH, LATENTS, K = 6, 20, 4

Outputs = tuple[Tensor, Tensor]
"""Codes and reconstructions."""


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def states(count: int = 64) -> Tensor:
    return 3 * normal(count, WIDTH, seed=99) + 1


def topk(pre: Tensor, k: int) -> Tensor:
    """The k largest, by sorting; nothing below zero."""
    bound = pre.sort(dim=-1, descending=True).values[:, k - 1 : k]
    return pre.relu() * (pre >= bound)


def matrices(seed: int = 0) -> dict[str, Tensor]:
    return {
        "W_enc": normal(WIDTH, LATENTS, seed=seed),
        "b_enc": normal(LATENTS, seed=seed + 1),
        "W_dec": unit(normal(LATENTS, WIDTH, seed=seed + 2)),
        "b_dec": normal(WIDTH, seed=seed + 3),
    }


def saelens(folder: Path, architecture: str, /, **changed: Any) -> Path:
    """A folder of version 6; ``changed`` settings replace or join those of an inference config."""
    settings: dict[str, Any] = {"d_in": WIDTH, "d_sae": LATENTS, "dtype": "float32", "device": "cpu"}
    settings |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    about = {"sae_lens_version": "6.54.12", "sae_lens_training_version": "6.54.12", "model_name": "gpt2"}
    about |= {"hook_name": "blocks.6.hook_resid_pre", "hook_head_index": None, "context_size": 128}
    settings |= {"metadata": about, "architecture": architecture}
    tensors = matrices()
    if architecture == "topk":
        settings |= {"k": K, "rescale_acts_by_decoder_norm": True}
        tensors["W_dec"] = tensors["W_dec"] * (0.5 + normal(LATENTS, 1, seed=7).abs())
    if architecture == "jumprelu":
        tensors["threshold"] = normal(LATENTS, seed=8).abs()
    if architecture == "gated":
        tensors |= {"b_gate": tensors.pop("b_enc"), "b_mag": normal(LATENTS, seed=9)}
        tensors["r_mag"] = 0.3 * normal(LATENTS, seed=10)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: item.contiguous() for name, item in tensors.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings | changed))
    return folder


def saelens_outputs(folder: Path, x: Tensor) -> Outputs:
    settings = json.loads((folder / "cfg.json").read_text())
    at = load_file(folder / "sae_weights.safetensors")
    entering = x - at["b_dec"] if settings.get("apply_b_dec_to_input", True) else x
    if settings["architecture"] == "gated":
        open_ = (entering @ at["W_enc"] + at["b_gate"]) > 0
        z = open_ * (entering @ (at["W_enc"] * at["r_mag"].exp()) + at["b_mag"]).relu()
        return z, z @ at["W_dec"] + at["b_dec"]
    pre, norms = entering @ at["W_enc"] + at["b_enc"], torch.ones(len(at["W_dec"]))
    match settings["architecture"]:
        case "topk":
            if settings.get("rescale_acts_by_decoder_norm"):
                norms = at["W_dec"].norm(dim=-1)
            z = topk(pre * norms, settings["k"])
        case "jumprelu":
            z = pre.relu() * (pre > at["threshold"])
        case _:
            z = pre.relu()
    return z, (z / norms) @ at["W_dec"] + at["b_dec"]


def sparsify(folder: Path, **changed: Any) -> Path:
    at = matrices(20)
    tensors = {"encoder.weight": at["W_enc"].T.contiguous(), "encoder.bias": at["b_enc"]}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**tensors, "W_dec": at["W_dec"], "b_dec": at["b_dec"]}, folder / "sae.safetensors")
    settings = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": LATENTS, "k": K}
    settings |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": WIDTH}
    (folder / "cfg.json").write_text(json.dumps(settings | changed))
    return folder


def sparsify_outputs(folder: Path, x: Tensor) -> Outputs:
    settings = json.loads((folder / "cfg.json").read_text())
    at = load_file(folder / "sae.safetensors")
    pre = ((x - at["b_dec"]) @ at["encoder.weight"].T + at["encoder.bias"]).relu()
    groups = pre.chunk(settings["k"], -1) if settings.get("activation") == "groupmax" else []
    z = torch.cat([topk(group, 1) for group in groups], -1) if groups else topk(pre, settings["k"])
    return z, z @ at["W_dec"] + at["b_dec"]


def dictionary_learning(folder: Path, name: str, **changed: Any) -> Path:
    at = matrices(40)
    linear = {"encoder.weight": at["W_enc"].T.contiguous(), "decoder.weight": at["W_dec"].T.contiguous()}
    chosen = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.7)}
    tensors = {
        "AutoEncoder": {"bias": at["b_dec"], **linear, "encoder.bias": at["b_enc"]},
        "AutoEncoderNew": {**linear, "encoder.bias": at["b_enc"], "decoder.bias": at["b_dec"]},
        "GatedAutoEncoder": {
            "decoder_bias": at["b_dec"],
            "r_mag": 0.3 * normal(LATENTS, seed=48),
            **linear,
            "gate_bias": at["b_enc"],
            "mag_bias": normal(LATENTS, seed=49),
        },
        "JumpReluAutoEncoder": {**at, "threshold": normal(LATENTS, seed=50).abs()},
        "AutoEncoderTopK": {**chosen, **linear, "encoder.bias": at["b_enc"], "b_dec": at["b_dec"]},
        "BatchTopKSAE": {**chosen, **linear, "encoder.bias": at["b_enc"], "b_dec": at["b_dec"]},
        "MatryoshkaBatchTopKSAE": {**chosen, **at, "group_sizes": torch.tensor([5, LATENTS - 5])},
    }[name]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": WIDTH, "dict_size": LATENTS, "layer": 8, "k": K}
    trainer |= {"lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_8"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer | changed, "buffer": {"ctx_len": 128}}))
    return folder


def dictionary_learning_outputs(folder: Path, x: Tensor) -> Outputs:
    name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    at = torch.load(folder / "ae.pt", weights_only=True)
    if "W_enc" in at:
        encoder, bias, decoder = at["W_enc"], at["b_enc"], at["W_dec"]
    else:
        encoder, bias, decoder = at["encoder.weight"].T, at.get("encoder.bias", 0), at["decoder.weight"].T
    end = next(at[key] for key in ("b_dec", "bias", "decoder.bias", "decoder_bias") if key in at)
    centered = name not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    pre = (x - end if centered else x) @ encoder + bias
    match name:
        case "GatedAutoEncoder":
            z = ((pre + at["gate_bias"]) > 0) * (at["r_mag"].exp() * pre + at["mag_bias"]).relu()
        case "AutoEncoderTopK":
            z = topk(pre.relu(), int(at["k"]))
        case "AutoEncoder" | "AutoEncoderNew":
            z = pre.relu()
        case _:
            z = (pre * (pre > at["threshold"])).relu()
    return z, z @ decoder + end


def apollo(path: Path, *, run: bool = False) -> Path:
    """A released file, or a checkpoint of a run with two positions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = dict[str, Tensor]()
    hooks = ("blocks-2-hook_resid_pre.", "blocks-6-hook_resid_pre.") if run else ("",)
    for i, prefix in enumerate(hooks):
        at, first = matrices(60 + 10 * i), "encoder.0" if run else "encoder"
        # a checkpoint keeps the decoder as it was before it is normalized
        decoder = (at["W_dec"] * (0.5 + normal(LATENTS, 1, seed=66 + i).abs())).T.contiguous() if run else at["W_dec"].T
        tensors |= {f"{prefix}{first}.weight": at["W_enc"].T.contiguous(), f"{prefix}{first}.bias": at["b_enc"]}
        tensors |= {f"{prefix}decoder.weight": decoder.contiguous(), f"{prefix}decoder.bias": at["b_dec"]}
    torch.save(tensors, path)
    positions = ["blocks.2.hook_resid_pre", "blocks.6.hook_resid_pre"]
    settings = {"tlens_model_name": "gpt2-small", "lr": 5e-4, "saes": {"sae_positions": positions}}
    path.with_name("final_config.yaml").write_text(yaml.safe_dump(settings))
    return path


def apollo_outputs(path: Path, x: Tensor, prefix: str = "") -> Outputs:
    at = torch.load(path, weights_only=True)
    at = {
        name.removeprefix(prefix).replace("encoder.0", "encoder"): item for name, item in at.items() if prefix in name
    }
    z = (x @ at["encoder.weight"].T + at["encoder.bias"]).relu()
    return z, z @ torch.nn.functional.normalize(at["decoder.weight"], dim=0).T + at["decoder.bias"]


def control_vector(path: Path, layers: tuple[int, ...] = (1, 2, 5), **changed: Any) -> Path:
    """A GGUF file as llama.cpp and repeng lay it out, byte by byte; ``changed`` fields replace those of the header."""

    def string(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()

    header = {"architecture": "controlvector", "version": 3, "tensors": len(layers), "pairs": 3, "kind": 0} | changed
    data = struct.pack("<4sIQQ", b"GGUF", header["version"], header["tensors"], header["pairs"])
    data += string("general.architecture") + struct.pack("<I", 8) + string(header["architecture"])
    data += string("controlvector.model_hint") + struct.pack("<I", 8) + string("llama")
    data += string("controlvector.layer_count") + struct.pack("<II", 4, len(layers))
    for i, layer in enumerate(layers):
        data += string(f"direction.{layer}") + struct.pack("<IQIQ", 1, WIDTH, header["kind"], 32 * i)
    data += b"\0" * (-len(data) % 32)
    for layer in layers:
        data += vector(layer).numpy().astype("<f4").tobytes().ljust(32, b"\0")
    path.write_bytes(data)
    return path


def vector(layer: int) -> Tensor:
    return normal(WIDTH, seed=200 + layer)


def control_vector_rows(path: Path) -> Tensor:
    """The vectors by layer, as the package reads them."""
    rows = {int(tensor.name.split(".")[1]): tensor.data for tensor in gguf.GGUFReader(path).tensors}
    return torch.from_numpy(np.stack([rows[layer] for layer in sorted(rows)]))
