"""A forecaster trained by two processes against one; the processes are forks of this very file, run as a script."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from innerspace.checkpoint import load_state, save_state
from innerspace.motion.forecasters.wayformer import Wayformer, WayformerSettings
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.simulate import Simulation, simulate
from innerspace.motion.training import Trained, Training, train
from innerspace.parallel import Share, go_on_alone
from motion.batches import as_doubles
from processes import fork, script

FRAMING = Framing(history=6, future=20, stride=4, agents=3, lines=8)
SETTINGS = Training(steps=12, batch_size=9, warm_up=3, evaluate_every=4, checkpoint_every=5)


def simulated(scenes: int, seed: int) -> Batch:
    """In double precision: a step of Adam makes much of rounding where a gradient is zero."""
    batch = frame(simulate(Simulation(scenes=scenes, seed=seed, history=6, future=20)).scenes, FRAMING)
    # rows of very different weight
    batch.future_valid[::3, 1:] = False
    return as_doubles(batch)


def fresh(dropout: float = 0.0, seed: int = 5) -> Wayformer:
    torch.manual_seed(seed)
    return Wayformer(WayformerSettings(framing=FRAMING, width=8, latents=4, decoder_layers=1, dropout=dropout))


def learned(network: nn.Module, folder: Path | None, interrupted_at: int = 0) -> dict[str, Any]:
    """What comes of a training, which may be interrupted and begun anew."""
    count = 0

    def interrupt(*_: object) -> None:
        nonlocal count
        count += network.training
        if count == interrupted_at:
            raise KeyboardInterrupt

    handle = network.register_forward_pre_hook(interrupt)
    rows, held_out = simulated(20, 1), simulated(6, 2)
    trained: Trained | None = None
    while trained is None:
        try:
            trained = train(network, rows, held_out, SETTINGS, folder)
        except KeyboardInterrupt:
            count = 100
    handle.remove()
    curve = [[p.step, p.loss, p.held_out, p.min_ade] for p in trained.curve]
    scores = trained.scores
    return {
        "weights": network.state_dict(),
        "curve": curve,
        "scores": [scores.min_ade, scores.min_fde, scores.miss_rate, scores.brier_min_fde, scores.rows],
    }


def work(folder: Path, rank: int) -> None:
    """What each of the two processes does."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, Any] = {
        # the second process begins with other weights, and should not
        "plain": learned(fresh(seed=5 + rank), folder / f"of{rank}"),
        "dropout": learned(fresh(0.2), folder / "whole"),
        "torn": learned(fresh(0.2), folder / "torn", interrupted_at=8),
    }
    try:
        train(fresh(), simulated(20, 1), simulated(6, 2)[slice(0, 1)], SETTINGS)
    except ValueError as error:
        found["refused"] = str(error)
    found["alone"] = go_on_alone()
    found["share"] = Share.mine().to_json()
    save_state(folder / f"rank{rank}.safetensors", found)


def flat(found: dict[str, Any]) -> list[float]:
    return [*(entry for point in found["curve"] for entry in point), *found["scores"]]


@pytest.fixture(scope="module", name="both")
def _both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("together")
    script(__file__, str(folder))
    return folder, [load_state(folder / f"rank{rank}.safetensors") for rank in (0, 1)]


def in_double(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    torch.set_default_dtype(torch.float64)
    try:
        return act()
    finally:
        torch.set_default_dtype(torch.float32)


def test_two_processes_learn_what_one_learns(both: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, ranks = both
    expected = in_double(lambda: learned(fresh(), None))
    for found in (item["plain"] for item in ranks):
        assert flat(found) == pytest.approx(flat(expected), rel=1e-5)
        for name, tensor in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], tensor, rtol=1e-5, atol=1e-5)
    assert sorted(path.name for path in (folder / "of0").iterdir()) == ["log.jsonl", "training.safetensors"]
    assert not (folder / "of1").exists()


def test_several_processes_end_with_the_same_bits_torn_or_whole(both: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (one, two) = both
    for name, tensor in one["dropout"]["weights"].items():
        for other in (two["dropout"], one["torn"], two["torn"]):
            assert torch.equal(other["weights"][name], tensor), name
    assert one["dropout"]["curve"] == one["torn"]["curve"] == two["torn"]["curve"]
    assert (folder / "whole" / "log.jsonl").read_text() == (folder / "torn" / "log.jsonl").read_text()
    # what is dropped out is each process's own affair
    assert flat(one["dropout"]) != flat(one["plain"])


def test_one_goes_on_alone_and_too_few_rows_are_refused(both: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank, found in enumerate(both[1]):
        assert found["refused"] == "2 processes need as many rows of every batch and of what is held out, not 1"
        assert found["alone"] == (rank == 0)
        assert found["share"] == Share().to_json()


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    children = [fork(lambda rank=rank: work(Path(sys.argv[1]), rank)) for rank in (0, 1)]
    sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)
