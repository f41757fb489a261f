"""Every decoder: what its sites hold, that passes resume and stop where they should, and that generation is edited."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from innerspace.interventions import At, Fix, Read, Steer
from innerspace.language.causal_lm import CausalLM
from innerspace.language.text import Text
from innerspace.network.model import Model
from innerspace.network.site import Where
from language.tiny import CONFIGS, PARALLEL, WINDOW, decoder, direction, model, reads, text

ARCHITECTURES = [name for name in CONFIGS if name != "gpt2-12"]

EXACTNESS = {"gpt-neo": 1e-6, "gemma2": 2e-5}
"""Rounding where transformers computes attention in float32 whatever the weights are, and 1e-12 elsewhere."""


def same(one: Tensor, other: Tensor, batch: Text, exactness: float | None = None) -> None:
    """Equal up to rounding where the text is valid; the rest may hold anything."""
    chosen = torch.ones_like(batch.ids, dtype=torch.bool) if batch.valid is None else batch.valid
    exactness = exactness or (2e-5 if one.dtype == torch.float32 else 1e-12)
    torch.testing.assert_close(one[chosen], other[chosen], atol=exactness, rtol=exactness)


# what the sites hold


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sites_come_in_order_and_add_up(name: str) -> None:
    lm, batch = model(name), text("right")
    trace = lm.run(batch, reads(lm))
    hidden = trace.hidden
    assert list(hidden) == list(lm.sites)
    assert torch.equal(trace.output["logits"], lm.run(batch).output["logits"])
    for site, state in hidden.items():
        assert state.shape == (*batch.ids.shape, lm.site(site).width)
    for i in range(3):
        before = hidden[f"resid.{i - 1}" if i else "embed"]
        if f"mlp.{i}" in hidden:
            same(hidden[f"resid.{i}"], before + hidden[f"attn.{i}"] + hidden[f"mlp.{i}"], batch)
        if f"resid_mid.{i}" in hidden:
            same(hidden[f"resid_mid.{i}"], before + hidden[f"attn.{i}"], batch)
    same(trace.output["logits"], lm.family.unembedding(lm.module).logits(hidden["final"]), batch)


def test_every_architecture_has_the_sites_that_it_can_have() -> None:
    for name in ARCHITECTURES:
        kinds = {site.partition(".")[0] for site in model(name, torch.float32).sites}
        lacking = {"resid_mid"} if name in PARALLEL else set[str]()
        # OPT's feed-forward layer has lost the token axis; Granite scales what it adds
        lacking |= {"opt": {"resid_mid", "mlp"}, "granite": {"resid_mid", "mlp", "attn"}}.get(name, set())
        assert kinds == {"embed", "resid", "resid_mid", "attn", "mlp", "heads", "final"} - lacking


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox-sequential", "gemma2", "olmo2"])
def test_what_is_written_between_attention_and_mlp_stays_in_the_stream(name: str) -> None:
    lm, batch = model(name), text("left")
    v = direction(lm, "resid_mid.1")
    hidden = lm.run(batch, reads(lm) | {"resid_mid.1": [Read("plain"), Steer(v, 2.0), Read()]}).hidden
    same(hidden["resid_mid.1"], hidden["plain"] + 2 * v, batch)
    same(hidden["resid.1"], hidden["resid_mid.1"] + hidden["mlp.1"], batch)
    # adding to the stream there is adding to what attention adds
    other = lm.run(batch, reads(lm) | {"attn.1": Steer(v, 2.0)})
    same(hidden["final"], other.hidden["final"], batch)
    resumed = lm.resume(batch, "resid_mid.1", hidden["resid_mid.1"], {"final": Read()})
    same(resumed.hidden["final"], hidden["final"], batch)


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_writing_reaches_later_tokens_and_no_earlier_ones(name: str) -> None:
    lm, batch = model(name), text()
    plain = lm.run(batch).output["logits"]
    for site in ("embed", *(site for site in lm.sites if site.endswith(".1")), "resid.2", "final"):
        steer = At(Where(4), Steer(direction(lm, site), 1.0))
        change = (lm.run(batch, {site: steer}).output["logits"] - plain).abs().amax((0, 2))
        assert change[:4].amax() <= EXACTNESS.get(name, 1e-12)
        assert change[4] > 1e-4
        # behind the last attention tokens do not meet any more
        if site not in ("resid.2", "final"):
            assert change[5 : 4 + WINDOW].amin() > 1e-4


@torch.no_grad()
def test_heads_lie_side_by_side() -> None:
    """Without the other heads' slices attention adds what the projection's rows of one head give."""
    lm, batch = model("mistral"), text()
    width = lm.site("heads.1").width // 4
    projection = lm.module.get_submodule("model.layers.1.self_attn.o_proj")
    one = torch.zeros(4 * width, dtype=torch.float64)
    one[width : 2 * width] = direction(lm, "heads.1")[:width]
    added = lm.run(batch, {"heads.1": Fix(one), "attn.1": Read()}).hidden["attn.1"]
    expected = projection.weight[:, width : 2 * width] @ one[width : 2 * width]
    torch.testing.assert_close(added, expected.expand_as(added), atol=1e-12, rtol=1e-12)


# names


def test_names_of_transformer_lens_and_paths_are_exact() -> None:
    lm = model("gpt2-12", torch.float32)
    assert lm.site("blocks.1.hook_resid_post") == lm.site("resid.1") == lm.site("transformer.h.1")
    assert lm.site("blocks.10.hook_resid_post") == lm.site("resid.10") != lm.site("resid.1")
    assert lm.site("blocks.1.hook_resid_pre") == lm.site("resid.0")
    assert lm.site("blocks.0.hook_resid_pre") == lm.site("embed")
    assert lm.site("blocks.11.hook_resid_mid") == lm.site("resid_mid.11")
    assert lm.site("blocks.3.hook_attn_out") == lm.site("attn.3") == lm.site("transformer.h.3.attn")
    assert lm.site("blocks.3.hook_mlp_out") == lm.site("mlp.3")
    assert lm.site("blocks.3.attn.hook_z") == lm.site("heads.3")
    for wrong in ("blocks.1", "blocks.12.hook_resid_post", "transformer.h.12", "hook_embed"):
        with pytest.raises(ValueError, match="no site is called"):
            lm.site(wrong)
    assert model("llama", torch.float32).site("hook_embed").name == "embed"


@torch.no_grad()
def test_blocks_whose_numbers_begin_alike_are_told_apart() -> None:
    lm, batch = model("gpt2-12"), text()
    hidden = lm.run(batch, reads(lm) | {"blocks.1.hook_resid_post": [Read(), Steer(direction(lm, "resid.1"), 1.0)]})
    plain = lm.run(batch, reads(lm)).hidden
    assert torch.equal(hidden.hidden["resid.1"], plain["resid.1"])
    assert not torch.equal(hidden.hidden["resid.2"], plain["resid.2"])
    trace = lm.resume(batch, "resid.1", plain["resid.1"], {f"resid.{i}": Read() for i in (10, 11)})
    assert torch.equal(trace.hidden["resid.10"], plain["resid.10"])
    with pytest.raises(ValueError, match=r"nothing is computed at 'resid.1' when a pass goes on from 'resid.10'"):
        lm.resume(batch, "resid.10", plain["resid.10"], {"resid.1": Read()})


# resuming and stopping


CUTS = ("embed", "resid.0", "resid.1", "resid.2", "final")


@torch.no_grad()
@pytest.mark.parametrize("padding", [None, "left"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pass_goes_on_from_every_cut(name: str, padding: str | None) -> None:
    lm, batch = model(name), text(padding)
    clean = lm.run(batch, {site: Read() for site in CUTS})
    # a text that is not padded takes another way through the masks, whichever the cut
    for site in CUTS if padding else ("resid.1",):
        assert lm.cut(site) == lm.site(site)
        same(lm.resume(batch, site, clean.hidden[site]).output["logits"], clean.output["logits"], batch)
        steer = Steer(direction(lm, site), 0.5)
        whole = lm.run(batch, {site: [steer, Read()]})
        resumed = lm.resume(batch, site, clean.hidden[site], {site: steer})
        same(resumed.output["logits"], whole.output["logits"], batch)
        same(lm.resume(batch, site, whole.hidden[site]).output["logits"], whole.output["logits"], batch)


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pass_goes_on_in_single_precision(name: str) -> None:
    lm, batch = model(name, torch.float32), text("left")
    clean = lm.run(batch, {site: Read() for site in CUTS})
    for site in ("resid.1", "final"):
        same(lm.resume(batch, site, clean.hidden[site]).output["logits"], clean.output["logits"], batch, 1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sites_within_a_block_are_cut_before_it(name: str) -> None:
    lm = model(name, torch.float32)
    for site in lm.sites:
        kind, _, i = site.partition(".")
        if kind in ("attn", "mlp", "heads", "resid_mid"):
            assert lm.cut(site) == lm.site(f"resid.{int(i) - 1}" if int(i) else "embed")


def ran(lm: Model, act: Any) -> list[str]:
    """The modules without children that ran; those of a block that is spared do not."""
    called = list[str]()
    handles = [
        part.register_forward_pre_hook(lambda *_, path=path: called.append(path))
        for path, part in lm.module.named_modules()
        if not [*part.children()]
    ]
    act()
    for handle in handles:
        handle.remove()
    return called


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "gemma2", "phi"])
def test_nothing_runs_before_the_cut_and_nothing_behind_the_stop(name: str) -> None:
    lm, batch = model(name, torch.float32), text("left")
    hidden = lm.run(batch, reads(lm)).hidden
    blocks = [site.module for site in lm.sites.values() if site.name.startswith("resid.")]

    def share(called: list[str]) -> list[bool]:
        return [any(path.startswith(f"{block}.") for path in called) for block in blocks]

    lm.resume(batch, "resid.1", hidden["resid.1"])  # the first time it looks in which form a block answers
    assert share(ran(lm, lambda: lm.resume(batch, "resid.1", hidden["resid.1"]))) == [False, False, True]
    assert share(ran(lm, lambda: lm.resume(batch, "embed", hidden["embed"]))) == [True, True, True]
    lm.resume(batch, "final", hidden["final"])
    assert share(ran(lm, lambda: lm.resume(batch, "final", hidden["final"]))) == [False, False, False]

    whole = ran(lm, lambda: lm.run(batch))
    lengths = list[int]()
    for site in lm.sites:
        called = ran(lm, lambda site=site: lm.run(batch, {site: Read()}, stop=True))
        assert called == whole[: len(called)]
        lengths.append(len(called))
    assert lengths == sorted(lengths)
    assert share(ran(lm, lambda: lm.run(batch, {"resid.0": Read()}, stop=True))) == [True, False, False]
    head = lm.family.unembedding(lm.module)
    assert head.weight.shape == (101, 32)
    stopped = lm.resume(batch, "resid.0", hidden["resid.0"], {"attn.1": Read()}, stop=True)
    assert torch.equal(stopped.hidden["attn.1"], hidden["attn.1"])


# padding, ignored tokens, divergence


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_changes_nothing(name: str) -> None:
    lm = model(name)
    for side in ("left", "right"):
        batch = text(side)
        assert batch.valid is not None
        logits = lm.run(batch).output["logits"]
        for row, valid in enumerate(batch.valid):
            alone = lm.run(Text(batch.ids[row : row + 1, valid])).output["logits"][0]
            exactness = EXACTNESS.get(name, 1e-12)
            torch.testing.assert_close(logits[row, valid], alone, atol=exactness, rtol=exactness)


@torch.no_grad()
def test_ignored_tokens_pass_unchanged_but_are_read() -> None:
    lm = Model(decoder("llama", torch.float64), CausalLM(ignore=(1, 2)))
    batch = text("left")
    batch.ids[:, 6], batch.ids[1, 3] = 1, 2
    assert batch.valid is not None
    counting = batch.valid & (batch.ids != 1) & (batch.ids != 2)
    mask = lm.family.mask(batch, lm.site("resid.1"))
    assert mask is not None
    assert torch.equal(mask, counting)
    steer = At(Where("valid"), Steer(direction(lm, "resid.1"), 1.0))
    hidden = lm.run(batch, {"resid.1": [Read("before"), steer, Read("after")]}).hidden
    assert torch.equal((hidden["before"] == hidden["after"]).all(-1), ~counting)
    same(lm.run(batch).output["logits"], model("llama").run(batch).output["logits"], batch)
    assert CausalLM().mask(text(), lm.site("embed")) is None


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "cohere", "granite", "phi"])
def test_divergence_is_that_of_the_logits(name: str) -> None:
    lm, batch = model(name), text("right")
    tau = torch.tensor(1.0, dtype=next(lm.module.parameters()).dtype, requires_grad=True)
    exactness = 1e-6 if name == "gemma2" else 1e-11
    steer = Steer(direction(lm, "resid.0"), tau)
    clean, other = (lm.run(batch, {"final": Read(), "resid.0": item}) for item in (Read("first"), steer))
    head = lm.family.head(lm.module)
    assert head == lm.site("final")
    p, q = (trace.output["logits"].log_softmax(-1) for trace in (clean, other))
    for chosen in (batch.valid, None):
        expected = (p.exp() * (p - q)).sum(-1)
        expected = expected.mean() if chosen is None else expected[chosen].mean()
        found = lm.family.divergence(lm.module, clean, other, chosen)
        assert found > 1e-4
        torch.testing.assert_close(found, expected, atol=exactness, rtol=exactness)
        slopes = [torch.autograd.grad(value, tau, retain_graph=True)[0] for value in (found, expected)]
        torch.testing.assert_close(slopes[0], slopes[1], atol=exactness, rtol=exactness)


# refusals


@pytest.mark.parametrize("training", [True, False])
def test_finding_the_parts_leaves_the_network_alone(training: bool) -> None:
    module = decoder("gpt2").train(training)
    module.get_submodule("transformer.h.1").train(not training)
    flags = [part.training for part in module.modules()]
    assert set(CausalLM().sites(module)) == set(model("gpt2", torch.float32).sites.values())
    assert [part.training for part in module.modules()] == flags
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


ENCODER = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "Sequential is no model of transformers"),
        (lambda: transformers.BertModel(transformers.BertConfig(**ENCODER)), "BertModel has no unembedding"),
        (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**ENCODER)), "let a token see those that follow"),
        (lambda: decoder("llama").model, "LlamaModel has no unembedding"),
        (lambda: shallow(decoder("llama")), "LlamaForCausalLM has no decoder blocks: no list of 7 modules"),
        (lambda: damaged(decoder("gpt2")), "logits of GPT2LMHeadModel are not finite"),
        (lambda: bent(decoder("llama")), "its unembedding is not supported"),
    ],
)
def test_what_is_no_decoder_is_refused(module: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Model(module(), CausalLM())


def shallow(module: Any) -> Any:
    module.config.num_hidden_layers = 7
    return module


@torch.no_grad()
def damaged(module: Any) -> Any:
    next(module.parameters()).fill_(torch.nan)
    return module


def bent(module: Any) -> Any:
    def square(_: nn.Module, __: object, output: Any) -> Any:
        output.logits = output.logits.square()
        return output

    module.register_forward_hook(square)
    return module


def test_blocks_without_attention_have_a_stream() -> None:
    config = transformers.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2)
    sites = CausalLM().sites(transformers.MambaForCausalLM(config))
    assert [site.name for site in sites] == ["embed", "resid.0", "resid.1", "final"]


@torch.no_grad()
def test_text_beyond_the_learned_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="the text has 65 tokens, the network 64 positions"):
        model("gpt2").run(text(length=65))
    model("llama").run(text(length=65))
    with pytest.raises(ValueError, match="65 tokens"):
        model("opt").run(text(length=65))
