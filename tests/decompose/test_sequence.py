"""Dictionaries that read sequences: padding is never read, mixing is what it says, and networks can be spliced."""

import copy

import pytest
import torch
from torch import Tensor

from decompose.autoencoders import LATENTS, TOKENS, WIDTH, sparse, states
from decompose.formulas import every
from families import CASES
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.mixer import Mixer, Mixing
from innerspace.decompose.nonlinearities import Nonlinearity, ReLU, TopK
from innerspace.decompose.sequence import SequenceAutoencoder, Sequencewise, reconstructed
from innerspace.interventions import At, Read, Splice, Write
from innerspace.network.site import Where

VALID = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
both = pytest.mark.parametrize("name", ["mixer", "sequencewise"])


def reader(name: str, nonlinearity: Nonlinearity) -> SequenceAutoencoder:
    what = sparse(name, nonlinearity)
    assert isinstance(what, SequenceAutoencoder)
    return what


@both
@every
def test_padding_is_neither_read_nor_has_a_gradient(name: str, nonlinearity: Nonlinearity) -> None:
    what = reader(name, nonlinearity).train()
    x = states(what, 3)
    other = x.masked_fill(~VALID[..., None], torch.nan).requires_grad_()
    found = list[tuple[Tensor, ...]]()
    for own in (x.requires_grad_(), other):
        one = copy.deepcopy(what)
        clean, reconstruction, code = reconstructed(one, own, VALID)
        loss = (reconstruction - clean).sin().sum() + code.cost.square().sum()
        gradients = torch.autograd.grad(loss, [own, *one.parameters()], materialize_grads=True)
        assert gradients[0][~VALID].count_nonzero() == 0
        found.append((code.z, code.pre, code.cost, reconstruction, one.silent, *gradients))
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


def test_a_padded_token_is_as_one_that_is_not_there() -> None:
    what = reader("mixer", ReLU())
    assert isinstance(what, Mixer)
    x = states(what, 3)
    for row, kept in enumerate(VALID):
        # the same mixer without the weights of the tokens that are left out
        small = Mixer(int(kept.sum()), WIDTH, LATENTS, ReLU(), what.mixing).double().eval()
        weights = dict(what.state_dict())
        for block in range(what.mixing.blocks):
            key = f"blocks.{block}.among_tokens"
            weights[f"{key}.inner"] = weights[f"{key}.inner"][:, kept]
            for place in ("outer", "outer_bias"):
                weights[f"{key}.{place}"] = weights[f"{key}.{place}"][kept]
        small.load_state_dict(weights)
        code = what.encode(x[row], VALID[row])
        torch.testing.assert_close(code.z[kept], small.encode(x[row, kept]).z)
        assert code.z[~kept].count_nonzero() == code.pre[~kept].count_nonzero() == code.cost[~kept].count_nonzero() == 0


def layer_norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centered = h - h.mean()
    return centered / (centered.square().mean() + 1e-5).sqrt() * weight + bias


def test_a_mixer_is_the_stated_formula() -> None:
    what = reader("mixer", ReLU())
    assert isinstance(what, Mixer)
    x, p = states(what, 2), what.state_dict()

    def gelu(u: Tensor) -> Tensor:
        return u * 0.5 * (1 + torch.erf(u / 2**0.5))

    def perceptron(u: Tensor, key: str) -> Tensor:
        inner = gelu(p[f"{key}.inner"] @ u + p[f"{key}.inner_bias"])
        return p[f"{key}.outer"] @ inner + p[f"{key}.outer_bias"]

    for sample in x:
        h = (sample - what.mean) / what.scale - p["decoder_bias"]
        for i in range(what.mixing.blocks):
            norms = [(p[f"blocks.{i}.norms.{j}.weight"], p[f"blocks.{i}.norms.{j}.bias"]) for j in range(2)]
            seen = torch.stack([layer_norm(token, *norms[0]) for token in h])
            mixed = torch.stack([perceptron(seen[:, j], f"blocks.{i}.among_tokens") for j in range(WIDTH)], 1)
            h = h + mixed
            h = h + torch.stack([perceptron(layer_norm(token, *norms[1]), f"blocks.{i}.among_channels") for token in h])
        pre = h @ p["encoder"].T + p["encoder_bias"]
        torch.testing.assert_close(what.encode(sample).pre, pre)


def test_tokens_are_read_by_each_other_and_decoded_alone() -> None:
    what = reader("mixer", ReLU())
    x = states(what, 1)
    moved = x.clone()
    moved[0, 1] += torch.randn(WIDTH, dtype=torch.float64)
    change = (what.encode(moved).pre - what.encode(x).pre).abs().amax(-1)[0]
    assert (change > 1e-4).all()
    z = what.encode(x).z
    assert ((what.decode(what.encode(moved).z) - what.decode(z)).abs().amax(-1) > 1e-4).any()
    z2 = z.clone()
    z2[0, 1] += 1
    assert ((what.decode(z2) != what.decode(z)).any(-1)[0]).tolist() == [False, True, False, False]


def test_a_fresh_mixer_is_a_fresh_dictionary() -> None:
    x = torch.randn(9, TOKENS, WIDTH)
    valid = torch.rand(9, TOKENS) > 0.3
    mixer = Mixer.normalized_for(x, valid, LATENTS, TopK(3), seed=5)
    plain = Dictionary.normalized_for(x[valid], LATENTS, TopK(3), seed=5)
    torch.testing.assert_close(mixer.encode(x, valid).z[valid], plain.encode(x[valid]).z)
    torch.testing.assert_close(mixer.directions, plain.directions)


def test_one_code_of_a_sequence_is_that_of_a_dictionary_of_all_its_tokens() -> None:
    what = reader("sequencewise", ReLU())
    flat = Dictionary(TOKENS * WIDTH, LATENTS, ReLU()).double()
    flat.load_state_dict(what.state_dict())
    x = states(what, 5)
    torch.testing.assert_close(what.encode(x).z, flat.encode(x.flatten(1)).z)
    torch.testing.assert_close(what.decode(what.encode(x).z).flatten(1), flat.decode(flat.encode(x.flatten(1)).z))
    assert what.directions.shape == (LATENTS, TOKENS * WIDTH)
    # what is not valid counts as b_dec, at which nothing is on but by the encoder's bias
    mean = (what.mean + what.scale * what.decoder_bias).view(TOKENS, WIDTH)
    filled = torch.where(VALID[1][:, None], x[1], mean)
    torch.testing.assert_close(what.encode(x[1], VALID[1]).pre, what.encode(filled).pre)


def test_sequences_are_normalized_where_they_are_valid() -> None:
    x = 5 * torch.randn(400, TOKENS, WIDTH) + torch.arange(float(TOKENS))[:, None] * 7
    valid = torch.rand(400, TOKENS) > 0.4
    what = Sequencewise.normalized_for(x.masked_fill(~valid[..., None], torch.inf), valid, LATENTS, ReLU())
    normalized = ((x - what.mean.view(TOKENS, WIDTH)) / what.scale).masked_fill(~valid[..., None], 0)
    torch.testing.assert_close(normalized.sum(0), torch.zeros(TOKENS, WIDTH), atol=1e-3, rtol=0)
    torch.testing.assert_close(normalized.square().sum((1, 2)).mean(), torch.tensor(1.0))
    with pytest.raises(ValueError, match="finite and differ"):
        Sequencewise.normalized_for(torch.ones(4, TOKENS, WIDTH), valid[:4], LATENTS, ReLU())


@both
@torch.no_grad()
def test_a_network_reads_on_from_a_spliced_sequence(name: str) -> None:
    case = CASES["blocks"]()
    valid = case.batch["valid"]
    what = Mixer(5, 8, 12, ReLU(), Mixing(1, 4, 6)) if name == "mixer" else Sequencewise(5, 8, 12, ReLU())
    for parameter in what.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    what.eval()

    def passed(batch: dict, do: object) -> dict[str, Tensor]:
        return case.model.run(batch, {"first": [Read("before"), do, Read("after")]}).hidden

    hidden = passed(case.batch, At(Where("valid"), Splice(what)))
    expected = what.decode(what.encode(hidden["before"], valid).z)
    torch.testing.assert_close(hidden["after"][valid], expected[valid])
    assert torch.equal(hidden["after"][~valid], hidden["before"][~valid])
    assert not torch.allclose(expected[valid], what.decode(what.encode(hidden["before"]).z)[valid])
    noise = {**case.batch, "x": torch.where(valid[..., None], case.batch["x"], 100.0)}
    assert torch.equal(passed(noise, Splice(what))["after"][valid], passed(case.batch, Splice(what))["after"][valid])
    with pytest.raises(ValueError, match="have 4 tokens, the dictionary reads sequences of 5; fill up"):
        what.encode(hidden["before"][:, :4])
    write = Write(what, [0, 3], lambda z, visit: z + 1)
    if name == "mixer":
        written = passed(case.batch, At(Where("valid"), write))
        change = (what.directions[0] + what.directions[3]).expand_as(expected[valid])
        torch.testing.assert_close((written["after"] - written["before"])[valid], change)
    else:
        with pytest.raises(ValueError, match="has width 40, the hidden state at 'first' 8"):
            passed(case.batch, write)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token, they have 0"):
        Sequencewise(0, WIDTH, LATENTS, ReLU())
    with pytest.raises(ValueError, match="at least one block"):
        Mixing(blocks=0)
    with pytest.raises(ValueError, match="have 1 tokens, the dictionary reads sequences of 4"):
        reader("mixer", ReLU()).encode(torch.zeros(1, WIDTH, dtype=torch.float64))
