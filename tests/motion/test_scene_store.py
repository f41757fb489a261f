from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.scene_store import SceneStore
from innerspace.motion.scene_writing import write_store
from innerspace.motion.scenes import Scene
from innerspace.motion.sources import load
from scene_sources import RandomScenes

SOURCE = RandomScenes(40)
FRAMING = Framing(history=5, future=8, stride=2, agents=3, lines=4, nodes=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SceneStore:
    return write_store(SOURCE, tmp_path_factory.mktemp("scenes") / "store", workers=0)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return load(SOURCE).scenes


def tensors(batch: Batch) -> dict[str, Tensor]:
    found = dict[str, Tensor]()
    for field in fields(batch):
        item: Any = getattr(batch, field.name)
        if isinstance(item, Tensor):
            found[field.name] = item
        elif not isinstance(item, float):
            found |= {f"{field.name}.{part.name}": getattr(item, part.name) for part in fields(item)}
    return found


def assert_equal(one: Batch, other: Batch) -> None:
    """Bit for bit."""
    assert (one.dt, one.interval) == (other.dt, other.interval)
    theirs = tensors(other)
    assert len(theirs) == 22
    for name, tensor in tensors(one).items():
        assert torch.equal(tensor, theirs[name]), name


def test_scenes_come_back_as_they_were(store: SceneStore, scenes: list[Scene]) -> None:
    assert len(store) == len(scenes) == 39
    for stored, scene in zip(store, scenes, strict=True):
        for field in fields(Scene):
            one, other = getattr(stored, field.name), getattr(scene, field.name)
            if isinstance(other, np.ndarray):
                assert one.dtype == other.dtype, field.name
                np.testing.assert_array_equal(one, other)
            else:
                assert (type(one), one) == (type(other), other)
        # a stored scene keeps the schema, though reading does not check it
        stored.__post_init__()
    assert store[-1].name == scenes[-1].name
    with pytest.raises(IndexError):
        store[39]


def test_names_and_groups_are_those_of_the_scenes(store: SceneStore, scenes: list[Scene]) -> None:
    assert store.names == [scene.name for scene in scenes]
    assert store.groups == [scene.group for scene in scenes]
    assert store.agents == sum(len(scene.target) for scene in scenes)


def test_arrays_are_views_of_the_file(store: SceneStore) -> None:
    for once, again in zip(store, store, strict=True):
        for field in fields(Scene):
            array = getattr(once, field.name)
            if isinstance(array, np.ndarray) and array.size:
                assert np.shares_memory(array, getattr(again, field.name)), field.name
                assert not array.flags.writeable


def test_framing_from_the_store_is_framing_from_the_list(store: SceneStore, scenes: list[Scene]) -> None:
    whole = frame(scenes, FRAMING)
    assert_equal(store.frame(np.arange(store.agents), FRAMING), whole)
    chosen = np.random.default_rng(0).integers(store.agents, size=60)
    assert len(np.unique(chosen)) < 60
    assert_equal(store.frame(chosen, FRAMING), whole[torch.from_numpy(chosen)])
    for wrong in (store.agents, -1):
        with pytest.raises(ValueError, match=f"there are agents 0 … {store.agents - 1}, not"):
            store.frame(np.array([wrong]), FRAMING)


def test_every_agent_is_drawn_once_in_an_epoch(store: SceneStore) -> None:
    stream = store.batches(FRAMING, 7, seed=0)
    per_epoch = store.agents // 7
    epochs = [[stream.next() for _ in range(per_epoch)] for _ in range(2)]
    drawn = [
        [(int(s), int(a)) for batch in epoch for s, a in zip(batch.scene, batch.agent, strict=True)] for epoch in epochs
    ]
    everyone = {(i, int(agent)) for i, scene in enumerate(store) for agent in scene.target}
    for epoch in drawn:
        assert len(set(epoch)) == len(epoch) == 7 * per_epoch
        assert set(epoch) <= everyone
    assert drawn[0] != drawn[1]


def test_only_some_scenes_are_drawn(store: SceneStore) -> None:
    some = np.array([i for i, group in enumerate(store.groups) if group in ("drive-4", "drive-8", "drive-17")])
    stream = store.batches(FRAMING, 3, seed=0, scenes=some)
    assert {int(i) for _ in range(20) for i in stream.next().scene} == set(some.tolist())


def test_a_stream_goes_on_bit_for_bit(store: SceneStore) -> None:
    stream = store.batches(FRAMING, 6, seed=3)
    # over the end of an epoch
    batches = [stream.next() for _ in range(store.agents // 6 - 1)]
    state = stream.state()
    batches = [stream.next() for _ in range(3)]
    other = SceneStore(store.folder).batches(FRAMING, 6, seed=3)
    other.restore(state)
    for batch in batches:
        assert_equal(other.next(), batch)


def test_processes_share_the_batches_of_one(store: SceneStore) -> None:
    alone = store.batches(FRAMING, 6, seed=1)
    shares = [store.batches(FRAMING, 6, seed=1, rank=rank, world=3) for rank in range(3)]
    for _ in range(12):
        batch = alone.next()
        for rank, share in enumerate(shares):
            assert_equal(share.next(), batch[slice(rank, None, 3)])
    for share in shares:
        assert share.state() == alone.state()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 4}, "the stream has seed 4, the one to continue had seed 3"),
        ({"size": 5}, "the stream has batch 5, the one to continue had batch 6"),
        ({"framing": Framing(history=4, future=8, nodes=5)}, 'the stream has framing .*"history": 4.* had .*: 5'),
        ({"scenes": np.arange(20)}, "the stream has agents .*, the one to continue had agents"),
    ],
)
def test_another_stream_is_not_continued(store: SceneStore, settings: dict[str, Any], message: str) -> None:
    state = store.batches(FRAMING, 6, seed=3).state()
    other = store.batches(**{"framing": FRAMING, "size": 6, "seed": 3} | settings)
    with pytest.raises(ValueError, match=message):
        other.restore(state)


def test_batches_that_do_not_fit_are_refused(store: SceneStore) -> None:
    with pytest.raises(ValueError, match=f"a batch should have 1 … {store.agents} agents"):
        store.batches(FRAMING, store.agents + 1, seed=0)
    with pytest.raises(ValueError, match="a batch of 6 cannot be shared out to process 0 of 4"):
        store.batches(FRAMING, 6, seed=0, world=4)
    with pytest.raises(ValueError, match="the seed should not be negative, it is -1"):
        store.batches(FRAMING, 6, seed=-1)
    with pytest.raises(ValueError, match="lines have 5 nodes, the framing allows 4"):
        store.batches(Framing(history=5, future=8, nodes=4), 6, seed=0).next()


def test_scenes_without_an_agent_to_forecast_are_kept_and_never_drawn(tmp_path: Path) -> None:
    empty = write_store(RandomScenes(6, targets=0), tmp_path, workers=0)
    assert (len(empty), empty.agents, empty[0].target.tolist()) == (6, 0, [])
    with pytest.raises(ValueError, match=r"none of these scenes of the store at .* has an agent to forecast"):
        empty.batches(FRAMING, 1, seed=0)
    with pytest.raises(ValueError, match="none of the 6 scenes has an agent to forecast"):
        frame(list(empty), FRAMING)


@pytest.mark.parametrize("suffix", ["scenes", "table", "names"])
def test_damage_is_found_and_named(tmp_path: Path, suffix: str) -> None:
    store = write_store(RandomScenes(12), tmp_path, workers=0)
    store.verify()
    path = tmp_path / f"00005.{suffix}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"00005\.{suffix} is damaged: its checksum is not the one in the manifest"):
        store.verify()
    if suffix == "scenes":
        # sizes are compared at once
        path.write_bytes(content[:-8])
        with pytest.raises(ValueError, match=r"00005\.scenes is damaged: it has \d+ bytes and should have"):
            SceneStore(tmp_path)
        path.unlink()
        with pytest.raises(ValueError, match=r"00005\.scenes is missing"):
            SceneStore(tmp_path)
    else:
        with pytest.raises(ValueError, match=rf"00005\.{suffix} is damaged"):
            SceneStore(tmp_path).names  # noqa: B018
