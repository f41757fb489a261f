"""Convolutional dictionaries: any sizes, the stated windows, PyTorch's own convolutions, and the published sizes."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from innerspace.decompose.convolutional import Convolutional, Kernels
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import ReLU, TopK
from innerspace.learn.fit import FitConfig, fit
from innerspace.learn.objectives import Reconstruction
from innerspace.learn.trials import local
from innerspace.measure.fidelity import row_fidelity

SIZES, KERNELS = (512, 256, 128, 64, 32, 16), (4, 64, 128)


def shaken(width: int, latents: int, kernels: Kernels) -> Convolutional:
    what = Convolutional(width, latents, ReLU(), kernels).double()
    with torch.no_grad():
        for parameter in what.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return what


def published(latents: int, kernel: int, width: int = 128) -> tuple[int, int]:
    """The lengths of code and reconstruction of the published layers, by PyTorch; strides as whole numbers."""
    x = torch.zeros(1, 1, width)
    times = max(latents // width, width // latents)
    up, down = nn.ConvTranspose1d(1, 1, kernel, stride=times), nn.Conv1d(1, 1, kernel, stride=times)
    encoder, decoder = (up, down) if latents >= width else (down, up)
    with torch.no_grad():
        code = encoder(x)
        return code.shape[-1], decoder(code).shape[-1]


def test_every_published_size_is_exact_here_and_two_of_them_are_there() -> None:
    x = torch.randn(3, 128)
    exact = set[tuple[int, int]]()
    for latents, kernel in itertools.product(SIZES, KERNELS):
        what = Convolutional(128, latents, ReLU(), Kernels(kernel))
        code = what.encode(x)
        assert code.z.shape == code.pre.shape == (3, latents)
        assert what.decode(code.z).shape == x.shape
        assert what.directions.shape == (latents, 128)
        if published(latents, kernel) == (latents, 128):
            exact.add((latents, kernel))
    assert exact == {(512, 4), (32, 4)}
    expected = {(256, 4): 258, (128, 4): 131, (64, 4): 63, (16, 4): 16, (512, 64): 572, (128, 64): 191, (64, 64): 33}
    assert {sizes: published(*sizes)[0] for sizes in expected} == expected
    assert published(16, 4) == (16, 124)
    assert {published(latents, 128)[0] for latents in (64, 32, 16)} == {1}


def test_any_width_number_of_latents_and_kernel() -> None:
    for width, latents, size, channels in itertools.product((1, 2, 5, 9), (1, 2, 3, 7, 20), (1, 2, 3, 8, 12), (1, 3)):
        what = shaken(width, latents, Kernels(size, channels))
        matrix = what.rows
        assert matrix.shape == (latents, width)
        assert (matrix != 0).any(1).all()
        assert what.positions <= width
        gaps = int((matrix == 0).all(0).sum())
        # a gap only where even one kernel cannot reach everything
        assert (gaps > 0) == (latents * size < width), (width, latents, size, channels)
        # no two latents are the same by construction
        assert len(matrix.unique(dim=0)) == latents


def window(width: int, positions: int, p: int, size: int) -> int:
    """The first feature of a window, as the file states it."""
    return int((torch.tensor((p + 0.5) * width / positions - (size - 1) / 2, dtype=torch.float64)).floor())


@pytest.mark.parametrize(("width", "latents", "size"), [(12, 12, 3), (12, 30, 4), (7, 5, 3), (12, 8, 5), (5, 9, 9)])
def test_rows_are_kernels_at_the_stated_windows(width: int, latents: int, size: int) -> None:
    what = shaken(width, latents, Kernels(size, 4))
    for i in range(latents):
        channel, p = divmod(i, what.positions)
        first = window(width, what.positions, p, size)
        expected = torch.zeros(width, dtype=torch.float64)
        for entry in range(size):
            if 0 <= first + entry < width:
                expected[first + entry] = what.decoder[channel, entry].detach()
        torch.testing.assert_close(what.rows[i], expected)


@pytest.mark.parametrize(("latents", "size"), [(48, 3), (48, 4), (24, 5), (16, 12), (4, 7), (8, 31)])
def test_encoder_and_decoder_are_pytorchs_convolutions(latents: int, size: int) -> None:
    width = 24
    what = shaken(width, latents, Kernels(size, 2 if latents > 4 else 1))
    stride, first = width // what.positions, window(width, what.positions, 0, size)
    assert what.positions * what.channels == latents
    # as much padding on the left as the first window hangs over, and enough on the right
    left, right = -first, size + width
    x = torch.randn(3, width, dtype=torch.float64)
    centered = F.pad((x - what.decoder_bias)[:, None], (max(left, 0), right))[..., max(-left, 0) :]
    pre = F.conv1d(centered, what.encoder[:, None], what.encoder_bias, stride=stride)[..., : what.positions]
    torch.testing.assert_close(what.encode(x).pre, pre.flatten(1))
    z = torch.rand(3, latents, dtype=torch.float64)
    written = F.conv_transpose1d(z.unflatten(1, (what.channels, -1)), what.decoder[:, None], stride=stride)[:, 0]
    written = F.pad(written, (max(-left, 0), right))[:, max(left, 0) :][:, :width]
    torch.testing.assert_close(what.decode(z), written + what.decoder_bias)


def test_a_shifted_state_has_a_shifted_code() -> None:
    what = shaken(16, 48, Kernels(3, 3))
    with torch.no_grad():
        what.decoder_bias.fill_(0.0)
    x = torch.zeros(16, dtype=torch.float64)
    x[5:8] = torch.randn(3, dtype=torch.float64)
    one, other = (what.encode(state).z.view(3, 16) for state in (x, x.roll(4)))
    torch.testing.assert_close(other[:, 4:], one[:, :-4])


def rows(count: int) -> Tensor:
    """Bumps of two shapes anywhere: structure that does not depend on the place."""
    generator = torch.Generator().manual_seed(2)
    shapes = torch.tensor([[1.0, 2.0, 1.0], [1.0, -1.0, 1.0]])
    x = torch.zeros(count, 2, 34)
    for _ in range(3):
        place = torch.randint(32, (count, 1), generator=generator)
        kind = torch.randint(2, (count,), generator=generator)
        bump = torch.zeros(count, 34).scatter_(1, place + torch.arange(3), shapes[kind])
        x[torch.arange(count), kind] += bump
    return x.sum(1)[:, 1:-1]


def test_shared_kernels_learn_from_few_rows() -> None:
    few, held_out = rows(300)[:150], rows(1000)[500:]
    kernels = Kernels(3, 2)
    found = list[float]()
    for what in (
        Convolutional.normalized_for(few, 64, TopK(3), kernels),
        Dictionary.normalized_for(few, 64, TopK(3)),
    ):
        fit(what, local(few, 50, 0), (Reconstruction(),), FitConfig(300, 1e-2, log_every=300))
        found.append(row_fidelity(what, held_out).explained_variance)
    assert found[0] > 0.8
    assert found[0] > found[1] + 0.1, found
