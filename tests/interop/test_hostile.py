"""Files that mean harm, and thousands of damaged ones: refused with a reason, or read as an independent reader does."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from innerspace.decompose.dictionary import Dictionary
from innerspace.interop import apollo, dictionary_learning, gguf, neuronpedia, saelens, sparsify
from innerspace.interop.archives import read_torch
from innerspace.interop.files import Settings, member, read_safetensors, text
from interop import peer_files
from interop.peer_files import Outputs, states

Damage = Callable[[Path], None]


class Runs:
    """What runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def archive(path: Path, data: bytes, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/version", b"3\n")
        for name, content in records.items():
            file.writestr(f"archive/data/{name}", content)


def saved(tensors: object) -> tuple[bytes, dict[str, bytes]]:
    """The pickle and the records of what torch saves."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with zipfile.ZipFile(buffer) as file:
        names = [name for name in file.namelist() if "/data/" in name]
        data = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
        return data, {name.rpartition("/")[2]: file.read(name) for name in names}


@pytest.mark.parametrize("how", ["torch", "legacy", "plain"])
def test_code_in_a_file_never_runs(how: str, tmp_path: Path) -> None:
    folder, marker = peer_files.dictionary_learning(tmp_path / "dl", "AutoEncoder"), tmp_path / "it-ran"
    bomb = {"encoder.weight": torch.zeros(20, 6), "extra": Runs(marker)}
    if how == "plain":
        (folder / "ae.pt").write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, folder / "ae.pt", _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match=r"code in files is not run" if how == "torch" else "no archive as torch.save"):
        dictionary_learning.read(folder)
    with pytest.raises(ValueError, match=r"ae.pt"):
        apollo.read(folder / "ae.pt")
    assert not marker.exists()
    # the marker is no dud: loaded without care, it is there
    torch.load(folder / "ae.pt", weights_only=False) if how != "plain" else pickle.loads(
        (folder / "ae.pt").read_bytes()
    )
    assert marker.exists()


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    data, _ = saved({"bias": torch.zeros(16 * 2**20)})
    archive(tmp_path / "ae.pt", data, {"0": bytes(64 * 2**20)}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "ae.pt").stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"is compressed, which torch.save does not do"):
        read_torch(tmp_path / "ae.pt")


def test_a_storage_that_claims_more_than_its_record_is_refused(tmp_path: Path) -> None:
    data, records = saved({"bias": torch.zeros(1000)})
    archive(tmp_path / "short.pt", data, {"0": records["0"][:400]})
    with pytest.raises(ValueError, match=r"short.pt: its pickle claims storages of other sizes"):
        read_torch(tmp_path / "short.pt")
    # listed as a folder, which torch skips while it keeps the memory as it was
    with zipfile.ZipFile(tmp_path / "folder.pt", "w") as file:
        for name, content in {"data.pkl": data, "byteorder": b"little", "version": b"3\n"}.items():
            file.writestr(f"archive/{name}", content)
        record = zipfile.ZipInfo("archive/data/0")
        record.external_attr = 0x10
        file.writestr(record, records["0"])
    assert read_torch(tmp_path / "folder.pt").take("bias", 1000).count_nonzero() == 0
    (tmp_path / "flipped.pt").write_bytes((tmp_path / "folder.pt").read_bytes().replace(bytes(64), bytes(63) + b"x", 1))
    with pytest.raises(ValueError, match=r"flipped.pt is no archive.*Bad CRC"):
        read_torch(tmp_path / "flipped.pt")
    # the sizes are those of the archive, but the other way round
    data, records = saved({"small": torch.zeros(2), "large": torch.zeros(1000)})
    archive(tmp_path / "swapped.pt", data, {"0": records["1"], "1": records["0"]})
    with pytest.raises(ValueError, match=r"swapped.pt: its pickle claims storages of other sizes"):
        read_torch(tmp_path / "swapped.pt")
    torch.save({"bias": torch.zeros(1).expand(2**40)}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"bias claims 1099511627776 entries, its storage has 4 bytes"):
        read_torch(tmp_path / "wide.pt")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([torch.zeros(2)], "should hold a mapping of tensors, it holds a list"),
        ({"k": 3}, "'k' is a int; only tensors are read"),
        ({1: torch.zeros(2)}, "1 is a Tensor; only tensors are read"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a is no dense tensor"),
        ({"a": torch.zeros(2, device="meta")}, "a is no dense tensor|damaged"),
    ],
)
def test_archives_of_anything_but_tensors_are_refused(content: object, named: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=named):
        read_torch(tmp_path / "ae.pt")


@pytest.mark.parametrize(
    ("header", "named"),
    [
        (struct.pack("<Q", 2**62), "no complete safetensors file"),
        (struct.pack("<Q", 2**40) + b"{}", "no complete safetensors file"),
        (struct.pack("<Q", 60) + b'{"W_enc":{"dtype":"F32","shape":[1099511627776],"data_offsets"', "no complete"),
        (b"", "no complete safetensors file"),
    ],
)
def test_safetensors_headers_that_claim_too_much_are_refused(header: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "sae.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match=named):
        read_safetensors(tmp_path / "sae.safetensors")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float, tmp_path: Path) -> None:
    folder = peer_files.saelens(tmp_path, "standard")
    tensors = peer_files.matrices()
    tensors["W_dec"][3, 2] = bad
    save_file(tensors, folder / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=r"W_dec has 1 entries that are not finite"):
        saelens.read(folder)


def test_tensors_that_are_missing_or_unknown_are_named(tmp_path: Path) -> None:
    folder = peer_files.saelens(tmp_path, "standard")
    tensors = peer_files.matrices()
    save_file(tensors | {"W_skip": torch.zeros(6, 6)}, folder / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=r"holds tensors that are not known here: W_skip"):
        saelens.read(folder)
    del tensors["b_enc"]
    save_file(tensors, folder / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=r"holds no tensor 'b_enc'"):
        saelens.read(folder)


def test_names_and_links_do_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    folder = peer_files.saelens(tmp_path / "in", "standard")
    (tmp_path / "secret.json").write_text("{}")
    for name in ("../secret.json", str(tmp_path / "secret.json"), "sub/cfg.json", "..", ""):
        with pytest.raises(ValueError, match=r"is no name of a file in|no file|link out of"):
            member(folder, name)
    (folder / "cfg.json").unlink()
    (folder / "cfg.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match=r"cfg.json is a link out of its folder"):
        saelens.read(folder)
    (folder / "cfg.json").unlink()
    (folder / "cfg.json").mkdir()
    with pytest.raises(ValueError, match=r"no file cfg.json in"):
        saelens.read(folder)
    with pytest.raises(ValueError, match=r"no folder at .*nowhere"):
        saelens.read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"[" * 200_000, "is no valid JSON"),
        (b'{"d_in": NaN}', "holds NaN, which is no JSON"),
        (b'{"d_in": 1e999, "d_sae": 3}', "d_in should be a whole number, it is inf"),
        (b'{"d_in": -4, "d_sae": 3}', "d_in should be a whole number, it is -4"),
        (b'{"d_in": true, "d_sae": 3}', "d_in should be a whole number, it is True"),
        (b'{"d_in": 1' + b"0" * 5000 + b', "d_sae": 3}', "d_in should be a whole number|is no valid JSON|limit"),
        (b"[]", "should be a mapping, it is a list"),
        (b"\xff\xfe{}", "is no text"),
        (b" " * 2**23, "more than 4194304 are no settings"),
    ],
)
def test_settings_that_are_none_are_refused(content: bytes, named: str, tmp_path: Path) -> None:
    folder = peer_files.saelens(tmp_path, "standard")
    (folder / "cfg.json").write_bytes(content)
    with pytest.raises(ValueError, match=named):
        saelens.read(folder)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("a: &a [1, 1]\nb: [*a, *a]\n", "refers to itself"),
        ("saes: !!python/object/apply:os.system ['touch {marker}']", "no YAML of plain settings"),
        ("saes: {sae_positions: [1, 2]}", "should be names of hooks"),
        ("[" * 5000, "no YAML of plain settings"),
        ("lr: !!bool x", "no YAML of plain settings"),
        ("lr: !!timestamp x", "no YAML of plain settings"),
        ("3", "should be a mapping, it is a int"),
    ],
)
def test_yaml_that_is_more_than_settings_is_refused(content: str, named: str, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    (tmp_path / "final_config.yaml").write_text(content.replace("{marker}", str(marker)))
    with pytest.raises(ValueError, match=named):
        apollo.source(tmp_path / "final_config.yaml")
    assert not marker.exists()


@dataclass(frozen=True, eq=False)
class Case:
    """A format: a valid file, the files of it that are damaged, ours and an independent reading of it."""

    make: Callable[[Path], Path]
    files: tuple[str, ...]
    read: Callable[[Path], Outputs]
    expected: Callable[[Path], Outputs]


def outputs(dictionary: Dictionary) -> Outputs:
    with torch.no_grad():
        z = dictionary.encode(states()).z
        return z, dictionary.decode(z)


def _vectors(path: Path) -> Outputs:
    found = gguf.read(path / "mood.gguf")
    return found.directions, found.directions.norm(dim=1)


def _stored(path: Path) -> Outputs:
    rows = peer_files.control_vector_rows(path / "mood.gguf")
    return rows, rows.norm(dim=1)


def _control_vector(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return peer_files.control_vector(folder / "mood.gguf").parent


CASES = {
    **{
        f"saelens-{name}": Case(
            lambda folder, name=name: peer_files.saelens(folder, name),
            ("cfg.json", "sae_weights.safetensors"),
            lambda folder: outputs(saelens.read(folder)),
            lambda folder: peer_files.saelens_outputs(folder, states()),
        )
        for name in ("topk", "jumprelu", "gated")
    },
    "sparsify": Case(
        peer_files.sparsify,
        ("cfg.json", "sae.safetensors"),
        lambda folder: outputs(sparsify.read(folder)),
        lambda folder: peer_files.sparsify_outputs(folder, states()),
    ),
    **{
        f"dictionary_learning-{name}": Case(
            lambda folder, name=name: peer_files.dictionary_learning(folder, name),
            ("config.json", "ae.pt"),
            lambda folder: outputs(dictionary_learning.read(folder)),
            lambda folder: peer_files.dictionary_learning_outputs(folder, states()),
        )
        for name in ("AutoEncoder", "BatchTopKSAE")
    },
    "apollo": Case(
        lambda folder: peer_files.apollo(folder / "e2e.pt").parent,
        ("e2e.pt",),
        lambda folder: outputs(apollo.read(folder / "e2e.pt")),
        lambda folder: peer_files.apollo_outputs(folder / "e2e.pt", states()),
    ),
    "gguf": Case(_control_vector, ("mood.gguf",), _vectors, _stored),
}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A file with some bytes or a number changed, cut off, doubled, taken out, or put elsewhere."""
    # most of a file are numbers: what is around them is hit half of the time
    edge = draw.random() < 0.5
    place = draw.randrange(min(len(data), 400)) * (1 if draw.random() < 0.5 else -1) if edge else 0
    at = place % len(data) if edge else draw.randrange(len(data))
    length = draw.choice((1, 1, 2, 4, 8, 64))
    match draw.randrange(7):
        case 0:
            return data[:at] + bytes(draw.randrange(256) for _ in range(length)) + data[at + length :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[at : at + length] + data[at:]
        case 3:
            return data[:at] + data[at + length :]
        case 4:
            return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
        case 5:
            return data[:at] + draw.choice((b"\0" * 8, b"\xff" * 8, struct.pack("<Q", 2**40))) + data[at + 8 :]
        case _:
            return data[:at] + draw.choice((b"-", b"9", b"null", b"true", b'"x"', b"{}", b"1e9", b"e")) + data[at + 1 :]


def drowned(folder: Path) -> bool:
    """Whether a number is so large that, in single precision, it leaves nothing of the others."""
    tensors = dict[str, Tensor]()
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif path.suffix == ".pt":
            tensors |= torch.load(path, weights_only=True)
    return any(bool(item.abs().max() > 1e4) for item in tensors.values())


def same(found: Outputs, expected: Outputs) -> bool:
    """To the precision of the largest number that comes up."""
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            return False
        bound = 1e-5 * float(theirs.abs().max())
        if not torch.isclose(ours, theirs, rtol=1e-5, atol=bound).all():
            return False
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_damaged_file_is_refused_or_read_as_others_read_it(name: str, tmp_path: Path) -> None:
    case, draw = CASES[name], random.Random(name)
    folder = case.make(tmp_path / "folder")
    valid = {file: (folder / file).read_bytes() for file in case.files}
    assert same(case.read(folder), case.expected(folder))
    read, refused = 0, 0
    for i in range(300):
        file = case.files[i % len(case.files)]
        (folder / file).write_bytes(mutated(valid[file], draw))
        try:
            found = case.read(folder)
        except ValueError:
            refused += 1
        else:
            read += 1
            if file.endswith(".pt"):
                # checksums say that nothing in it has changed, so what it says is what it said
                (folder / file).write_bytes(valid[file])
            assert drowned(folder) or same(found, case.expected(folder)), f"mutation {i} of {file}"
        (folder / file).write_bytes(valid[file])
    assert read > 10
    assert refused > 50


def test_damaged_explanations_are_refused_or_read(tmp_path: Path) -> None:
    path, draw = tmp_path / "explanations.json", random.Random(5)
    said = [{"index": str(i), "description": f"words {i}", "explanationModelName": "x"} for i in range(20)]
    valid = json.dumps(said).encode()
    read = 0
    for _ in range(300):
        path.write_bytes(mutated(valid, draw))
        try:
            found = neuronpedia.read_explanations(path)
        except ValueError:
            continue
        read += 1
        theirs = json.loads(path.read_text())
        assert [(e.latent, e.text) for e in found] == [(int(e["index"]), e["description"]) for e in theirs]
    assert read > 10


def test_what_is_asked_for_by_kind_is_given_by_kind(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"k": 4.0, "flag": false, "none": null, "word": "w"}')
    found = Settings.of(tmp_path / "a.json")
    assert (found.whole("k"), found.flag("flag"), found.word("word"), found.word("none", "x")) == (4, False, "w", "x")
    with pytest.raises(ValueError, match=r"no file at"):
        text(tmp_path / "b.json")
    weights: dict[str, Tensor] = {"half": torch.ones(2, dtype=torch.float16), "double": torch.ones(2).double()}
    save_file(weights, tmp_path / "a.safetensors")
    taken = read_safetensors(tmp_path / "a.safetensors")
    assert (taken.take("half", 2).dtype, taken.take("double", 2).dtype) == (torch.float32, torch.float64)
