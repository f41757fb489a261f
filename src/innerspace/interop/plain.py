"""Dictionaries in the units of hidden states, the form in which all tools keep them.

    pre = (x − c) W_encᵀ + b_enc,   z = nonlinearity(pre),   x̂ = z W_dec + b_dec,   c = b_dec or 0

Our own have a mean and a scale besides. Both fold exactly into W_enc / scale, scale · W_dec, scale · b_dec + mean and,
where b_dec is not subtracted, b_enc − mean · (W_enc / scale)ᵀ.
Codes, thresholds and everything else about a latent stay what they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from innerspace.decompose.base import Home
from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import BatchTopK, Gated, JumpReLU, Nonlinearity

_TINY = torch.finfo(torch.float32).tiny
"""A threshold of zero, as a threshold that is positive."""

_NEAR = 8
"""So many floating point numbers on either side are tried for the logarithm of a threshold."""

Norms = Literal["unit", "normalized", "free"]


class Gate(NamedTuple):
    """The three vectors by which others write a gate: z = H(pre) · max(eʳ (pre − b_gate) + b_mag, 0)."""

    r_mag: Float[Tensor, "k"]
    b_gate: Float[Tensor, "k"]
    b_mag: Float[Tensor, "k"]


@final
@dataclass(frozen=True, eq=False)
class Plain:
    """A dictionary without normalization; ``centered`` says whether b_dec is subtracted before encoding.

    ``numbers`` are those of the nonlinearity by our names, learned ones and followed ones.
    """

    nonlinearity: Nonlinearity
    encoder: Float[Tensor, "k d"]
    encoder_bias: Float[Tensor, "k"]
    decoder: Float[Tensor, "k d"]
    decoder_bias: Float[Tensor, "d"]
    centered: bool
    numbers: Mapping[str, Tensor]
    prefixes: tuple[int, ...] = ()

    @staticmethod
    @torch.no_grad()
    def of(dictionary: Dictionary) -> "Plain":
        """Fold the mean and the scale of a dictionary into its weights, in double precision.

        Raises:
            ValueError: for a BatchTopK that was never trained, which has no threshold.
        """
        dtype, scale, mean = dictionary.decoder.dtype, dictionary.scale.double(), dictionary.mean.double()
        encoder, bias = dictionary.encoder.double() / scale, dictionary.encoder_bias.double()
        if not dictionary.form.pre_bias:
            bias = bias - encoder @ mean
        names = dictionary.nonlinearity.running()
        numbers = {name: item.detach().cpu() for name, item in dictionary.thresholds.items()}
        numbers |= {name: cast(Tensor, getattr(dictionary, name)).cpu() for name in names}
        if isinstance(dictionary.nonlinearity, BatchTopK) and numbers["threshold"] <= 0:
            raise ValueError("this BatchTopK has no threshold yet, for it was never trained; train it before writing")
        decoder, decoder_bias = scale * dictionary.rows.double(), scale * dictionary.decoder_bias.double() + mean
        return Plain(
            dictionary.nonlinearity,
            encoder=encoder.to("cpu", dtype),
            encoder_bias=bias.to("cpu", dtype),
            decoder=decoder.to("cpu", dtype),
            decoder_bias=decoder_bias.to("cpu", dtype),
            centered=dictionary.form.pre_bias,
            numbers=numbers,
            prefixes=dictionary.form.prefixes,
        )

    @torch.no_grad()
    def recentered(self, centered: bool) -> "Plain":
        """The same function with b_dec subtracted before encoding, or not: b_enc takes up the difference."""
        if centered == self.centered:
            return self
        shift = self.encoder.double() @ self.decoder_bias.double()
        bias = self.encoder_bias.double() + (shift if centered else -shift)
        return replace(self, encoder_bias=bias.to(self.encoder_bias), centered=centered)

    @torch.no_grad()
    def dictionary(self, home: Home | None, norms: Norms | None = None, scale: float = 1.0) -> Dictionary:
        """The dictionary, in evaluation mode; rows of unit norm are kept so in training, unless ``norms`` says else.

        ``scale`` is what its inputs are divided by and its outputs multiplied with.

        Raises:
            ValueError: if the settings of the nonlinearity do not fit the number of latents.
        """
        latents, width = self.encoder.shape
        unit = bool((self.decoder.double().norm(dim=-1) - 1).abs().max() < 1e-5)
        form = Form(norms or ("unit" if unit else "free"), pre_bias=self.centered, prefixes=self.prefixes)
        found = Dictionary(width, latents, self.nonlinearity, scale=scale, form=form, home=home).to(self.decoder.dtype)
        found.encoder.copy_(self.encoder)
        found.encoder_bias.copy_(self.encoder_bias)
        found.decoder.copy_(self.decoder)
        found.decoder_bias.copy_(self.decoder_bias)
        for name, number in self.numbers.items():
            place = found.thresholds[name] if name in found.thresholds else cast(Tensor, getattr(found, name))
            place.copy_(number)
        return found.eval()


@torch.no_grad()
def thresholds(plain: Plain) -> Float[Tensor, "k"]:
    """What a pre-activation must exceed, latent by latent."""
    match plain.nonlinearity:
        case JumpReLU():
            found = plain.numbers["log_threshold"].exp()
            return torch.where(found > 2 * _TINY, found, 0.0)
        case BatchTopK():
            return plain.numbers["threshold"].expand(len(plain.encoder)).clone()
        case other:
            raise AssertionError(other)


@torch.no_grad()
def log_thresholds(threshold: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
    """The numbers whose exponentials are nearest to thresholds in the arithmetic in which they will be compared.

    Most thresholds come out exactly, the others within an ulp or few. None below zero has an effect, for nothing is on
    below zero; they and zero become the smallest positive number.
    """
    tiny = threshold.clamp(min=_TINY)
    best = tiny.double().log().to(threshold.dtype)
    lower = upper = best
    for _ in range(_NEAR):
        lower, upper = torch.nextafter(lower, -torch.ones(()).to(lower) * 1e4), torch.nextafter(upper, upper + 1)
        for other in (lower, upper):
            best = torch.where((other.exp() - tiny).abs() < (best.exp() - tiny).abs(), other, best)
    return best


@torch.no_grad()
def gate(plain: Plain) -> Gate:
    """A gate as others write it; ours scales the biased pre-activation: b_mag = b + eʳ b_gate."""
    assert isinstance(plain.nonlinearity, Gated)
    r, own, bias = plain.numbers["log_magnitude"], plain.numbers["magnitude_bias"], plain.encoder_bias
    return Gate(r, bias, (own.double() + r.double().exp() * bias.double()).to(own))


@torch.no_grad()
def gate_numbers(r_mag: Tensor, b_gate: Tensor, b_mag: Tensor) -> dict[str, Tensor]:
    """The numbers of our gate from those of others."""
    return {"log_magnitude": r_mag, "magnitude_bias": (b_mag.double() - r_mag.double().exp() * b_gate).to(b_mag)}
