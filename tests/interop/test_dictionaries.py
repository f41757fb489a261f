"""Other tools' dictionaries: what they make of hidden states is what ours makes, in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from innerspace.decompose.base import Home
from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import BatchTopK, Gated, GroupMax, JumpReLU, Nonlinearity, ReLU, TopK
from innerspace.interop import apollo, dictionary_learning, saelens, sparsify
from innerspace.interop.places import Source, from_hook, from_path, to_hook
from innerspace.interop.plain import log_thresholds
from interop import peer_files
from interop.peer_files import LATENTS, WIDTH, K, Outputs, states

ARCHITECTURES = ["standard", "topk", "jumprelu", "gated"]
CLASSES = ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK"]
CLASSES += ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"]
KINDS = [ReLU(), JumpReLU(threshold=0.3), Gated(), TopK(K), BatchTopK(K)]
FORMS = [Form(), Form(pre_bias=False, decoder="normalized"), Form(decoder="free"), Form(tied=True)]


def outputs(dictionary: Dictionary, x: Tensor) -> Outputs:
    with torch.no_grad():
        z = dictionary.encode(x).z
        return z, dictionary.decode(z)


def assert_alike(found: Outputs, expected: Outputs) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert 0 < theirs.count_nonzero()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


def ours(what: Nonlinearity, form: Form = FORMS[0], home: Home | None = None) -> Dictionary:
    """One with a mean and a scale, and no number at a special value."""
    mean = peer_files.normal(WIDTH, seed=1)
    made = Dictionary(WIDTH, LATENTS, what, mean=mean, scale=2.5, seed=2, form=form, home=home)
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.add_(0.1 * peer_files.normal(*parameter.shape, seed=100 + i))
    if isinstance(what, BatchTopK):
        made.get_buffer("threshold").fill_(0.31)
    made.retract()
    return made.eval()


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saelens_is_read_as_it_computes(architecture: str, centered: bool, tmp_path: Path) -> None:
    folder = peer_files.saelens(tmp_path, architecture, apply_b_dec_to_input=centered)
    found = saelens.read(folder, network="abc")
    assert_alike(outputs(found, states()), peer_files.saelens_outputs(folder, states()))
    assert found.home == Home("abc", "resid.5")
    assert saelens.source(folder) == Source("gpt2", "resid.5")
    assert saelens.read(folder).home is None


@pytest.mark.parametrize("rescale", [True, False])
def test_decoder_norms_decide_which_are_largest_only_where_they_do(rescale: bool, tmp_path: Path) -> None:
    folder = peer_files.saelens(tmp_path, "topk", rescale_acts_by_decoder_norm=rescale)
    assert_alike(outputs(saelens.read(folder), states()), peer_files.saelens_outputs(folder, states()))


def test_a_factor_that_is_in_no_file_is_asked_for(tmp_path: Path) -> None:
    folder = peer_files.saelens(tmp_path, "jumprelu", normalize_activations="expected_average_only_in")
    with pytest.raises(ValueError, match=r"normalize_activations.*give it as input_factor"):
        saelens.read(folder)
    with pytest.raises(ValueError, match=r"input_factor should be positive, it is 0"):
        saelens.read(folder, input_factor=0.0)
    # what they do at loading: fold it into the weights
    z, reconstructed = peer_files.saelens_outputs(folder, states() * 0.4)
    assert_alike(outputs(saelens.read(folder, input_factor=0.4), states()), (z, reconstructed / 0.4))
    with pytest.raises(ValueError, match=r"there is no input_factor to give"):
        saelens.read(peer_files.saelens(tmp_path, "jumprelu"), input_factor=0.4)


def test_folders_before_version_six_are_read(tmp_path: Path) -> None:
    folder = peer_files.saelens(tmp_path, "standard")
    flat: dict[str, Any] = {"d_in": WIDTH, "d_sae": LATENTS, "dtype": "torch.float32", "model_name": "gpt2-small"}
    flat |= {"hook_point": "blocks.8.hook_resid_pre", "activation_fn_str": "relu", "normalize_activations": False}
    (folder / "cfg.json").write_text(json.dumps(flat))
    tensors = load_file(folder / "sae_weights.safetensors")
    expected = peer_files.saelens_outputs(peer_files.saelens(tmp_path / "new", "standard"), states())
    save_file({**tensors, "scaling_factor": torch.ones(LATENTS)}, folder / "sae_weights.safetensors")
    assert_alike(outputs(saelens.read(folder), states()), expected)
    assert saelens.source(folder) == Source("gpt2-small", "resid.7")
    (folder / "cfg.json").write_text(json.dumps(flat | {"normalize_activations": True}))
    with pytest.raises(ValueError, match=r"input_factor"):
        saelens.read(folder)
    save_file({**tensors, "scaling_factor": torch.full((LATENTS,), 2.0)}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(flat))
    with pytest.raises(ValueError, match=r"scaling_factor is not one everywhere"):
        saelens.read(folder)


def test_an_old_topk_keeps_its_k_among_the_arguments_of_its_activation(tmp_path: Path) -> None:
    folder = peer_files.saelens(tmp_path, "topk", rescale_acts_by_decoder_norm=False)
    expected = peer_files.saelens_outputs(folder, states())
    flat = {"d_in": WIDTH, "d_sae": LATENTS, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    (folder / "cfg.json").write_text(json.dumps(flat))
    assert_alike(outputs(saelens.read(folder), states()), expected)
    (folder / "cfg.json").write_text(json.dumps(flat | {"activation_fn_str": "tanh-relu"}))
    with pytest.raises(ValueError, match=r"activation_fn_str = 'tanh-relu' cannot be read"):
        saelens.read(folder)


def test_a_batch_topk_in_training_is_read_by_its_threshold(tmp_path: Path) -> None:
    folder = peer_files.saelens(tmp_path, "batchtopk", k=4.0, rescale_acts_by_decoder_norm=True)
    tensors = peer_files.matrices() | {"topk_threshold": torch.tensor(0.6, dtype=torch.float64)}
    tensors["W_dec"] = 1.7 * tensors["W_dec"]
    save_file(tensors, folder / "sae_weights.safetensors")
    found = saelens.read(folder)
    assert found.nonlinearity == BatchTopK(4)
    pre = 1.7 * ((states() - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"])
    z = pre * (pre > 0.6)
    assert_alike(outputs(found, states()), (z, z / 1.7 @ tensors["W_dec"] + tensors["b_dec"]))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm'.*own deviation"),
        ({"normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale.*own norm"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening.*fold it"),
        ({"normalize_activations": "other"}, "normalize_activations = 'other'.*only none"),
        ({"architecture": "abstopk"}, "architecture = 'abstopk'.*one of standard"),
        ({"architecture": "transcoder"}, "architecture = 'transcoder'"),
        ({"reshape_activations": "heads"}, "reshape_activations = 'heads'"),
        ({"dtype": "int8"}, "dtype = 'int8'.*float32"),
        ({"d_in": 7}, r"W_enc should have the shape \[7, 20\], it has \[6, 20\]"),
        ({"d_sae": "many"}, "d_sae should be a whole number, it is 'many'"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input should be of kind bool, it is 'yes'"),
        ({"metadata": {"sae_lens_version": "6.0", "hook_head_index": 3}}, "hook_head_index = 3.*one head"),
        ({"metadata": [1]}, "metadata should be a mapping, it is a list"),
    ],
)
def test_saelens_settings_that_no_dictionary_has_are_refused(
    changed: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=named):
        saelens.read(peer_files.saelens(tmp_path, "standard", **changed))


def test_numbers_are_rounded_as_the_settings_say(tmp_path: Path) -> None:
    folder = peer_files.saelens(tmp_path, "standard", dtype="bfloat16")
    stored = load_file(folder / "sae_weights.safetensors")
    assert torch.equal(saelens.read(folder).decoder, stored["W_dec"].bfloat16().float())
    double = saelens.read(peer_files.saelens(tmp_path, "standard", dtype="float64"))
    assert double.decoder.dtype == torch.float64


@pytest.mark.parametrize("form", FORMS, ids=["unit", "normalized", "free", "tied"])
@pytest.mark.parametrize("what", KINDS, ids=lambda what: type(what).__name__)
def test_what_is_written_for_saelens_and_read_again_is_the_same(what: Nonlinearity, form: Form, tmp_path: Path) -> None:
    made = ours(what, form, Home("abc", "mlp.3"))
    saelens.write(made, tmp_path / "once", Source("gpt2"))
    expected = outputs(made, states())
    assert_alike(peer_files.saelens_outputs(tmp_path / "once", states()), expected)
    again = saelens.read(tmp_path / "once", network="abc")
    assert again.nonlinearity in (what, JumpReLU())
    assert isinstance(again.nonlinearity, type(what))
    assert again.home == made.home
    assert_alike(outputs(again, states()), expected)
    assert saelens.source(tmp_path / "once") == Source("gpt2", "mlp.3")
    saelens.write(again, tmp_path / "twice", Source("gpt2"))
    first, second = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("once", "twice"))
    for name, item in first.items():
        # a gate's bias is a sum, whose last bit may differ
        tolerance = 1e-6 if name == "b_mag" else 0
        torch.testing.assert_close(second[name], item, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("what", [TopK(K), GroupMax(K)], ids=["topk", "groupmax"])
def test_sparsify_is_read_as_it_computes(what: Nonlinearity, tmp_path: Path) -> None:
    folder = peer_files.sparsify(tmp_path / "layers.8", activation=type(what).__name__.lower())
    found = sparsify.read(folder, network="abc")
    assert_alike(outputs(found, states()), peer_files.sparsify_outputs(folder, states()))
    assert (found.nonlinearity, found.home, found.form.decoder) == (what, Home("abc", "resid.8"), "unit")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"activation": "relu"}, "activation = 'relu'.*only topk and groupmax are known"),
        ({"activation": "groupmax", "k": 3}, "20 latents cannot be divided into 3 equally large groups"),
        ({"transcode": True}, "transcode = True.*another hidden state"),
        ({"skip_connection": True}, "skip_connection = True"),
        ({"k": LATENTS + 1}, "k should be at most the number of latents, 20; it is 21"),
        ({"num_latents": 0}, r"encoder.weight should have the shape \[192, 6\]"),
    ],
)
def test_sparsify_settings_that_no_dictionary_has_are_refused(
    changed: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=named):
        sparsify.read(peer_files.sparsify(tmp_path, **changed))


@pytest.mark.parametrize("form", FORMS, ids=["unit", "normalized", "free", "tied"])
@pytest.mark.parametrize("what", [TopK(K), GroupMax(K)], ids=["topk", "groupmax"])
def test_what_is_written_for_sparsify_computes_the_same_there(what: Nonlinearity, form: Form, tmp_path: Path) -> None:
    made = ours(what, form)
    sparsify.write(made, tmp_path / "h.3.mlp")
    expected = outputs(made, states())
    assert_alike(peer_files.sparsify_outputs(tmp_path / "h.3.mlp", states()), expected)
    assert_alike(outputs(sparsify.read(tmp_path / "h.3.mlp"), states()), expected)
    assert sparsify.source(tmp_path / "h.3.mlp").site == "mlp.3"
    with pytest.raises(ValueError, match=r"sparsify knows TopK and GroupMax, not ReLU"):
        sparsify.write(ours(ReLU()), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", CLASSES)
def test_dictionary_learning_is_read_as_it_computes(name: str, tmp_path: Path) -> None:
    folder = peer_files.dictionary_learning(tmp_path, name)
    found = dictionary_learning.read(folder, network="abc")
    assert_alike(outputs(found, states()), peer_files.dictionary_learning_outputs(folder, states()))
    assert found.home == Home("abc", "resid.8")
    assert dictionary_learning.source(folder).model == "EleutherAI/pythia-70m"
    assert found.form.prefixes == ((5, LATENTS) if name == "MatryoshkaBatchTopKSAE" else ())


@pytest.mark.parametrize("file", ["ae.pt", "ae.safetensors"])
@pytest.mark.parametrize("form", FORMS, ids=["unit", "normalized", "free", "tied"])
@pytest.mark.parametrize("what", KINDS, ids=lambda what: type(what).__name__)
def test_what_is_written_for_dictionary_learning_computes_the_same_there(
    what: Nonlinearity, form: Form, file: dictionary_learning.File, tmp_path: Path
) -> None:
    made = ours(what, form, Home("abc", "attn.2"))
    dictionary_learning.write(made, tmp_path, Source("pythia"), file=file)
    expected = outputs(made, states())
    if file == "ae.pt":
        assert_alike(peer_files.dictionary_learning_outputs(tmp_path, states()), expected)
    again = dictionary_learning.read(tmp_path, network="abc")
    assert isinstance(again.nonlinearity, type(what))
    assert again.home == made.home
    assert_alike(outputs(again, states()), expected)


def test_classes_of_dictionary_learning_that_are_no_dictionary_are_refused(tmp_path: Path) -> None:
    folder = peer_files.dictionary_learning(tmp_path, "AutoEncoder", dict_class="IdentityDict")
    with pytest.raises(ValueError, match=r"dict_class = 'IdentityDict'.*one of AutoEncoder"):
        dictionary_learning.read(folder)
    with pytest.raises(ValueError, match=r"says k = 4, .* says 3"):
        dictionary_learning.read(peer_files.dictionary_learning(tmp_path, "BatchTopKSAE", k=3))
    untrained = torch.load(folder / "ae.pt", weights_only=True) | {"threshold": torch.tensor(-1.0)}
    torch.save(untrained, folder / "ae.pt")
    peer_files.dictionary_learning(tmp_path / "config", "BatchTopKSAE")
    (tmp_path / "config" / "config.json").rename(folder / "config.json")
    with pytest.raises(ValueError, match=r"threshold is -1.0, so the BatchTopK was never trained"):
        dictionary_learning.read(folder)


def test_apollo_is_read_as_it_computes(tmp_path: Path) -> None:
    path = peer_files.apollo(tmp_path / "e2e.pt")
    found = apollo.read(path)
    assert_alike(outputs(found, states()), peer_files.apollo_outputs(path, states()))
    assert (found.form.decoder, found.form.pre_bias, found.home) == ("normalized", False, None)
    assert apollo.source(tmp_path / "final_config.yaml") == [Source("gpt2-small", f"resid.{i}") for i in (1, 5)]


def test_a_checkpoint_of_several_positions_asks_for_one(tmp_path: Path) -> None:
    path = peer_files.apollo(tmp_path / "samples_400000.pt", run=True)
    with pytest.raises(ValueError, match=r"name one position of blocks.2.hook_resid_pre, blocks.6.hook_resid_pre"):
        apollo.read(path)
    with pytest.raises(ValueError, match=r"has no position 'blocks.9.hook_resid_pre'"):
        apollo.read(path, position="blocks.9.hook_resid_pre")
    found = apollo.read(path, position="blocks.6.hook_resid_pre", network="abc")
    expected = peer_files.apollo_outputs(path, states(), "blocks-6-hook_resid_pre.")
    assert_alike(outputs(found, states()), expected)
    assert found.home == Home("abc", "resid.5")


def test_what_cannot_be_written_is_refused_before_a_file_is_there(tmp_path: Path) -> None:
    untrained = Dictionary(WIDTH, LATENTS, BatchTopK(K)).eval()
    for write in (saelens.write, dictionary_learning.write):
        with pytest.raises(ValueError, match=r"has no threshold yet"):
            write(untrained, tmp_path / "none")
        with pytest.raises(ValueError, match=r"belongs to 'resid.2', the source says 'resid.3'"):
            write(ours(ReLU(), home=Home("abc", "resid.2")), tmp_path / "none", Source(site="resid.3"))
    assert not (tmp_path / "none").exists()


def test_thresholds_come_out_as_they_went_in() -> None:
    threshold = torch.cat([torch.rand(4000) * 3, torch.logspace(-30, 4, 500), torch.tensor([0.0, -2.0])])
    found = log_thresholds(threshold).exp()
    assert (found[-2:] < 1e-37).all()
    error = (found[:-2] / threshold[:-2] - 1).abs()
    plain = (threshold[:-2].log().exp() / threshold[:-2] - 1).abs()
    assert error.max() < 5e-6
    assert (error == 0).sum() > (plain == 0).sum()
    # what was read once is read the same for ever
    assert torch.equal(log_thresholds(found[:-2]).exp(), found[:-2])


def test_places_have_one_name_here() -> None:
    for i in (0, 11):
        for site in (f"resid.{i}", f"resid_mid.{i}", f"attn.{i}", f"mlp.{i}", f"heads.{i}"):
            assert from_hook(to_hook(site)) == site
    assert from_hook("blocks.0.hook_resid_pre") == from_hook("hook_embed") == from_hook(to_hook("embed")) == "embed"
    assert from_hook("ln_final.hook_normalized") == to_hook("ln_final.hook_normalized") == "ln_final.hook_normalized"
    paths = [
        "layers.3",
        "transformer.h.3",
        "model.layers.3.self_attn",
        "layers.3.attention",
        "h.3.mlp",
        "layers.3.norm",
    ]
    assert [from_path(path) for path in paths] == ["resid.3", "resid.3", "attn.3", "attn.3", "mlp.3", "layers.3.norm"]
