"""HPTR: a forecaster in which every agent and every line is one token in a frame of its own.

A PointNet takes each agent's history to a token, another each line's nodes; its stages on the target's history are the
sites ``agent.0 … agent.2``. Only relative poses tell where tokens are: lines attend to lines, then agents to agents and
lines, then K modes of the target to everything, each to its nearest. What is encoded of a scene is the same from every
target's frame. The target's own motion reaches the modes only through its history's features, whose maximum over time
is its token: a vector added to all steps of ``agent.2`` shifts that token by itself.

Zhang et al., "Real-Time Motion Prediction via Heterogeneous Polyline Transformer with Relative Pose Encoding",
NeurIPS 2023, arXiv 2310.12970.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from innerspace.motion.forecasters.family import StagedFamily
from innerspace.motion.forecasters.forecaster import Forecaster, ForecasterSettings, forecasts
from innerspace.motion.forecasters.layers import mlp
from innerspace.motion.forecasters.own_frames import agent_points, agents_present, line_points
from innerspace.motion.forecasters.pointnet import STAGES, Histories, Shapes
from innerspace.motion.forecasters.relative_attention import PoseEncoding, RelativeBlock, neighbors
from innerspace.motion.framing import Batch
from innerspace.network.site import Site

# lines see K neighbors, agents and modes so many times K, as published
_SCENE, _MODES = 4, 10


@dataclass(frozen=True)
class HptrSettings(ForecasterSettings):
    """The sizes of an HPTR network; ``framing`` says what it reads and forecasts.

    A line sees its ``neighbors`` nearest lines, an agent four times as many agents and lines, a mode ten times, up to
    the given reaches (m). ``frequencies`` and ``turns`` are the numbers of waves by which relative positions and yaws
    are encoded; ``node_width`` is the width of a line's nodes before they become a token. The defaults train on two
    processor cores within minutes.
    """

    width: int = 64
    node_width: int = 32
    heads: int = 2
    expansion: int = 2
    map_layers: int = 1
    scene_layers: int = 1
    mode_layers: int = 2
    neighbors: int = 8
    map_reach: float = 500.0
    scene_reach: float = 1000.0
    mode_reach: float = 1500.0
    frequencies: int = 8
    turns: int = 4
    modes: int = 6
    dropout: float = 0.0

    def __post_init__(self) -> None:
        counts = ("width", "node_width", "heads", "expansion", "neighbors", "frequencies", "turns", "modes")
        for name in (*counts, "map_layers", "scene_layers", "mode_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"HPTR: {name} should be at least 1, it is {getattr(self, name)}")
        for name in ("map_reach", "scene_reach", "mode_reach"):
            if not getattr(self, name) > 0:
                raise ValueError(f"HPTR: {name} should be positive, it is {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"HPTR: heads {self.heads} should divide width {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"HPTR: dropout should be in [0, 1), it is {self.dropout}")

    @classmethod
    def published(cls) -> "HptrSettings":
        """Width 256, 36 neighbors, six layers for the map, two for agents, two for modes; the rest follows the width.

        What is read and forecast is the default's; the published network reads 64 agents and 1024 lines of 20 nodes.
        """
        return cls(
            width=256,
            node_width=256,
            heads=4,
            expansion=4,
            map_layers=6,
            scene_layers=2,
            mode_layers=2,
            neighbors=36,
            frequencies=32,
            turns=64,
            dropout=0.1,
        )

    def build(self) -> "Hptr":
        """A network of these sizes, untrained."""
        return Hptr(self)

    @property
    def family(self) -> "HptrFamily":
        """What knows its sites."""
        return HptrFamily()


@final
class Hptr(Forecaster[HptrSettings]):
    """K forecasts of a target with their probabilities, from its history, its neighbors and the map."""

    def __init__(self, settings: HptrSettings) -> None:
        super().__init__(settings)
        width, framing = settings.width, settings.framing
        self.encoding = PoseEncoding(settings.frequencies, settings.turns)

        def blocks(count: int) -> nn.ModuleList:
            sizes = (width, settings.heads, settings.expansion, settings.dropout, self.encoding)
            return nn.ModuleList(RelativeBlock(*sizes) for _ in range(count))

        self.agents = Histories(framing.history, width)
        self.lines = Shapes(framing.nodes, settings.node_width, width)
        self.map = blocks(settings.map_layers)
        self.scene = blocks(settings.scene_layers)
        self.anchors = nn.Parameter(torch.randn(settings.modes, width))
        self.anchor_input = nn.Linear(2 * width, width)
        self.modes = blocks(settings.mode_layers)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in ("map", "scene", "modes")})
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
        settings, encoding = self.settings, self.encoding
        histories, shapes = agent_points(batch), line_points(batch)
        everything = histories.poses.and_then(shapes.poses)
        agents = self.agents(histories.features, histories.valid)

        lines, present = self.lines(shapes.features, shapes.valid), shapes.poses.present
        near = neighbors(shapes.poses, shapes.poses, settings.neighbors, settings.map_reach, encoding)
        for block in self.map:
            lines = block(lines, near, valid=present)
        road, present = self.norms["map"](lines), histories.poses.present
        near = neighbors(histories.poses, everything, _SCENE * settings.neighbors, settings.scene_reach, encoding)
        for block in self.scene:
            agents = block(agents, near, road, present)

        agents = self.norms["scene"](agents)
        near = neighbors(everything.first(1), everything, _MODES * settings.neighbors, settings.mode_reach, encoding)
        target, memory = agents[:, :1].expand(-1, settings.modes, -1), torch.cat((agents, road), 1)
        modes = self.anchor_input(torch.cat((self.anchors.expand_as(target), target), -1))
        for block in self.modes:
            modes = block(modes, near, memory, itself=False)
        modes = self.norms["modes"](modes)
        paths = forecasts(self.points(modes), batch.interval, self.settings.covariance)
        return {**paths, "logits": self.confidence(modes).squeeze(-1)}


@final
class HptrFamily(StagedFamily):
    """Where HPTR's hidden states are.

    ``agent.i``: the target's history, a token per step, after a stage. ``token.0``: the agents, the target first, each
    its history's maximum. ``map.i``: the lines. ``scene.i``: the agents again, aware of each other and of the map.
    ``modes.i``: the forecasts in the making.
    """

    @property
    def network(self) -> type[Hptr]:
        """HPTR."""
        return Hptr

    @property
    def stages(self) -> dict[str, str]:
        """The target's history, the lines, the agents among each other and on the map, the decoder."""
        return {"agent": "agents.target", "map": "map", "scene": "scene", "modes": "modes"}

    def apart(self, stage: str) -> tuple[str, ...]:
        """The map is apart from the agents, who look at it."""
        return {"map": ("token",), "modes": ("map", "scene")}.get(stage, ("map",))

    def sites(self, module: nn.Module) -> list[Site]:
        """The sites, in the order of the pass: behind the histories' stages their maxima."""
        staged = super().sites(module)
        return [*staged[:STAGES], Site("token.0", "agents", staged[0].width), *staged[STAGES:]]

    def mask(self, batch: Batch, site: Site) -> Bool[Tensor, "batch tokens"] | None:
        """The valid history steps; the agents or the lines that are there; None for modes."""
        match site.name.split(".")[0]:
            case "agent":
                return batch.target.valid
            case "token" | "scene":
                return agents_present(batch)
            case "map":
                return batch.line_valid.any(-1)
            case _:
                return None

    def spared(self, module: nn.Module, cut: Site) -> list[str]:
        """What gives the state to the site's stage, and the blocks of the stage up to the site."""
        if cut.name == "token.0":
            return ["agents"]
        before = {"map": ["lines"], "scene": ["agents"]}.get(cut.name.split(".")[0], [])
        return [*before, *super().spared(module, cut)]
