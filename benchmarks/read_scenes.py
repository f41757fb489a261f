"""Scenarios per second: read from Argoverse 2 files, written to a store by several processes, and read back from it.

One real scenario is replicated under other names, each copy shifted a little, so that no two files hold the same bytes;
all of them are read once before anything is measured. python benchmarks/read_scenes.py --assets FOLDER
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
import tyro
from recording import machine, save

from innerspace.motion.argoverse import Argoverse2
from innerspace.motion.framing import Framing, frame
from innerspace.motion.scene_store import SceneStore
from innerspace.motion.scene_writing import write_store
from innerspace.motion.sources import load

ASSETS = Path(os.environ.get("INNERSPACE_ASSETS", "../shared/assets"))
FRAMING = Framing()


def replicate(scenario: Path, folder: Path, count: int) -> int:
    """Copies of a scenario, each shifted by up to 10 m as a whole; gives their bytes."""
    name = scenario.stem.removeprefix("scenario_")
    table = parquet.read_table(scenario)
    road = json.loads(scenario.with_name(f"log_map_archive_{name}.json").read_bytes())
    codec = parquet.ParquetFile(scenario).metadata.row_group(0).column(0).compression
    random, size = np.random.default_rng(0), 0
    for i in range(count):
        x, y = random.uniform(-10, 10, 2)
        shifted = table
        for axis, by in (("position_x", x), ("position_y", y)):
            place = shifted.column_names.index(axis)
            shifted = shifted.set_column(place, axis, [shifted[axis].to_numpy() + by])
        copy = f"{i:08x}{name[8:]}"
        (folder / copy).mkdir(parents=True)
        tracks, lines = folder / copy / f"scenario_{copy}.parquet", folder / copy / f"log_map_archive_{copy}.json"
        parquet.write_table(shifted, tracks, compression=codec)
        lines.write_text(json.dumps(_moved(road, x, y)))
        size += tracks.stat().st_size + lines.stat().st_size
    return size


def _moved(item: Any, x: float, y: float) -> Any:
    if isinstance(item, dict):
        if "x" in item:
            return item | {"x": round(item["x"] + x, 2), "y": round(item["y"] + y, 2)}
        return {key: _moved(entry, x, y) for key, entry in item.items()}
    return [_moved(entry, x, y) for entry in item] if isinstance(item, list) else item


def rates(count: int, work: Callable[[], object], repeats: int = 3) -> dict[str, float]:
    """Of the fastest run: how many a second, and how many for each second of a core's time."""
    runs = list[tuple[float, float]]()
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        work()
        runs.append((time.perf_counter() - start, time.process_time() - busy))
    seconds, core = min(runs)
    return {"per_second": count / seconds, "per_core_second": count / core}


def main(assets: Path = ASSETS, count: int = 2000, workers: int = 2) -> None:
    """All rates, and what they stand on."""
    torch.set_num_threads(1)
    found = sorted(assets.rglob("scenario_*.parquet"))
    if not found:
        print(f"no scenario in {assets}: nothing to measure")
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = replicate(found[0], folder / "files", count)
        source = Argoverse2(folder / "files")
        records = source.records()
        results = {"listing": rates(count, source.records)}
        results["reading files"] = rates(count, lambda: [list(source.read(record)) for record in records])

        start = time.perf_counter()
        store = write_store(source, folder / "store", workers=workers)
        together = {"per_second": count / (time.perf_counter() - start)}
        results[f"writing a store, {workers} workers and their start"] = together
        start = time.perf_counter()
        write_store(source, folder / "alone", workers=0)
        results["writing a store, alone"] = {"per_second": count / (time.perf_counter() - start)}

        def raw() -> int:
            fields = ("position", "heading", "velocity", "valid", "line", "line_valid")
            return sum(int(getattr(scene, field).view(np.uint8).sum()) for scene in store for field in fields)

        def framed() -> list[int]:
            return [len(store.frame(store.agents_of(np.arange(i, i + 1)), FRAMING)) for i in range(count)]

        results["store: every byte of a scene read"] = rates(count, raw)
        results["store: scenes framed, all their agents"] = rates(count, framed)
        batches = count // 64
        stream = store.batches(FRAMING, 64, 0)
        drawn = rates(64 * batches, lambda: [stream.next() for _ in range(batches)])
        results["store: agents drawn from all scenes and framed"] = drawn
        results["opening a store"] = rates(1, lambda: SceneStore(folder / "store").groups)
        results["checksums of a store"] = rates(count, store.verify)
        scenes = load(source).scenes
        results["memory: scenes framed, all their agents"] = rates(count, lambda: [frame([s], FRAMING) for s in scenes])
        kept = sum(path.stat().st_size for path in store.folder.iterdir())

    ratio = _core(results, "store: scenes framed, all their agents") / _core(results, "reading files")
    told = f"{count} copies of one scenario, {size / count / 1e3:.0f} kB each as files and {kept / count / 1e3:.0f} kB "
    told += f"each in the store; {store.agents / count:g} agents to forecast in each; all files in the page cache. "
    told += f"Load average {os.getloadavg()[0]:.0f}: seconds of a core leave out what other processes took."
    lines = [told, "", "| what | per second | per second of a core |", "|---|---|---|"]
    for what, rate in results.items():
        core = f"{rate['per_core_second']:,.0f}" if "per_core_second" in rate else ""
        lines.append(f"| {what} | {rate['per_second']:,.0f} | {core} |")
    lines += [
        "",
        f"Framed from the store, scenes come {ratio:.1f} times as fast as they are read from files, unframed.",
    ]
    save("read_scenes", "Reading recorded scenes", machine(1) | {"scenarios": count}, results, lines)


def _core(results: Mapping[str, Mapping[str, float]], what: str) -> float:
    return results[what]["per_core_second"]


if __name__ == "__main__":
    tyro.cli(main)
