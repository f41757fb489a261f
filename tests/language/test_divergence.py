"""The divergence in chunks against the plain formulation: values, gradients, precision, memory."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from innerspace.language import divergence
from innerspace.language.divergence import Unembedding, cross_entropy, kl_divergence, next_token

HEADS = {
    "plain": (False, None, 1.0),
    "bias": (True, None, 1.0),
    "softcap": (False, 2.5, 1.0),
    "everything": (True, 4.0, 0.3),
}


def head(name: str, dtype: torch.dtype = torch.float64) -> Unembedding:
    bias, softcap, scale = HEADS[name]
    weight = torch.randn(37, 6, dtype=dtype)
    return Unembedding(weight, torch.randn(37, dtype=dtype) if bias else None, softcap, scale)


def states(n: int = 23, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    clean = torch.randn(n, 6, dtype=dtype)
    return clean, clean + 0.4 * torch.randn(n, 6, dtype=dtype)


def logits(hidden: Tensor, unembedding: Unembedding) -> Tensor:
    z = hidden @ unembedding.weight.T
    z = unembedding.scale * (z if unembedding.bias is None else z + unembedding.bias)
    return z if unembedding.softcap is None else unembedding.softcap * torch.tanh(z / unembedding.softcap)


def plain(clean: Tensor, other: Tensor, unembedding: Unembedding) -> Tensor:
    p, q = (F.log_softmax(logits(hidden, unembedding), -1) for hidden in (clean, other))
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


def with_gradient(value: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return value.detach(), torch.autograd.grad(value, other)[0]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk", [None, 1, 5, 23, 100])
def test_value_and_gradient_are_those_of_the_plain_form(name: str, chunk: int | None) -> None:
    unembedding, (clean, other) = head(name), states()
    other.requires_grad_()
    value, grad = with_gradient(kl_divergence(clean, other, unembedding, chunk=chunk), other)
    expected, expected_grad = with_gradient(plain(clean, other, unembedding), other)
    assert value > 0.01
    torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(grad, expected_grad, atol=1e-10, rtol=0)
    with torch.no_grad():
        assert torch.equal(kl_divergence(clean, other, unembedding, chunk=chunk), value)
    for form in (clean, other):
        torch.testing.assert_close(unembedding.logits(form), logits(form, unembedding))


def test_the_teacher_comes_first() -> None:
    p, q = torch.tensor([0.9, 0.1], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    found = kl_divergence(p.log()[None], q.log()[None], Unembedding(torch.eye(2, dtype=torch.float64)))
    assert found.item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_gradcheck(name: str) -> None:
    unembedding, (clean, other) = head(name), states(4)
    other.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: 3 * kl_divergence(clean, x, unembedding, chunk=3), (other,))


@pytest.mark.parametrize("name", HEADS)
def test_in_single_precision_it_is_as_exact_as_the_plain_form(name: str) -> None:
    unembedding, (clean, other) = head(name, torch.float32), states(500, torch.float32)
    other.requires_grad_()
    value, grad = with_gradient(kl_divergence(clean, other, unembedding, chunk=64), other)
    expected, expected_grad = with_gradient(plain(clean, other, unembedding), other)
    assert value.dtype == grad.dtype == torch.float32
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grad, expected_grad, atol=1e-6 * expected_grad.abs().max().item(), rtol=1e-5)


def test_no_divergence_from_itself() -> None:
    clean, _ = states(9, torch.float32)
    other = clean.clone().requires_grad_()
    value, grad = with_gradient(kl_divergence(clean, other, head("plain", torch.float32)), other)
    assert value == 0
    assert not grad.any()


def test_logits_far_from_zero_lose_no_more_than_their_rounding() -> None:
    unembedding, (clean, other) = head("bias", torch.float32), states(64, torch.float32)
    assert unembedding.bias is not None
    far = Unembedding(unembedding.weight, unembedding.bias - 100)
    found, expected = kl_divergence(clean, other, far), kl_divergence(clean, other, unembedding)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_touches_the_products_only(autocast: bool) -> None:
    unembedding, (clean, other) = head("everything", torch.float32), states(200, torch.float32)
    exact = other.clone().requires_grad_()
    expected, expected_grad = with_gradient(kl_divergence(clean, exact, unembedding), exact)
    if not autocast:
        unembedding = Unembedding(
            unembedding.weight.bfloat16(), unembedding.bias.bfloat16(), unembedding.softcap, unembedding.scale
        )
        clean, other = clean.bfloat16(), other.bfloat16()
    other.requires_grad_()
    with torch.autocast("cpu", enabled=autocast):
        value, grad = with_gradient(kl_divergence(clean, other, unembedding, chunk=48), other)
    assert value.dtype == torch.float32
    assert grad.dtype == other.dtype
    assert value.item() == pytest.approx(expected.item(), rel=0.02)
    assert F.cosine_similarity(grad.float().flatten(), expected_grad.flatten(), dim=0) > 0.999
    assert grad.float().norm() == pytest.approx(expected_grad.norm().item(), rel=0.02)


class Products(TorchDispatchMode):
    """Counts products with the vocabulary, and the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += "mm" in str(func)
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel())
        return out


def test_further_students_spare_the_teachers_product() -> None:
    unembedding, (clean, other) = head("everything"), states()
    second = (other + torch.randn_like(other)).requires_grad_()
    expected = with_gradient(plain(clean, second, unembedding), second)
    memo = dict[str, Tensor]()
    other.requires_grad_()
    with Products() as first_time:
        first = kl_divergence(clean, other, unembedding, memo, chunk=23)
    torch.testing.assert_close(first, plain(clean, other, unembedding))
    with Products() as second_time:
        found = kl_divergence(clean, second, unembedding, memo, chunk=23)
    assert (first_time.count, second_time.count) == (3, 2)
    torch.testing.assert_close(with_gradient(found, second), expected, atol=1e-10, rtol=0)


def test_what_is_remembered_of_other_rows_is_not_used() -> None:
    unembedding, (clean, other) = head("plain"), states()
    memo = dict[str, Tensor]()
    kl_divergence(clean, other, unembedding, memo)
    for rows in (slice(4, 9), slice(None)):
        shifted = clean[rows] + 1
        found = kl_divergence(shifted, other[rows], unembedding, memo)
        torch.testing.assert_close(found, plain(shifted, other[rows], unembedding))


def test_nothing_is_remembered_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    unembedding, (clean, other) = head("plain"), states()
    memo = dict[str, Tensor]()
    monkeypatch.setattr(divergence, "_MEMO", 23 * 37 * 8 - 1)
    kl_divergence(clean, other, unembedding, memo)
    assert not memo
    monkeypatch.setattr(divergence, "_MEMO", 23 * 37 * 8)
    kl_divergence(clean, other, unembedding, memo)
    assert memo


def test_no_tensor_of_tokens_times_vocabulary_and_no_gradient_unasked() -> None:
    unembedding, (clean, other) = head("everything"), states(200)
    with Products() as judged:
        kl_divergence(clean, other, unembedding, chunk=10)
    other.requires_grad_()
    with Products() as trained:
        kl_divergence(clean, other, unembedding, chunk=10).backward()
    assert (judged.count, trained.count) == (40, 60)
    assert judged.largest <= 200 * 6
    assert trained.largest <= 200 * 6


def test_the_teacher_and_the_unembedding_get_no_gradient() -> None:
    unembedding, (clean, other) = head("bias"), states()
    for constant in (unembedding.weight, clean):
        constant.requires_grad_()
    other.requires_grad_()
    kl_divergence(clean, other, unembedding).backward()
    assert other.grad is not None
    assert clean.grad is None
    assert unembedding.weight.grad is None
    value = kl_divergence(clean, other, unembedding)
    grads = [torch.autograd.grad(value, other, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk", [None, 4])
def test_what_is_said_of_the_next_token(name: str, chunk: int | None) -> None:
    unembedding, (clean, other) = head(name), states()
    targets = torch.randint(37, (23,))
    found = next_token(clean, other, targets, unembedding, chunk)
    p, q = logits(clean, unembedding).softmax(-1), logits(other, unembedding).softmax(-1)
    torch.testing.assert_close(found.clean, F.cross_entropy(p.log(), targets, reduction="none"), atol=1e-10, rtol=0)
    torch.testing.assert_close(found.other, F.cross_entropy(q.log(), targets, reduction="none"), atol=1e-10, rtol=0)
    torch.testing.assert_close(found.kl.mean(), plain(clean, other, unembedding), atol=1e-10, rtol=0)
    assert torch.equal(found.agree, p.argmax(-1) == q.argmax(-1))
    assert 0 < found.agree.double().mean() < 1
    torch.testing.assert_close(found.distance, (p - q).abs().sum(-1) / 2, atol=1e-10, rtol=0)
    torch.testing.assert_close(cross_entropy(other, targets, unembedding, chunk), found.other, atol=1e-10, rtol=0)


def test_what_cannot_be_judged_is_refused() -> None:
    unembedding, (clean, other) = head("plain"), states()
    targets = torch.zeros(23, dtype=torch.int64)
    with pytest.raises(ValueError, match="no row"):
        kl_divergence(clean[:0], other[:0], unembedding)
    with pytest.raises(ValueError, match="width 5, the unembedding reads width 6"):
        kl_divergence(clean[:, 1:], other[:, 1:], unembedding)
    # the shape checks of the tests come first, those of users do not
    with pytest.raises(ValueError, match=r"shapes \(23, 6\) and \(22, 6\)"):
        divergence._check(unembedding, None, clean, other[1:])
    with pytest.raises(ValueError, match="23 rows and 22 targets"):
        divergence._check(unembedding, None, clean, targets=targets[1:])
    with pytest.raises(ValueError, match="at least one row, not 0"):
        kl_divergence(clean, other, unembedding, chunk=0)
    with pytest.raises(ValueError, match=r"softcap should be positive, it is 0\.0"):
        Unembedding(unembedding.weight, softcap=0.0)
