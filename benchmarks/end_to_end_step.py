"""One end-to-end step against the plain formulation: two full passes, full logits, dense codes.

    python benchmarks/end_to_end_step.py [--threads 1] [--rounds 7]

A GPT-2 with random weights (4 blocks, width 128, vocabulary 4,096), a dictionary of 2,048 latents behind block 2,
batches of 8 × 128 tokens. Per second of processor time, the fastest of several rounds that take turns. Where there is
a graphics card: a GPT-2-small-shaped network, 46,080 latents before block 6, 8 × 1,024 tokens in bfloat16.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from recording import machine, save
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import Nonlinearity, ReLU, TopK
from innerspace.language.causal_lm import load
from innerspace.language.text import Text
from innerspace.learn.fit import FitConfig, Student, fit_together
from innerspace.learn.objectives import Objective, OutputKL, Sparsity
from innerspace.learn.spliced import spliced
from innerspace.measure.flops import flops, peak
from innerspace.network.model import Model

L1 = 0.05


class Batches:
    """Random tokens, the same few batches over and over."""

    def __init__(self, vocabulary: int, rows: int, context: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (4, rows, context)
        self.ids, self.count = torch.randint(vocabulary, shape, generator=generator).to(device), 0

    def next(self) -> Text:
        self.count += 1
        return Text(self.ids[self.count % len(self.ids)])

    def state(self) -> dict[str, int]:
        return {"count": self.count}

    def restore(self, state: Any) -> None:
        self.count = state["count"]


def network(blocks: int, width: int, heads: int, vocabulary: int, context: int, device: str) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        bos_token_id=0,
        eos_token_id=0,
        n_positions=context,
        n_embd=width,
        n_layer=blocks,
        n_head=heads,
        use_cache=False,
    )
    return GPT2LMHeadModel(config).to(device).eval()


def ours(
    model: Model,
    batches: Batches,
    site: str,
    latents: int,
    kind: Nonlinearity,
    students: int,
    steps: int,
    precision: Any = "float32",
) -> Callable[[], None]:
    width, device = model.site(site).width, batches.ids.device
    terms: Objective = (OutputKL(), Sparsity(L1)) if isinstance(kind, ReLU) else (OutputKL(),)
    learners = [
        Student(Dictionary(width, latents, kind, scale=width**0.5, seed=i).to(device), terms, site, str(i))
        for i in range(students)
    ]
    stream = spliced(model, batches, [site], {site: float(width)}, precision=precision)
    config = FitConfig(steps=steps, log_every=steps)

    def run() -> None:
        fit_together(learners, stream, config)

    return run


def plain(
    module: GPT2LMHeadModel, batches: Batches, block: int, latents: int, kind: Nonlinearity, steps: int
) -> Callable[[], None]:
    """What one writes first: dense codes, autograd everywhere, the default optimizer."""
    width, device = module.config.n_embd, batches.ids.device
    rows = F.normalize(torch.randn(latents, width, device=device), dim=-1)
    decoder, encoder = nn.Parameter(rows), nn.Parameter(rows.clone())
    encoder_bias = nn.Parameter(torch.zeros(latents, device=device))
    decoder_bias = nn.Parameter(torch.zeros(width, device=device))
    parameters = [decoder, encoder, encoder_bias, decoder_bias]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    codes = list[Tensor]()
    scale = width**0.5

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

    def run() -> None:
        module.requires_grad_(False)
        for _ in range(steps):
            ids = batches.next().ids
            with torch.no_grad():
                clean = module(ids).logits.flatten(0, 1)
            codes.clear()
            handle = module.transformer.h[block].register_forward_hook(splice)
            logits = module(ids).logits.flatten(0, 1)
            handle.remove()
            loss = F.kl_div(logits.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="batchmean")
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

    return run


def milliseconds(
    runs: dict[str, Callable[[], None]], steps: int, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
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


def on_processor(rounds: int, steps: int = 24) -> list[dict[str, Any]]:
    module = network(4, 128, 4, 4096, 128, "cpu")
    model, batches, site = load(module).model, Batches(4096, 8, 128, "cpu"), "resid.1"
    table = list[dict[str, Any]]()
    for kind in (ReLU(), TopK(32)):
        runs = {
            "plain": plain(module, batches, 1, 2048, kind, steps),
            **{f"{count}": ours(model, batches, site, 2048, kind, count, steps) for count in (1, 3)},
        }
        found = milliseconds(runs, steps, rounds, time.process_time)
        further = (found["3"] - found["1"]) / 2
        table.append(
            {
                "kind": type(kind).__name__,
                "plain_ms": found["plain"],
                "ours_ms": found["1"],
                "times_faster": found["plain"] / found["1"],
                "further_ms": further,
                "further_share": further / found["1"],
            }
        )
        print(f"{type(kind).__name__:6} plain {found['plain']:7.1f} ms   ours {found['1']:7.1f} ms   ", end="")
        faster, share = found["plain"] / found["1"], further / found["1"]
        print(f"{faster:.2f} times faster   each further dictionary {share:.2f} of the first")
    return table


def on_graphics_card(rounds: int, steps: int = 4) -> list[dict[str, Any]]:
    module = network(12, 768, 12, 50257, 1024, "cuda")
    batches, tokens, table = Batches(50257, 8, 1024, "cuda"), 8 * 1024, list[dict[str, Any]]()

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    model = load(module).model
    lowered = ours(model, batches, "resid.5", 46080, ReLU(), 1, steps, "bfloat16")
    runs = {"ours, bfloat16": lowered, "plain, float32": plain(module, batches, 5, 46080, ReLU(), steps)}
    for name, run in runs.items():
        run()
        torch.cuda.reset_peak_memory_stats()
        count = flops(run) / steps / tokens
        seconds = milliseconds({name: run}, steps, rounds, clock)[name] / 1e3
        best = peak(torch.cuda.get_device_name(), "bfloat16" if "bfloat16" in name else "float32")
        entry = {
            "name": name,
            "tokens_per_second": tokens / seconds,
            "flops_per_token": count,
            "peak_share": None if best is None else count * tokens / seconds / best,
            "peak_bytes": torch.cuda.max_memory_allocated(),
        }
        table.append(entry)
        print(entry)
    return table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=7)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    found = {"cpu": on_processor(given.rounds)}
    if torch.cuda.is_available():
        found["cuda"] = on_graphics_card(given.rounds)
    else:
        print("no graphics card: the part for one is left out")
    lines = ["| kind | plain | here | times faster | each further dictionary, of the first |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['kind']} | {row['plain_ms']:.0f} ms | {row['ours_ms']:.0f} ms | {row['times_faster']:.2f} "
        f"| {row['further_share']:.2f} |"
        for row in found["cpu"]
    ]
    save("end_to_end_step", "One end-to-end step against the plain formulation", machine(given.threads), found, lines)


if __name__ == "__main__":
    main()
