"""RedMotion: a forecaster that keeps what the agent did apart from what surrounds it, until the decoder.

Three self-attention blocks encode the target's history; their outputs are the sites ``agent.0 … agent.2``. Lines and
other agents attend to those at a similar distance; learned RED (road environment descriptor) tokens summarize them;
cross-fusion lets one token gather the road for the agent and one the agent for the road; K learned anchors read it all
and become modes. The target's own motion reaches the decoder only through the last hidden states of its history, which
is what makes the forecast controllable there.

Wagner, Tas, Klemp, Fernandez, Stiller: RedMotion: Motion Prediction via Redundancy Reduction, TMLR 2024.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from innerspace.motion.forecasters.attention import Block, after, hiding, seeing_themselves
from innerspace.motion.forecasters.encoding import AGENT_FEATURES, LINE_FEATURES, agent_features, lately, line_features
from innerspace.motion.forecasters.family import StagedFamily
from innerspace.motion.forecasters.forecaster import Forecaster, ForecasterSettings, forecasts
from innerspace.motion.forecasters.layers import learned, mlp
from innerspace.motion.framing import Batch
from innerspace.network.site import Site


@dataclass(frozen=True)
class RedMotionSettings(ForecasterSettings):
    """The sizes of a RedMotion network; ``framing`` says what it reads and forecasts.

    ``window`` is the block length of local attention: a token sees its block in the order of distance, and the blocks
    before and after. The defaults train on two processor cores within minutes; the published network has width 128,
    heads 4, expansion 4, context_layers 3, red_tokens 100, red_layers 3, fusion_layers 3, decoder_layers 8 and
    dropout 0.1.
    """

    width: int = 64
    heads: int = 2
    expansion: int = 2
    trajectory_layers: int = 3
    context_layers: int = 1
    window: int = 16
    red_tokens: int = 16
    red_layers: int = 1
    fusion_layers: int = 1
    decoder_layers: int = 2
    modes: int = 6
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "heads", "expansion", "trajectory_layers", "window", "red_tokens", "modes"):
            if getattr(self, name) < 1:
                raise ValueError(f"RedMotion: {name} should be at least 1, it is {getattr(self, name)}")
        for name in ("context_layers", "red_layers", "fusion_layers", "decoder_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"RedMotion: {name} should not be negative, it is {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"RedMotion: heads {self.heads} should divide width {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"RedMotion: dropout should be in [0, 1), it is {self.dropout}")

    def build(self) -> "RedMotion":
        """A network of these sizes, untrained."""
        return RedMotion(self)

    @property
    def family(self) -> "RedMotionFamily":
        """What knows its sites."""
        return RedMotionFamily()


@final
class RedMotion(Forecaster[RedMotionSettings]):
    """K forecasts of a target with their probabilities, from its history, its neighbors and the map."""

    def __init__(self, settings: RedMotionSettings) -> None:
        super().__init__(settings)
        width, framing = settings.width, settings.framing

        def blocks(count: int) -> nn.ModuleList:
            sizes = (width, settings.heads, settings.expansion, settings.dropout)
            return nn.ModuleList(Block(*sizes) for _ in range(count))

        self.target_input = mlp(AGENT_FEATURES, width, width)
        self.other_input = mlp(AGENT_FEATURES, width, width)
        self.line_input = mlp(LINE_FEATURES + 3 * framing.nodes, width, width)
        self.time = learned(framing.history, width, scale=0.02)
        self.trajectory = blocks(settings.trajectory_layers)
        self.context = blocks(settings.context_layers)
        self.descriptors = learned(settings.red_tokens, width, scale=1.0)
        self.red = blocks(settings.red_layers)
        self.fusion_tokens = learned(2, width, scale=1.0)
        self.road_to_agent, self.agent_to_road = blocks(settings.fusion_layers), blocks(settings.fusion_layers)
        self.anchors = learned(settings.modes, width, scale=1.0)
        self.modes = blocks(settings.decoder_layers)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in ("agent", "context", "red", "all", "modes")})
        self.points = mlp(width, 2 * width, 5 * framing.waypoints)
        self.confidence = mlp(width, width, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Forecast every row.

        Returns ``trajectory`` [batch, modes, waypoints, 2] in meters in the target's frame, ``scale`` [batch, modes,
        waypoints, 3] = (a, b, c), the lower-triangular scale [[eᵃ, 0], [c, eᵇ]] of a normal distribution around each
        waypoint, and ``logits`` [batch, modes].

        Raises:
            ValueError: for a batch of another framing.
        """
        self.check(batch)
        rows, history, present = len(batch), batch.target.valid, road_present(batch)
        agent = self.target_input(agent_features(batch.target, batch.dt)) + self.time
        mask = hiding(seeing_themselves(history))
        for block in self.trajectory:
            agent = block(agent, mask, valid=history)

        context = self._road(batch, present)
        red, memory = self.descriptors.expand(rows, -1, -1), self.norms["context"](context)
        mask = hiding(after(red.shape[1], present))
        for block in self.red:
            red = block(red, mask, memory)

        agent_memory, red_memory = self.norms["agent"](agent), self.norms["red"](red)
        for_agent, for_road = self.fusion_tokens.expand(rows, -1, -1).split(1, dim=1)
        mask = hiding(after(1, history))
        for road_to_agent, agent_to_road in zip(self.road_to_agent, self.agent_to_road, strict=True):
            for_agent = road_to_agent(for_agent, None, red_memory)
            for_road = agent_to_road(for_road, mask, agent_memory)

        everything = torch.cat((for_agent, for_road, red, agent, context), 1)
        modes, memory = self.anchors.expand(rows, -1, -1), self.norms["all"](everything)
        mask = hiding(after(modes.shape[1] + 2 + red.shape[1], torch.cat((history, present), 1)))
        for block in self.modes:
            modes = block(modes, mask, memory)
        modes = self.norms["modes"](modes)
        paths = forecasts(self.points(modes), batch.interval, self.settings.covariance)
        return {**paths, "logits": self.confidence(modes).squeeze(-1)}

    def _road(self, batch: Batch, present: Bool[Tensor, "batch m"]) -> Float[Tensor, "batch m width"]:
        """Lines and other agents' current states, each aware of those at a similar distance from the target."""
        lines, reach = line_features(batch.line, batch.line_valid, batch.line_kind)
        others = agent_features(lately(batch.others), batch.dt)[..., -1, :]
        context = torch.cat((self.line_input(lines), self.other_input(others)), 1)
        away = torch.cat((reach, batch.others.position[..., -1, :].norm(dim=-1)), 1).masked_fill(~present, torch.inf)
        block_of = away.argsort(1).argsort(1) // self.settings.window
        near = (block_of[:, :, None] - block_of[:, None]).abs() <= 1
        mask = hiding(near & seeing_themselves(present))
        for block in self.context:
            context = block(context, mask, valid=present)
        return context


@final
class RedMotionFamily(StagedFamily):
    """Where RedMotion's hidden states are.

    ``agent.i``: the target's history, a token per step. ``context.i``: the lines, then the other agents.
    ``red.i``: the descriptors. ``modes.i``: the forecasts in the making.
    """

    @property
    def network(self) -> type[RedMotion]:
        """RedMotion."""
        return RedMotion

    @property
    def stages(self) -> dict[str, str]:
        """The target's history, its surroundings, their descriptors, the decoder."""
        return {"agent": "trajectory", "context": "context", "red": "red", "modes": "modes"}

    def apart(self, stage: str) -> tuple[str, ...]:
        """An agent's history is apart from its surroundings."""
        apart = {"agent": ("context", "red"), "context": ("agent",), "red": ("agent", "context")}
        return apart.get(stage, ("agent", "context", "red"))

    def mask(self, batch: Batch, site: Site) -> Bool[Tensor, "batch tokens"] | None:
        """The valid history steps; the lines and agents that are there; None for learned tokens."""
        match site.name.split(".")[0]:
            case "agent":
                return batch.target.valid
            case "context":
                return road_present(batch)
            case _:
                return None


def road_present(batch: Batch) -> Bool[Tensor, "batch lines_and_agents"]:
    """Which lines and which other agents there are."""
    return torch.cat((batch.line_valid.any(-1), batch.others.valid[..., -1]), 1)
