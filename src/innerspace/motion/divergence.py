"""How far two forecasts are apart: the divergence between two mixtures whose modes correspond one to one.

A forecast is a distribution of a mode m and a path, p(m) Π_t N(path_t; μ_mt, Σ_mt). By the chain rule the divergence of
two such distributions is that of the modes' probabilities plus the mean, over the clean modes, of that of the paths:

    KL = KL(p(m) ‖ q(m)) + Σ_m p(m) Σ_t KL(N(μ_mt, Σ_mt) ‖ N(ν_mt, Τ_mt)).

Each term has a closed form. A path alone tells less than a path and its mode, so this bounds the divergence of the two
mixtures from above, which has no closed form.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def forecast_divergence(
    clean: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    chosen: Bool[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    """The mean over rows of KL(clean ‖ other) of mode and path, in nats; differentiable in both.

    A forecast has ``logits`` [batch, modes], ``trajectory`` [batch, modes, waypoints, 2] and ``scale`` [batch, modes,
    waypoints, 3] = (a, b, c), the lower-triangular scale [[eᵃ, 0], [c, eᵇ]]. ``chosen`` are the rows that count.

    Raises:
        ValueError: if no row counts.
    """
    confidence = clean["logits"].log_softmax(-1)
    paths = _normal_divergence(clean["trajectory"], clean["scale"], other["trajectory"], other["scale"]).sum(-1)
    rows = (confidence.exp() * (confidence - other["logits"].log_softmax(-1) + paths)).sum(-1)
    rows = rows if chosen is None else rows[chosen]
    if not len(rows):
        raise ValueError("no forecast counts: there is no row to compare")
    return rows.mean()


def _normal_divergence(
    mean: Float[Tensor, "*waypoints 2"],
    scale: Float[Tensor, "*waypoints 3"],
    other_mean: Float[Tensor, "*waypoints 2"],
    other_scale: Float[Tensor, "*waypoints 3"],
) -> Float[Tensor, "*waypoints"]:
    """KL(N(μ, LLᵀ) ‖ N(ν, MMᵀ)) = ½ (‖M⁻¹L‖² + ‖M⁻¹(μ − ν)‖² − 2) − log det M⁻¹L, in the plane."""
    (a, b, c), (other_a, other_b, other_c) = scale.unbind(-1), other_scale.unbind(-1)
    x, y = ((mean - other_mean) * (-other_scale[..., :2]).exp()).unbind(-1)
    shear = other_c * (-other_b).exp()
    lower = c * (-other_b).exp() - shear * (a - other_a).exp()
    away = x.square() + (y - shear * x).square() + lower.square()
    return (away + _excess(a - other_a) + _excess(b - other_b)) / 2


def _excess(change: Float[Tensor, "*waypoints"]) -> Float[Tensor, "*waypoints"]:
    """r² − 1 − log r² of a ratio r = exp(change), without loss of digits near one."""
    return torch.expm1(2 * change) - 2 * change
