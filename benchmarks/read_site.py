"""What it costs to read a site and stop there, next to a network that has nothing behind the site.

    python benchmarks/read_site.py [--threads 1] [--rounds 60]

A Llama of the size of stories260K, and a GPT-2 of the size of GPT-2 small, with random weights. The other contender is
the same network without the later blocks, the final norm and the unembedding, called without any hook.
"""

import argparse
import copy
import time
from functools import partial

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from innerspace.interventions import Read
from innerspace.language.causal_lm import load
from innerspace.language.text import Text


def contenders(name: str) -> tuple[nn.Module, nn.Module, int, Text]:
    """A network, the same one cut behind a block, that block, and a batch."""
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
    if name == "stories":
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=5,
            num_attention_heads=8,
            num_key_value_heads=4,
            **special,
        )
        module, block, shape = LlamaForCausalLM(config), 2, (16, 128)
        short = copy.deepcopy(module.model)
        short.layers, short.norm = short.layers[: block + 1], nn.Identity()
    else:
        config = GPT2Config(n_layer=12, vocab_size=50257, **special)
        module, block, shape = GPT2LMHeadModel(config), 5, (2, 256)
        short = copy.deepcopy(module.transformer)
        short.h, short.ln_f = short.h[: block + 1], nn.Identity()
    short.config.num_hidden_layers = block + 1
    return module.eval(), short.eval(), block, Text(torch.randint(512, shape))


@torch.no_grad()
def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=60)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    for name in ("stories", "gpt2-small"):
        module, short, block, batch = contenders(name)
        model, site = load(module).model, f"resid.{block}"
        hidden = model.run(batch, {site: Read()}, stop=True).hidden[site]
        torch.testing.assert_close(hidden, short(batch.ids).last_hidden_state)
        best = [float("inf")] * 2
        runs = partial(short, batch.ids), partial(model.run, batch, {site: Read()}, stop=True)
        for _ in range(given.rounds):
            for i, run in enumerate(runs):
                began = time.process_time()
                run()
                best[i] = min(best[i], time.process_time() - began)
        print(
            f"{name:10} truncated {best[0] * 1e3:7.2f} ms   read and stop {best[1] * 1e3:7.2f} ms   "
            f"{100 * (best[1] / best[0] - 1):+.1f} %"
        )


if __name__ == "__main__":
    main()
