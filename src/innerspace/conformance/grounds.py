"""Networks to examine libraries on: a small GPT-2 with random weights, and one of which a block gives a tuple."""

from typing import Any, final

import torch
from torch import Tensor, nn

from innerspace.conformance.subject import Ground


class _TupleBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x + self.linear(x).tanh(), "kept"


@final
class TupleNetwork(nn.Module):
    """Two blocks, of which the second gives a tuple and insists on it; one more is never called."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = _TupleBlock(width)
        self.spare = nn.Linear(width, width)
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """A pass; a block that no longer gives its tuple is an error."""
        found: Any = self.second(self.first(x))
        if not (isinstance(found, tuple) and len(found) == 2 and found[1] == "kept"):
            raise TypeError(f"the block gave a {type(found).__name__} instead of a tensor and a word")
        return self.last(found[0])


def tuple_ground(seed: int = 0) -> Ground:
    """A ground for the law on tuples; it needs nothing but PyTorch."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = TupleNetwork().eval()
    inputs = {"x": torch.randn(2, 5, 8, generator=generator)}
    return Ground(network, inputs, lambda y: y, ("first", "second"), 8, "spare")


def gpt2_ground(layers: int = 4, seed: int = 0) -> Ground:
    """A GPT-2 of ``transformers`` from a configuration, with an unused module beside its blocks; nothing is loaded.

    Its weights are large enough that eight tokens of a greedy generation differ under the edits of the laws.
    """
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 101, "n_embd": 64, "n_layer": layers, "n_head": 4, "n_positions": 64}
    config: Any = transformers.GPT2Config(
        **sizes, initializer_range=0.15, bos_token_id=None, eos_token_id=None, pad_token_id=0
    )
    config._attn_implementation = "eager"
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = transformers.GPT2LMHeadModel(config).eval()
        network.transformer.spare = nn.Linear(64, 64)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 101, (3, 7), generator=generator)
    valid = torch.arange(7) < torch.tensor([[7], [4], [6]])
    inputs = {"input_ids": ids * valid, "attention_mask": valid.long()}
    blocks = "transformer.h"
    return Ground(
        module=network,
        inputs=inputs,
        output=lambda found: found.logits,
        sites=(f"{blocks}.{layers // 4}", f"{blocks}.{layers // 2}"),
        width=64,
        unused="transformer.spare",
        padding="attention_mask",
        prompt=ids[:1, :5],
    )
