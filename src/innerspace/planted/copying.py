"""A two-layer attention-only network that learns to copy what it has seen, and so to know the token before.

Inputs are different tokens in random order, said again from the beginning as often as there is room. The period changes
from input to input, so a position tells nothing of what comes next: the network has to find where its token stood
before and what followed. The first layer writes the token before into the stream, the second matches it with the token
at hand (Olsson et al., "In-context learning and induction heads", 2022). Behind the first layer the stream should hold
the token, the token before, and the position; unlike in a compiled network, where they lie is not known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from innerspace.checkpoint import load_state, save_state
from innerspace.network.model import Family
from innerspace.network.site import Site
from innerspace.value import Value

_FORMAT = "innerspace copier 1"


@final
@dataclass(frozen=True)
class CopyingSettings(Value):
    """The size of the network and of its inputs, and how it is trained (Adam, a linear decay).

    Raises:
        ValueError: for heads that do not divide the width, or inputs too short to hold a whole copy.
    """

    symbols: int = 16
    length: int = 24
    width: int = 32
    heads: int = 4
    steps: int = 1200
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide width {self.width}")
        if not 4 <= self.symbols < self.length:
            raise ValueError(f"inputs of {self.length} tokens hold copies of 4 … {self.length - 1}, not {self.symbols}")


@final
@dataclass(frozen=True, eq=False)
class Copies:
    """Inputs that repeat themselves: ids [batch, 1 + length], the first of which marks the beginning."""

    ids: Int[Tensor, "batch token"]
    period: Int[Tensor, "batch"]

    def labels(self) -> dict[str, Int[Tensor, "batch token"]]:
        """The variables at every position: −1 where one has no value, as none has at the beginning.

        ``token``, the token before as ``previous``, ``position``, whether it is ``copied``, and what comes ``next``
        where that can be known: from the last token of the first round on.
        """
        place = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
        token = torch.where(place > 0, self.ids, -1)
        first, last = place < 1, place == self.ids.shape[1] - 1
        known = (place >= self.period[:, None]) & ~last
        return {
            "token": token,
            "previous": token.roll(1, -1).masked_fill(first, -1),
            "position": place - 1,
            "copied": (place > self.period[:, None]).long().masked_fill(first, -1),
            "next": token.roll(-1, -1).masked_fill(~known, -1),
        }


@final
class Copier(nn.Module):
    """Token and position embeddings, two layers of attention, and a readout; logits [batch, token, symbols]."""

    def __init__(self, settings: CopyingSettings) -> None:
        super().__init__()
        self.settings = settings
        self.embed = _Embedding(settings)
        self.layers = nn.ModuleList(_Attention(settings) for _ in range(2))
        self.norm = nn.LayerNorm(settings.width)
        self.readout = nn.Linear(settings.width, settings.symbols)

    def forward(self, ids: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token symbols"]:
        """What comes next."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.readout(self.norm(x))

    def save(self, path: Path) -> None:
        """Write settings and weights to one safetensors file."""
        save_state(path, {"format": _FORMAT, "settings": self.settings.to_json(), "weights": self.state_dict()})

    @staticmethod
    def load(path: Path) -> "Copier":
        """Read what ``save`` wrote.

        Raises:
            ValueError: for a file that is missing, damaged or not ours.
        """
        state = load_state(path)
        if state.get("format") != _FORMAT:
            raise ValueError(f"{path} holds {state.get('format', 'another snapshot')!r}, not {_FORMAT!r}")
        network = Copier(CopyingSettings.from_json(state["settings"]))
        network.load_state_dict(state["weights"])
        return network.eval()


@final
class CopierFamily(Family):
    """Copiers: batches are ``Copies``, sites ``embed``, ``resid.0`` and ``resid.1``; the beginning is padding."""

    def sites(self, module: nn.Module) -> list[Site]:
        """The stream behind the embedding and both layers."""
        width = cast(Copier, module).settings.width
        return [Site("embed", "embed", width), *(Site(f"resid.{i}", f"layers.{i}", width) for i in range(2))]

    def forward(self, module: nn.Module, batch: Copies) -> Mapping[str, Tensor]:
        """The ``logits`` [batch, token, symbols] of the next token."""
        return {"logits": module(batch.ids)}

    def mask(self, batch: Copies, site: Site) -> Bool[Tensor, "batch token"]:  # noqa: ARG002
        """Everything but the beginning."""
        valid = torch.ones_like(batch.ids, dtype=torch.bool)
        valid[:, 0] = False
        return valid

    def cut(self, module: nn.Module, site: Site) -> Site:  # noqa: ARG002
        """Every site is one."""
        return site

    def spared(self, module: nn.Module, cut: Site) -> Sequence[str]:
        """What lies before."""
        modules = [site.module for site in self.sites(module)]
        return modules[: modules.index(cut.module) + 1]


def draw_copies(settings: CopyingSettings, count: int, generator: torch.Generator) -> Copies:
    """Inputs whose period lies between half of the symbols and all of them."""
    order = torch.rand(count, settings.symbols, generator=generator).argsort(-1)
    period = torch.randint(settings.symbols // 2, settings.symbols + 1, (count,), generator=generator)
    tokens = order.gather(1, torch.arange(settings.length) % period[:, None])
    return Copies(functional.pad(tokens, (1, 0), value=settings.symbols), period)


def train_copier(settings: CopyingSettings) -> Copier:
    """Train from scratch on fresh inputs at every step; the same settings give the same weights."""
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Copier(settings)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98))
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(1.0, (step + 1) / 50, 1 - step / settings.steps)
        batch = draw_copies(settings, settings.batch_size, generator)
        following = batch.labels()["next"]
        loss = functional.cross_entropy(network(batch.ids).flatten(0, 1), following.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def copying_accuracy(logits: Float[Tensor, "batch token symbols"], batch: Copies) -> float:
    """How often the most likely token is the next one, where that can be known."""
    following = batch.labels()["next"]
    return float((logits.argmax(-1) == following)[following >= 0].float().mean())


@final
class _Embedding(nn.Module):
    def __init__(self, settings: CopyingSettings) -> None:
        super().__init__()
        self.tokens = nn.Embedding(settings.symbols + 1, settings.width)
        self.positions = nn.Embedding(settings.length + 1, settings.width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.positions.weight[: ids.shape[1]]


@final
class _Attention(nn.Module):
    """Causal attention to normalized states, added to the stream."""

    def __init__(self, settings: CopyingSettings) -> None:
        super().__init__()
        self.heads = settings.heads
        self.norm = nn.LayerNorm(settings.width)
        self.inward = nn.Linear(settings.width, 3 * settings.width, bias=False)
        self.outward = nn.Linear(settings.width, settings.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        split = self.inward(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(later, -torch.inf)
        mixed = scores.softmax(-1) @ value
        return x + self.outward(mixed.transpose(1, 2).flatten(-2))
