"""Shortcuts to the entries that pass: they find what the long way finds, also among ties and numbers that are none."""

import pytest
import torch
from torch import Tensor

from innerspace.decompose.nonlinearities import BatchTopK, TopK
from innerspace.decompose.sparse import row_products

ROWS, LATENTS, K = 50, 256, 4


def numbers(dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Few enough different ones, in half precision, that there are ties."""
    return torch.randn(ROWS, LATENTS, generator=torch.Generator().manual_seed(seed)).to(dtype)


def selected(what: TopK | BatchTopK, pre: Tensor, running: dict[str, Tensor], tile: int = 16) -> Tensor:
    """Pre-activations where they were selected, zero elsewhere."""
    found = what.support(lambda: iter(pre.split(tile)), running, training=True)
    row = torch.arange(len(pre)).repeat_interleave(found.offsets.diff())
    torch.testing.assert_close(found.pre, pre[row, found.latent], check_dtype=False, equal_nan=True)
    return torch.zeros_like(pre).index_put((row, found.latent), pre[row, found.latent])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("latents", [K, 100, 224, LATENTS])
def test_topk_finds_the_largest_of_each_row(dtype: torch.dtype, latents: int) -> None:
    pre = numbers(dtype)[:, :latents].contiguous()
    best = selected(TopK(K), pre, {}).sort(-1, descending=True).values
    # entries that were not selected stand as zeros among them
    positive = best.clamp(min=0)[:, :K]
    torch.testing.assert_close(positive, pre.sort(-1, descending=True).values[:, :K].clamp(min=0), rtol=0, atol=0)


def test_topk_of_equal_numbers_keeps_k() -> None:
    assert (selected(TopK(K), torch.ones(ROWS, LATENTS), {}).sum(-1) == K).all()


def test_topk_does_not_lose_what_is_no_number() -> None:
    pre = numbers(torch.float32)
    pre[3, 7], pre[4] = torch.nan, torch.nan
    found = selected(TopK(K), pre, {})
    assert found[3, 7].isnan()
    assert found[4].isnan().sum() == K
    assert found[5:].isfinite().all()


def test_topk_keeps_the_largest_where_all_are_negative() -> None:
    pre = -1 - numbers(torch.float32).abs()
    assert (selected(TopK(K), pre, {}) != 0).sum() == ROWS * K


@pytest.mark.parametrize("latents", [100, LATENTS])
@pytest.mark.parametrize("last", [-1.0, 0.01, 1.5, 100.0])
def test_batch_topk_finds_the_largest_of_all_whatever_it_expected(latents: int, last: float) -> None:
    pre = numbers(torch.float32)[:, :latents].contiguous()
    running = {"threshold": torch.tensor(-1.0), "last": torch.tensor(last)}
    found = selected(BatchTopK(K), pre, running).flatten().sort(descending=True).values[: ROWS * K]
    expected = pre.flatten().sort(descending=True).values[: ROWS * K]
    assert torch.equal(found, expected)
    assert running["last"] == expected[-1]


def test_row_products_are_inner_products() -> None:
    one, other = numbers(torch.float64), numbers(torch.float64, seed=1)
    torch.testing.assert_close(row_products(one, other), (one * other).sum(-1))
