"""What steering costs: a steered forecast against a plain one, hooks against raw ones and, where installed, nnsight's.

python benchmarks/steering.py
pip install nnsight; python benchmarks/steering.py
"""

import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from innerspace.interventions import At, Steer
from innerspace.measure.cost import cost, hook_microseconds
from innerspace.motion.forecasters.redmotion import RedMotion, RedMotionFamily, RedMotionSettings
from innerspace.motion.framing import Framing, frame
from innerspace.motion.simulate import Simulation, simulate
from innerspace.network.model import Family, Model
from innerspace.network.site import Site, Where


class Blocks(nn.Module):
    """Four residual blocks of width 64: small, so that what a framework adds shows."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class BlocksFamily(Family):
    """Its sites are the blocks' outputs."""

    def sites(self, module: nn.Module) -> list[Site]:
        return [Site(f"block.{i}", f"blocks.{i}", 64) for i in range(4)]

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        return {"y": module(batch)}


def contenders(network: nn.Module, x: Tensor, v: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Ways to add a vector to the output of the third block."""

    def raw() -> Tensor:
        handle = network.get_submodule("blocks.2").register_forward_hook(lambda module, arguments, output: output + v)
        try:
            return network(x)
        finally:
            handle.remove()

    model = Model(network, BlocksFamily())
    yield "plain forward", lambda: network(x)
    yield "raw hook, added and removed", raw
    yield "innerspace", lambda: model.run(x, {"block.2": Steer(v, 1.0)}).output["y"]
    if find_spec("nnsight"):
        from nnsight import NNsight

        wrapped = NNsight(network)

        def traced() -> Tensor:
            with wrapped.trace(x):
                wrapped.blocks[2].output = wrapped.blocks[2].output + v
                y = wrapped.output.save()
            return y

        yield "nnsight", traced


@torch.no_grad()
def compare_hooks(rounds: int = 300) -> None:
    """Microseconds that each way adds to a plain pass; rounds go through all contenders in turn."""
    torch.manual_seed(0)
    network, x, v = Blocks().eval(), torch.randn(1, 16, 64), torch.randn(64)
    ways = dict(contenders(network, x, v))
    right = ways["raw hook, added and removed"]()
    times = dict[str, list[float]]({name: [] for name in ways})
    for _ in range(rounds):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    medians = {name: float(torch.tensor(found).median()) * 1e6 for name, found in times.items()}
    plain = medians["plain forward"]
    print(f"a pass of four blocks takes {plain:.0f} µs; a vector added to one of them costs")
    for name, median in medians.items():
        if name != "plain forward":
            same = torch.allclose(ways[name](), right, atol=1e-5)
            print(f"  {name:28} +{median - plain:5.0f} µs  x{median / plain:.2f}  {'correct' if same else 'WRONG'}")


def main(rows: int = 256, rounds: int = 60, threads: int = 2) -> None:
    """Both comparisons."""
    torch.set_num_threads(threads)
    framing = Framing(agents=6, lines=24)
    batch = frame(simulate(Simulation(scenes=rows // 2)).scenes, framing)
    model = Model(RedMotion(RedMotionSettings(width=128, framing=framing)).eval(), RedMotionFamily())
    steer = At(Where("valid"), Steer(torch.randn(128), 1.0))
    found = cost(model, batch, {"agent.2": steer}, rounds)
    plain, steered, ratio = found.plain_ms.mean, found.steered_ms.mean, found.ratio
    print(f"RedMotion on {len(batch)} agents, {threads} threads: plain {plain:.1f} ms, steered {steered:.1f} ms")
    print(f"  ratio {ratio.mean:.4f} ({ratio.low:.4f} to {ratio.high:.4f})")
    print(f"one intervention attached and detached: {hook_microseconds(model):.1f} µs")
    compare_hooks()


if __name__ == "__main__":
    tyro.cli(main)
