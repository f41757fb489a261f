"""Paths through the weights: they are what the network computes, and random subspaces score 1."""

import pytest
import torch
from torch import Tensor, nn

from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import Read
from innerspace.language.text import Text
from innerspace.language.weights import weights
from innerspace.measure.weight_paths import WeightPaths, weight_paths
from innerspace.network.model import Model
from language.tiny import decoder, model

pytest.importorskip("transformers", reason="decoders need the extra 'language'")

KNOWN = ("gpt2", "gpt-neo", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "phi", "cohere")
SIZES = (16, 10, 6)


def without_biases(name: str) -> Model:
    """What is odd in the stream stays odd: norms and projections keep their gains only."""
    found = model(name)
    with torch.no_grad():
        for path, weight in found.module.named_parameters():
            if path.endswith("bias"):
                weight.zero_()
    return found


def after_attention(network: Model, x: Tensor) -> Tensor:
    """What the first block's attention adds to the stream for a single token, which attends to itself."""
    stream = x.to(next(network.module.parameters()))[None, None]
    trace = network.resume(Text(torch.tensor([[3]])), "embed", stream, {"attn.0": Read()}, stop=True)
    return trace.hidden["attn.0"][0, 0].double()


@torch.no_grad()
@pytest.mark.parametrize("name", KNOWN)
def test_heads_move_what_the_network_moves(name: str) -> None:
    """Of one token every head copies the values, so attention writes Σ W_O W_V x, but for the norms' divisions."""
    network = without_biases(name)
    attention = weights(network)[0].attention
    for seed in range(3):
        x = torch.randn(32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.7
        moved = torch.einsum("hdw,hwe,e->d", attention.write, attention.value, x)
        assert torch.cosine_similarity(moved, after_attention(network, x), dim=0) > 1 - 1e-6


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_queries_meet_keys_as_in_the_network(name: str) -> None:
    """The log-ratio of two attention weights is the difference of their scores; at equal positions nothing turns."""
    network = without_biases(name)
    module = network.module
    module.set_attn_implementation("eager")
    if name == "gpt2":
        module.get_submodule("transformer.wpe").weight.zero_()
    attention = weights(network)[0].attention
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = {"inputs_embeds": x[None], "position_ids": torch.zeros(1, 2, dtype=torch.long), "output_attentions": True}
    pattern = module(**given).attentions[0][0, :, 1]
    centered = x - x.mean(1, keepdim=True) if name == "gpt2" else x
    unit = centered / centered.square().mean(1, keepdim=True).sqrt()
    query, key = (torch.einsum("hwd,nd->hnw", matrix, unit) for matrix in (attention.query, attention.key))
    width = query.shape[-1]
    if name == "qwen3":
        # its heads divide queries and keys by their length, of which the gains are known here
        plain = [torch.einsum("hwd,nd->hnw", m, unit) for m in _before_head_norms(network)]
        query, key = (
            full / one.square().mean(-1, keepdim=True).sqrt() for full, one in zip((query, key), plain, strict=True)
        )
    scores = torch.einsum("hw,hnw->hn", query[:, 1], key) / width**0.5
    ratio = (pattern[:, 0] / pattern[:, 1]).log()
    assert ratio.tolist() == pytest.approx((scores[:, 0] - scores[:, 1]).tolist(), abs=1e-4)


def _before_head_norms(network: Model) -> list[Tensor]:
    block = network.module.get_submodule("model.layers.0")
    gain = block.get_submodule("input_layernorm").weight.double()
    return [
        (block.get_submodule(f"self_attn.{kind}_proj").weight.double() * gain)
        .unflatten(0, (-1, 16))
        .repeat_interleave(repeats, 0)
        for kind, repeats in (("q", 1), ("k", 2))
    ]


@torch.no_grad()
def test_scores_are_those_of_explicit_products() -> None:
    network = model("llama")
    generator = torch.Generator().manual_seed(2)
    partitions = {site: Subspaces.random(32, SIZES, generator) for site in ("resid.0", "resid.2")}
    found = weight_paths(network, partitions)
    first, last = (what.rotation.double().split(SIZES) for what in partitions.values())
    layer = network.module.get_submodule("model.layers.1")

    def matrix(path: str) -> Tensor:
        return layer.get_submodule(path).weight.double()

    def energy(source: Tensor, target: Tensor, whole: Tensor) -> float:
        part, size = (target @ whole @ source.T).square().sum(), len(source) * len(target) / 32**2
        return float(part / (size * whole.square().sum()))

    # four heads of width 8, two of them to one pair of keys and values
    own, shared, gain = slice(24, 32), slice(8, 16), matrix("input_layernorm")
    value = matrix("self_attn.o_proj")[:, own] @ matrix("self_attn.v_proj")[shared] * gain
    meet = gain[:, None] * matrix("self_attn.q_proj")[own].T @ matrix("self_attn.k_proj")[shared] * gain
    scores = {(one.kind, one.block, one.head): one for one in found.paths}
    for t, source in enumerate(first):
        for s, target in enumerate(last):
            assert float(scores["ov", 1, 3].score[s, t]) == pytest.approx(energy(source, target, value))
            assert float(scores["stream", None, None].score[s, t]) == pytest.approx(
                energy(source, target, torch.eye(32).double())
            )
        for s, target in enumerate(first):
            assert float(scores["qk", 1, 3].score[s, t]) == pytest.approx(energy(source, target, meet))
    into = torch.stack([matrix(f"mlp.{name}_proj") * matrix("post_attention_layernorm") for name in ("gate", "up")])
    out = matrix("mlp.down_proj")
    for t, source in enumerate(first):
        for s, target in enumerate(last):
            neurons = (into @ source.T).square().sum((0, 2)) * (target @ out).square().sum(0)
            chance = into.square().sum((0, 2)) * out.square().sum(0) * len(source) * len(target) / 32**2
            assert float(scores["mlp", 1, None].score[s, t]) == pytest.approx(float(neurons.sum() / chance.sum()))
    (read,) = (one for one in found.touches if one.what == "read" and one.block == 1)
    expected = [float((into @ part.T).square().sum() / into.square().sum()) * 32 / len(part) for part in first]
    assert read.score.tolist() == pytest.approx(expected)


@torch.no_grad()
def test_random_subspaces_score_one() -> None:
    """The mean over many rotations, for every kind of path and touch."""
    network, generator = model("gpt2"), torch.Generator().manual_seed(3)
    runs = list[WeightPaths]()
    for _ in range(60):
        runs.append(weight_paths(network, {f"resid.{i}": Subspaces.random(32, SIZES, generator) for i in (0, 1)}))
    for i, path in enumerate(runs[0].paths):
        if path.kind != "qk":
            scores = torch.stack([run.paths[i].score for run in runs])
            error = scores.std(0) / len(runs) ** 0.5
            assert ((scores.mean(0) - 1).abs() < 4.5 * error + 1e-9).all(), path.kind
    for i in range(len(runs[0].touches)):
        scores = torch.stack([run.touches[i].score for run in runs])
        assert ((scores.mean(0) - 1).abs() < 4.5 * scores.std(0) / len(runs) ** 0.5 + 1e-9).all()


@torch.no_grad()
def test_a_wire_is_found() -> None:
    """A head that copies four directions into four others scores as much as is possible between their parts."""
    network = model("gpt2")
    block = network.module.get_submodule("transformer.h.1.attn")
    frames = [Subspaces.random(32, (24, 8), torch.Generator().manual_seed(seed)) for seed in (4, 5)]
    fused, out = (block.get_submodule(name).weight for name in ("c_attn", "c_proj"))
    norm = network.module.get_submodule("transformer.h.1.ln_1")
    norm.weight.fill_(1.0)
    fused[:, 64:72] = frames[0].basis(1).T.double()
    out[:8] = frames[1].basis(1).double()
    found = weight_paths(network, {"resid.0": frames[0], "resid.1": frames[1]})
    (wire,) = (path for path in found.paths if (path.kind, path.head) == ("ov", 0))
    # the norm takes the mean away, and with it a little of the wire
    assert float(wire.score[1, 1]) == pytest.approx((32 / 8) ** 2, rel=0.05)
    others = [float(path.score[1, 1]) for path in found.paths if path.kind == "ov" and path.head != 0]
    assert max(others) < 3


@torch.no_grad()
def test_only_what_lies_between_is_named() -> None:
    network = model("llama")
    parts = Subspaces.identity(32, SIZES)
    found = weight_paths(network, {"resid_mid.1": parts, "embed": parts})
    assert {(path.kind, path.block) for path in found.paths if path.source == "embed" and path.kind != "qk"} == {
        ("stream", None),
        ("ov", 0),
        ("mlp", 0),
        ("ov", 1),
    }
    # behind the last site there are readers, and nothing to write to
    assert {path.block for path in found.paths if path.source == "resid_mid.1"} == {2}
    assert {one.block for one in found.touches if one.site == "resid_mid.1" and one.what == "read"} == {1, 2}
    assert found.to_json()["paths"][0]["score"] == torch.eye(3).tolist() or len(found.paths[0].score) == 3


@pytest.mark.parametrize("name", ["gpt-neox", "phi3"])
def test_unknown_makes_are_named(name: str) -> None:
    network = model(name)
    with pytest.raises(ValueError, match=r"the attention of \w+ is of no known make .* its parts are"):
        weight_paths(network, {"resid.0": Subspaces.identity(32, SIZES)})


def test_what_does_not_fit_is_refused() -> None:
    network = model("llama")
    with pytest.raises(ValueError, match="not in the stream"):
        weight_paths(network, {"mlp.0": Subspaces.identity(32, SIZES)})
    with pytest.raises(ValueError, match="reads width 8"):
        weight_paths(network, {"resid.0": Subspaces.identity(8, (4, 4))})
    with pytest.raises(ValueError, match="at least one site"):
        weight_paths(network, {})
    odd = decoder("llama")
    layer = odd.get_submodule("model.layers.0")
    layer.input_layernorm = _Odd()
    from innerspace.language.causal_lm import CausalLM

    with pytest.raises(ValueError, match="no norm with gains"):
        weights(Model(odd, CausalLM()))


class _Odd(nn.Module):
    """No norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x**3


_Odd.__name__ = "CubeNorm"
