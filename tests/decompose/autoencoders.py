"""Every kind of autoencoder, small, in float64, with no parameter at a special value: what the laws hold for."""

from collections.abc import Callable

import torch
from torch import Tensor

from decompose.formulas import NONLINEARITIES
from innerspace.decompose.autoencoder import Autoencoder, SparseAutoencoder
from innerspace.decompose.convolutional import Convolutional, Kernels
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.koopman import Koopman
from innerspace.decompose.mixer import Mixer, Mixing
from innerspace.decompose.nonlinearities import BatchTopK, Nonlinearity
from innerspace.decompose.sequence import SequenceAutoencoder, Sequencewise

TOKENS, WIDTH, LATENTS, SCALE = 4, 6, 12, 2.5
MIXING = Mixing(blocks=2, token_hidden=3, channel_hidden=5)


def mean(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


SPARSE: dict[str, Callable[[Nonlinearity], SparseAutoencoder]] = {
    "dictionary": lambda act: Dictionary(WIDTH, LATENTS, act, mean=mean(WIDTH), scale=SCALE),
    "convolutional": lambda act: Convolutional(WIDTH, LATENTS, act, Kernels(3, 2), mean=mean(WIDTH), scale=SCALE),
    "mixer": lambda act: Mixer(TOKENS, WIDTH, LATENTS, act, MIXING, mean=mean(WIDTH), scale=SCALE),
    "sequencewise": lambda act: Sequencewise(TOKENS, WIDTH, LATENTS, act, mean=mean(TOKENS, WIDTH), scale=SCALE),
}


def shaken(what: Autoencoder, seed: int = 7) -> Autoencoder:
    """In evaluation mode, with all parameters moved; what follows batches has seen one."""
    what = what.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in what.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        what.retract()
        if isinstance(what, SparseAutoencoder) and isinstance(what.nonlinearity, BatchTopK):
            what.encode(states(what, 30, seed=2))
    return what.eval()


def sparse(name: str, nonlinearity: Nonlinearity) -> SparseAutoencoder:
    what = shaken(SPARSE[name](nonlinearity))
    assert isinstance(what, SparseAutoencoder)
    return what


CASES: dict[str, Callable[[], Autoencoder]] = {
    f"{name} {type(act).__name__}": lambda name=name, act=act: sparse(name, act)
    for name in SPARSE
    for act in NONLINEARITIES
} | {
    "koopman constant": lambda: shaken(Koopman(WIDTH, LATENTS, mean=mean(WIDTH), scale=SCALE)),
    "koopman input": lambda: shaken(Koopman(WIDTH, LATENTS, "input", mean=mean(WIDTH), scale=SCALE)),
}


def states(what: Autoencoder, count: int, seed: int = 1) -> Tensor:
    """Hidden states of the shape that it reads: so many rows, or sequences."""
    shape = (count, TOKENS, WIDTH) if isinstance(what, SequenceAutoencoder) else (count, WIDTH)
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
