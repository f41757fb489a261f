"""Mutual information of all pairs of parts, as large as the paper's: time, CPU-seconds and the peak of memory.

24 parts of a space of width 768, 12,800 queries among 98,304 keys, one thread; on a graphics card if there is one and
it is asked for. For comparison, what holding the distances of all pairs for a batch of 128 queries would take.

    python benchmarks/dependence.py [--device cuda]
"""

import resource
import time

import torch
import tyro
from recording import machine, save

from innerspace.decompose.subspaces import Subspaces
from innerspace.learn.dependence import dependence
from innerspace.learn.neighbors import Neighborhood


def main(
    width: int = 768, parts: int = 24, queries: int = 12_800, keys: int = 98_304, device: str = "cpu", threads: int = 1
) -> None:
    """Measure once."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(queries + keys, width, generator=generator)
    # neighbors in the order of the parts share something
    rows[:, width // parts :] += rows[:, : -(width // parts)]
    what = Subspaces.random(width, [width // parts] * parts, generator).to(device)
    rows = rows.to(device)
    near = Neighborhood(rows[:queries], rows[queries:])
    dependence(what, Neighborhood(rows[:64], rows[64:4096]))
    before, began, busy = _peak(device), time.perf_counter(), time.process_time()
    found = dependence(what, near)
    mean = float(found.information.nanmean())
    wall, cpu, after = time.perf_counter() - began, time.process_time() - busy, _peak(device)
    pairs = parts * (parts - 1) // 2
    compared = 3 * pairs * queries * keys
    results = {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "peak_gib": after,
        "before_gib": before,
        "comparisons": compared,
        "mean_nats": mean,
    }
    lines = [
        f"{pairs} pairs of {parts} parts of width {width}, {queries:,} queries × {keys:,} keys on {device}:",
        "",
        "| wall, s | CPU, s | peak of memory, GiB | of which rows, GiB | 10⁹ comparisons per CPU-second |",
        "|---|---|---|---|---|",
        f"| {wall:.0f} | {cpu:.0f} | {after:.2f} | {before:.2f} | {compared / cpu / 1e9:.2f} |",
        "",
        f"All pairs of 128 queries at once would hold {pairs * 128 * keys * 4 / 2**30:.1f} GiB.",
    ]
    save("dependence", "All-pairs mutual information", machine(threads), results, lines)


def _peak(device: str) -> float:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


if __name__ == "__main__":
    tyro.cli(main)
