"""Sparse dictionaries: a fully connected autoencoder whose decoder rows are the directions.

With normalized rows x_n = (x − mean) / scale,

    pre = (x_n − b_dec) W_encᵀ + b_enc,   z = nonlinearity(pre),   x̂ = scale · (z W_dec + b_dec) + mean.

``scale`` is one number, so directions keep their meaning in the hidden space: a row of ``directions`` is scale · W_dec.
The rows of W_dec have unit norm, which is what gives a code's size, and a penalty on it, a meaning.
"""

from pathlib import Path
from typing import cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from innerspace.checkpoint import load_state, save_state
from innerspace.decompose.base import Code, Decomposition
from innerspace.decompose.nonlinearities import Nonlinearity


@final
class Dictionary(Decomposition):
    """A sparse autoencoder.

    While in training mode, ``silent`` counts for every latent the rows encoded since it last fired.

    Raises:
        ValueError: for sizes below one, a scale that is not positive, or a nonlinearity that does not fit the latents.
    """

    mean: Float[Tensor, "d"]
    scale: Float[Tensor, ""]
    silent: Int[Tensor, "k"]

    def __init__(
        self,
        width: int,
        latents: int,
        nonlinearity: Nonlinearity,
        *,
        mean: Float[Tensor, "{width}"] | None = None,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if width < 1 or latents < 1:
            raise ValueError(f"a dictionary needs a width and latents, got {width} and {latents}")
        if not 0 < scale < float("inf"):
            raise ValueError(f"the scale should be positive, it is {scale}")
        if mean is not None and mean.shape != (width,):
            raise ValueError(f"the mean should have {width} entries, it has shape {tuple(mean.shape)}")
        self.width, self.latents, self.nonlinearity = width, latents, nonlinearity
        self.thresholds = nn.ParameterDict(
            {name: nn.Parameter(first) for name, first in nonlinearity.parameters(latents).items()}
        )
        rows = F.normalize(torch.randn(latents, width, generator=torch.Generator().manual_seed(seed)), dim=-1)
        self.decoder = nn.Parameter(rows)
        self.encoder = nn.Parameter(rows.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(latents))
        self.decoder_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width) if mean is None else mean.detach().float().clone())
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("silent", torch.zeros(latents, dtype=torch.int64))

    @classmethod
    def normalized_for(
        cls, rows: Float[Tensor, "rows d"], latents: int, nonlinearity: Nonlinearity, *, seed: int = 0
    ) -> "Dictionary":
        """A fresh dictionary under whose normalization these rows have zero mean and a mean squared norm of one.

        Raises:
            ValueError: if the rows are not finite or all alike.
        """
        mean, variance = moments(rows)
        return cls(rows.shape[1], latents, nonlinearity, mean=mean.cpu(), scale=float(variance.sqrt()), seed=seed)

    @property
    def parts(self) -> list[slice]:
        """One latent each."""
        return [slice(i, i + 1) for i in range(self.latents)]

    @property
    def directions(self) -> Float[Tensor, "k d"]:
        """What one unit of each latent writes: scale · W_dec."""
        return self.scale * self.decoder

    @property
    def by_latent(self) -> list[nn.Parameter]:
        """The parameters whose first axis is the latents."""
        return [self.encoder, self.encoder_bias, self.decoder, *self.thresholds.values()]

    def encode(self, x: Float[Tensor, "*rows d"]) -> Code:
        """The code of hidden states.

        Raises:
            ValueError: for hidden states of another width.
        """
        if x.shape[-1] != self.width:
            raise ValueError(f"the hidden states have width {x.shape[-1]}, the dictionary reads width {self.width}")
        # b_dec enters through a product of the step's size, not of the rows'
        bias = self.encoder_bias - self.encoder @ self.decoder_bias
        pre = F.linear((x - self.mean) / self.scale, self.encoder, bias)
        z, cost = self.nonlinearity(pre, dict(self.thresholds.items()))
        if self.training:
            fired = z.detach().reshape(-1, self.latents).sum(0) > 0
            self.silent.add_(cost.numel()).masked_fill_(fired, 0)
        return Code(z, pre, cost)

    def decode(self, z: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows d"]:
        """Hidden states from codes.

        Raises:
            ValueError: for codes of another number of latents.
        """
        if z.shape[-1] != self.latents:
            raise ValueError(f"the codes have {z.shape[-1]} entries, the dictionary has {self.latents} latents")
        return self.scale * (z @ self.decoder + self.decoder_bias) + self.mean

    @torch.no_grad()
    def normalize(self) -> None:
        """Give every decoder row unit norm."""
        self.decoder.div_(self.decoder.norm(dim=-1, keepdim=True))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from the decoder's gradient what would only change the norms of its rows."""
        if (gradient := self.decoder.grad) is not None:
            gradient.addcmul_((gradient * self.decoder).sum(-1, keepdim=True), self.decoder, value=-1)

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

    def save(self, path: Path) -> None:
        """Write the dictionary as safetensors, with its settings as JSON in the metadata.

        Raises:
            ValueError: if the decoder rows have lost their unit norm.
        """
        if (norms := self.decoder.detach().norm(dim=-1)).sub(1).abs().max() > 1e-3:
            raise ValueError(
                f"the decoder rows have norms {norms.min():.3g} … {norms.max():.3g}, not 1; train with UnitDecoder()"
            )
        settings = {"width": self.width, "latents": self.latents, "nonlinearity": self.nonlinearity.to_json()}
        save_state(path, {"kind": "Dictionary", "settings": settings, "weights": self.state_dict()})

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
        nonlinearity = Nonlinearity.from_json(settings["nonlinearity"])
        dictionary = cls(settings["width"], settings["latents"], nonlinearity)
        dictionary.to(cast(Tensor, state["weights"]["decoder"]).dtype)
        dictionary.load_state_dict(state["weights"])
        return dictionary.eval()


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
