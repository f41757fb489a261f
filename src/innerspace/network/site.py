"""An address in a network, the shape found there, and the positions of a hidden state that are meant."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from innerspace.value import Value


@dataclass(frozen=True)
class Site(Value):
    """A place where a hidden state passes: the output (or the first input) of a module.

    ``module`` is the module's path in the network (``"trajectory.blocks.2"``), ``width`` the size of the hidden state,
    its last axis; ``axes`` names the axes. Where the module runs several times in one pass, ``call`` says which run is
    meant; None stands for a module that runs once.
    """

    name: str
    module: str
    width: int
    io: Literal["input", "output"] = "output"
    axes: str = "batch token d"
    call: int | None = None


@dataclass(frozen=True)
class Where(Value):
    """The positions that are read or written: one concept for both.

    ``tokens`` is ``"all"``, ``"valid"`` (not padded), ``"last"`` (the last valid token of every row), or an index.
    An index counts from the end where it is negative, and never means a padded token.
    """

    tokens: Literal["all", "valid", "last"] | int = "valid"

    def select(
        self, shape: tuple[int, ...], valid: Bool[Tensor, "*positions"] | None, device: torch.device | None = None
    ) -> Bool[Tensor, "*positions"]:
        """Which positions of a hidden state are meant; ``shape`` is the state's without its last axis.

        Raises:
            ValueError: for an index outside the token axis.
        """
        if valid is None:
            valid = torch.ones(shape, dtype=torch.bool, device=device)
        match self.tokens:
            case "all":
                return torch.ones_like(valid)
            case "valid":
                return valid
            case "last":
                place = torch.arange(shape[-1], device=valid.device)
                last = torch.where(valid, place, -1).amax(-1, keepdim=True)
                return valid & (place == last)
            case index:
                if not -shape[-1] <= index < shape[-1]:
                    raise ValueError(f"token {index} does not exist; there are {shape[-1]} tokens")
                chosen = torch.zeros_like(valid)
                chosen[..., index] = valid[..., index]
                return chosen
