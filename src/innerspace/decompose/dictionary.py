"""Sparse dictionaries: a fully connected autoencoder whose decoder rows are the directions.

With normalized rows x_n = (x − mean) / scale,

    pre = (x_n − b_dec) W_encᵀ + b_enc,   z = nonlinearity(pre),   x̂ = scale · (z W_dec + b_dec) + mean.

``scale`` is one number, so directions keep their meaning in the hidden space: a row of ``directions`` is scale · W_dec.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from innerspace.decompose.autoencoder import SparseAutoencoder, unit_rows
from innerspace.decompose.base import AnyCode, Code, Home, SparseCode
from innerspace.decompose.nonlinearities import Nonlinearity, Numbers, TopK
from innerspace.decompose.sparse import Layout, Sparse, entries, project
from innerspace.value import Value

_FEW = 0.05
"""Below this share of latents that are on, the sparse form is the faster one on a device."""

_SMALL = 256
"""Up to so many latents the dense form is always the faster one."""


@dataclass(frozen=True)
class Form(Value):
    """How a dictionary is built; the defaults are those of Gao et al. 2024, arXiv 2406.04093.

    ``decoder`` says what becomes of the norms of the decoder's rows: ``unit`` keeps them at one, by a projection of the
    gradient and a retraction after every step; ``normalized`` divides by them in every pass and lets the gradient
    through (Braun et al. 2024); ``free`` leaves them, and weighs what a code costs by them (Conerly et al. 2024).
    ``pre_bias`` subtracts b_dec before encoding. ``tied`` makes the encoder the decoder itself. ``first`` is how
    parameters begin: ``transposed``, random unit rows for both, biases zero; ``linear``, those of a linear layer, with
    an orthogonal decoder (Braun et al. 2024); ``kaiming``, uniform (He et al. 2015), with unit rows in the decoder and
    biases zero (Tas and Wagner 2025). ``prefixes`` are the sizes of nested dictionaries, the last of which is the whole
    (Bussmann et al. 2025, Matryoshka). Without ``bias`` b_dec is zero and stays so.
    """

    decoder: Literal["unit", "normalized", "free"] = "unit"
    pre_bias: bool = True
    tied: bool = False
    first: Literal["transposed", "linear", "kaiming"] = "transposed"
    prefixes: tuple[int, ...] = ()
    bias: bool = True

    def __post_init__(self) -> None:
        if list(self.prefixes) != sorted({*self.prefixes}) or (self.prefixes and self.prefixes[0] < 1):
            raise ValueError(f"prefixes should be growing numbers of latents, they are {list(self.prefixes)}")
        if self.tied and self.first != "transposed":
            raise ValueError(f"a tied encoder is the decoder: it cannot begin in a way of its own, {self.first!r}")
        if self.pre_bias and not self.bias:
            raise ValueError("without a bias of the decoder there is none to subtract before encoding: pre_bias=False")


@final
class Dictionary(SparseAutoencoder):
    """A sparse autoencoder.

    Raises:
        ValueError: for sizes below one, a scale that is not positive, or settings that do not fit the latents.
    """

    def __init__(
        self,
        width: int,
        latents: int,
        nonlinearity: Nonlinearity,
        *,
        mean: Float[Tensor, "{width}"] | None = None,
        scale: float = 1.0,
        seed: int = 0,
        form: Form = Form(),
        home: Home | None = None,
    ) -> None:
        if form.prefixes and form.prefixes[-1] != latents:
            raise ValueError(f"the last prefix should be all {latents} latents, the prefixes are {list(form.prefixes)}")
        super().__init__(width, latents, nonlinearity, (width,), mean, scale, home)
        self.form = form
        begin = {"transposed": _transposed, "linear": _linear, "kaiming": _kaiming}[form.first]
        encoder, encoder_bias, decoder, decoder_bias = begin(width, latents, torch.Generator().manual_seed(seed))
        self.decoder = nn.Parameter(decoder)
        self.encoder = self.decoder if form.tied else nn.Parameter(encoder)
        self.encoder_bias = nn.Parameter(encoder_bias)
        if form.bias:
            self.decoder_bias = nn.Parameter(decoder_bias)
        else:
            self.register_buffer("decoder_bias", torch.zeros(width))

    @classmethod
    def normalized_for(
        cls,
        rows: Float[Tensor, "rows d"],
        latents: int,
        nonlinearity: Nonlinearity,
        *,
        seed: int = 0,
        form: Form = Form(),
    ) -> "Dictionary":
        """A fresh dictionary under whose normalization these rows have zero mean and a mean squared norm of one.

        Raises:
            ValueError: if the rows are not finite or all alike.
        """
        mean, variance = moments(rows)
        scale = float(variance.sqrt())
        return cls(rows.shape[1], latents, nonlinearity, mean=mean.cpu(), scale=scale, seed=seed, form=form)

    @property
    def settings(self) -> dict[str, Any]:
        """What it is made from, but for its numbers, as JSON."""
        return {
            "width": self.width,
            "latents": self.latents,
            "nonlinearity": self.nonlinearity.to_json(),
            "form": self.form.to_json(),
            "home": self._home,
        }

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Dictionary":
        """One of these settings, with numbers that are yet to come."""
        return cls(
            settings["width"],
            settings["latents"],
            Nonlinearity.from_json(settings["nonlinearity"]),
            form=Form.from_json(settings["form"]),
            home=None if settings["home"] is None else Home.from_json(settings["home"]),
        )

    @property
    def rows(self) -> Float[Tensor, "k d"]:
        """W_dec as decoding uses it, in units of normalized hidden states."""
        return F.normalize(self.decoder, dim=-1) if self.form.decoder == "normalized" else self.decoder

    @property
    def by_latent(self) -> list[nn.Parameter]:
        """The parameters whose first axis is the latents."""
        encoder = [] if self.form.tied else [self.encoder]
        return [*encoder, self.encoder_bias, self.decoder, *self.thresholds.values()]

    @property
    def prefers_sparse(self) -> bool:
        """Whether ``code`` keeps only the entries that are on."""
        if self.latents <= _SMALL or self.nonlinearity.always_few:
            return self.latents > _SMALL
        # on a processor both forms cost the same at 7 % for states of width 64, at 10 % for 128, at 16 % for 768
        few = self.width / (6 * self.width + 600) if self.density.device.type == "cpu" else _FEW
        return float(self.density) < few

    def encode(self, x: Float[Tensor, "*rows d"]) -> Code:
        """The code of hidden states.

        Raises:
            ValueError: for hidden states of another width.
        """
        flat, shape = self._normalized(x)
        pre = project(flat, self._center, self.encoder, self.encoder_bias)
        z, cost = self._activated(pre)
        return Code(z.reshape(shape), pre.reshape(shape), cost.reshape(shape[:-1]))

    def encode_sparse(self, x: Float[Tensor, "*rows d"]) -> SparseCode:
        """The same code, of which only the entries that are on are ever written down.

        Raises:
            ValueError: for hidden states of another width.
        """
        flat, shape = self._normalized(x)
        pre, layout = self._entries(flat, self.encoder, self.encoder_bias, self.nonlinearity, self._numbers)
        z, cost = self.nonlinearity.activate(pre, {name: item[layout.latent] for name, item in self.thresholds.items()})
        if self._weights is not None:
            cost = cost * self._weights[layout.latent]
        code = Sparse(z, layout, shape)
        if self.training:
            on = code.replace(z.detach()).frequency()
            self._count(on > 0, None, len(flat))
            self.density.copy_(on.sum() / (len(flat) * self.latents))
        return SparseCode(code, code.replace(pre), code.replace(cost).row_sums())

    def code(self, x: Float[Tensor, "*rows d"]) -> AnyCode:
        """The code in the form that is cheaper."""
        return self.encode_sparse(x) if self.prefers_sparse else self.encode(x)

    def largest_among(self, x: Float[Tensor, "*rows d"], latents: Int[Tensor, "n"], k: int) -> Sparse:
        """The ``k`` largest positive pre-activations of each row among some latents, whatever the nonlinearity."""
        flat, shape = self._normalized(x)
        encoder, bias = self.encoder[latents], self.encoder_bias[latents]
        pre, layout = self._entries(flat, encoder, bias, TopK(min(k, len(latents))), {})
        return Sparse(pre.relu(), layout, (*shape[:-1], len(latents)))

    @torch.no_grad()
    def restart(self, latents: Int[Tensor, "n"], directions: Float[Tensor, "n d"]) -> None:
        """Begin some latents anew along given directions (of any length), as if they had never been trained."""
        rows = F.normalize(directions, dim=-1)
        self.decoder[latents] = rows
        self.encoder[latents] = rows
        self.encoder_bias[latents] = 0
        self.silent[latents] = 0
        for name, first in self.nonlinearity.parameters(self.latents).items():
            self.thresholds[name][latents] = first.to(rows)[latents]

    @property
    def _center(self) -> Tensor | None:
        return self.decoder_bias if self.form.pre_bias else None

    @property
    def _keeps_norms(self) -> bool:
        return self.form.decoder == "unit"

    @property
    def _weights(self) -> Tensor | None:
        return self.decoder.norm(dim=-1) if self.form.decoder == "free" else None

    def _entries(
        self, flat: Tensor, encoder: Tensor, bias: Tensor, nonlinearity: Nonlinearity, numbers: Numbers
    ) -> tuple[Tensor, Layout]:
        """The pre-activations that pass, with their gradients, and where they stand."""
        find = partial(nonlinearity.support, numbers=numbers, training=self.training)
        return entries(flat, self._center, encoder, bias, find)


def moments(rows: Float[Tensor, "rows d"]) -> tuple[Float[Tensor, "d"], Float[Tensor, ""]]:
    """The mean of rows, and their mean squared distance from it.

    Raises:
        ValueError: if rows are not finite, naming the first, or all alike, so that there is nothing to explain.
    """
    variance, mean = torch.var_mean(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=0, correction=0)
    total = variance.sum()
    if not total.isfinite():
        bad = (~rows.isfinite()).any(-1).nonzero().flatten().tolist()
        where = f"row {bad[0]} is the first of {len(bad)} that are not" if bad else "their variance overflows"
        raise ValueError(f"rows should be finite: {where}")
    if total <= 0:
        raise ValueError(f"rows should differ, these {len(rows)} are all alike")
    return mean, total


def _transposed(width: int, latents: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = unit_rows(latents, width, generator)
    return rows.clone(), torch.zeros(latents), rows, torch.zeros(width)


def _linear(width: int, latents: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def uniform(bound: float, *shape: int) -> Tensor:
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)

    decoder = nn.init.orthogonal_(torch.empty(latents, width), generator=generator)
    inner, outer = width**-0.5, latents**-0.5
    return uniform(inner, latents, width), uniform(inner, latents), decoder, uniform(outer, width)


def _kaiming(width: int, latents: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # PyTorch takes the last axis for what goes in, and the published encoder lies as [width, latents]
    bound = (6 / latents) ** 0.5
    encoder = torch.empty(latents, width).uniform_(-bound, bound, generator=generator)
    decoder = torch.empty(latents, width).uniform_(-1, 1, generator=generator)
    return encoder, torch.zeros(latents), F.normalize(decoder, dim=-1), torch.zeros(width)
