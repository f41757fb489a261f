"""What all autoencoders have in common: normalized states, a linear decoder, a place where they belong, files.

With normalized states x_n = (x − mean) / scale, an encoder of any kind gives a code z, and

    x̂ = scale · (z · rows + b_dec) + mean.

``scale`` is one number, so directions keep their meaning in the hidden space: ``directions`` are scale · rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from innerspace.checkpoint import load_state, save_state
from innerspace.decompose.base import Decomposition, Home, check_place
from innerspace.decompose.nonlinearities import Nonlinearity
from innerspace.decompose.sparse import Sparse, row_products, weighted_sum

A = TypeVar("A", bound="Autoencoder")


class Autoencoder(Decomposition, ABC):
    """A learned code with a linear decoder; ``latents`` of them for states of a ``width``.

    Raises:
        ValueError: for sizes below one, or a mean or scale that does not fit.
    """

    mean: Tensor
    scale: Float[Tensor, ""]
    decoder: nn.Parameter
    decoder_bias: Tensor

    def __init__(
        self, width: int, latents: int, shape: tuple[int, ...], mean: Tensor | None, scale: float, home: Home | None
    ) -> None:
        super().__init__()
        if width < 1 or latents < 1:
            raise ValueError(f"a dictionary needs a width and latents, got {width} and {latents}")
        if not 0 < scale < float("inf"):
            raise ValueError(f"the scale should be positive, it is {scale}")
        if mean is not None and mean.shape != shape:
            entries = " × ".join(map(str, shape))
            raise ValueError(f"the mean should have {entries} entries, it has shape {tuple(mean.shape)}")
        self.width, self.latents, self.home = width, latents, home
        flat = torch.zeros(shape) if mean is None else mean.detach().float().clone()
        self.register_buffer("mean", flat.flatten())
        self.register_buffer("scale", torch.tensor(scale))

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What it is made from, but for its numbers, as JSON."""

    @classmethod
    @abstractmethod
    def of(cls: type[A], settings: Mapping[str, Any]) -> A:
        """One of these settings, with numbers that are yet to come."""

    @property
    @abstractmethod
    def rows(self) -> Float[Tensor, "k d"]:
        """What each latent writes, in units of normalized hidden states."""

    @property
    def parts(self) -> list[slice]:
        """One latent each."""
        return [slice(i, i + 1) for i in range(self.latents)]

    @property
    def directions(self) -> Float[Tensor, "k d"]:
        """What one unit of each latent writes: scale · rows."""
        return self.scale * self.rows

    def decode(self, z: Float[Tensor, "*rows k"] | Sparse) -> Float[Tensor, "*rows d"]:
        """Hidden states from codes.

        Raises:
            ValueError: for codes of another number of latents.
        """
        if z.shape[-1] != self.latents:
            raise ValueError(f"the codes have {z.shape[-1]} entries, the dictionary has {self.latents} latents")
        offset = torch.addcmul(self.mean, self.scale, self.decoder_bias)
        return torch.addcmul(offset, self.scale, _written(z, self.rows))

    def decode_held(self, z: Float[Tensor, "*rows k"] | Sparse) -> Float[Tensor, "*rows d"]:
        """The same, with the decoder held fixed: gradients reach the code only."""
        return self.scale * (_written(z, self.rows.detach()) + self.decoder_bias.detach()) + self.mean

    def check(self, model: str, site: str, width: int) -> None:
        """Refuse a place to which the dictionary does not belong: another width, or another network or site.

        Raises:
            ValueError: naming what differs.
        """
        check_place(self.width, self.home, Home(model, site), width)

    def extra_repr(self) -> str:
        """How many latents of what width, and where they belong."""
        home = "" if self.home is None else f", of {self.home.site!r}"
        return f"{self.latents} latents of width {self.width}{home}"

    def save(self, path: Path | str) -> None:
        """Write everything as safetensors, with the settings as JSON in the metadata.

        Raises:
            ValueError: if decoder rows that should have unit norm have lost it.
        """
        self._check_complete()
        save_state(Path(path), {"kind": type(self).__name__, "settings": self.settings, "weights": self.state_dict()})

    @classmethod
    def load(cls: type[A], path: Path | str) -> A:
        """Read what ``save`` wrote, ready for use (in evaluation mode).

        Raises:
            ValueError: if the file is missing, damaged or holds something else, naming it.
        """
        state = load_state(Path(path))
        if state.get("kind") != cls.__name__:
            raise ValueError(f"{path} holds no {cls.__name__.lower()} but {state.get('kind') or ', '.join(state)}")
        return cls.restored(state)

    @classmethod
    def restored(cls: type[A], state: Mapping[str, Any]) -> A:
        """What a snapshot of settings and weights describes."""
        found = cls.of(state["settings"])
        found.to(cast(Tensor, state["weights"]["decoder"]).dtype)
        found.load_state_dict(state["weights"])
        return found.eval()

    @property
    def _home(self) -> dict[str, Any] | None:
        return None if self.home is None else self.home.to_json()

    def _check_width(self, x: Tensor) -> None:
        if x.shape[-1] != self.width:
            raise ValueError(f"the hidden states have width {x.shape[-1]}, the dictionary reads width {self.width}")

    def _check_complete(self) -> None:
        """Refuse to be saved in a state in which it should not be."""

    def _normalized(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Rows in the dictionary's units, and the shape of their codes."""
        self._check_width(x)
        return ((x - self.mean).div_(self.scale)).reshape(-1, self.width), (*x.shape[:-1], self.latents)


class SparseAutoencoder(Autoencoder, ABC):
    """An autoencoder whose code a nonlinearity makes sparse.

    While in training mode, ``silent`` counts for every latent the rows encoded since it last fired.
    """

    silent: Int[Tensor, "k"]
    density: Float[Tensor, ""]

    def __init__(
        self,
        width: int,
        latents: int,
        nonlinearity: Nonlinearity,
        shape: tuple[int, ...],
        mean: Tensor | None,
        scale: float,
        home: Home | None,
    ) -> None:
        super().__init__(width, latents, shape, mean, scale, home)
        self.nonlinearity = nonlinearity
        self.thresholds = nn.ParameterDict(
            {name: nn.Parameter(first) for name, first in nonlinearity.parameters(latents).items()}
        )
        self._followed = tuple(nonlinearity.running())
        for name, first in nonlinearity.running().items():
            self.register_buffer(name, first)
        self.register_buffer("silent", torch.zeros(latents, dtype=torch.int64))
        self.register_buffer("density", torch.tensor(1.0))

    def extra_repr(self) -> str:
        """The same, with the nonlinearity and, once they were counted, how many latents were on in the last rows."""
        named = f"{super().extra_repr()}, {type(self.nonlinearity).__name__}"
        longest = int(self.silent.max())
        return f"{named}, longest silent for {longest} rows" if longest else named

    @property
    def running(self) -> list[Tensor]:
        """The numbers that are followed while training, not learned: all of them averages over batches."""
        return [self.density, *(cast(Tensor, getattr(self, name)) for name in self._followed)]

    @torch.no_grad()
    def retract(self) -> None:
        """Give every row of the decoder's parameter unit norm, where it is kept at one."""
        if self._keeps_norms:
            self.decoder.div_(self.decoder.norm(dim=-1, keepdim=True))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from the decoder's gradient what would only change the norms of its rows, if they are kept at one."""
        if self._keeps_norms and (gradient := self.decoder.grad) is not None:
            gradient.addcmul_(row_products(gradient, self.decoder)[:, None], self.decoder, value=-1)

    @property
    def _keeps_norms(self) -> bool:
        return True

    @property
    def _weights(self) -> Tensor | None:
        """What the cost of a latent counts, where its decoder row may have any norm."""
        return None

    @property
    def _numbers(self) -> dict[str, Tensor]:
        return {**self.thresholds, **{name: cast(Tensor, getattr(self, name)) for name in self._followed}}

    def _check_complete(self) -> None:
        norms = self.decoder.detach().norm(dim=-1)
        if self._keeps_norms and norms.sub(1).abs().max() > 1e-3:
            raise ValueError(
                f"the decoder rows have norms {norms.min():.3g} … {norms.max():.3g}, not 1; call retract() after a step"
            )

    def _activated(self, pre: Float[Tensor, "rows k"]) -> tuple[Tensor, Tensor]:
        """The code of pre-activations, and what each row costs."""
        z, cost = self.nonlinearity(pre, self._numbers, training=self.training)
        if self.training:
            # a sum of entries that are never negative tells most cheaply which are on somewhere
            self._count(z.detach().sum(0) > 0, z.detach()[::16], len(pre))
        return z, cost @ self._weights if self._weights is not None else cost.sum(-1)

    @torch.no_grad()
    def _count(self, fired: Bool[Tensor, "k"], sample: Tensor | None, rows: int) -> None:
        self.silent.add_(rows).masked_fill_(fired, 0)
        if sample is not None:
            self.density.copy_(sample.count_nonzero() / sample.numel())


def unit_rows(rows: int, width: int, generator: torch.Generator) -> Float[Tensor, "{rows} {width}"]:
    """Random rows of unit norm, in all directions alike."""
    return F.normalize(torch.randn(rows, width, generator=generator), dim=-1)


def _written(z: Tensor | Sparse, rows: Tensor) -> Tensor:
    return weighted_sum(z, rows) if isinstance(z, Sparse) else z @ rows.to(z.dtype)
