"""Small members of every family, with a batch each, for the laws."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from innerspace.language.causal_lm import CausalLM
from innerspace.language.text import Text
from innerspace.motion.forecasters.hptr import Hptr, HptrFamily, HptrSettings
from innerspace.motion.forecasters.redmotion import RedMotion, RedMotionFamily, RedMotionSettings
from innerspace.motion.forecasters.wayformer import Wayformer, WayformerFamily, WayformerSettings
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.simulate import Simulation, simulate
from innerspace.network.model import Family, Model
from innerspace.network.site import Site
from language.tiny import decoder


class Blocks(nn.Module):
    """Residual blocks, of which the second gives a tuple; one more is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.first = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.second = _Tuple()
        self.spare = nn.Linear(8, 8)
        self.read_out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.first(x)
        x, _ = self.second(x)
        return self.read_out(x)


class _Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x + self.linear(x).tanh(), "kept"


class BlocksFamily(Family):
    def sites(self, module: nn.Module) -> list[Site]:
        return [
            Site("first", "first", 8),
            Site("second", "second", 8),
            Site("second.in", "second", 8, io="input"),
            Site("spare", "spare", 8),
        ]

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        return {"y": module(batch["x"])}

    def mask(self, batch: Any, site: Site) -> Tensor:
        return batch["valid"]


class EncoderFamily(Family):
    """PyTorch's own encoder, whose fused kernel skips the modules inside a layer."""

    def sites(self, module: nn.Module) -> list[Site]:
        return [Site(f"layer.{i}", f"layers.{i}", 8) for i in range(2)] + [Site("ffn.0", "layers.0.linear1", 16)]

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        return {"y": module(batch["x"], src_key_padding_mask=~batch["valid"])}

    def mask(self, batch: Any, site: Site) -> Tensor:
        return batch["valid"]


@dataclass(frozen=True)
class Case:
    model: Model
    batch: Any
    sites: tuple[str, ...]
    """Sites whose hidden states have one position per token of ``mask``."""
    output: str = "y"

    def with_input_gradient(self) -> tuple[Any, Tensor] | None:
        """The batch with an input that asks for its gradient, and that input; None where inputs are token ids."""
        if isinstance(self.batch, Text):
            return None
        if isinstance(self.batch, Batch):
            position = self.batch.target.position.clone().requires_grad_(True)
            target = dataclasses.replace(self.batch.target, position=position)
            return dataclasses.replace(self.batch, target=target), position
        x = self.batch["x"].clone().requires_grad_(True)
        return {**self.batch, "x": x}, x


def _tokens(width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    valid = torch.ones(4, 5, dtype=torch.bool)
    valid[1, :2] = False
    valid[3, 4:] = False
    return {"x": torch.randn(4, 5, width, generator=generator), "valid": valid}


def blocks() -> Case:
    torch.manual_seed(2)
    return Case(Model(Blocks(), BlocksFamily()), _tokens(3), ("first", "second", "second.in"))


def encoder() -> Case:
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Case(Model(network, EncoderFamily()), _tokens(8), ("layer.0", "layer.1", "ffn.0"))


def redmotion() -> Case:
    """A forecaster, with histories of which some steps are missing."""
    torch.manual_seed(4)
    framing = Framing(history=6, future=10, stride=2, agents=3, lines=6)
    network = RedMotion(RedMotionSettings(framing=framing, width=8, context_layers=1, window=4, red_tokens=2, modes=3))
    batch = frame(simulate(Simulation(scenes=2, seed=3, history=6, future=10, dropout=0.3)).scenes, framing)
    return Case(Model(network, RedMotionFamily()), batch, ("agent.0", "agent.1", "agent.2"), "trajectory")


def hptr() -> Case:
    """The same, with agents and lines that are missing too."""
    torch.manual_seed(6)
    framing = Framing(history=6, future=10, stride=2, agents=6, lines=48)
    network = Hptr(HptrSettings(framing=framing, width=8, node_width=8, neighbors=4, modes=3))
    batch = frame(simulate(Simulation(scenes=2, seed=3, history=6, future=10, dropout=0.3)).scenes, framing)
    sites = ("agent.0", "agent.1", "agent.2", "token.0", "map.0", "scene.0")
    return Case(Model(network, HptrFamily()), batch, sites, "trajectory")


def wayformer() -> Case:
    """The other forecaster, with a history of its own."""
    torch.manual_seed(6)
    framing = Framing(history=6, future=10, stride=2, agents=3, lines=6)
    network = Wayformer(WayformerSettings(framing=framing, width=8, latents=4, modes=3))
    batch = frame(simulate(Simulation(scenes=2, seed=3, history=6, future=10, dropout=0.3)).scenes, framing)
    return Case(Model(network, WayformerFamily()), batch, ("agent.0", "agent.1", "agent.2"), "trajectory")


def language(name: str, sites: tuple[str, ...]) -> Case:
    """A decoder, with texts that are padded at either end."""
    generator = torch.Generator().manual_seed(5)
    batch = Text(torch.randint(3, 101, (4, 5), generator=generator), _tokens(1)["valid"])
    return Case(Model(decoder(name), CausalLM()), batch, sites, "logits")


def gpt2() -> Case:
    return language("gpt2", ("embed", "heads.0", "attn.0", "resid_mid.0", "mlp.0", "resid.0", "resid.2", "final"))


def llama() -> Case:
    return language("llama", ("embed", "heads.1", "resid_mid.1", "resid.1", "attn.2", "mlp.2", "final"))


CASES: dict[str, Callable[[], Case]] = {
    "blocks": blocks,
    "encoder": encoder,
    "redmotion": redmotion,
    "hptr": hptr,
    "wayformer": wayformer,
    "gpt2": gpt2,
    "llama": llama,
}
