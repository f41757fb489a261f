"""A batch of text as tokens: what a language model reads."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Text:
    """Token sequences of equal length; rows shorter than the longest are padded, at either end.

    ``valid`` marks what is no padding, None where nothing is; ``document`` tells from which document of the corpus each
    token comes, where that is known.
    """

    ids: Int[Tensor, "batch token"]
    valid: Bool[Tensor, "batch token"] | None = None
    document: Int[Tensor, "batch token"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Text":
        """The same batch on a device."""
        others = (None if item is None else item.to(device) for item in (self.valid, self.document))
        return Text(self.ids.to(device), *others)
