"""Other tools' control vectors: GGUF files, repeng's and steering-vectors' objects."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf as package
import numpy as np
import pytest
import torch
from torch import Tensor

from innerspace.decompose.directions import Directions, Origin
from innerspace.interop import gguf
from innerspace.interop.repeng import from_repeng, to_repeng
from innerspace.interop.steering_vectors import from_steering_vectors, to_steering_vectors
from interop import peer_files
from interop.peer_files import WIDTH, vector

HAPPY = Origin("mood", "happy", "sad", method="mean_difference")


def vectors(kind: str = "resid", layers: tuple[int, ...] = (5, 1, 2)) -> Directions:
    """Raw norms, gaps and units that all differ."""
    rows = torch.stack([vector(i) for i in layers])
    origins = [Origin("mood", "happy", "sad", method="mean_difference", site=f"{kind}.{i}") for i in layers]
    return Directions(rows, torch.linspace(0.5, 2, len(layers)), origins)


@dataclass
class ControlVector:
    """As repeng's."""

    model_type: str
    directions: dict[int, Any]


@dataclass
class SteeringVector:
    """As steering-vectors'."""

    layer_activations: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    layer_type: str = "decoder_block"


@pytest.fixture
def _peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "repeng", SimpleNamespace(ControlVector=ControlVector))  # pyright: ignore
    monkeypatch.setitem(sys.modules, "steering_vectors", SimpleNamespace(SteeringVector=SteeringVector))  # pyright: ignore


def test_a_control_vector_of_llama_cpp_is_read_layer_by_layer(tmp_path: Path) -> None:
    found = gguf.read(peer_files.control_vector(tmp_path / "mood.gguf"), HAPPY)
    assert [origin.site for origin in found.origins] == ["resid.1", "resid.2", "resid.5"]
    assert {origin.positive for origin in found.origins} == {"happy"}
    torch.testing.assert_close(found.directions, torch.stack([vector(i) for i in (1, 2, 5)]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.gap, found.norm)
    assert gguf.model_hint(tmp_path / "mood.gguf") == "llama"


def test_what_is_written_as_gguf_is_what_one_temperature_adds(tmp_path: Path) -> None:
    made = vectors()
    gguf.write(made, tmp_path / "mood.gguf", "llama")
    reader = package.GGUFReader(tmp_path / "mood.gguf")
    assert bytes(reader.get_field("general.architecture").parts[-1]) == b"controlvector"  # pyright: ignore
    assert reader.get_field("controlvector.layer_count").parts[-1].tolist() == [3]  # pyright: ignore
    stored = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    order = [f"direction.{origin.site.removeprefix('resid.')}" for origin in made.origins]
    assert list(stored) == sorted(order)
    for name, row in zip(order, made.directions, strict=True):
        assert torch.equal(stored[name], row)
    again = gguf.read(tmp_path / "mood.gguf", HAPPY)
    gguf.write(again, tmp_path / "again.gguf", "llama")
    torch.testing.assert_close(gguf.read(tmp_path / "again.gguf").directions, again.directions, rtol=3e-7, atol=0)
    assert [origin.feature for origin in again.origins] == ["mood"] * 3


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (vectors(layers=(0, 1)), "takes no vector behind block 0"),
        (vectors("mlp"), r"come from sites resid.i, this one from 'mlp.5'"),
        (vectors(layers=(2, 2)), "two vectors for layer 2"),
        (Directions.concatenate([vectors(), vectors(layers=(7,)).negated() * 2]), "holds one control vector"),
    ],
)
def test_directions_that_are_no_control_vector_are_refused(made: Directions, named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named):
        gguf.write(made, tmp_path / "mood.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"architecture": "llama"}, "has the architecture 'llama'"),
        ({"version": 1}, "version 1; little-endian GGUF of version 2 or 3"),
        ({"version": 3 << 24}, "little-endian"),
        ({"kind": 1}, "direction.1 should be of float32, it is F16"),
        ({"tensors": 2**60}, "its header claims 1152921504606846976 entries"),
        ({"pairs": 2**60}, "its header claims 1152921504606846976 entries"),
        ({"layers": (0, 1)}, "direction.0 names no layer; layers count from 1"),
        ({"layers": (1, 1)}, "damaged.*duplicated"),
        ({"layers": ()}, "has at least one layer"),
    ],
)
def test_files_that_are_no_control_vector_are_refused(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = peer_files.control_vector(tmp_path / "mood.gguf", **changed)
    with pytest.raises(ValueError, match=named):
        gguf.read(path)


def test_a_list_without_end_in_a_header_is_refused_at_once(tmp_path: Path) -> None:
    data = peer_files.control_vector(tmp_path / "mood.gguf").read_bytes()
    # the kind of the hint becomes a list of bytes, of 2^60 of them
    at = data.index(b"controlvector.model_hint") + len("controlvector.model_hint")
    claim = (9).to_bytes(4, "little") + (0).to_bytes(4, "little") + (2**60).to_bytes(8, "little")
    (tmp_path / "mood.gguf").write_bytes(data[:at] + claim + data[at + 16 :])
    with pytest.raises(ValueError, match=r"claims 1152921504606846976 entries"):
        gguf.read(tmp_path / "mood.gguf")


@pytest.mark.usefixtures("_peers")
def test_repengs_vectors_come_and_go() -> None:
    theirs = ControlVector("mistral", {i: vector(i).numpy().astype(np.float16) for i in (3, 0)})
    found = from_repeng(theirs, HAPPY)
    assert [origin.site for origin in found.origins] == ["resid.0", "resid.3"]
    back = to_repeng(found, "mistral")
    assert back.model_type == "mistral"
    for i, row in theirs.directions.items():
        np.testing.assert_allclose(back.directions[i], row.astype(np.float32), rtol=3e-7)
    with pytest.raises(ValueError, match=r"layers are numbers from 0, not -1"):
        from_repeng(ControlVector("mistral", {-1: np.ones(WIDTH)}))
    with pytest.raises(ValueError, match=r"should have one width, they have \[3, 6\]"):
        from_repeng(ControlVector("mistral", {1: np.ones(6), 2: np.ones(3)}))
    with pytest.raises(ValueError, match=r"the norm 0.0; a positive one"):
        from_repeng(ControlVector("mistral", {1: np.zeros(6)}))


@pytest.mark.usefixtures("_peers")
@pytest.mark.parametrize(("part", "kind"), [("decoder_block", "resid"), ("self_attn", "attn"), ("mlp", "mlp")])
def test_steering_vectors_come_and_go(part: str, kind: str) -> None:
    theirs = SteeringVector({i: vector(i) for i in (4, 2)}, part)
    found = from_steering_vectors(theirs, HAPPY)
    assert [origin.site for origin in found.origins] == [f"{kind}.2", f"{kind}.4"]
    back = to_steering_vectors(found)
    assert back.layer_type == part
    for i, row in theirs.layer_activations.items():
        torch.testing.assert_close(back.layer_activations[i], row, rtol=3e-7, atol=0)
    with pytest.raises(ValueError, match=r"layer_type = 'input_layernorm' is no site here"):
        from_steering_vectors(SteeringVector({1: vector(1)}, "input_layernorm"))
    with pytest.raises(ValueError, match=r"steering-vectors adds at resid, attn, mlp, not at 'heads'"):
        to_steering_vectors(vectors("heads"))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("repeng", "steering_vectors", "gguf"):
        monkeypatch.setitem(sys.modules, name, None)  # pyright: ignore
    with pytest.raises(ValueError, match=r"repeng cannot be imported"):
        to_repeng(vectors(), "llama")
    with pytest.raises(ValueError, match=r"steering_vectors cannot be imported"):
        to_steering_vectors(vectors())
    with pytest.raises(ValueError, match=r"pip install 'innerspace\[exchange\]'"):
        gguf.write(vectors(), tmp_path / "mood.gguf")
