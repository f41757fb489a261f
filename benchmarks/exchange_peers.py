"""Other tools at their own files: what they write, and what they make of what we wrote; a process of its own.

Started by ``exchange.py`` in whichever interpreter has the tools. ``make FOLDER`` writes files with every tool that is
there, each with what it makes of the rows beside it; ``open FOLDER`` opens ours and writes what it makes of them.
Tools that are named behind it are left out.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# an installed torchvision that does not fit the torch beside it would stop several of them
sys.modules["torchvision"] = None  # pyright: ignore

FACTOR = 0.37
"""What hidden states are multiplied by before they are encoded, where a file says that they are."""


def fill(module: torch.nn.Module, seed: int) -> None:
    """Random numbers for every parameter; positive thresholds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            scale = {1: 0.3, 2: parameter.shape[-1] ** -0.5}[parameter.ndim]
            parameter.copy_(values.abs() if "threshold" in name else scale * values)


def saelens(folder: Path, rows: Tensor) -> Iterator[tuple[Path, Tensor, Tensor]]:
    from sae_lens import SAE
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    def about() -> Any:
        return SAEMetadata(model_name="gpt2", hook_name="blocks.5.hook_resid_pre")

    width, latents = rows.shape[1], 8 * rows.shape[1]
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "standard": (StandardSAE, StandardSAEConfig, {}),
        "topk": (TopKSAE, TopKSAEConfig, {"k": 16, "rescale_acts_by_decoder_norm": True}),
        "topk, norms left": (TopKSAE, TopKSAEConfig, {"k": 16}),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
        "gated": (GatedSAE, GatedSAEConfig, {}),
    }
    for centered in (True, False):
        for i, (name, (kind, config, more)) in enumerate(kinds.items()):
            place = folder / f"{name}{'' if centered else ', uncentered'}"
            sae = kind(config(d_in=width, d_sae=latents, apply_b_dec_to_input=centered, metadata=about(), **more))
            fill(sae, i)
            sae.save_model(place)
            again = SAE.load_from_disk(place)
            z = again.encode(rows)
            yield place, z, again.decode(z)
    place = folder / "jumprelu, expected norm"
    normalization = {"normalize_activations": "expected_average_only_in", "metadata": about()}
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=width, d_sae=latents, **normalization))
    fill(sae, 9)
    sae.save_model(place)
    again = SAE.load_from_disk(place)
    again.fold_activation_norm_scaling_factor(FACTOR)
    z = again.encode(rows)
    yield place, z, again.decode(z)
    training = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=width, d_sae=latents, k=16, metadata=about()))
    fill(training, 10)
    training.topk_threshold = torch.tensor(1.1, dtype=torch.float64)
    training.save_inference_model(folder / "batchtopk")
    again = SAE.load_from_disk(folder / "batchtopk")
    z = again.encode(rows)
    yield folder / "batchtopk", z, again.decode(z)
    training.save_model(folder / "batchtopk, in training")
    # in training the batch decides; for use the threshold does, as in the file for use
    yield folder / "batchtopk, in training", z, again.decode(z)


def open_saelens(folder: Path, rows: Tensor) -> tuple[Tensor, Tensor]:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    z = sae.encode(rows)
    return z, sae.decode(z)


def sparsify(folder: Path, rows: Tensor) -> Iterator[tuple[Path, Tensor, Tensor]]:
    from sparsify import SparseCoder, SparseCoderConfig

    kinds: dict[str, dict[str, Any]] = {"layers.5": {"expansion_factor": 8}, "layers.6.mlp": {"num_latents": 100}}
    kinds["layers.7"] = {"activation": "groupmax", "expansion_factor": 8}
    for name, more in kinds.items():
        coder = SparseCoder(rows.shape[1], SparseCoderConfig(k=16, **more))
        fill(coder, 20)
        coder.set_decoder_norm_to_unit_norm()
        coder.save_to_disk(folder / name)
        yield folder / name, *open_sparsify(folder / name, rows)


def open_sparsify(folder: Path, rows: Tensor) -> tuple[Tensor, Tensor]:
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(folder)
    acts, indices, _ = coder.encode(rows)
    return torch.zeros(len(rows), coder.num_latents).scatter_(1, indices, acts), coder.decode(acts, indices)


def dictionary_learning(folder: Path, rows: Tensor) -> Iterator[tuple[Path, Tensor, Tensor]]:
    from dictionary_learning import dictionary as kinds
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    width, latents = rows.shape[1], 8 * rows.shape[1]
    made = [kinds.AutoEncoder(width, latents), kinds.AutoEncoderNew(width, latents)]
    made += [kinds.GatedAutoEncoder(width, latents), kinds.JumpReluAutoEncoder(width, latents)]
    made += [AutoEncoderTopK(width, latents, 16), BatchTopKSAE(width, latents, 16)]
    made += [MatryoshkaBatchTopKSAE(width, latents, 16, [latents // 4, latents - latents // 4])]
    for i, what in enumerate(made):
        name = type(what).__name__
        place = folder / name
        place.mkdir(parents=True)
        fill(what, 30 + i)
        if "BatchTopK" in name:
            what.threshold.fill_(1.1)
        trainer = {"dict_class": name, "activation_dim": width, "dict_size": latents, "k": 16, "layer": 5}
        trainer |= {"lm_name": "gpt2", "submodule_name": "resid_post_layer_5"}
        torch.save(what.state_dict(), place / "ae.pt")
        (place / "config.json").write_text(json.dumps({"trainer": trainer}))
        yield place, *open_dictionary_learning(place, rows)


def open_dictionary_learning(folder: Path, rows: Tensor) -> tuple[Tensor, Tensor]:
    from dictionary_learning.dictionary import AutoEncoder
    from dictionary_learning.utils import load_dictionary

    if json.loads((folder / "config.json").read_text())["trainer"]["dict_class"] == "AutoEncoder":
        # by default it changes the units of codes while it loads
        found = AutoEncoder.from_pretrained(folder / "ae.pt", normalize_decoder=False)
    else:
        found, _ = load_dictionary(str(folder), "cpu")
    z = found.encode(rows)
    return z, found.decode(z)


def saebench(folder: Path, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate one of ours as SAEBench does: its view of the settings, its metrics of weights, its methods."""
    from sae_bench.evals.core.main import get_featurewise_weight_based_metrics
    from sae_bench.sae_bench_utils.general_utils import _standardize_sae_cfg  # pyright: ignore

    from innerspace.decompose.dictionary import Dictionary
    from innerspace.interop.places import Source
    from innerspace.interop.saebench import ForSAEBench

    made = Dictionary.load(folder / "dictionary.safetensors")
    seen = ForSAEBench(made, Source("gpt2"))
    _standardize_sae_cfg(seen.cfg)
    found = get_featurewise_weight_based_metrics(seen)
    assert len(found["encoder_bias"]) == made.latents
    assert json.dumps(seen.cfg.to_dict())
    assert seen.check_decoder_norms()
    return seen.encode(rows) / seen.norms, seen(rows)


def tiny() -> Any:
    """A small network whose blocks matter, the same with every version of transformers, and a text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    generator = torch.Generator().manual_seed(70)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=101, num_hidden_layers=5, **sizes)).eval()
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return model, torch.randint(3, 101, (1, 40), generator=generator)


def repeng(folder: Path) -> Iterator[tuple[Path, Tensor, Tensor]]:
    """A control vector as a file, and the logits of a network under it."""
    from repeng import ControlModel, ControlVector

    place = folder / "vector"
    place.mkdir(parents=True)
    generator = torch.Generator().manual_seed(50)
    rows = {i: torch.randn(64, generator=generator).numpy() for i in (3, 1, 2)}
    ControlVector("llama", rows).export_gguf(place / "vector.gguf")
    model, ids = tiny()
    controlled = ControlModel(model, [1, 2, 3])
    controlled.set_control(ControlVector.import_gguf(place / "vector.gguf"), 1.0)
    with torch.no_grad():
        yield place, torch.stack([torch.from_numpy(rows[i]) for i in (1, 2, 3)]), controlled(ids).logits


def open_repeng(folder: Path) -> tuple[Tensor, Tensor]:
    from repeng import ControlModel, ControlVector

    found = ControlVector.import_gguf(folder / "vector.gguf")
    model, ids = tiny()
    layers = sorted(found.directions)
    controlled = ControlModel(model, layers)
    controlled.set_control(found, 1.0)
    with torch.no_grad():
        return torch.stack([torch.tensor(found.directions[i]) for i in layers]), controlled(ids).logits


def steering_vectors(folder: Path) -> tuple[Tensor, Tensor]:
    """Ours becomes theirs in memory and is applied by them; and theirs becomes ours again."""
    from innerspace.decompose.directions import Directions
    from innerspace.interop.steering_vectors import from_steering_vectors, to_steering_vectors

    theirs = to_steering_vectors(Directions.load(folder / "directions.safetensors"))
    model, ids = tiny()
    with torch.no_grad(), theirs.apply(model):
        logits = model(ids).logits
    return from_steering_vectors(theirs).directions, logits


MADE: dict[str, tuple[str, str, Callable[[Path, Tensor], Iterator[tuple[Path, Tensor, Tensor]]]]] = {
    "SAELens": ("sae_lens", "sae-lens", saelens),
    "sparsify": ("sparsify", "eai-sparsify", sparsify),
    "dictionary_learning": ("dictionary_learning", "dictionary-learning", dictionary_learning),
    "repeng": ("repeng", "repeng", lambda folder, rows: repeng(folder)),
}

OPENED: dict[str, tuple[str, str, Callable[[Path, Tensor], tuple[Tensor, Tensor]]]] = {
    "SAELens": ("sae_lens", "sae-lens", open_saelens),
    "sparsify": ("sparsify", "eai-sparsify", open_sparsify),
    "dictionary_learning": ("dictionary_learning", "dictionary-learning", open_dictionary_learning),
    "SAEBench": ("sae_bench", "sae-bench", saebench),
    "repeng": ("repeng", "repeng", lambda folder, rows: open_repeng(folder)),
    "steering-vectors": ("steering_vectors", "steering-vectors", lambda folder, rows: steering_vectors(folder)),
}


def main(what: str, folder: Path, without: list[str]) -> dict[str, str]:
    """Do it with every tool that is here and not left out; gives their versions, and why others are not."""
    rows, said = load_file(folder / "rows.safetensors")["rows"], dict[str, str]()
    for tool, (module, package, do) in (MADE if what == "make" else OPENED).items():
        if tool in without:
            continue
        try:
            import_module(module)
        except Exception as error:
            said[tool] = f"not here: {type(error).__name__}: {error}"
            continue
        said[tool] = version(package)
        with torch.no_grad():
            if what == "make":
                for place, z, x in do(folder / tool, rows):  # pyright: ignore
                    save_file({"z": z.contiguous(), "x": x.contiguous()}, place / "theirs.safetensors")
                continue
            for place in sorted((folder / tool).iterdir()):
                z, x = do(place, rows)  # pyright: ignore
                save_file({"z": z.contiguous(), "x": x.contiguous()}, place / "theirs.safetensors")
    return said


if __name__ == "__main__" and sys.argv[1:]:
    with contextlib.redirect_stdout(sys.stderr):
        found = main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    print(json.dumps(found))
