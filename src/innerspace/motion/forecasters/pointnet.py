"""Points to one token: stages that look at each point and at the maximum over all of them, then that maximum.

Qi et al., "PointNet: Deep Learning on Point Sets for 3D Classification and Segmentation", CVPR 2017.
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from innerspace.motion.forecasters.encoding import AGENT_FEATURES
from innerspace.motion.forecasters.own_frames import NODE_FEATURES

STAGES = 3
"""Stages of an agent's history."""

_LINE_STAGES = 2


@final
class Stage(nn.Module):
    """x + MLP(x, m) for every point, with m the maximum of x over the valid points of the token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.point = nn.Linear(width, width)
        self.all_points = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch n points width"], valid: Bool[Tensor, "batch n points"]
    ) -> Float[Tensor, "batch n points width"]:
        """The points after the stage."""
        hidden = self.point(x) + self.all_points(largest(x, valid))[..., None, :]
        return x + self.out(hidden.relu())


@final
class Embedding(nn.Module):
    """Points by their features and by their place in the order of the token's points."""

    def __init__(self, features: int, points: int, width: int) -> None:
        super().__init__()
        self.features = nn.Linear(features, width)
        self.place = nn.Parameter(torch.randn(points, width) * 0.02)

    def forward(self, features: Float[Tensor, "batch n points features"]) -> Float[Tensor, "batch n points width"]:
        """The points' hidden states."""
        return self.features(features) + self.place


@final
class Histories(nn.Module):
    """A token for every agent: its history through stages, then the maximum over valid steps."""

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        self.embedding = Embedding(AGENT_FEATURES, steps, width)
        self.stages = nn.ModuleList(Stage(width) for _ in range(STAGES))
        # all agents share the stages; the target's history passes here alone, to be read and written
        self.target = nn.ModuleList(nn.Identity() for _ in range(STAGES))

    def forward(
        self, features: Float[Tensor, "batch n steps features"], valid: Bool[Tensor, "batch n steps"]
    ) -> Float[Tensor, "batch n width"]:
        """The tokens, the target's first; zero for an agent without a valid step."""
        x = self.embedding(features)
        for stage, target in zip(self.stages, self.target, strict=True):
            x = stage(x, valid)
            x = torch.cat((target(x[:, 0] * valid[:, 0, :, None])[:, None], x[:, 1:]), 1)
        return largest(x, valid)


@final
class Shapes(nn.Module):
    """A token for every line: its nodes through stages, then the maximum over valid nodes, and that at full width."""

    def __init__(self, nodes: int, node_width: int, width: int) -> None:
        super().__init__()
        self.embedding = Embedding(NODE_FEATURES, nodes, node_width)
        self.stages = nn.ModuleList(Stage(node_width) for _ in range(_LINE_STAGES))
        self.token = nn.Linear(node_width, width)

    def forward(
        self, features: Float[Tensor, "batch n nodes features"], valid: Bool[Tensor, "batch n nodes"]
    ) -> Float[Tensor, "batch n width"]:
        """The tokens; zero for a line that is not there."""
        x = self.embedding(features)
        for stage in self.stages:
            x = stage(x, valid)
        return self.token(largest(x, valid)) * valid.any(-1)[..., None]


def largest(
    x: Float[Tensor, "*tokens points width"], valid: Bool[Tensor, "*tokens points"]
) -> Float[Tensor, "*tokens width"]:
    """The maximum over the valid points, in each coordinate; zero where there is none."""
    floor = torch.zeros_like(valid, dtype=x.dtype).masked_fill_(~valid, -torch.inf)
    most = (x + floor[..., None]).amax(-2)
    return torch.where(valid.any(-1)[..., None], most, 0)
