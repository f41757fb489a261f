"""Wayformer: a forecaster that puts all that it sees into one set of tokens and reads it through a few latents.

Early fusion: a token for every step of the target's history and of the others', and for every line of the map. Learned
latents gather from all of them by one cross-attention and go on among themselves; K learned anchors read the latents
and become modes. Before they are fused, the target's tokens may run through blocks of their own, whose outputs are the
sites ``agent.0 …``; with three of them, forecasts are controllable where RedMotion's are. The target's own motion
reaches the decoder only through its tokens, and an anchor does not know the target's type.

Nayakanti, Al-Rfou, Zhou, Goel, Refaat, Sapp: Wayformer: Motion Forecasting via Simple & Efficient Attention Networks,
ICRA 2023.
"""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from innerspace.motion.forecasters.attention import Block, CrossBlock, hiding, seeing_themselves
from innerspace.motion.forecasters.encoding import (
    AGENT_FEATURES,
    LINE_FEATURES,
    NODE_FEATURES,
    agent_features,
    lately,
    line_features,
    node_features,
)
from innerspace.motion.forecasters.family import StagedFamily
from innerspace.motion.forecasters.forecaster import Forecaster, ForecasterSettings, forecasts
from innerspace.motion.forecasters.layers import learned, mlp
from innerspace.motion.framing import Batch, Framing
from innerspace.network.site import Site


@dataclass(frozen=True)
class WayformerSettings(ForecasterSettings):
    """The sizes of a Wayformer; ``framing`` says what it reads and forecasts.

    ``trajectory_layers`` counts the blocks of the target's own history before fusion. Of the other agents every step
    of the "history" is a token or the "current" one only, of the map every "line" or every "node". One layer brings
    the tokens to the ``latents``, ``latent_layers`` more follow. The defaults train on two processor cores within
    minutes, at half the learning rate that suits a RedMotion: a forecast is more layers away from the history.
    ``published`` are the sizes of the network that "Words in Motion" was written with.
    """

    width: int = 64
    heads: int = 2
    expansion: int = 2
    trajectory_layers: int = 3
    others: Literal["history", "current"] = "history"
    map_tokens: Literal["line", "node"] = "line"
    latents: int = 24
    latent_layers: int = 2
    decoder_layers: int = 2
    modes: int = 6
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "heads", "expansion", "latents", "modes"):
            if getattr(self, name) < 1:
                raise ValueError(f"Wayformer: {name} should be at least 1, it is {getattr(self, name)}")
        for name in ("trajectory_layers", "latent_layers", "decoder_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"Wayformer: {name} should not be negative, it is {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"Wayformer: heads {self.heads} should divide width {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Wayformer: dropout should be in [0, 1), it is {self.dropout}")

    @staticmethod
    def published(trajectory_layers: int = 0) -> "WayformerSettings":
        """The published sizes, for scenes of the Waymo Open Motion Dataset; 64 modes, of which six are judged.

        The published network has no blocks of its own for the target's history, so it has no sites ``agent.i``;
        give it ``trajectory_layers`` to read and steer there.
        """
        return WayformerSettings(
            framing=Framing(history=11, future=80, stride=2, agents=48, lines=512, nodes=20),
            width=256,
            heads=4,
            expansion=4,
            trajectory_layers=trajectory_layers,
            map_tokens="node",
            latents=192,
            latent_layers=2,
            decoder_layers=8,
            modes=64,
            dropout=0.1,
        )

    def build(self) -> "Wayformer":
        """A network of these sizes, untrained."""
        return Wayformer(self)

    @property
    def family(self) -> "WayformerFamily":
        """What knows its sites."""
        return WayformerFamily()


@final
class Wayformer(Forecaster[WayformerSettings]):
    """K forecasts of a target with their probabilities, from its history, its neighbors and the map."""

    def __init__(self, settings: WayformerSettings) -> None:
        super().__init__(settings)
        width, framing = settings.width, settings.framing
        sizes = (width, settings.heads, settings.expansion, settings.dropout)
        steps = framing.history if settings.others == "history" else 1
        nodes = framing.nodes if settings.map_tokens == "node" else 1
        per_line = NODE_FEATURES if settings.map_tokens == "node" else LINE_FEATURES + 3 * framing.nodes
        self.target_input = mlp(AGENT_FEATURES, width, width)
        self.other_input = mlp(AGENT_FEATURES, width, width)
        self.line_input = mlp(per_line, width, width)
        self.time = learned(framing.history, width, scale=0.02)
        self.other_time = learned(steps, width, scale=0.02)
        self.node_place = learned(nodes, width, scale=0.02)
        self.trajectory = nn.ModuleList(Block(*sizes) for _ in range(settings.trajectory_layers))
        # added to attention logits by kind of token: to begin with, the target's few weigh as much as the many of other
        # agents, among which what the target does would be a tenth of what the latents gather
        counts = (framing.history, framing.agents * steps, framing.lines * nodes)
        self.votes = nn.Parameter(-torch.tensor(counts, dtype=torch.float).log())
        # small, lest what latents gather be little beside what they begin with
        self.queries = learned(settings.latents, width, scale=0.02)
        later = (Block(*sizes) for _ in range(settings.latent_layers))
        self.latents = nn.ModuleList((CrossBlock(*sizes, among=False), *later))
        self.anchors = learned(settings.modes, width, scale=1.0)
        self.modes = nn.ModuleList(CrossBlock(*sizes, among=True) for _ in range(settings.decoder_layers))
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in ("tokens", "latents", "modes")})
        self.points = mlp(width, 2 * width, 5 * framing.waypoints)
        self.confidence = mlp(width, width, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Forecast every row: ``trajectory``, ``scale`` and ``logits``.

        Raises:
            ValueError: for a batch of another framing.
        """
        self.check(batch)
        rows, history = len(batch), batch.target.valid
        agent = self.target_input(agent_features(batch.target, batch.dt)) + self.time
        mask = hiding(seeing_themselves(history))
        for block in self.trajectory:
            agent = block(agent, mask, valid=history)

        (others, others_valid), (road, road_valid) = self._others(batch), self._road(batch)
        memory = self.norms["tokens"](torch.cat((agent, others, road), 1))
        counts = [kind.shape[1] for kind in (agent, others, road)]
        votes = torch.cat([vote.expand(count) for vote, count in zip(self.votes, counts, strict=True)])
        # the target's current step is always there, so that every latent sees something
        mask = hiding(torch.cat((history, others_valid, road_valid), 1)) + votes
        gather, *among = self.latents
        latents = gather(self.queries.expand(rows, -1, -1), memory, mask)
        for block in among:
            latents = block(latents, None)

        modes, memory = self.anchors.expand(rows, -1, -1), self.norms["latents"](latents)
        for block in self.modes:
            modes = block(modes, memory)
        modes = self.norms["modes"](modes)
        paths = forecasts(self.points(modes), batch.interval, self.settings.covariance)
        return {**paths, "logits": self.confidence(modes).squeeze(-1)}

    def _others(self, batch: Batch) -> tuple[Float[Tensor, "batch n width"], Bool[Tensor, "batch n"]]:
        """A token for every step of every other agent, or for its current one; and which there are."""
        if self.settings.others == "history":
            features, valid = agent_features(batch.others, batch.dt), batch.others.valid
        else:
            features = agent_features(lately(batch.others), batch.dt)[..., -1:, :]
            valid = batch.others.valid[..., -1:]
        return (self.other_input(features) + self.other_time).flatten(1, 2), valid.flatten(1)

    def _road(self, batch: Batch) -> tuple[Float[Tensor, "batch n width"], Bool[Tensor, "batch n"]]:
        """A token for every line, or for every node of every line; and which there are."""
        if self.settings.map_tokens == "node":
            features = node_features(batch.line, batch.line_valid, batch.line_kind)
            return (self.line_input(features) + self.node_place).flatten(1, 2), batch.line_valid.flatten(1)
        features, _ = line_features(batch.line, batch.line_valid, batch.line_kind)
        return self.line_input(features) + self.node_place, batch.line_valid.any(-1)


@final
class WayformerFamily(StagedFamily):
    """Where a Wayformer's hidden states are.

    ``agent.i``: the target's history, a token per step. ``latents.0``: what the latents gathered, ``latents.i`` what
    they made of it. ``modes.i``: the forecasts in the making.
    """

    @property
    def network(self) -> type[Wayformer]:
        """Wayformer."""
        return Wayformer

    @property
    def stages(self) -> dict[str, str]:
        """The target's history, the latents, the decoder."""
        return {"agent": "trajectory", "latents": "latents", "modes": "modes"}

    def apart(self, stage: str) -> tuple[str, ...]:
        """What comes before a stage: there is nothing that runs beside another."""
        return {"agent": (), "latents": ("agent",), "modes": ("agent", "latents")}[stage]

    def mask(self, batch: Batch, site: Site) -> Bool[Tensor, "batch tokens"] | None:
        """The valid history steps; None for learned tokens."""
        return batch.target.valid if site.name.startswith("agent.") else None
