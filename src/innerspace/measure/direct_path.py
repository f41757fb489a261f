"""What directions do to a language model's logits by themselves, if no later block reads them: the direct path."""

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from innerspace.interventions import Read
from innerspace.language.causal_lm import CausalLM
from innerspace.language.pieces import Pieces
from innerspace.language.text import Text
from innerspace.network.model import Model
from innerspace.network.site import Where

_SAMPLE = 512
"""Over so many positions, at most, the derivative of the final state is averaged."""

_Rows = dict[str, list[dict[str, Any]]]
_UNMOVED: _Rows = {"up": [], "down": []}


@final
class DirectPath:
    """What directions of the stream do to the logits by themselves, if no later block reads them.

    With W the unembedding and s its factor, a unit of direction u changes the logits, to first order, by s W J u, where
    J is the mean over positions of the derivative of the final state by the stream behind the last block: the final
    norm's weight, its division by the size of the state, its centering if it centers, a projection if one follows.
    What the blocks between u and the end make of it is not in this, so the farther the end, the less it tells; nor what
    a softcap does to large logits, nor how a change that is large itself moves the norm.

    Raises:
        ValueError: if no position of the batch's first sequences counts.
    """

    def __init__(self, model: Model, batch: Text, where: Where, pieces: Pieces) -> None:
        assert isinstance(model.family, CausalLM)
        self._model, self._pieces = model, pieces
        self._unembedding = model.family.unembedding(model.module)
        self._derivative = _derivative(model, batch, where)

    def pushed(self, site: str, directions: Float[Tensor, "n d"], k: int) -> list[_Rows]:
        """The k tokens whose logits each direction at a site raises most, and lowers most, with the change of each.

        None for what is written where it is not yet a part of the stream: into single heads.
        """
        kind, _, _ = self._model.site(site).name.partition(".")
        if kind == "heads":
            return [_UNMOVED] * len(directions)
        weight = self._unembedding.weight[: self._pieces.count]
        final = (directions if kind == "final" else directions.to(self._derivative) @ self._derivative.T).to(weight)
        found = list[_Rows]()
        for part in final.split(max(1, 2**24 // len(weight))):
            change = self._unembedding.scale * (part @ weight.T).float()
            up, down = (self._listed(*change.topk(min(k, len(weight)), largest=largest)) for largest in (True, False))
            found += [{"up": one, "down": other} for one, other in zip(up, down, strict=True)]
        return found

    def _listed(self, values: Float[Tensor, "n k"], ids: Int[Tensor, "n k"]) -> list[list[dict[str, Any]]]:
        rows = (zip(*row, strict=True) for row in zip(ids.tolist(), values.tolist(), strict=True))
        return [[{"token": self._pieces.name(token), "value": value} for token, value in row] for row in rows]


@torch.enable_grad()
def _derivative(model: Model, batch: Text, where: Where) -> Float[Tensor, "final d"]:
    last = [name for name in model.sites if name.startswith("resid.")][-1]
    few = slice(max(1, _SAMPLE // batch.ids.shape[1]))
    batch = Text(batch.ids[few], None if batch.valid is None else batch.valid[few])
    state = model.run(batch, {last: Read()}, stop=True).hidden[last].detach().requires_grad_()
    chosen = where.select(tuple(state.shape[:-1]), model.family.mask(batch, model.site(last)), state.device)
    if not chosen.any():
        raise ValueError(f"no position of the first {len(batch)} sequences counts")
    final = model.resume(batch, last, state, {"final": Read()}, stop=True).hidden["final"][chosen]
    rows = [torch.autograd.grad(column.sum(), state, retain_graph=True)[0] for column in final.unbind(1)]
    return torch.stack([row[chosen].float().mean(0) for row in rows])
