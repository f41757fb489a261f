"""One end-to-end step against the plain formulation: two full passes, full logits, dense codes.

    python benchmarks/end_to_end_step.py [--threads 1] [--rounds 7]

A GPT-2 with random weights (4 blocks, width 128, vocabulary 4,096), a dictionary of 2,048 latents behind block 2,
batches of 8 × 128 tokens. Per second of processor time, the fastest of several rounds that take turns. Where there is
a graphics card: a GPT-2-small-shaped network, 46,080 latents before block 6, 8 × 1,024 tokens in bfloat16, also with
a divergence from all logits at once, for the memory that the one in chunks spares. Both sides begin with the same
dictionary, and what is compared is refused unless they find the same loss. The part for a card runs anywhere, smaller:

    python benchmarks/end_to_end_step.py --large-device cpu --large.blocks 2 --large.width 32 --no-record ...
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from recording import machine, save
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import Nonlinearity, ReLU, TopK
from innerspace.language.causal_lm import load
from innerspace.language.text import Text
from innerspace.learn.fit import FitConfig, Student, fit_together
from innerspace.learn.objectives import Objective, OutputKL, Sparsity, Term
from innerspace.learn.passes import OUTPUT
from innerspace.learn.spliced import Precision, spliced
from innerspace.learn.trials import Trial
from innerspace.measure.flops import flops, peak

L1, DIVERGENCE = 0.05, OutputKL()

Run = Callable[[], float]
"""Takes a few steps; gives the loss of the last."""


@dataclass(frozen=True)
class Size:
    """A network and its batches, and the dictionary behind one of its blocks."""

    blocks: int
    width: int
    heads: int
    vocabulary: int
    rows: int
    context: int
    block: int
    latents: int

    @property
    def tokens(self) -> int:
        """Those of a batch."""
        return self.rows * self.context

    def network(self, device: str) -> GPT2LMHeadModel:
        """With random weights."""
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=self.vocabulary,
            bos_token_id=0,
            eos_token_id=0,
            n_positions=self.context,
            n_embd=self.width,
            n_layer=self.blocks,
            n_head=self.heads,
            use_cache=False,
        )
        return GPT2LMHeadModel(config).requires_grad_(False).to(device).eval()

    def dictionary(self, kind: Nonlinearity, seed: int = 0) -> Dictionary:
        """The one to begin with."""
        return Dictionary(self.width, self.latents, kind, scale=self.width**0.5, seed=seed)


SMALL = Size(blocks=4, width=128, heads=4, vocabulary=4096, rows=8, context=128, block=1, latents=2048)
LARGE = Size(blocks=12, width=768, heads=12, vocabulary=50257, rows=8, context=1024, block=5, latents=46080)


class Batches:
    """Random tokens, the same few batches over and over."""

    def __init__(self, size: Size, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (4, size.rows, size.context)
        self.ids, self.count = torch.randint(size.vocabulary, shape, generator=generator).to(device), 0

    def next(self) -> Text:
        self.count += 1
        return Text(self.ids[self.count % len(self.ids)])

    def state(self) -> dict[str, int]:
        return {"count": self.count}

    def restore(self, state: Any) -> None:
        self.count = state["count"]


@dataclass(frozen=True)
class WholeKL(Term):
    """``OutputKL`` from all logits at once, as autograd has it."""

    @property
    def needs(self) -> frozenset[str]:
        """The output."""
        return frozenset({OUTPUT})

    def __call__(self, trial: Trial) -> Tensor:
        """E[KL(p ‖ p̂)]."""
        assert trial.passes is not None
        head: Any = trial.passes.model.module.get_output_embeddings()
        clean, other = (head(trace.hidden["final"]).flatten(0, 1) for trace in (trial.passes.clean, trial.passes.other))
        return divergence(clean, other)


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(clean) ‖ softmax(other)), the mean over rows."""
    return F.kl_div(other.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="batchmean")


def ours(
    size: Size,
    module: GPT2LMHeadModel,
    batches: Batches,
    kind: Nonlinearity,
    steps: int,
    *,
    students: int = 1,
    precision: Precision = "float32",
    term: Term = DIVERGENCE,
) -> Run:
    """The library's own loop."""
    model, site = load(module).model, f"resid.{size.block}"
    terms: Objective = (term, Sparsity(L1)) if isinstance(kind, ReLU) else (term,)
    learners = [
        Student(size.dictionary(kind, seed=i).to(batches.ids.device), terms, site, str(i)) for i in range(students)
    ]
    stream = spliced(model, batches, [site], {site: float(size.width)}, precision=precision)
    config = FitConfig(steps=steps, log_every=steps)

    def run() -> float:
        loop, _ = fit_together(learners, stream, config)
        return float(loop.history[0]["loss"])

    return run


def plain(size: Size, module: GPT2LMHeadModel, batches: Batches, kind: Nonlinearity, steps: int) -> Run:
    """What one writes first: dense codes, autograd everywhere, the default optimizer."""
    first = size.dictionary(kind).to(batches.ids.device)
    decoder, encoder = nn.Parameter(first.decoder.detach()), nn.Parameter(first.encoder.detach())
    encoder_bias, decoder_bias = nn.Parameter(first.encoder_bias.detach()), nn.Parameter(first.decoder_bias.detach())
    parameters = [decoder, encoder, encoder_bias, decoder_bias]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    codes = list[Tensor]()
    scale = size.width**0.5

    def splice(_: nn.Module, __: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        pre = (x / scale - decoder_bias) @ encoder.T + encoder_bias
        if isinstance(kind, TopK):
            best = pre.topk(kind.k, dim=-1)
            z = torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())
        else:
            z = pre.relu()
        codes.append(z)
        x_hat = scale * (z @ decoder + decoder_bias)
        return (x_hat, *output[1:]) if isinstance(output, tuple) else x_hat

    def run() -> float:
        loss = torch.zeros(())
        for _ in range(steps):
            ids = batches.next().ids
            with torch.no_grad():
                clean = module(ids).logits.flatten(0, 1)
            codes.clear()
            handle = module.transformer.h[size.block].register_forward_hook(splice)
            logits = module(ids).logits.flatten(0, 1)
            handle.remove()
            loss = divergence(clean, logits)
            if isinstance(kind, ReLU):
                loss = loss + L1 * codes[0].sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            assert decoder.grad is not None
            decoder.grad -= (decoder.grad * decoder).sum(-1, keepdim=True) * decoder.detach()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            with torch.no_grad():
                decoder.div_(decoder.norm(dim=-1, keepdim=True))
        return loss.item()

    return run


def check_alike(losses: Mapping[str, float], tolerance: float) -> None:
    """Refuse to compare what does not find the same loss at the first step.

    Raises:
        ValueError: with the losses.
    """
    print("loss at the first step:", ", ".join(f"{name} {loss:.6f}" for name, loss in losses.items()))
    least, most = min(losses.values()), max(losses.values())
    if not most - least <= tolerance * abs(most):
        raise ValueError(f"these do not find the same loss, to a share of {tolerance}: {losses}")


def milliseconds(runs: Mapping[str, Run], steps: int, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """The fastest round of each, in turns, per step."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            began = clock()
            run()
            best[name] = min(best[name], (clock() - began) / steps * 1e3)
    return best


def on_processor(size: Size, rounds: int, steps: int = 24) -> list[dict[str, Any]]:
    """ReLU and TopK with one dictionary and with three, next to the plain formulation."""
    module, table = size.network("cpu"), list[dict[str, Any]]()
    for kind in (ReLU(), TopK(32)):
        first = {"plain": plain, "ours": ours}
        losses = {name: make(size, module, Batches(size, "cpu"), kind, 1)() for name, make in first.items()}
        check_alike(losses, 1e-4)
        batches = Batches(size, "cpu")
        runs = {"plain": plain(size, module, batches, kind, steps)}
        runs |= {f"{count}": ours(size, module, batches, kind, steps, students=count) for count in (1, 3)}
        found = milliseconds(runs, steps, rounds, time.process_time)
        further = (found["3"] - found["1"]) / 2
        entry = {
            "kind": type(kind).__name__,
            "plain_ms": found["plain"],
            "ours_ms": found["1"],
            "times_faster": found["plain"] / found["1"],
            "further_ms": further,
            "further_share": further / found["1"],
        }
        table.append(entry)
        print(entry, flush=True)
    return table


def on_graphics_card(size: Size, device: str, rounds: int, steps: int = 4) -> list[dict[str, Any]]:
    """The step in bfloat16, with the divergence in chunks and whole, next to the plain one in float32."""
    module, kind, table = size.network(device), ReLU(), list[dict[str, Any]]()
    cuda, name = device.startswith("cuda"), torch.cuda.get_device_name() if device.startswith("cuda") else device

    def clock() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def lowered(term: Term) -> Callable[[int], Run]:
        batches = Batches(size, device)
        return lambda steps: ours(size, module, batches, kind, steps, precision="bfloat16", term=term)

    contenders: dict[str, Callable[[int], Run]] = {
        "ours, bfloat16": lowered(DIVERGENCE),
        "ours, bfloat16, all logits at once": lowered(WholeKL()),
        "plain, float32": lambda steps: plain(size, module, Batches(size, device), kind, steps),
    }
    check_alike({contender: make(1)() for contender, make in contenders.items()}, 0.02)
    for contender, make in contenders.items():
        # one at a time, so that memory is that of one
        run = make(steps)
        run()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run()
        memory = torch.cuda.max_memory_allocated() if cuda else None
        count = flops(run) / steps / size.tokens
        seconds = milliseconds({contender: run}, steps, rounds, clock)[contender] / 1e3
        best = peak(name, "bfloat16" if "bfloat16" in contender else "float32")
        entry = {
            "name": contender,
            "tokens_per_second": size.tokens / seconds,
            "flops_per_token": count,
            "peak_share": None if best is None else count * size.tokens / seconds / best,
            "peak_bytes": memory,
        }
        table.append(entry)
        print(entry, flush=True)
    return table


def lines(found: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """The tables in markdown."""
    told = ["| kind | plain | here | times faster | each further dictionary, of the first |", "|---|---|---|---|---|"]
    told += [
        f"| {row['kind']} | {row['plain_ms']:.0f} ms | {row['ours_ms']:.0f} ms | {row['times_faster']:.2f} "
        f"| {row['further_share']:.2f} |"
        for row in found["cpu"]
    ]
    if "cuda" in found:
        told += ["", "| on the graphics card | tokens a second | MFLOP a token | share of the peak | peak GB |"]
        told += ["|---|--:|--:|--:|--:|"]
    for row in found.get("cuda", []):
        share = "" if row["peak_share"] is None else f"{row['peak_share']:.0%}"
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f}"
        told.append(
            f"| {row['name']} | {row['tokens_per_second']:,.0f} | {row['flops_per_token'] / 1e6:,.0f} "
            f"| {share} | {memory} |"
        )
    return told


def main(
    threads: int = 1,
    rounds: int = 7,
    small: Size = SMALL,
    large: Size = LARGE,
    large_device: str | None = "cuda" if torch.cuda.is_available() else None,
    record: bool = True,
) -> None:
    """Compare; ``large`` where there is a ``large_device``."""
    torch.set_num_threads(threads)
    found = {"cpu": on_processor(small, rounds)}
    if large_device is None:
        print("no graphics card: the part for one is left out")
    else:
        found["cuda"] = on_graphics_card(large, large_device, rounds)
    if record:
        title = "One end-to-end step against the plain formulation"
        save("end_to_end_step", title, machine(threads), found, lines(found))
    else:
        print("\n".join(lines(found)))


if __name__ == "__main__":
    tyro.cli(main)
