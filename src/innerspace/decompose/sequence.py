"""Dictionaries that read the tokens of a sequence together: what they share, and one code for a whole sequence.

Their hidden states are [*rows, token, d], with a mask of the tokens that are no padding. Padding is never read: neither
a code nor a gradient depends on what stands there.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from innerspace.decompose.autoencoder import SparseAutoencoder, unit_rows
from innerspace.decompose.base import AnyCode, Code, Decomposition, Home
from innerspace.decompose.nonlinearities import Nonlinearity
from innerspace.decompose.sparse import Sparse, project


class SequenceAutoencoder(SparseAutoencoder, ABC):
    """A sparse autoencoder that reads sequences of ``tokens`` tokens, each of them as a whole.

    The second-to-last axis of what it reads are the tokens. Where a network has more or fewer, nothing is cut off or
    filled up unasked. A mask ``valid`` says which tokens are no padding; without one all are. ``mean`` is one for all
    tokens [d], or one for each of them [token, d].

    Raises:
        ValueError: for sizes below one, a scale that is not positive, or settings that do not fit the latents.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        latents: int,
        nonlinearity: Nonlinearity,
        shape: tuple[int, ...],
        mean: Tensor | None,
        scale: float,
        home: Home | None,
    ) -> None:
        if tokens < 1:
            raise ValueError(f"sequences should have at least one token, they have {tokens}")
        super().__init__(width, latents, nonlinearity, shape, mean, scale, home)
        self.tokens = tokens

    @abstractmethod
    def encode(self, x: Float[Tensor, "*rows token d"], valid: Bool[Tensor, "*rows token"] | None = None) -> Code:
        """The coordinates of sequences, read where they are valid."""

    def code(self, x: Float[Tensor, "*rows token d"], valid: Bool[Tensor, "*rows token"] | None = None) -> AnyCode:
        """The same; there is no cheaper form."""
        return self.encode(x, valid)

    def _centered(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Sequences in the dictionary's units without b_dec, zero where not valid; the mask; the shape before them."""
        self._check_width(x)
        if x.ndim < 2 or x.shape[-2] != self.tokens:
            found = x.shape[-2] if x.ndim > 1 else "no"
            raise ValueError(
                f"the hidden states have {found} tokens, the dictionary reads sequences of {self.tokens}; fill up "
                f"shorter ones, and mark what is filled up as not valid"
            )
        if valid is None:
            valid = x.new_ones(x.shape[:-1], dtype=torch.bool)
        valid = valid.reshape(-1, self.tokens)
        normalized = (x.reshape(-1, self.tokens, self.width) - self.mean.view(-1, self.width)) / self.scale
        centered = normalized - self.decoder_bias.view(-1, self.width)
        # what stands in padding may be no number at all
        return centered.masked_fill(~valid[..., None], 0), valid, tuple(x.shape[:-2])


@final
class Sequencewise(SequenceAutoencoder):
    """A sparse autoencoder with one code for a whole sequence, fully connected to all of its valid tokens.

        pre = Σ_t valid_t · (x_n,t − b_dec,t) W_enc,tᵀ + b_enc,   z = nonlinearity(pre),
        x̂_t = scale · (z W_dec,t + b_dec,t) + mean_t.

    The rows of ``directions`` are those of all tokens one after the other, [k, token · d], and ``lift(dz)`` is
    ``dz @ directions`` as a sequence [*rows, token, d]: a coordinate writes another direction at each token.

    Raises:
        ValueError: for sizes below one, a scale that is not positive, or settings that do not fit the latents.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        latents: int,
        nonlinearity: Nonlinearity,
        *,
        mean: Float[Tensor, "{tokens} {width}"] | None = None,
        scale: float = 1.0,
        seed: int = 0,
        home: Home | None = None,
    ) -> None:
        super().__init__(tokens, width, latents, nonlinearity, (tokens, width), mean, scale, home)
        first = unit_rows(latents, tokens * width, torch.Generator().manual_seed(seed))
        self.decoder = nn.Parameter(first)
        self.encoder = nn.Parameter(first.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(latents))
        self.decoder_bias = nn.Parameter(torch.zeros(tokens * width))

    @classmethod
    def normalized_for(
        cls,
        x: Float[Tensor, "n token d"],
        valid: Bool[Tensor, "n token"],
        latents: int,
        nonlinearity: Nonlinearity,
        *,
        seed: int = 0,
    ) -> "Sequencewise":
        """A fresh one under which valid tokens have zero mean, each by itself, and sequences a mean square norm of one.

        Raises:
            ValueError: if valid tokens are not finite or all alike.
        """
        filled = x.double().masked_fill(~valid[..., None], 0)
        mean = filled.sum(0) / valid.sum(0).clamp(min=1)[:, None]
        total = float((filled - mean).masked_fill(~valid[..., None], 0).square().sum() / len(x))
        if not 0 < total < float("inf"):
            raise ValueError(f"valid tokens should be finite and differ; their mean squared distance is {total}")
        _, tokens, width = x.shape
        return cls(tokens, width, latents, nonlinearity, mean=mean.float().cpu(), scale=total**0.5, seed=seed)

    @property
    def settings(self) -> dict[str, Any]:
        """What it is made from, but for its numbers, as JSON."""
        return {
            "tokens": self.tokens,
            "width": self.width,
            "latents": self.latents,
            "nonlinearity": self.nonlinearity.to_json(),
            "home": self._home,
        }

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Sequencewise":
        """One of these settings, with numbers that are yet to come."""
        return cls(
            settings["tokens"],
            settings["width"],
            settings["latents"],
            Nonlinearity.from_json(settings["nonlinearity"]),
            home=None if settings["home"] is None else Home.from_json(settings["home"]),
        )

    @property
    def rows(self) -> Float[Tensor, "k td"]:
        """W_dec, of all tokens one after the other."""
        return self.decoder

    def encode(self, x: Float[Tensor, "*rows token d"], valid: Bool[Tensor, "*rows token"] | None = None) -> Code:
        """One code for each sequence.

        Raises:
            ValueError: for hidden states of another width, or another number of tokens.
        """
        centered, _, before = self._centered(x, valid)
        pre = project(centered.flatten(1), None, self.encoder, self.encoder_bias)
        z, cost = self._activated(pre)
        shape = (*before, self.latents)
        return Code(z.reshape(shape), pre.reshape(shape), cost.reshape(before))

    def decode(self, z: Float[Tensor, "*rows k"] | Sparse) -> Float[Tensor, "*rows token d"]:
        """Sequences from codes.

        Raises:
            ValueError: for codes of another number of latents.
        """
        return self._by_token(super().decode(z))

    def decode_held(self, z: Float[Tensor, "*rows k"] | Sparse) -> Float[Tensor, "*rows token d"]:
        """The same, with the decoder held fixed."""
        return self._by_token(super().decode_held(z))

    def lift(self, dz: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows token d"]:
        """The change of all tokens that a change of coordinates makes."""
        return self._by_token(super().lift(dz))

    def _by_token(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.tokens, self.width))


class Reconstructed(NamedTuple):
    """The valid tokens of sequences, what a decomposition makes of them, and its code of each token or sequence."""

    clean: Float[Tensor, "valid d"]
    reconstruction: Float[Tensor, "valid d"]
    code: AnyCode


def reconstructed(
    what: Decomposition, x: Float[Tensor, "*rows token d"], valid: Bool[Tensor, "*rows token"]
) -> Reconstructed:
    """Encode and decode sequences where they are valid, with any decomposition."""
    clean = x[valid]
    if not isinstance(what, SequenceAutoencoder):
        code = what.code(clean)
        return Reconstructed(clean, what.decode(code.z), code)
    code = what.encode(x, valid)
    if code.z.ndim < x.ndim:
        return Reconstructed(clean, what.decode(code.z)[valid], code)
    code = Code(*(item[valid] for item in code))
    return Reconstructed(clean, what.decode(code.z), code)
