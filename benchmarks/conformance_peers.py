"""Adapters that put other libraries under the laws; each is imported only in the interpreter that asks for it."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from innerspace.conformance.subject import Add, Ground, Inexpressible, Inputs, Read, Scale, Seen, Step, changed, greedy

BY_HAND = "the mask of the padding is written by hand"


def remark(steps: Sequence[Step]) -> str:
    """What a user adds where a library hands out tensors and knows no padding."""
    return BY_HAND if any(isinstance(step, Add) and not step.padding for step in steps) else ""


def number(path: str) -> int:
    """The number of a block, for libraries that know sites by it."""
    found = re.fullmatch(r"transformer\.h\.(\d+)", path)
    if found is None:
        raise Inexpressible("sites are the numbers of a decoder's blocks")
    return int(found[1])


def words(folder: Path) -> Any:
    """A tokenizer of as many words as the network knows, for libraries that want one; it is never used."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = {f"w{i}": i for i in range(101)}
    made = Tokenizer(models.WordLevel(names, unk_token="w0"))
    special = {"pad_token": "w0", "bos_token": "w1", "eos_token": "w2", "unk_token": "w0"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, name_or_path=str(folder), **special)
    if folder != Path():
        tokenizer.save_pretrained(folder)
    return tokenizer


def by_pass(ground: Ground, steps: Sequence[Step]) -> dict[str, list[Step]]:
    """The steps of each site, in the order in which the pass comes by."""
    paths = [*ground.sites, ground.unused]
    return {path: own for path in paths if (own := [step for step in steps if step.site == path])}


class Nnsight:
    """Steps as code inside a trace."""

    name = "nnsight"
    package = "nnsight"

    def run(self, ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
        from nnsight import NNsight

        wrapped, valid = NNsight(ground.module), ground.valid(inputs)
        plan = by_pass(ground, steps)
        kept: dict[int, Any] = {}
        with wrapped.trace(**inputs):
            for path in plan:
                envoy = wrapped.get(path)
                given = envoy.output
                hidden = given[0] if isinstance(given, tuple) else given
                for step in plan[path]:
                    hidden = changed(step, hidden, valid)
                    if isinstance(step, Read):
                        kept[id(step)] = hidden.save()
                envoy.output = (hidden, *given[1:]) if isinstance(given, tuple) else hidden
            found = wrapped.output.save()
        hidden = tuple(kept[id(step)] for step in steps if isinstance(step, Read))
        return Seen(ground.output(found), hidden, remark(steps))

    def generate(self, ground: Ground, prompt: Tensor, tokens: int, steps: Sequence[Step]) -> Tensor:
        from nnsight import LanguageModel

        if any(isinstance(step, Add) and step.first for step in steps):
            raise Inexpressible("code in tracer.iter counts the calls, not the tokens")
        wrapped = LanguageModel(ground.module, tokenizer=words(Path()))
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        with wrapped.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, **length
        ) as tracer:
            for _ in tracer.iter[:tokens]:
                for step in steps:
                    envoy = wrapped.get(step.site)
                    envoy.output = changed(step, envoy.output, None)
            ids = tracer.result.save()
        return ids


class Pyvene:
    """Steps as interventions of a configuration."""

    name = "pyvene"
    package = "pyvene"

    def wrapped(self, ground: Ground, steps: Sequence[Step], valid: Tensor | None) -> Any:
        import pyvene as pv

        class Written(pv.ConstantSourceIntervention):
            """A step that pyvene has no intervention for."""

            def __init__(self, step: Step, **kwargs: Any) -> None:
                super().__init__(**kwargs)
                self.step = step

            def forward(self, base: Tensor, source: Any = None, subspaces: Any = None, **_: Any) -> Tensor:
                return changed(self.step, base, valid)

        entries = list[dict[str, Any]]()
        for step in steps:
            component = re.sub(r"\.(\d+)", r"[\1]", step.site) + ".output"
            if isinstance(step, Read):
                made: Any = pv.CollectIntervention(embed_dim=ground.width, keep_last_dim=True)
            elif isinstance(step, Add) and step.padding and not step.first:
                made = pv.AdditionIntervention(
                    embed_dim=ground.width, source_representation=step.amount * step.vector, keep_last_dim=True
                )
            else:
                made = Written(step, embed_dim=ground.width, keep_last_dim=True)
            entries.append({"component": component, "intervention": made})
        return pv.IntervenableModel(pv.IntervenableConfig(entries), ground.module)

    def run(self, ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
        if ground.prompt is None:
            raise Inexpressible("a network needs the configuration of one of transformers")
        plain, edited = self.wrapped(ground, steps, ground.valid(inputs))(dict(inputs))
        hidden: list[Tensor] = []
        if any(isinstance(step, Read) for step in steps):
            shape = next(iter(inputs.values())).shape[:2]
            hidden = [one.reshape(*shape, ground.width) for one in plain[1]]
        return Seen(ground.output(edited), tuple(hidden), remark(steps))

    def generate(self, ground: Ground, prompt: Tensor, tokens: int, steps: Sequence[Step]) -> Tensor:
        if any(isinstance(step, Add) and step.first for step in steps):
            raise Inexpressible("interventions act in the prompt only, or on every call alike")
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        base = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        _, ids = self.wrapped(ground, steps, None).generate(base, intervene_on_prompt=True, **length)
        return ids


def control_model() -> Any:
    """What repeng wraps networks in."""
    import numpy

    if "float_" not in vars(numpy):
        # repeng 0.4 cannot be imported otherwise: it names what NumPy 2 has removed
        numpy.float_ = numpy.float64  # type: ignore[attr-defined]
    from repeng import ControlModel

    return ControlModel


class Repeng:
    """Vectors set on blocks that stand in the places of others; reset and unwrapped after every pass."""

    name = "repeng"
    package = "repeng"

    def _under(self, ground: Ground, steps: Sequence[Step], stack: ExitStack) -> Any:
        if any(isinstance(step, Read) for step in steps):
            raise Inexpressible("it reads no hidden states, but for those of its own fit")
        if any(isinstance(step, Add) and step.first for step in steps):
            raise Inexpressible("all tokens are edited")
        if any(isinstance(step, Add) and not step.padding for step in steps):
            raise Inexpressible("it knows padding at the beginning of rows only")
        numbers = [number(step.site) for step in steps]
        if len(set(numbers)) < len(numbers):
            raise Inexpressible("a block has one control")
        scales = {step.factor for step in steps if isinstance(step, Scale)}
        if scales:
            raise Inexpressible("blocks share one operator")
        model = control_model()(cast(Any, ground.module), numbers)
        stack.callback(model.unwrap)
        stack.callback(model.reset)
        model.set_raw_control({number(step.site): step.amount * step.vector for step in steps if isinstance(step, Add)})
        return model

    def run(self, ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
        with ExitStack() as stack:
            return Seen(ground.output(self._under(ground, steps, stack)(**inputs)))

    def generate(self, ground: Ground, prompt: Tensor, tokens: int, steps: Sequence[Step]) -> Tensor:
        with ExitStack() as stack:
            self._under(ground, steps, stack)
            return greedy(ground, prompt, tokens)


class SteeringVectors:
    """Vectors applied inside a ``with``, at modules that a matcher of one's own finds."""

    name = "steering-vectors"
    package = "steering-vectors"

    def _under(
        self, ground: Ground, steps: Sequence[Step], valid: Tensor | None, stack: ExitStack
    ) -> list[dict[int, list[Tensor]]]:
        from steering_vectors import SteeringVector, record_activations

        records = list[dict[int, list[Tensor]]]()
        for step in steps:
            layers = {"decoder_block": only(step.site)}
            if isinstance(step, Read):
                records.append(stack.enter_context(record_activations(ground.module, layer_config=layers)))
            elif isinstance(step, Scale):
                vector = SteeringVector({0: torch.zeros(ground.width)})
                more = step.factor - 1
                operator = lambda hidden, _, more=more: hidden * more  # noqa: E731
                stack.enter_context(vector.apply(ground.module, layer_config=layers, operator=operator))
            else:
                tokens: dict[str, Any] = {"min_token_index": step.first}
                if not step.padding:
                    tokens = {"min_token_index": None, "token_indices": None if valid is None else valid.long()}
                vector = SteeringVector({0: step.vector})
                under = vector.apply(ground.module, layer_config=layers, multiplier=step.amount, **tokens)
                stack.enter_context(under)
        return records

    def run(self, ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
        with ExitStack() as stack:
            records = self._under(ground, steps, ground.valid(inputs), stack)
            output = ground.forward(inputs)
        return Seen(output, tuple(record[0][0] for record in records))

    def generate(self, ground: Ground, prompt: Tensor, tokens: int, steps: Sequence[Step]) -> Tensor:
        with ExitStack() as stack:
            self._under(ground, steps, None, stack)
            return greedy(ground, prompt, tokens)


def only(path: str) -> Callable[[nn.Module, int], str | None]:
    return lambda _, layer: path if layer == 0 else None


class TransformerLens:
    """A bridge around the network, with hooks by canonical names."""

    name = "TransformerLens"
    package = "transformer-lens"

    def bridge(self, ground: Ground) -> Any:
        from transformer_lens.model_bridge import TransformerBridge

        if ground.prompt is None:
            raise Inexpressible("only architectures that it knows can be bridged")
        with TemporaryDirectory() as folder:
            # it reads the configuration and the tokenizer from a folder, and the network from memory
            cast(Any, ground.module).config.save_pretrained(folder)
            tokenizer = words(Path(folder))
            return TransformerBridge.boot_transformers(
                folder, hf_model=ground.module, tokenizer=tokenizer, device="cpu"
            )

    def _hooks(
        self, ground: Ground, steps: Sequence[Step], valid: Tensor | None, found: dict[int, Tensor]
    ) -> list[tuple[str, Callable[..., Tensor]]]:
        def hook(step: Step) -> Callable[..., Tensor]:
            def call(hidden: Tensor, hook: Any) -> Tensor:
                hidden = changed(step, hidden, valid)
                if isinstance(step, Read):
                    found[id(step)] = hidden
                return hidden

            return call

        return [(f"blocks.{number(step.site)}.hook_out", hook(step)) for step in steps]

    def run(self, ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
        bridge, found = self.bridge(ground), dict[int, Tensor]()
        hooks = self._hooks(ground, steps, ground.valid(inputs), found)
        output = bridge.run_with_hooks(inputs["input_ids"], fwd_hooks=hooks, attention_mask=inputs["attention_mask"])
        return Seen(output, tuple(found[id(step)] for step in steps if isinstance(step, Read)), remark(steps))

    def generate(self, ground: Ground, prompt: Tensor, tokens: int, steps: Sequence[Step]) -> Tensor:
        if any(isinstance(step, Add) and step.first for step in steps):
            raise Inexpressible("a hook does not know how many tokens came before")
        bridge = self.bridge(ground)
        with bridge.hooks(fwd_hooks=self._hooks(ground, steps, None, {})):
            return bridge.generate(
                prompt, max_new_tokens=tokens, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
            )


PEERS = {one.name: one for one in (Nnsight, Pyvene, Repeng, SteeringVectors, TransformerLens)}
