"""What a library is asked under the laws: steps at sites of a network, in words that are no library's own.

An adapter has two methods. It says ``Inexpressible`` where the library has no means for what is asked, and a *remark*
where it has none but its user can help himself, such as by writing out a mask by hand.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Inputs = Mapping[str, Tensor]
"""The keyword arguments of a network."""


class Inexpressible(Exception):  # noqa: N818
    """The library has no means for this step; the text says which."""


@dataclass(frozen=True)
class Read:
    """Keep the hidden state as the steps before have left it."""

    site: str


@dataclass(frozen=True, eq=False)
class Add:
    """Add ``amount`` · ``vector`` to the hidden state, from token ``first`` of the sequence on; to padding or not."""

    site: str
    vector: Float[Tensor, "d"]
    amount: float = 1.0
    first: int = 0
    padding: bool = True


@dataclass(frozen=True)
class Scale:
    """Multiply the hidden state."""

    site: str
    factor: float


Step = Read | Add | Scale


@dataclass(frozen=True, eq=False)
class Ground:
    """A network on which a library is examined, and what the laws must know of it.

    ``module`` returns what ``output`` turns into one tensor. ``inputs`` are two rows or more of unequal length, padded
    at their ends; ``padding`` names the input that says which tokens count. ``sites`` are the paths of two modules, in
    the order of the pass, whose outputs are hidden states of a ``width``, and ``unused`` the path of one that never
    runs. ``prompt`` is what to generate from, where the network can; it is one row without padding.
    """

    module: nn.Module
    inputs: Inputs
    output: Callable[[Any], Tensor]
    sites: tuple[str, str]
    width: int
    unused: str
    padding: str = ""
    prompt: Int[Tensor, "1 token"] | None = None

    def valid(self, inputs: Inputs) -> Bool[Tensor, "batch token"] | None:
        """Which tokens count; None where all do."""
        return inputs[self.padding].bool() if self.padding in inputs else None

    def forward(self, inputs: Inputs) -> Tensor:
        """A pass, without anybody's help."""
        return self.output(self.module(**inputs))


@dataclass(frozen=True, eq=False)
class Seen:
    """What a pass gave: the output, the hidden states of the ``Read`` steps in their order, and a remark, if any."""

    output: Tensor
    hidden: tuple[Tensor, ...] = ()
    remark: str = ""


@runtime_checkable
class Subject(Protocol):
    """A library under examination."""

    name: str

    def run(self, ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
        """One pass with these steps, in this order, differentiable in their vectors.

        Raises:
            Inexpressible: for steps that the library cannot take.
        """
        ...

    def generate(self, ground: Ground, prompt: Int[Tensor, "1 token"], tokens: int, steps: Sequence[Step]) -> Tensor:
        """The prompt and as many tokens after it, the most likely ones, with the network's cache; [1, token].

        Raises:
            Inexpressible: for steps that the library cannot take.
        """
        ...


@final
class RawHooks:
    """No library: forward hooks that are registered for one pass and removed after it. The truth of the other laws."""

    name = "raw hooks"

    def run(self, ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
        """One pass."""
        with _hooked(ground, inputs, steps) as hooks:
            output = ground.forward(inputs)
        kept = {path: iter(hook.found) for path, hook in hooks.items()}
        hidden = tuple(next(kept[step.site]) for step in steps if isinstance(step, Read) and hooks[step.site].found)
        masked = any(isinstance(step, Add) and not step.padding for step in steps)
        return Seen(output, hidden, "the mask of the padding is written by hand" if masked else "")

    def generate(self, ground: Ground, prompt: Int[Tensor, "1 token"], tokens: int, steps: Sequence[Step]) -> Tensor:
        """A generation with the cache, in which a hook sees a token at a time."""
        if any(isinstance(step, Add) and step.first for step in steps):
            raise Inexpressible("a hook does not know how many tokens came before")
        with _hooked(ground, {}, steps):
            return greedy(ground, prompt, tokens)


def greedy(ground: Ground, prompt: Int[Tensor, "1 token"], tokens: int) -> Int[Tensor, "1 all"]:
    """The network's own generation, as a network of ``transformers`` has it."""
    call = cast(Any, ground.module).generate
    # a token that ends the text would end the comparison
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    return call(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, **length)


def changed(step: Step, hidden: Tensor, valid: Bool[Tensor, "batch token"] | None) -> Tensor:
    """What a step makes of a hidden state [batch token d] whose tokens are the first of their sequences."""
    match step:
        case Read():
            return hidden
        case Scale():
            return hidden * step.factor
        case Add():
            moved = hidden + step.amount * step.vector
            if step.first == 0 and step.padding:
                return moved
            mask = (torch.arange(hidden.shape[1], device=hidden.device) >= step.first)[None]
            if not step.padding and valid is not None:
                mask = mask & valid
            return torch.where(mask[..., None], moved, hidden)


@dataclass(eq=False)
class _Hook:
    """The steps at one site, as one hook."""

    steps: list[Step]
    valid: Tensor | None
    found: list[Tensor] = field(default_factory=list[Tensor])

    def __call__(self, _: nn.Module, __: object, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        for step in self.steps:
            hidden = changed(step, hidden, self.valid)
            if isinstance(step, Read):
                self.found.append(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def _hooked(ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Generator[dict[str, _Hook]]:
    valid = ground.valid(inputs)
    hooks = {path: _Hook([step for step in steps if step.site == path], valid) for path in {s.site for s in steps}}
    handles = [ground.module.get_submodule(path).register_forward_hook(hook) for path, hook in hooks.items()]
    try:
        yield hooks
    finally:
        for handle in handles:
            handle.remove()
