"""Counted operations are those that the formulas of a step name."""

import pytest
import torch

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import Nonlinearity, ReLU, TopK
from innerspace.language.divergence import Unembedding, kl_divergence
from innerspace.measure.flops import flops

ROWS, WIDTH, LATENTS, K = 40, 16, 512, 4


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize(
    ("nonlinearity", "forward", "backward"),
    [
        # an encoder; a decoder, two gradients of weights and the one of the codes, all of k latents for each row
        (TopK(K), LATENTS + K, 3 * K),
        (ReLU(), 2 * LATENTS, 3 * LATENTS),
    ],
    ids=repr,
)
def test_a_dictionary_takes_what_its_products_take(
    nonlinearity: Nonlinearity, forward: int, backward: int, lowered: bool
) -> None:
    what, x, found = Dictionary(WIDTH, LATENTS, nonlinearity), torch.randn(ROWS, WIDTH), list[torch.Tensor]()

    def reconstruct() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            found.append(what.decode(what.code(x).z))

    unit = 2 * ROWS * WIDTH
    assert flops(reconstruct) == unit * forward
    # the gradient of the bias before encoding is one product with the encoder, that of the latents' bias one bag
    more = 2 * LATENTS * WIDTH, 2 * ROWS * K * (nonlinearity != ReLU())
    assert flops(lambda: found[0].sum().backward()) == unit * backward + sum(more)


@pytest.mark.parametrize("rows", [1, 700])
def test_a_divergence_takes_three_products(rows: int) -> None:
    unembedding = Unembedding(torch.randn(300, WIDTH))
    clean, other = torch.randn(2, rows, WIDTH)
    other.requires_grad_()
    inner = 2 * 2 * rows * 300
    assert flops(lambda: kl_divergence(clean, other, unembedding)) == 3 * 2 * rows * 300 * WIDTH + inner
