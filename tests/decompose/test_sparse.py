"""Sparse codes against dense ones, and both against plain autograd of the formulas, for every nonlinearity and form."""

import copy

import pytest
import torch
from torch import Tensor

from decompose.formulas import (
    FORMS,
    LATENTS,
    WAYS,
    WIDTH,
    Encode,
    Plain,
    both,
    dense,
    dictionary,
    every,
    plain,
    states,
)
from innerspace.decompose import sparse
from innerspace.decompose.base import AnyCode, SparseCode
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import BatchTopK, Gated, Nonlinearity, TopK
from innerspace.decompose.sparse import Layout, Sparse, entries, linear, on_per_row, weighted_sum
from innerspace.learn.objectives import GateReconstruction
from innerspace.learn.trials import Trial


def functional(reconstruction: Tensor, cost: Tensor) -> Tensor:
    """A loss without symmetries."""
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    slope = torch.randn(len(cost), generator=generator, dtype=torch.float64)
    return (reconstruction.sin() * weight).sum() + (cost * slope).sum()


def expected_gradients(what: Dictionary, x: Tensor) -> tuple[Plain, dict[str, Tensor]]:
    """What the formulas say, and the gradients of ``functional`` (and, if gated, of the gate's reconstruction)."""
    x = x.clone().requires_grad_()
    found = plain(what, x)
    loss = functional(found.reconstruction, found.cost)
    if isinstance(what.nonlinearity, Gated):
        loss = loss + 0.3 * (x - found.gate).square().sum(-1).mean()
    inputs = {**found.parameters, "x": x}
    return found, dict(
        zip(inputs, torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True), strict=True)
    )


def found_gradients(what: Dictionary, x: Tensor, encode: Encode) -> tuple[AnyCode, Tensor, dict[str, Tensor]]:
    """What the library says."""
    x = x.clone().requires_grad_()
    code = encode(what, x)
    reconstruction = what.decode(code.z)
    loss = functional(reconstruction, code.cost)
    if isinstance(what.nonlinearity, Gated):
        loss = loss + GateReconstruction(0.3, unit="sum")(Trial(x, reconstruction, code, what, torch.tensor(1.0)))
    inputs = {**dict(what.named_parameters()), "x": x}
    gradients = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
    return code, reconstruction, dict(zip(inputs, gradients, strict=True))


@every
@pytest.mark.parametrize("tile", [1, 7 * 8 * LATENTS, 2**23], ids=["row by row", "seven rows", "one tile"])
def test_codes_and_all_gradients_are_those_of_the_formulas(
    nonlinearity: Nonlinearity, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "_TILE", tile)
    for form in FORMS:
        what = dictionary(nonlinearity, form)
        x = states(what)
        expected, gradients = expected_gradients(what, x)
        assert set(gradients) == {"x", *(name for name, _ in what.named_parameters())}
        for way, encode in WAYS.items():
            code, reconstruction, found = found_gradients(copy.deepcopy(what), x, encode)
            assert isinstance(code.z, Sparse) == (way == "sparse")
            torch.testing.assert_close(dense(code.z), expected.z, rtol=0, atol=1e-12)
            torch.testing.assert_close(code.cost, expected.cost, rtol=0, atol=1e-12)
            torch.testing.assert_close(reconstruction, expected.reconstruction, rtol=0, atol=1e-12)
            for name, gradient in gradients.items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10, msg=f"{form} {way} {name}")
        assert expected.z[:, :3].count_nonzero() == expected.z[5:8].count_nonzero() == 0 < expected.z.count_nonzero()


@both
@every
def test_a_code_may_be_empty(nonlinearity: Nonlinearity, way: str) -> None:
    what = dictionary(nonlinearity)
    with torch.no_grad():
        what.encoder_bias.fill_(-30)
    code, reconstruction, gradients = found_gradients(what, states(what, 9), WAYS[way])
    assert dense(code.z).count_nonzero() == code.cost.count_nonzero() == 0
    constant = (what.scale * what.decoder_bias + what.mean).expand(9, WIDTH)
    torch.testing.assert_close(reconstruction, constant)
    moved = {name for name, gradient in gradients.items() if gradient.count_nonzero()}
    # the gate's reconstruction is compared with the hidden states themselves
    assert moved == ({"decoder_bias", "x"} if isinstance(nonlinearity, Gated) else {"decoder_bias"})


@both
@every
def test_any_number_of_leading_axes(nonlinearity: Nonlinearity, way: str) -> None:
    what, encode = dictionary(nonlinearity), WAYS[way]
    x = states(what)
    flat, folded = encode(copy.deepcopy(what), x), encode(copy.deepcopy(what), x.view(4, 10, WIDTH))
    assert tuple(folded.z.shape) == tuple(dense(folded.pre).shape) == (4, 10, LATENTS)
    assert torch.equal(dense(folded.z).flatten(0, 1), dense(flat.z))
    assert torch.equal(folded.cost.flatten(), flat.cost)
    assert torch.equal(what.decode(folded.z).flatten(0, 1), what.decode(flat.z))
    assert torch.equal(on_per_row(folded.z), dense(folded.z).count_nonzero(-1))


@both
@every
def test_silent_latents_are_counted_alike(nonlinearity: Nonlinearity, way: str) -> None:
    what = dictionary(nonlinearity)
    what.silent.fill_(100)
    fired = (dense(WAYS[way](what, x := states(what)).z) != 0).any(0)
    assert what.silent.tolist() == [0 if on else 140 for on in fired.tolist()]
    assert 0 < fired.sum() < LATENTS
    assert isinstance(code := what.eval().encode_sparse(x), SparseCode)
    assert torch.equal(code.z.fired(), (code.z.dense() != 0).any(0))
    assert torch.equal(code.z.frequency(), code.z.dense().count_nonzero(0))


@every
def test_the_same_bits_at_every_run(nonlinearity: Nonlinearity) -> None:
    what = dictionary(nonlinearity).float()
    x = states(what.double(), 300).float()
    what.float()

    def run() -> list[Tensor]:
        code, reconstruction, gradients = found_gradients(copy.deepcopy(what), x, Dictionary.encode_sparse)
        return [dense(code.z), code.cost, reconstruction, *gradients.values()]

    first = run()
    for _ in range(3):
        assert all(torch.equal(one, other) for one, other in zip(first, run(), strict=True))


@pytest.mark.parametrize("last", [0.01, 0.5, 3.0, 1000.0], ids=["far too low", "too low", "too high", "far too high"])
@both
def test_batch_topk_keeps_exactly_k_per_row_whatever_bound_it_guesses(way: str, last: float) -> None:
    what = dictionary(BatchTopK(2))
    what.get_buffer("last").fill_(last)
    x = states(what)
    z = dense(WAYS[way](what, x).z)
    wanted = plain(what, x)
    assert z.count_nonzero() == 2 * len(x)
    torch.testing.assert_close(z, wanted.z)
    smallest = z[z > 0].min()
    torch.testing.assert_close(what.get_buffer("last"), smallest.detach())


@both
def test_batch_topk_chooses_among_equals(way: str) -> None:
    what = dictionary(BatchTopK(2))
    x = states(what, 1)[:1].expand(30, WIDTH)
    for _ in range(3):
        z = dense(WAYS[way](what, x).z)
        assert z.count_nonzero() == 60
    # few are positive: all of them are kept
    with torch.no_grad():
        what.encoder_bias.copy_(torch.where(torch.arange(LATENTS) == 7, 0.5, -30))
        what.encoder[7] = 0
    z = dense(WAYS[way](what, x).z)
    assert z.count_nonzero(0).tolist() == [30 if i == 7 else 0 for i in range(LATENTS)]


@both
def test_batch_topk_goes_by_its_threshold_after_training(way: str) -> None:
    what = dictionary(BatchTopK(2, memory=0.9))
    encode, lows = WAYS[way], list[float]()
    untrained = copy.deepcopy(what).eval()
    x = states(what)
    assert dense(encode(untrained, x).z).count_nonzero() == 80
    for _ in range(5):
        z = dense(encode(what, 3 * torch.randn(40, WIDTH, dtype=torch.float64)).z)
        lows.append(float(z[z > 0].detach().min()))
    threshold = lows[0]
    for low in lows[1:]:
        threshold = 0.9 * threshold + 0.1 * low
    assert float(what.get_buffer("threshold")) == pytest.approx(threshold)
    what.eval()
    pre = plain(what, x).pre
    torch.testing.assert_close(dense(encode(what, x).z), pre * (pre > threshold))
    # rows no longer compete
    torch.testing.assert_close(dense(encode(what, x[:1]).z), dense(encode(what, x).z)[:1])
    assert float(what.get_buffer("threshold")) == pytest.approx(threshold)


def test_products_with_one_entry_many_or_none() -> None:
    layout = Layout(torch.tensor([4, 0, 4]), torch.tensor([0, 2, 2, 3]), 5)
    code = Sparse(torch.tensor([1.0, -2.0, 0.0]), layout, (3, 5))
    expected = torch.tensor([[-2.0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert torch.equal(code.dense(), expected)
    assert layout.row.tolist() == [0, 0, 2]
    assert code.count().tolist() == [2, 0, 0]
    assert code.frequency().tolist() == [1, 0, 0, 0, 1]
    assert code.row_sums().tolist() == [-1, 0, 0]
    assert [item.tolist() for item in layout.by_latent] == [[1, 0, 2], [0, 1, 1, 1, 1, 3]]
    assert repr(code) == "Sparse(3 × 5, 3 entries)"


def wide(kind: str, latents: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    pre = torch.randn(60, latents, generator=generator)
    match kind:
        case "ties":
            return pre.round()
        case "alike":
            return torch.full_like(pre, 0.5)
        case "one group":
            return torch.where(torch.arange(latents) // 8 == 5, pre.abs() + 9, pre)
        case "negative":
            return -pre.abs() - 1
        case "bfloat16":
            return pre.bfloat16()
        case _:
            return pre


@pytest.mark.parametrize("kind", ["random", "ties", "alike", "one group", "negative", "bfloat16"])
@pytest.mark.parametrize("nonlinearity", [TopK(1), TopK(7), TopK(32), BatchTopK(1), BatchTopK(7)], ids=repr)
@pytest.mark.parametrize("latents", [250, 256, 320, 2048])
def test_the_largest_are_those_of_a_sort(nonlinearity: TopK | BatchTopK, kind: str, latents: int) -> None:
    pre = wide(kind, latents)
    numbers = {name: item.clone() for name, item in nonlinearity.running().items()}
    # the second time a BatchTopK knows where the bound was
    for _ in range(2):
        blocks = pre[:13], pre[13:14], pre[14:]
        values, latent, offsets = nonlinearity.support(lambda: iter(blocks), numbers, training=True)  # noqa: B023
        row = torch.arange(60).repeat_interleave(offsets.diff())
        assert len(set(zip(row.tolist(), latent.tolist(), strict=True))) == len(values)
        assert torch.equal(pre[row, latent].to(values), values)
        if isinstance(nonlinearity, TopK):
            found = values.view(60, nonlinearity.k).sort(descending=True).values
            expected = pre.to(values).sort(descending=True).values[:, : nonlinearity.k]
        else:
            expected = pre[pre > 0].to(values).sort(descending=True).values[: 60 * nonlinearity.k]
            found = values.sort(descending=True).values
        assert torch.equal(found, expected)


def test_linear_is_the_product_in_every_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, matrix, bias = (torch.randn(shape, generator=generator) for shape in ((9, 33), (70, 33), (70,)))
    exact = rows.double() @ matrix.double().T + bias.double()
    for kind, error in ((torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        found = linear(rows.to(kind), matrix.to(kind), bias.to(kind))
        torch.testing.assert_close(found.double(), exact, rtol=error, atol=20 * error)
        # rows and columns of other matrices, as they come
        found = linear(rows[::2].to(kind), matrix.T.contiguous().T.to(kind))
        torch.testing.assert_close(found.double(), (exact - bias)[::2], rtol=error, atol=20 * error)


def test_sums_of_halves_are_rounded_once() -> None:
    """Under autocast decoding and the gradients are sums of products of halves, exact until their end."""
    count, width, latents, k = 600, 64, 40, 8
    generator = torch.Generator().manual_seed(3)
    rows, decoder, weight = (torch.randn(n, width, generator=generator) for n in (count, latents, count))
    encoder, bias = torch.randn(latents, width, generator=generator), torch.zeros(latents)
    leaves = [leaf.requires_grad_() for leaf in (encoder, bias, decoder)]
    with torch.autocast("cpu", torch.bfloat16):
        values, layout = entries(rows, None, encoder, bias, lambda tiles: TopK(k).support(tiles, {}, training=True))
        values.retain_grad()
        written = weighted_sum(Sparse(values, layout, (count, latents)), decoder)
    assert written.dtype == torch.float32
    (written * weight).sum().backward()
    assert values.grad is not None

    def halves(x: Tensor) -> Tensor:
        return x.detach().bfloat16().double()

    code, slope = (Sparse(halves(x), layout, (count, latents)).dense() for x in (values, values.grad))
    on = Sparse(torch.ones_like(values), layout, (count, latents)).dense().double()
    exact = {
        written: code @ halves(decoder),
        decoder.grad: code.T @ halves(weight),
        encoder.grad: slope.T @ halves(rows),
        Sparse(values.grad, layout, (count, latents)).dense(): on * (halves(weight) @ halves(decoder).T),
    }
    for found, expected in exact.items():
        assert found is not None
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-5 * float(expected.abs().max()))
    assert all(leaf.grad is not None and leaf.grad.dtype == torch.float32 for leaf in leaves)
