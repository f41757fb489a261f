"""Sparse dictionaries: a fully connected autoencoder whose decoder rows are the directions.

With normalized rows x_n = (x − mean) / scale,

    pre = (x_n − b_dec) W_encᵀ + b_enc,   z = nonlinearity(pre),   x̂ = scale · (z W_dec + b_dec) + mean.

``scale`` is one number, so directions keep their meaning in the hidden space: a row of ``directions`` is scale · W_dec.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from innerspace.checkpoint import load_state, save_state
from innerspace.decompose.base import AnyCode, Code, Decomposition, Home, SparseCode, check_place
from innerspace.decompose.nonlinearities import Nonlinearity, Numbers, TopK
from innerspace.decompose.sparse import Layout, Sparse, entries, project, row_products, weighted_sum
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
    an orthogonal decoder (Braun et al. 2024). ``prefixes`` are the sizes of nested dictionaries, the last of which is
    the whole (Bussmann et al. 2025, Matryoshka).
    """

    decoder: Literal["unit", "normalized", "free"] = "unit"
    pre_bias: bool = True
    tied: bool = False
    first: Literal["transposed", "linear"] = "transposed"
    prefixes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if list(self.prefixes) != sorted({*self.prefixes}) or (self.prefixes and self.prefixes[0] < 1):
            raise ValueError(f"prefixes should be growing numbers of latents, they are {list(self.prefixes)}")
        if self.tied and self.first == "linear":
            raise ValueError("a tied encoder is the decoder: it cannot begin as a linear layer of its own")


@final
class Dictionary(Decomposition):
    """A sparse autoencoder.

    While in training mode, ``silent`` counts for every latent the rows encoded since it last fired.

    Raises:
        ValueError: for sizes below one, a scale that is not positive, or settings that do not fit the latents.
    """

    mean: Float[Tensor, "d"]
    scale: Float[Tensor, ""]
    silent: Int[Tensor, "k"]
    density: Float[Tensor, ""]

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
        super().__init__()
        if width < 1 or latents < 1:
            raise ValueError(f"a dictionary needs a width and latents, got {width} and {latents}")
        if not 0 < scale < float("inf"):
            raise ValueError(f"the scale should be positive, it is {scale}")
        if mean is not None and mean.shape != (width,):
            raise ValueError(f"the mean should have {width} entries, it has shape {tuple(mean.shape)}")
        if form.prefixes and form.prefixes[-1] != latents:
            raise ValueError(f"the last prefix should be all {latents} latents, the prefixes are {list(form.prefixes)}")
        self.width, self.latents, self.nonlinearity, self.form, self.home = width, latents, nonlinearity, form, home
        self.thresholds = nn.ParameterDict(
            {name: nn.Parameter(first) for name, first in nonlinearity.parameters(latents).items()}
        )
        self._followed = tuple(nonlinearity.running())
        for name, first in nonlinearity.running().items():
            self.register_buffer(name, first)
        begin = _linear if form.first == "linear" else _transposed
        encoder, encoder_bias, decoder, decoder_bias = begin(width, latents, torch.Generator().manual_seed(seed))
        self.decoder = nn.Parameter(decoder)
        self.encoder = self.decoder if form.tied else nn.Parameter(encoder)
        self.encoder_bias = nn.Parameter(encoder_bias)
        self.decoder_bias = nn.Parameter(decoder_bias)
        self.register_buffer("mean", torch.zeros(width) if mean is None else mean.detach().float().clone())
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("silent", torch.zeros(latents, dtype=torch.int64))
        self.register_buffer("density", torch.tensor(1.0))

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
    def parts(self) -> list[slice]:
        """One latent each."""
        return [slice(i, i + 1) for i in range(self.latents)]

    @property
    def settings(self) -> dict[str, object]:
        """What it is made from, but for its numbers, as JSON."""
        return {
            "width": self.width,
            "latents": self.latents,
            "nonlinearity": self.nonlinearity.to_json(),
            "form": self.form.to_json(),
            "home": None if self.home is None else self.home.to_json(),
        }

    @property
    def rows(self) -> Float[Tensor, "k d"]:
        """W_dec as decoding uses it, in units of normalized hidden states."""
        return F.normalize(self.decoder, dim=-1) if self.form.decoder == "normalized" else self.decoder

    @property
    def directions(self) -> Float[Tensor, "k d"]:
        """What one unit of each latent writes: scale · W_dec."""
        return self.scale * self.rows

    @property
    def by_latent(self) -> list[nn.Parameter]:
        """The parameters whose first axis is the latents."""
        encoder = [] if self.form.tied else [self.encoder]
        return [*encoder, self.encoder_bias, self.decoder, *self.thresholds.values()]

    @property
    def running(self) -> list[Tensor]:
        """The numbers that are followed while training, not learned: all of them averages over batches."""
        return [self.density, *(cast(Tensor, getattr(self, name)) for name in self._followed)]

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
        z, cost = self.nonlinearity(pre, self._numbers, training=self.training)
        if self.training:
            # a sum of entries that are never negative tells most cheaply which are on somewhere
            self._count(z.detach().sum(0) > 0, z.detach()[::16], len(flat))
        cost = (cost @ self._weights if self._weights is not None else cost.sum(-1)).reshape(shape[:-1])
        return Code(z.reshape(shape), pre.reshape(shape), cost)

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

    def decode(self, z: Float[Tensor, "*rows k"] | Sparse) -> Float[Tensor, "*rows d"]:
        """Hidden states from codes.

        Raises:
            ValueError: for codes of another number of latents.
        """
        if z.shape[-1] != self.latents:
            raise ValueError(f"the codes have {z.shape[-1]} entries, the dictionary has {self.latents} latents")
        written = weighted_sum(z, self.rows) if isinstance(z, Sparse) else z @ self.rows.to(z.dtype)
        return torch.addcmul(torch.addcmul(self.mean, self.scale, self.decoder_bias), self.scale, written)

    def largest_among(self, x: Float[Tensor, "*rows d"], latents: Int[Tensor, "n"], k: int) -> Sparse:
        """The ``k`` largest positive pre-activations of each row among some latents, whatever the nonlinearity."""
        flat, shape = self._normalized(x)
        encoder, bias = self.encoder[latents], self.encoder_bias[latents]
        pre, layout = self._entries(flat, encoder, bias, TopK(min(k, len(latents))), {})
        return Sparse(pre.relu(), layout, (*shape[:-1], len(latents)))

    @torch.no_grad()
    def retract(self) -> None:
        """Give every decoder row unit norm, where the form asks for it."""
        if self.form.decoder == "unit":
            self.decoder.div_(self.decoder.norm(dim=-1, keepdim=True))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from the decoder's gradient what would only change the norms of its rows, if they are kept at one."""
        if self.form.decoder == "unit" and (gradient := self.decoder.grad) is not None:
            gradient.addcmul_(row_products(gradient, self.decoder)[:, None], self.decoder, value=-1)

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

    def check(self, model: str, site: str, width: int) -> None:
        """Refuse a place to which the dictionary does not belong: another width, or another network or site.

        Raises:
            ValueError: naming what differs.
        """
        check_place(self.width, self.home, Home(model, site), width)

    def save(self, path: Path) -> None:
        """Write the dictionary as safetensors, with its settings as JSON in the metadata.

        Raises:
            ValueError: if decoder rows that should have unit norm have lost it.
        """
        norms = self.decoder.detach().norm(dim=-1)
        if self.form.decoder == "unit" and norms.sub(1).abs().max() > 1e-3:
            raise ValueError(
                f"the decoder rows have norms {norms.min():.3g} … {norms.max():.3g}, not 1; call retract() after a step"
            )
        save_state(path, {"kind": "Dictionary", "settings": self.settings, "weights": self.state_dict()})

    @classmethod
    def load(cls, path: Path) -> "Dictionary":
        """Read what ``save`` wrote, ready for use (in evaluation mode).

        Raises:
            ValueError: if the file is missing, damaged or holds something else, naming it.
        """
        state = load_state(path)
        if state.get("kind") != "Dictionary":
            raise ValueError(f"{path} holds no dictionary but {state.get('kind') or ', '.join(state)}")
        settings = state["settings"]
        dictionary = cls(
            settings["width"],
            settings["latents"],
            Nonlinearity.from_json(settings["nonlinearity"]),
            form=Form.from_json(settings["form"]),
            home=None if settings["home"] is None else Home.from_json(settings["home"]),
        )
        dictionary.to(cast(Tensor, state["weights"]["decoder"]).dtype)
        dictionary.load_state_dict(state["weights"])
        return dictionary.eval()

    @property
    def _center(self) -> Tensor | None:
        return self.decoder_bias if self.form.pre_bias else None

    @property
    def _weights(self) -> Tensor | None:
        """What the cost of a latent counts, where its decoder row may have any norm."""
        return self.decoder.norm(dim=-1) if self.form.decoder == "free" else None

    @property
    def _numbers(self) -> dict[str, Tensor]:
        return {**self.thresholds, **{name: cast(Tensor, getattr(self, name)) for name in self._followed}}

    def _normalized(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Rows in the dictionary's units, and the shape of their codes."""
        if x.shape[-1] != self.width:
            raise ValueError(f"the hidden states have width {x.shape[-1]}, the dictionary reads width {self.width}")
        return ((x - self.mean).div_(self.scale)).reshape(-1, self.width), (*x.shape[:-1], self.latents)

    def _entries(
        self, flat: Tensor, encoder: Tensor, bias: Tensor, nonlinearity: Nonlinearity, numbers: Numbers
    ) -> tuple[Tensor, Layout]:
        """The pre-activations that pass, with their gradients, and where they stand."""
        find = partial(nonlinearity.support, numbers=numbers, training=self.training)
        return entries(flat, self._center, encoder, bias, find)

    @torch.no_grad()
    def _count(self, fired: Tensor, sample: Tensor | None, rows: int) -> None:
        self.silent.add_(rows).masked_fill_(fired, 0)
        if sample is not None:
            self.density.copy_(sample.count_nonzero() / sample.numel())


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
    rows = F.normalize(torch.randn(latents, width, generator=generator), dim=-1)
    return rows.clone(), torch.zeros(latents), rows, torch.zeros(width)


def _linear(width: int, latents: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def uniform(bound: float, *shape: int) -> Tensor:
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)

    decoder = nn.init.orthogonal_(torch.empty(latents, width), generator=generator)
    inner, outer = width**-0.5, latents**-0.5
    return uniform(inner, latents, width), uniform(inner, latents), decoder, uniform(outer, width)
