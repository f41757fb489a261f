"""Koopman autoencoders: coordinates in which a sequence moves on by one linear map, and back by another.

Azencot et al., "Forecasting Sequential Data Using Consistent Koopman Autoencoders", ICML 2020, arXiv 2003.02236. Words
in Motion uses one, whose maps depend on the state, to ask how linear a code has to be for control vectors to work.
"""

from collections.abc import Mapping
from typing import Any, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from innerspace.decompose.autoencoder import Autoencoder, unit_rows
from innerspace.decompose.base import Code, Home
from innerspace.decompose.dictionary import moments
from innerspace.decompose.sparse import project

Operators = Literal["constant", "input"]
Towards = Literal["ahead", "back"]


@final
class Koopman(Autoencoder):
    """A code h = tanh(x_n W_encᵀ + b_enc) with a linear decoder, and maps from each token's code to those beside it.

        ĥ_{t+1} = h_t C,   ĥ_{t−1} = h_t D.

    ``constant`` operators are two matrices [k, k] that begin as the identity: the next state is that of now. Those that
    depend on the ``input`` are C(h) = reshape(h W), D alike, with k³ numbers each, as in the reference: the step is
    quadratic in the code, so it is no longer a linear system. Codes are dense and cost nothing.

    Raises:
        ValueError: for sizes below one, a scale that is not positive, or operators of another name.
    """

    def __init__(
        self,
        width: int,
        latents: int,
        operators: Operators = "constant",
        *,
        mean: Float[Tensor, "{width}"] | None = None,
        scale: float = 1.0,
        seed: int = 0,
        home: Home | None = None,
    ) -> None:
        if operators not in get_args(Operators):
            raise ValueError(f"no operators {operators!r}; possible are {', '.join(get_args(Operators))}")
        super().__init__(width, latents, (width,), mean, scale, home)
        self.operators: Operators = operators
        generator = torch.Generator().manual_seed(seed)
        first = unit_rows(latents, width, generator)
        self.encoder = nn.Parameter(first)
        self.encoder_bias = nn.Parameter(torch.zeros(latents))
        self.decoder = nn.Parameter(torch.linalg.pinv(first).T.contiguous())
        self.decoder_bias = nn.Parameter(torch.zeros(width))
        self.ahead, self.back = (nn.Parameter(_first(latents, operators, generator)) for _ in range(2))

    @classmethod
    def normalized_for(
        cls, rows: Float[Tensor, "rows d"], latents: int, operators: Operators = "constant", *, seed: int = 0
    ) -> "Koopman":
        """A fresh one under whose normalization these rows have zero mean and a mean squared norm of one.

        Raises:
            ValueError: if the rows are not finite or all alike.
        """
        mean, variance = moments(rows)
        return cls(rows.shape[1], latents, operators, mean=mean.cpu(), scale=float(variance.sqrt()), seed=seed)

    @property
    def settings(self) -> dict[str, Any]:
        """What it is made from, but for its numbers, as JSON."""
        return {"width": self.width, "latents": self.latents, "operators": self.operators, "home": self._home}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Koopman":
        """One of these settings, with numbers that are yet to come."""
        return cls(
            settings["width"],
            settings["latents"],
            settings["operators"],
            home=None if settings["home"] is None else Home.from_json(settings["home"]),
        )

    @property
    def rows(self) -> Float[Tensor, "k d"]:
        """W_dec."""
        return self.decoder

    def encode(self, x: Float[Tensor, "*rows d"]) -> Code:
        """The code of hidden states, each by itself; all entries are between −1 and 1.

        Raises:
            ValueError: for hidden states of another width.
        """
        flat, shape = self._normalized(x)
        pre = project(flat, None, self.encoder, self.encoder_bias)
        return Code(pre.tanh().reshape(shape), pre.reshape(shape), pre.new_zeros(shape[:-1]))

    def operator(self, h: Float[Tensor, "rows k"], towards: Towards) -> Float[Tensor, "#rows k k"]:
        """C or D of each code; one for all where they are constant."""
        matrix = self.ahead if towards == "ahead" else self.back
        if self.operators == "constant":
            return matrix[None]
        return (h @ matrix).view(-1, self.latents, self.latents)

    def step(self, h: Float[Tensor, "rows k"], towards: Towards) -> Float[Tensor, "rows k"]:
        """The codes of the tokens beside these, by the operator: h C or h D."""
        if self.operators == "constant":
            return h @ self.operator(h, towards)[0]
        return (h[:, None] @ self.operator(h, towards))[:, 0]


def _first(latents: int, operators: Operators, generator: torch.Generator) -> Tensor:
    if operators == "constant":
        return torch.eye(latents)
    bound = latents**-0.5
    return torch.empty(latents, latents**2).uniform_(-bound, bound, generator=generator)
