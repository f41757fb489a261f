from pathlib import Path

import pytest
import torch
from torch import nn

from innerspace.checkpoint import load_state, random_state, save_state, set_random_state


def test_an_optimizer_comes_back_bit_for_bit(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "step": 1, "history": [1.5, None, "x"], "empty": {}}
    save_state(tmp_path / "a" / "snapshot.safetensors", state)
    found = load_state(tmp_path / "a" / "snapshot.safetensors")
    assert found["step"] == 1
    assert found["history"] == [1.5, None, "x"]
    assert found["empty"] == {}
    other = torch.optim.AdamW(layer.parameters(), lr=0.5)
    other.load_state_dict(found["optimizer"])
    for key, entry in optimizer.state_dict()["state"].items():
        assert all(torch.equal(entry[name], other.state_dict()["state"][key][name]) for name in entry)
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_random_numbers_go_on(tmp_path: Path) -> None:
    save_state(tmp_path / "r", random_state())
    expected = torch.randn(5)
    set_random_state(load_state(tmp_path / "r"))
    assert torch.equal(torch.randn(5), expected)


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no snapshot at"):
        load_state(tmp_path / "absent")
    save_state(tmp_path / "s", {"x": torch.arange(100)})
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-50])
    with pytest.raises(ValueError, match="no complete safetensors file"):
        load_state(tmp_path / "s")
    with pytest.raises(ValueError, match="/model is a Linear"):
        save_state(tmp_path / "s", {"model": nn.Linear(1, 1)})


def test_an_interrupted_save_keeps_the_former_snapshot(tmp_path: Path) -> None:
    save_state(tmp_path / "s", {"x": torch.ones(1)})
    with pytest.raises(ValueError, match="tensors and JSON only"):
        save_state(tmp_path / "s", {"x": object()})
    assert torch.equal(load_state(tmp_path / "s")["x"], torch.ones(1))
