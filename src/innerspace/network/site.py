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
    meant; None stands for a module that runs once. ``around`` is for a state that enters ``module`` and also goes
    around it, as a residual stream does: the path of the module to whose output it is added again. What is written at
    such a site is written on both ways.
    """

    name: str
    module: str
    width: int
    io: Literal["input", "output"] = "output"
    axes: str = "batch token d"
    call: int | None = None
    around: str | None = None

    def __hash__(self) -> int:
        # of a text it is known already; that of all fields would be found anew several times in every pass
        return hash(self.name)

    def __str__(self) -> str:
        run = "" if self.call is None else f", call {self.call}"
        return f"{self.name}: {self.io} of {self.module}{run}, [{self.axes}] of width {self.width}"


@dataclass(frozen=True)
class Where(Value):
    """The positions that are read or written: one concept for both.

    ``tokens`` is ``"all"``, ``"valid"`` (not padded), ``"last"`` (the last valid token of every row), or an index.
    An index counts from the end where it is negative, and never means a padded token. ``skip`` leaves out the first
    valid tokens of every row, such as the outlier at position 0 of a language model.
    """

    tokens: Literal["all", "valid", "last"] | int = "valid"
    skip: int = 0

    def __post_init__(self) -> None:
        if self.skip < 0:
            raise ValueError(f"the tokens to skip should not be fewer than none, they are {self.skip}")

    def select(
        self,
        shape: tuple[int, ...],
        valid: Bool[Tensor, "*positions"] | None,
        device: torch.device | None = None,
        start: int = 0,
    ) -> Bool[Tensor, "*positions"]:
        """Which positions of a hidden state are meant; ``shape`` is the state's without its last axis.

        ``start`` tells how many tokens came before these in the same generation: an index from the front counts from
        its beginning, and what is skipped is skipped there.

        Raises:
            ValueError: for an index outside the token axis.
        """
        if valid is None:
            valid = torch.ones(shape, dtype=torch.bool, device=device)
        skipped = valid & (valid.cumsum(-1) <= self.skip - start) if self.skip > start else torch.zeros_like(valid)
        valid = valid & ~skipped
        match self.tokens:
            case "all":
                return ~skipped
            case "valid":
                return valid
            case "last":
                place = torch.arange(shape[-1], device=valid.device)
                last = torch.where(valid, place, -1).amax(-1, keepdim=True)
                return valid & (place == last)
            case index:
                place = index - start if index >= 0 else shape[-1] + index
                chosen = torch.zeros_like(valid)
                if 0 <= place < shape[-1]:
                    chosen[..., place] = valid[..., place]
                elif not start:
                    raise ValueError(f"token {index} does not exist; there are {shape[-1]} tokens")
                return chosen
