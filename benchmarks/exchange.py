"""Files of other tools opened by ours and ours by theirs: the largest difference of codes and of what comes out.

The tools are run in other interpreters, for they cannot be installed together:
python benchmarks/exchange.py --peers PYTHON [PYTHON …], or INNERSPACE_PEERS with paths between colons.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from exchange_peers import FACTOR, tiny
from recording import machine, save
from safetensors.torch import load_file, save_file
from torch import Tensor

from innerspace.decompose.base import Home
from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.nonlinearities import BatchTopK, Gated, GroupMax, JumpReLU, Nonlinearity, ReLU, TopK
from innerspace.interop import dictionary_learning, gguf, saelens, sparsify
from innerspace.interop.places import Source
from innerspace.interventions import Steer
from innerspace.language.causal_lm import CausalLM
from innerspace.network.model import Model

WIDTH, ROWS = 64, 2048
PEERS = tuple(Path(path) for path in os.environ.get("INNERSPACE_PEERS", "").split(":") if path)
KINDS: dict[str, Nonlinearity] = {
    "ReLU": ReLU(),
    "TopK": TopK(16),
    "GroupMax": GroupMax(16),
    "BatchTopK": BatchTopK(16),
    "JumpReLU": JumpReLU(threshold=0.5),
    "Gated": Gated(),
}


@dataclass(frozen=True)
class Row:
    """One file, opened by the other side."""

    way: str
    tool: str
    case: str
    code: float
    output: float
    switched: int


def ours(what: Nonlinearity, form: Form, seed: int) -> Dictionary:
    """With a mean and a scale as training would leave them, and no number at a special value."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(WIDTH, generator=generator)
    made = Dictionary(WIDTH, 8 * WIDTH, what, mean=mean, scale=5.0, form=form, home=Home("0" * 16, "resid.4"))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    if isinstance(what, BatchTopK):
        made.get_buffer("threshold").fill_(0.6)
    made.retract()
    return made.eval()


def vectors() -> Directions:
    generator = torch.Generator().manual_seed(60)
    origins = [Origin("mood", "happy", "sad", method="mean_difference", site=f"resid.{i}") for i in (1, 2, 4)]
    return Directions(torch.randn(3, 64, generator=generator), torch.tensor([2.0, 3.0, 4.0]), origins)


def run(python: Path, what: str, folder: Path, without: set[str]) -> dict[str, str]:
    script = Path(__file__).with_name("exchange_peers.py")
    inside = {**os.environ, "PYTHONPATH": str(script.parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), str(script), what, str(folder), *without], env=inside, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{python} {what}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compared(way: str, tool: str, case: str, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> Row:
    """Relative to the largest number; and how many entries are on for one side only."""
    code, output = (float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
    return Row(way, tool, case, code, output, int(((found[0] != 0) != (expected[0] != 0)).sum()))


def outputs(dictionary: Dictionary, rows: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        z = dictionary.encode(rows).z
        return z, dictionary.decode(z)


def steered(directions: Directions) -> Tensor:
    """The logits of the tiny network with every vector added behind its block."""
    network, ids = tiny()
    along = {
        origin.site: Steer(row, 1.0) for origin, row in zip(directions.origins, directions.directions, strict=True)
    }
    model = Model(network, CausalLM())
    with torch.no_grad(), model.under(along):
        return network(ids).logits


def theirs_opened(folder: Path, rows: Tensor) -> Iterator[Row]:
    for place in sorted(path.parent for path in folder.rglob("theirs.safetensors")):
        tool, made = place.relative_to(folder).parts[0], load_file(place / "theirs.safetensors")
        expected = made["z"], made["x"]
        match tool:
            case "SAELens":
                factor = FACTOR if "expected norm" in place.name else None
                found = outputs(saelens.read(place, input_factor=factor), rows)
            case "sparsify":
                found = outputs(sparsify.read(place), rows)
            case "dictionary_learning":
                found = outputs(dictionary_learning.read(place), rows)
            case _:
                read = gguf.read(place / "vector.gguf")
                found = read.directions, steered(read)
        yield compared("theirs, opened by ours", tool, place.name, found, expected)


def write_ours(folder: Path, rows: Tensor) -> dict[Path, tuple[Tensor, Tensor]]:
    """Ours, written for every tool, and what ours make of the rows."""
    expected = dict[Path, tuple[Tensor, Tensor]]()
    forms = {"": Form(), ", uncentered": Form(pre_bias=False), ", free norms": Form(decoder="free")}
    for i, (name, what) in enumerate(KINDS.items()):
        for more, form in forms.items():
            made, case = ours(what, form, i), name + more
            places = [folder / "SAEBench" / case]
            places[0].mkdir(parents=True)
            made.save(places[0] / "dictionary.safetensors")
            if name in ("TopK", "GroupMax"):
                places.append(folder / "sparsify" / case)
                sparsify.write(made, places[-1])
            if name != "GroupMax":
                places += [folder / "SAELens" / case, folder / "dictionary_learning" / case]
                saelens.write(made, places[-2], Source("gpt2"))
                dictionary_learning.write(made, places[-1], Source("gpt2"))
            expected |= dict.fromkeys(places, outputs(made, rows))
    mood, logits = vectors(), steered(vectors())
    for tool in ("repeng", "steering-vectors"):
        place = folder / tool / "vector"
        place.mkdir(parents=True)
        gguf.write(mood, place / "vector.gguf", "llama")
        mood.save(place / "directions.safetensors")
        expected[place] = mood.directions, logits
    return expected


def main(peers: tuple[Path, ...] = PEERS) -> None:
    torch.set_num_threads(1)
    if not peers:
        print("no interpreter with other tools: give --peers PYTHON or INNERSPACE_PEERS")
        return
    rows = 4 * torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)) + 1
    found, versions = list[Row](), dict[str, str]()
    for python in peers:
        with tempfile.TemporaryDirectory() as place:
            made, written = Path(place) / "made", Path(place) / "written"
            for folder in (made, written):
                folder.mkdir()
                save_file({"rows": rows}, folder / "rows.safetensors")
            checked = {tool for tool, number in versions.items() if not number.startswith("not here")}
            said = run(python, "make", made, checked)
            found += theirs_opened(made, rows)
            expected = write_ours(written, rows)
            said |= run(python, "open", written, checked)
            for case, ours_make in expected.items():
                if (case / "theirs.safetensors").is_file():
                    theirs = load_file(case / "theirs.safetensors")
                    one = (theirs["z"], theirs["x"])
                    found.append(compared("ours, opened by theirs", case.parent.name, case.name, one, ours_make))
        versions |= said
    report(found, versions)


def report(found: list[Row], versions: dict[str, str]) -> None:
    """The table: tools by version, cases, and the largest differences over all rows."""
    lines = [f"{ROWS} rows of width {WIDTH}, {8 * WIDTH} latents; differences relative to the largest number."]
    lines += ["", "| direction | tool | file | codes | outputs | on for one side only |", "|---|---|---|---|---|---|"]
    for row in found:
        tool = f"{row.tool} {versions[row.tool]}"
        lines.append(f"| {row.way} | {tool} | {row.case} | {row.code:.1e} | {row.output:.1e} | {row.switched} |")
    worst = max(max(row.code, row.output) for row in found)
    lines += ["", f"{len(found)} files; the largest difference of all is {worst:.1e}."]
    lines += ["Of vectors, codes are the vectors and outputs the logits of a tiny Llama under them."]
    lines += [f"Not checked: {tool} ({why})." for tool, why in versions.items() if why.startswith("not here")]
    results: list[dict[str, Any]] = [vars(row) for row in found]
    save("exchange", "Files of other tools", machine(1) | versions, results, lines)


if __name__ == "__main__":
    tyro.cli(main)
