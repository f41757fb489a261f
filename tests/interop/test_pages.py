"""Pages of features for Neuronpedia and explanations from there; a dictionary as SAEBench sees it."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from innerspace.decompose.base import Home
from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import BatchTopK, Gated, JumpReLU, Nonlinearity, ReLU, TopK
from innerspace.interop.neuronpedia import Explanation, read_explanations, write, write_explanations
from innerspace.interop.places import Source
from innerspace.interop.saebench import ForSAEBench
from innerspace.language.causal_lm import CausalLM
from innerspace.language.pieces import Pieces
from innerspace.measure.activations import Activations, Band, Captioned, Excerpt, Selection, Watched, observe
from innerspace.measure.direct_path import DirectPath
from innerspace.network.model import Model
from innerspace.network.site import Where
from interop.peer_files import LATENTS, WIDTH, normal, states
from language.tiny import decoder, text

NONE = {"up": [], "down": []}


def observed() -> tuple[list[Activations], list[dict[str, list[dict[str, object]]]]]:
    """Three latents of a tiny network, and what they push."""
    model, what = Model(decoder("llama"), CausalLM()), Dictionary(32, 12, TopK(3), seed=1).eval()
    batches = [text(rows=40, length=10 + i) for i in range(3)]
    watched = Watched(what, "resid.1", torch.tensor([2, 5, 7]))
    (found,) = observe(model, batches, [watched], selection=Selection(top=2, each=2)).latents
    path = DirectPath(model, batches[0], Where("valid"), Pieces(None))
    return found, path.pushed("resid.1", what.directions[[2, 5, 7]], 4)


def test_a_batch_of_features_holds_what_was_measured(tmp_path: Path) -> None:
    found, pushed = observed()
    source, place = Source("tiny", "resid.1"), tmp_path / "batch-0.json"
    features = list(zip(found, pushed, strict=True))
    write(place, source, features, Pieces(None), name="res-x", dataset="toy", prompts=3, tokens_in_prompt=9)
    batch = json.loads(place.read_text())
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("tiny", 1, "res-x")
    assert [entry["feature_index"] for entry in batch["features"]] == [2, 5, 7]
    for entry, one, moved in zip(batch["features"], found, pushed, strict=True):
        assert entry["frac_nonzero"] == one.density
        assert entry["freq_hist_data_bar_heights"] == list(one.counts)
        assert len(entry["freq_hist_data_bar_values"]) == len(one.counts) == len(one.edges) - 1
        inside = zip(one.edges, entry["freq_hist_data_bar_values"], one.edges[1:], strict=False)
        assert all(low < middle < high for low, middle, high in inside)
        assert entry["pos_str"] == [row["token"] for row in moved["up"]]
        assert entry["neg_values"] == [row["value"] for row in moved["down"]]
        assert sorted(entry["pos_values"], reverse=True) == entry["pos_values"]
        examples = entry["activations"]
        assert len(examples) == sum(len(band.examples) for band in one.bands)
        assert max(max(example["values"]) for example in examples) == pytest.approx(one.max)
        for example in examples:
            assert len(example["tokens"]) == len(example["values"])
            inside = [value for value in example["values"] if value > 0]
            assert any(example["bin_min"] <= value <= example["bin_max"] for value in inside)
        bands = {(example["bin_min"], example["bin_max"]): example["bin_contains"] for example in examples}
        assert 0 < min(bands.values()) <= max(bands.values()) <= 1
    # the keys of a feature in a batch of theirs
    assert {"neuron_alignment_indices", "correlated_features_pearson", "logits_hist_data_bar_values"} <= {*entry}
    assert (entry["dataset"], entry["n_prompts_total"], entry["n_tokens_in_prompt"]) == ("toy", 3, 9)


def test_explanations_go_out_and_come_back(tmp_path: Path) -> None:
    said = [Explanation(7, "token “ she” or “↵”", "rules"), Explanation(12, 'says "no"\nor yes', "")]
    path = tmp_path / "explanations.jsonl"
    write_explanations(path, Source("tiny", "resid.3"), said, name="res-x")
    assert read_explanations(path) == said
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert (first["modelId"], first["layer"], first["index"]) == ("tiny", "3-res-x", "7")
    with pytest.raises(ValueError, match="no explanation to write"):
        write_explanations(path, Source("tiny", "resid.3"), [], name="x")
    with pytest.raises(ValueError, match="'final' is the site of no layer"):
        write_explanations(path, Source("tiny", "final"), said, name="x")


def test_what_is_no_page_of_text_is_refused(tmp_path: Path) -> None:
    one = Activations(3, 0.1, 2.0, (0.0, 2.0), (5,), (Band("top", 1.0, 2.0, (Captioned("a scene", 2.0),)),))
    other = Activations(3, 0.1, 2.0, (0.0, 2.0), (5,), (Band("top", 1.0, 2.0, (Excerpt((1,), (2.0,)),)),))
    source = Source("tiny", "resid.1")
    for features, named in (
        ([(one, NONE)], r"latent 3 has 'a scene' as an example"),
        ([(other, NONE), (other, NONE)], r"each once; these are \[3, 3\]"),
        ([], r"each once; these are \[\]"),
    ):
        with pytest.raises(ValueError, match=named):
            write(tmp_path / "batch.json", source, features, Pieces(None), name="x")
    with pytest.raises(ValueError, match=r"'final' is the site of no layer"):
        write(tmp_path / "batch.json", Source("tiny", "final"), [(other, NONE)], Pieces(None), name="x")
    assert not list(tmp_path.iterdir())


def test_explanations_are_read_from_a_feature_a_list_and_lines(tmp_path: Path) -> None:
    said = {"description": "dates", "explanationModelName": "somebody", "typeName": "x"}
    feature = {"modelId": "gpt2", "layer": "6-res-jb", "index": "12", "explanations": [said, said]}
    (tmp_path / "feature.json").write_text(json.dumps(feature))
    assert read_explanations(tmp_path / "feature.json") == [Explanation(12, "dates", "somebody")] * 2
    (tmp_path / "list.json").write_text(json.dumps([{"index": 3, **said}, {"index": "4", "description": "names"}]))
    listed = [Explanation(3, "dates", "somebody"), Explanation(4, "names")]
    assert read_explanations(tmp_path / "list.json") == listed
    lines = [json.dumps({"index": "3", **said}), "", json.dumps({"index": 4, "description": "names"})]
    (tmp_path / "export.jsonl").write_text("\n".join(lines))
    assert read_explanations(tmp_path / "export.jsonl") == listed
    for content, named in (
        ({"index": "x", "description": "a"}, "index should be the number of a feature, it is 'x'"),
        ({"index": True, "description": "a"}, "it is True"),
        ({"index": 3}, "feature 3 has no description"),
        ([3], "should be a mapping, it is a int"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=named):
            read_explanations(tmp_path / "bad.json")


@pytest.mark.parametrize("form", [Form(), Form(pre_bias=False, decoder="free")], ids=["unit", "free"])
@pytest.mark.parametrize(
    "what", [ReLU(), TopK(4), JumpReLU(threshold=0.3), Gated(), BatchTopK(4)], ids=lambda what: type(what).__name__
)
def test_saebench_sees_unit_rows_and_the_same_reconstruction(what: Nonlinearity, form: Form) -> None:
    made = Dictionary(WIDTH, LATENTS, what, mean=normal(WIDTH, seed=1), scale=2.5, form=form, home=Home("abc", "mlp.3"))
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.add_(0.1 * normal(*parameter.shape, seed=100 + i))
    if isinstance(what, BatchTopK):
        made.get_buffer("threshold").fill_(0.31)
    made.retract()
    seen, x = ForSAEBench(made.eval(), Source("gpt2-small")), states().view(4, 16, WIDTH)
    assert seen.check_decoder_norms()
    assert (seen.W_enc.shape, seen.W_dec.shape) == ((WIDTH, LATENTS), (LATENTS, WIDTH))
    with torch.no_grad():
        z = made.encode(x).z
        torch.testing.assert_close(seen(x), made.decode(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.encode(x), z * made.directions.norm(dim=-1))
    # the weights alone say the same
    torch.testing.assert_close(seen.encode(x) @ seen.W_dec + seen.b_dec, seen(x), rtol=1e-5, atol=1e-5)
    if isinstance(what, ReLU):
        entering: Tensor = x - seen.b_dec if seen.cfg.apply_b_dec_to_input else x
        torch.testing.assert_close((entering @ seen.W_enc + seen.b_enc).relu(), seen.encode(x), rtol=1e-5, atol=1e-5)
    cfg = seen.cfg
    assert (cfg.model_name, cfg.hook_name, cfg.hook_layer) == ("gpt2-small", "blocks.3.hook_mlp_out", 3)
    assert (cfg.d_in, cfg.d_sae, cfg.dtype, cfg.device) == (WIDTH, LATENTS, "float32", "cpu")
    assert cfg.architecture == type(what).__name__.lower()
    half = seen.to(dtype=torch.bfloat16)
    assert (half.dtype, half.W_dec.dtype, half(x).dtype) == (torch.bfloat16,) * 3


def test_a_place_without_a_layer_and_a_latent_without_a_direction_are_refused() -> None:
    made = Dictionary(WIDTH, LATENTS, ReLU()).eval()
    with pytest.raises(ValueError, match=r"'final' is the site of no layer"):
        ForSAEBench(made, Source("gpt2", "final"))
    with torch.no_grad():
        made.decoder[3] = 0
    with pytest.raises(ValueError, match=r"latent 3 has no direction"):
        ForSAEBench(made, Source("gpt2", "resid.2"))
