"""Dictionaries whose encoder is an MLP-Mixer: each token's code depends on the whole sequence, decoding on it alone.

Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", NeurIPS 2021, arXiv 2105.01601, with one change:
there is no norm behind the last block, so that what a token is long ago passes to its code, which has to say how far.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from innerspace.decompose.autoencoder import unit_rows
from innerspace.decompose.base import Code, Home
from innerspace.decompose.dictionary import moments
from innerspace.decompose.nonlinearities import Nonlinearity
from innerspace.decompose.sequence import SequenceAutoencoder
from innerspace.decompose.sparse import project
from innerspace.value import Value


@dataclass(frozen=True)
class Mixing(Value):
    """How many blocks there are, and how wide the hidden layers of their two MLPs are."""

    blocks: int = 2
    token_hidden: int = 32
    channel_hidden: int = 256

    def __post_init__(self) -> None:
        if min(self.blocks, self.token_hidden, self.channel_hidden) < 1:
            raise ValueError(f"a mixer needs at least one block and hidden layers of at least 1, it has {self}")


@final
class Mixer(SequenceAutoencoder):
    """A sparse autoencoder with a code for each token, which an MLP-Mixer over the sequence gives.

    With h = x_n − b_dec, and zero at every token that is not valid, each block adds

        h ← h + MLP_tokens(LN(h)) along the tokens,   h ← h + MLP_channels(LN(h)) along the features,

    with GELU inside, and pre = h W_encᵀ + b_enc. Tokens that are not valid enter neither, and have the code zero. The
    decoder is that of a ``Dictionary``: x̂_t depends on z_t alone, linearly. A block begins as the identity, so that a
    fresh mixer is a fresh dictionary. Tokens also read those that come later, as a network with a causal mask does not.

    Raises:
        ValueError: for sizes below one, a scale that is not positive, or settings that do not fit the latents.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        latents: int,
        nonlinearity: Nonlinearity,
        mixing: Mixing = Mixing(),
        *,
        mean: Float[Tensor, "{width}"] | None = None,
        scale: float = 1.0,
        seed: int = 0,
        home: Home | None = None,
    ) -> None:
        super().__init__(tokens, width, latents, nonlinearity, (width,), mean, scale, home)
        self.mixing = mixing
        generator = torch.Generator().manual_seed(seed)
        first = unit_rows(latents, width, generator)
        self.decoder = nn.Parameter(first)
        self.encoder = nn.Parameter(first.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(latents))
        self.decoder_bias = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(_Block(tokens, width, mixing, generator) for _ in range(mixing.blocks))

    @classmethod
    def normalized_for(
        cls,
        x: Float[Tensor, "n token d"],
        valid: Bool[Tensor, "n token"],
        latents: int,
        nonlinearity: Nonlinearity,
        mixing: Mixing = Mixing(),
        *,
        seed: int = 0,
    ) -> "Mixer":
        """A fresh one under whose normalization valid tokens have zero mean and a mean squared norm of one.

        Raises:
            ValueError: if valid tokens are not finite or all alike.
        """
        mean, variance = moments(x[valid])
        scale, (_, tokens, width) = float(variance.sqrt()), x.shape
        return cls(tokens, width, latents, nonlinearity, mixing, mean=mean.cpu(), scale=scale, seed=seed)

    @property
    def settings(self) -> dict[str, Any]:
        """What it is made from, but for its numbers, as JSON."""
        return {
            "tokens": self.tokens,
            "width": self.width,
            "latents": self.latents,
            "nonlinearity": self.nonlinearity.to_json(),
            "mixing": self.mixing.to_json(),
            "home": self._home,
        }

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Mixer":
        """One of these settings, with numbers that are yet to come."""
        return cls(
            settings["tokens"],
            settings["width"],
            settings["latents"],
            Nonlinearity.from_json(settings["nonlinearity"]),
            Mixing.from_json(settings["mixing"]),
            home=None if settings["home"] is None else Home.from_json(settings["home"]),
        )

    @property
    def rows(self) -> Float[Tensor, "k d"]:
        """W_dec."""
        return self.decoder

    def encode(self, x: Float[Tensor, "*rows token d"], valid: Bool[Tensor, "*rows token"] | None = None) -> Code:
        """A code for each token.

        Raises:
            ValueError: for hidden states of another width, or another number of tokens.
        """
        h, valid, before = self._centered(x, valid)
        for block in self.blocks:
            h = block(h, valid)
        # tokens that are not valid neither compete for places in a batch nor count as silence
        pre = project(h[valid], None, self.encoder, self.encoder_bias)
        z, cost = self._activated(pre)
        z, pre, cost = (_put(item, valid, before) for item in (z, pre, cost))
        return Code(z, pre, cost)


@final
class _Block(nn.Module):
    """One round of mixing, first among tokens, then among features."""

    def __init__(self, tokens: int, width: int, mixing: Mixing, generator: torch.Generator) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.among_tokens = _Perceptron(tokens, mixing.token_hidden, generator)
        self.among_channels = _Perceptron(width, mixing.channel_hidden, generator)

    def forward(self, h: Float[Tensor, "n token d"], valid: Bool[Tensor, "n token"]) -> Float[Tensor, "n token d"]:
        """The residual stream behind the block, zero where not valid."""
        padding = ~valid[..., None]
        seen = self.norms[0](h).masked_fill(padding, 0)
        h = h + self.among_tokens(seen.mT).mT.masked_fill(padding, 0)
        return h + self.among_channels(self.norms[1](h)).masked_fill(padding, 0)


@final
class _Perceptron(nn.Module):
    """gelu(x W₁ᵀ + b₁) W₂ᵀ + b₂ along the last axis, which begins as zero."""

    def __init__(self, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = width**-0.5
        self.inner = nn.Parameter(torch.empty(hidden, width).uniform_(-bound, bound, generator=generator))
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        self.outer = nn.Parameter(torch.zeros(width, hidden))
        self.outer_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """As above."""
        return F.linear(F.gelu(F.linear(x, self.inner, self.inner_bias)), self.outer, self.outer_bias)


def _put(rows: Float[Tensor, "valid *k"], valid: Bool[Tensor, "n token"], before: tuple[int, ...]) -> Tensor:
    """Rows at their places in sequences, zeros elsewhere."""
    put = rows.new_zeros(*valid.shape, *rows.shape[1:]).index_put((valid,), rows)
    return put.reshape(*before, *put.shape[1:])
