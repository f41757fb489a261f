"""Convolutional dictionaries: latents share kernels that are moved along the features of a hidden state.

There are C kernels of K entries, and P positions on the d features: latent c · P + p is kernel c at position p, and the
first k of the C · P are kept, so that any number of latents can be had. The middle of position p is the middle of the
p-th of P equal stretches of the features, (p + ½) d / P, and its window are the K features nearest to that,

    first(p) = ⌊(p + ½) d / P − (K − 1) / 2⌋,   W[cP + p, j] = kernel[c, j − first(p)], zero outside of the window.

That is a convolution of stride d / P with "same" padding, where P divides d, and its transposed convolution decodes.
Where P does not, strides alternate between the two whole numbers next to d / P. Both are applied as the matrices
[k, d] that they are: for hidden states these products are as fast as any, and ``directions`` is one of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from innerspace.decompose.autoencoder import SparseAutoencoder, unit_rows
from innerspace.decompose.base import Code, Home
from innerspace.decompose.dictionary import moments
from innerspace.decompose.nonlinearities import Nonlinearity
from innerspace.decompose.sparse import project
from innerspace.value import Value


@dataclass(frozen=True)
class Kernels(Value):
    """The entries of each kernel, and how many kernels there may be; see ``Convolutional`` for how many there are."""

    size: int
    channels: int = 8

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels < 1:
            raise ValueError(f"kernels need a size and channels of at least 1, they are {self.size}, {self.channels}")


@final
class Convolutional(SparseAutoencoder):
    """A sparse autoencoder of which encoder and decoder are convolutions along the features.

    ``channels`` are as many as the kernels ask for, but so few that windows leave no feature out between them,
    ⌊k / ⌈d/K⌉⌋, and so many that no feature is the middle of two, ⌈k/d⌉. ``positions`` are ⌈k / channels⌉, or ⌈d/K⌉ if
    that is more. Fewer latents than ⌈d/K⌉ share one kernel and leave gaps, which are left to b_dec. Every kernel of the
    decoder has unit norm; rows at the edges, where windows hang over, have less. Encoder biases are those of kernels,
    learned numbers of the nonlinearity those of latents.

    Raises:
        ValueError: for sizes below one, a scale that is not positive, or settings that do not fit the latents.
    """

    place: Tensor

    def __init__(
        self,
        width: int,
        latents: int,
        nonlinearity: Nonlinearity,
        kernels: Kernels,
        *,
        mean: Float[Tensor, "{width}"] | None = None,
        scale: float = 1.0,
        seed: int = 0,
        home: Home | None = None,
    ) -> None:
        super().__init__(width, latents, nonlinearity, (width,), mean, scale, home)
        self.kernels = kernels
        least = -(-width // kernels.size)
        self.channels = max(min(kernels.channels, latents // least), -(-latents // width))
        self.positions = min(latents, max(-(-latents // self.channels), least))
        place = _places(width, self.positions, kernels.size)
        self.register_buffer("place", place, persistent=False)
        # entries that no window brings onto a feature would take part in the norm
        used = torch.bincount(place.flatten(), minlength=kernels.size + 1)[: kernels.size] > 0
        first = F.normalize(unit_rows(self.channels, kernels.size, torch.Generator().manual_seed(seed)) * used, dim=-1)
        self.decoder = nn.Parameter(first)
        self.encoder = nn.Parameter(first.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(self.channels))
        self.decoder_bias = nn.Parameter(torch.zeros(width))

    @classmethod
    def normalized_for(
        cls,
        rows: Float[Tensor, "rows d"],
        latents: int,
        nonlinearity: Nonlinearity,
        kernels: Kernels,
        *,
        seed: int = 0,
    ) -> "Convolutional":
        """A fresh one under whose normalization these rows have zero mean and a mean squared norm of one.

        Raises:
            ValueError: if the rows are not finite or all alike.
        """
        mean, variance = moments(rows)
        return cls(
            rows.shape[1], latents, nonlinearity, kernels, mean=mean.cpu(), scale=float(variance.sqrt()), seed=seed
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What it is made from, but for its numbers, as JSON."""
        return {
            "width": self.width,
            "latents": self.latents,
            "nonlinearity": self.nonlinearity.to_json(),
            "kernels": self.kernels.to_json(),
            "home": self._home,
        }

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Convolutional":
        """One of these settings, with numbers that are yet to come."""
        return cls(
            settings["width"],
            settings["latents"],
            Nonlinearity.from_json(settings["nonlinearity"]),
            Kernels.from_json(settings["kernels"]),
            home=None if settings["home"] is None else Home.from_json(settings["home"]),
        )

    @property
    def rows(self) -> Float[Tensor, "k d"]:
        """The transposed convolution as a matrix."""
        return self._matrix(self.decoder)

    def encode(self, x: Float[Tensor, "*rows d"]) -> Code:
        """The code of hidden states.

        Raises:
            ValueError: for hidden states of another width.
        """
        flat, shape = self._normalized(x)
        bias = self.encoder_bias.repeat_interleave(self.positions)[: self.latents]
        pre = project(flat, self.decoder_bias, self._matrix(self.encoder), bias)
        z, cost = self._activated(pre)
        return Code(z.reshape(shape), pre.reshape(shape), cost.reshape(shape[:-1]))

    def _matrix(self, kernels: Float[Tensor, "channels size"]) -> Float[Tensor, "k d"]:
        """W: every kernel at every position, cut off after the last latent."""
        padded = F.pad(kernels, (0, 1))
        return padded.index_select(1, self.place.flatten()).view(-1, self.width)[: self.latents]


def _places(width: int, positions: int, size: int) -> Tensor:
    """Which entry of a kernel lies on each feature [positions, width]; ``size``, the one that is zero, outside."""
    p = torch.arange(positions)
    first = ((2 * p + 1) * width - (size - 1) * positions).div(2 * positions, rounding_mode="floor")
    entry = torch.arange(width) - first[:, None]
    return torch.where((0 <= entry) & (entry < size), entry, size)
