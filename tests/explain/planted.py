"""Networks whose hidden states spell out what stands there, and latents that are on for what is known."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import ReLU
from innerspace.language.text import Text
from innerspace.motion.framing import Batch
from innerspace.motion.words import Vocabulary, label
from innerspace.network.model import Family, Model
from innerspace.network.site import Site

WORDS = 40
FIRST = 3
SPAN = FIRST + WORDS


class Spelled(nn.Module):
    """Its hidden state is what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x)


class TextFamily(Family):
    """The hidden state: the token, the one before it (both one-hot), and noise that nothing tells."""

    def sites(self, module: nn.Module) -> list[Site]:
        return [Site("hidden", "hidden", 2 * SPAN + 1)]

    def forward(self, module: nn.Module, batch: Text) -> Mapping[str, Tensor]:
        token = nn.functional.one_hot(batch.ids, SPAN).float()
        before = torch.cat((torch.zeros_like(token[:, :1]), token[:, :-1]), 1)
        generator = torch.Generator().manual_seed(int(batch.ids.sum()))
        noise = torch.rand(*batch.ids.shape, 1, generator=generator)
        return {"y": module(torch.cat((token, before, noise), -1))}

    def mask(self, batch: Text, site: Site) -> Tensor | None:
        return batch.valid


class SceneFamily(Family):
    """The hidden state of an agent at a step: its words and the step, one-hot, and noise."""

    def sites(self, module: nn.Module) -> list[Site]:
        return [Site("hidden", "hidden", len(MOTION) + 11 + 1)]

    def forward(self, module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        words = label(batch.target, batch.dt, Vocabulary()).words()
        known = torch.tensor([[float(row.get(about) == value) for about, value in MOTION] for row in words])
        steps = batch.target.valid.shape[1]
        generator = torch.Generator().manual_seed(int(batch.scene.sum()))
        state = torch.cat(
            (
                known[:, None].expand(-1, steps, -1),
                torch.eye(steps).expand(len(words), -1, -1),
                torch.rand(len(words), steps, 1, generator=generator),
            ),
            -1,
        )
        return {"y": module(state)}

    def mask(self, batch: Batch, site: Site) -> Tensor | None:
        return batch.target.valid


MOTION = [(feature.name, word) for feature in Vocabulary().features for word in feature.classes]


def latents(width: int, rows: Sequence[tuple[Mapping[int, float], float]]) -> Dictionary:
    """Latent i is on where the weighted sum of some entries of the hidden state exceeds a threshold."""
    made = Dictionary(width, len(rows), ReLU(), form=Form(pre_bias=False)).eval()
    encoder = torch.zeros(len(rows), width)
    for row, (entries, _) in zip(encoder, rows, strict=True):
        for place, weight in entries.items():
            row[place] = weight
    weights = {"encoder": encoder, "encoder_bias": torch.tensor([-threshold for _, threshold in rows])}
    made.load_state_dict(made.state_dict() | weights)
    return made


def token(word: int) -> int:
    """The entry of a token."""
    return FIRST + word


def previous(word: int) -> int:
    """The entry of the token before."""
    return SPAN + FIRST + word


def texts(rows: int = 200, length: int = 30, seed: int = 3, order: Tensor | None = None) -> list[Text]:
    """Random words, each row a document; with an ``order`` every word stands for another."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(WORDS, (rows, length), generator=generator)
    return [Text(FIRST + (words if order is None else order[words]))]


def model(family: Any) -> Model:
    return Model(Spelled(), family)
