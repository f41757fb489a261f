"""The laws asked of this library, of raw hooks and of five others, and what each adds to a pass; writes a page.

python benchmarks/conformance.py --peers /path/to/python

The interpreter needs nnsight, pyvene, repeng, steering-vectors and transformer-lens, as far as they can be installed
together; the environment variable INNERSPACE_PEERS names it too. Every library runs in a process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from conformance_costs import added, bare
from conformance_peers import PEERS
from recording import machine

from innerspace.conformance.grounds import gpt2_ground, tuple_ground
from innerspace.conformance.laws import LAWS, examine
from innerspace.conformance.own import Innerspace
from innerspace.conformance.subject import RawHooks

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "conformance.json"
PAGE = ROOT / "docs" / "conformance.md"
SIGNS = {"holds": "holds", "fails": "**fails**", "cannot be expressed": "–"}


def examined(name: str, rounds: int) -> dict[str, Any]:
    """What came out for one library, in this process."""
    torch.set_num_threads(1)
    own = {"innerspace": Innerspace, "raw hooks": RawHooks}
    peer = None if name in own else PEERS[name]
    subject = own[name]() if peer is None else peer()
    verdicts = [verdict.to_json() for verdict in examine(subject, gpt2_ground, tuple_ground)]
    found: dict[str, Any] = {"verdicts": verdicts, "added_us": added(None if peer is None else name, rounds)}
    found["version"] = version({"raw hooks": "torch"}.get(name, name) if peer is None else peer.package)
    found["with"] = {package: version(package) for package in ("torch", "transformers", "numpy")}
    return found | ({"bare_us": bare(10 * rounds)} if name == "innerspace" else {})


def ask(python: str, name: str, rounds: int) -> dict[str, Any]:
    """The same in a process of its own; where it cannot run, the reason."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        code = f"import conformance; conformance.tell({name!r}, {rounds}, {file.name!r})"
        command = [python, "-W", "ignore", "-c", code]
        paths = {
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("src", "benchmarks")),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        ended = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=600)
        if ended.returncode:
            return {"left_out": (ended.stderr.strip().splitlines() or ["it ended without a word"])[-1][:200]}
        return json.loads(Path(file.name).read_text())


def page(header: dict[str, Any], found: dict[str, dict[str, Any]]) -> str:
    """The page, from nothing but the results."""
    there = {name: one for name, one in found.items() if "verdicts" in one}
    lines = [TEXT.format(date=header["date"], count=len(LAWS))]
    titles = [f"{name} {one['version']}" if name != "raw hooks" else f"{name} (torch)" for name, one in there.items()]
    lines += ["| law | " + " | ".join(titles) + " |", "|---|" + "---|" * len(there)]
    notes = dict[str, list[str]]()
    for i, law in enumerate(LAWS):
        cells = list[str]()
        for name, one in there.items():
            verdict = one["verdicts"][i]
            mark = ""
            if how := verdict["how"]:
                whose = notes.setdefault(how, [])
                whose += [] if name in whose else [name]
                mark = f" [{list(notes).index(how) + 1}]"
            cells.append(SIGNS[verdict["outcome"]] + mark)
        lines.append(f"| {law.sentence} | " + " | ".join(cells) + " |")
    lines += ["", "A dash: cannot be expressed.", ""]
    lines += [
        f"{i + 1}. {', '.join(whose)}: {how}.".replace("<", "&lt;") for i, (how, whose) in enumerate(notes.items())
    ]
    lines += [f"\nLeft out: {name}, {one['left_out']}." for name, one in found.items() if "left_out" in one]
    lines += [
        "",
        COSTS,
        "| library | plain pass | read all: raw / innerspace / it | steer one: raw / innerspace / it |",
    ]
    lines += ["|---|---|---|---|"]
    for name, one in there.items():
        if name in ("innerspace", "raw hooks"):
            continue
        costs = one["added_us"]
        rows = [
            " / ".join(_us(costs[who].get(what)) for who in ("raw hooks", "innerspace", name))
            for what in ("read", "steer")
        ]
        lines.append(f"| {name} | {costs['plain']['pass']:.0f} | {rows[0]} | {rows[1]} |")
    lines += ["", PASSES.format(**{what: _ratio(there, what) for what in ("read", "steer")})]
    bare_us = found["innerspace"]["bare_us"]
    lines += ["", BARE.format(**{f"{who[:3]}_{what}": bare_us[who][what] for who in ("raw hooks", "innerspace")
                                 for what in ("read", "steer")})]  # fmt: skip
    told = [f"{key} {value}" for key, value in header.items()]
    several = sorted({tuple(one["with"].items()) for one in there.values()})
    versions = ["with " + ", ".join(f"{package} {number}" for package, number in pairs) for pairs in several]
    return "\n".join([*lines, "", f"Measured: {'; '.join([*told, *versions])}."]) + "\n"


def _ratio(there: dict[str, dict[str, Any]], what: str) -> str:
    """How much longer passes take here than with raw hooks."""
    costs = [one["added_us"] for one in there.values()]
    known = sorted(
        (one["plain"]["pass"] + one["innerspace"][what]) / (one["plain"]["pass"] + one["raw hooks"][what])
        for one in costs
    )
    return f"{median(known):.2f} ({known[0]:.2f} to {known[-1]:.2f})"


def _us(value: float | None) -> str:
    return "–" if value is None else f"{value:+.0f}"


TEXT = """# Conformance

What must hold when hidden states are read and written, asked of this library and of others. The {count} laws are in
`src/innerspace/conformance/laws.py`; `benchmarks/conformance.py` asks them and writes this page ({date}). A library
joins with an adapter of two methods, the protocol `Subject` in `src/innerspace/conformance/subject.py`; this one's is
`src/innerspace/conformance/own.py`, the others' are in `benchmarks/conformance_peers.py`.

The ground is a GPT-2 of four blocks with random weights, in float32 on one thread, three rows of 7, 4 and 6 tokens;
for one law it is a network of which a block gives a tuple. Each law starts from a fresh network. The truth is a forward
hook that is registered for the pass and removed after it.

How to read the table. The adapters are ours: they use what each library documents, and where a library hands out
tensors they do what its user would do, and say so. A law that fails need not be a fault: it may be a choice, such as
gradients for the weights, or a network that is wrapped for good. What fails because of the versions beside which a
library stands here (repeng was made for older ones) counts as what it is today. A network that is wrapped by other
parts for good is judged with them. Bit for bit means that; differences of 1e-6 fail there and
pass elsewhere, where 1e-4 is allowed.
"""

COSTS = """## What it adds to a pass

Microseconds of the thread's own time beyond a plain pass (median; every round runs all ways in another order): reading
the outputs of all four blocks, and adding a vector to one. In each row all were timed in one process; what is wrapped
once is wrapped beforehand. What other processes do moves the numbers: the same way differs from row to row, on a busy
machine by 100 µs and more.
"""

PASSES = """Whole passes with innerspace, next to those with raw hooks (median over rows, least and most): {read} times
as long where all is read, {steer} times where one block is steered."""

BARE = """On four blocks that do nothing, where only hooks take time: raw hooks read all for {raw_read:.1f} µs and
steer one for {raw_steer:.1f} µs, innerspace for {inn_read:.1f} µs and {inn_steer:.1f} µs. The rest is what raw hooks do
not do: modes and flags set and put back, every site counted, padding known, edits named and checked."""


def tell(name: str, rounds: int, path: str) -> None:
    """What a process of its own does."""
    Path(path).write_text(json.dumps(examined(name, rounds)))


def main(peers: str = os.environ.get("INNERSPACE_PEERS", ""), rounds: int = 300) -> None:
    """Ask all libraries and write the results and the page."""
    found = {name: ask(sys.executable, name, rounds) for name in ("innerspace", "raw hooks")}
    for name in PEERS:
        found[name] = ask(peers, name, rounds) if peers else {"left_out": "no interpreter was named"}
        print(name, found[name].get("left_out", "asked"))
    header = machine(1)
    RESULTS.write_text(json.dumps({**header, "results": found}, indent=1) + "\n")
    PAGE.write_text(page(header, found))


if __name__ == "__main__":
    # other interpreters import this file too, and need not have it
    import tyro

    tyro.cli(main)
