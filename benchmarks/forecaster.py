"""How fast RedMotion trains, and how good it is after a budget of steps, next to constant velocity.

python benchmarks/forecaster.py --threads 2 --steps 2000
"""

import time
from collections.abc import Callable

import torch
import tyro

from innerspace.motion.forecasters.redmotion import RedMotion, RedMotionSettings
from innerspace.motion.framing import Framing, frame
from innerspace.motion.losses import losses
from innerspace.motion.simulate import Simulation, simulate
from innerspace.motion.training import Training, forecast, train


def fastest(work: Callable[[], object], repeats: int = 15) -> float:
    """Seconds of the fastest run: the one that other work on the machine disturbed least."""
    times = list[float]()
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main(threads: int = 2, batch_size: int = 64, scenes: int = 3500, steps: int = 0) -> None:
    """Rows per second; with ``steps``, also the held-out errors after so many."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows = frame(simulate(Simulation(scenes=scenes, seed=1)).scenes, Framing())
    network = RedMotion(RedMotionSettings())
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    batch = rows[slice(0, batch_size)]

    def advance() -> None:
        optimizer.zero_grad()
        losses(network(batch), batch).mean().backward()
        optimizer.step()

    print(f"{sum(p.numel() for p in network.parameters())} parameters, {threads} threads")
    print(f"training {batch_size / fastest(advance):.0f} rows/s")
    print(f"forecast {batch_size / fastest(lambda: forecast(network, batch)):.0f} rows/s")
    if steps:
        held_out = frame(simulate(Simulation(scenes=600, seed=2)).scenes, Framing())
        network = RedMotion(RedMotionSettings())
        start = time.perf_counter()
        trained = train(network, rows, held_out, Training(steps=steps, batch_size=batch_size))
        print(f"{steps} steps in {time.perf_counter() - start:.0f} s")
        for point in trained.curve:
            print(point)
        print(f"RedMotion          {trained.scores}\nconstant velocity  {trained.baseline}")


if __name__ == "__main__":
    tyro.cli(main)
