"""What reading every block and steering one of them adds to a pass, library by library, in microseconds."""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, cast

import torch
from conformance_peers import Pyvene, TransformerLens, control_model, number, only
from torch import Tensor, nn

from innerspace.conformance.grounds import gpt2_ground
from innerspace.conformance.own import GroundFamily
from innerspace.conformance.subject import Add, Ground, Inputs, Read, Step
from innerspace.interventions import Read as Reading
from innerspace.interventions import Steer
from innerspace.network.model import Model

Ways = tuple[Callable[[], Any] | None, Callable[[], Any] | None]
"""Read all blocks; steer one."""


def raw(ground: Ground, inputs: Inputs, paths: Sequence[str], vector: Tensor) -> Ways:
    """Hooks that are registered for a pass and removed after it, as short as they can be."""
    modules = {path: ground.module.get_submodule(path) for path in paths}

    def read() -> dict[str, Tensor]:
        kept = dict[str, Tensor]()

        def keep(path: str, _: Any, __: Any, output: Any) -> None:
            kept[path] = output[0] if isinstance(output, tuple) else output

        handles = [module.register_forward_hook(partial(keep, path)) for path, module in modules.items()]
        try:
            ground.forward(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    def steer() -> Tensor:
        def add(_: Any, __: Any, output: Any) -> Any:
            return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

        handle = modules[paths[2]].register_forward_hook(add)
        try:
            return ground.forward(inputs)
        finally:
            handle.remove()

    return read, steer


def own(ground: Ground, inputs: Inputs, paths: Sequence[str], vector: Tensor) -> Ways:
    """This library."""
    model = Model(ground.module, GroundFamily(ground, paths))
    reads, steer = {path: Reading() for path in paths}, {paths[2]: Steer(vector, 1.0)}
    return lambda: model.run(inputs, reads), lambda: model.run(inputs, steer)


def peer(name: str, ground: Ground, inputs: Inputs, paths: Sequence[str], vector: Tensor) -> Ways:
    """Another library, wrapped once beforehand where it can be."""
    steps: list[Step] = [Read(path) for path in paths]
    add = [Add(paths[2], vector)]
    match name:
        case "nnsight":
            from nnsight import NNsight

            wrapped: Any = NNsight(ground.module)
            envoys = [wrapped.get(path) for path in paths]
            third = envoys[2]

            def read() -> list[Any]:
                with wrapped.trace(**inputs):
                    kept = [envoy.output.save() for envoy in envoys].save()
                return kept

            def steer() -> Any:
                with wrapped.trace(**inputs):
                    third.output = third.output + vector
                    found = wrapped.output.save()
                return found

            return read, steer
        case "pyvene":
            reading, steering = Pyvene().wrapped(ground, steps, None), Pyvene().wrapped(ground, add, None)
            return lambda: reading(dict(inputs)), lambda: steering(dict(inputs))
        case "repeng":
            model = control_model()(cast(Any, ground.module), [number(paths[2])])

            def control() -> Any:
                model.set_raw_control({number(paths[2]): vector})
                try:
                    return model(**inputs)
                finally:
                    model.reset()

            return None, control
        case "steering-vectors":
            from steering_vectors import SteeringVector, record_activations

            made = SteeringVector({0: vector})
            layers: Any = {"decoder_block": only(paths[2])}

            def record() -> Any:
                with record_activations(ground.module, layer_config={"decoder_block": "transformer.h.{num}"}) as kept:
                    ground.forward(inputs)
                return kept

            def apply() -> Any:
                with made.apply(ground.module, layer_config=layers):
                    return ground.forward(inputs)

            return record, apply
        case "TransformerLens":
            bridge = TransformerLens().bridge(ground)
            names = {f"blocks.{number(path)}.hook_out" for path in paths}
            ids = inputs["input_ids"]
            hook = (f"blocks.{number(paths[2])}.hook_out", lambda hidden, hook: hidden + vector)
            return (
                lambda: bridge.run_with_cache(ids, names_filter=lambda name: name in names),
                lambda: bridge.run_with_hooks(ids, fwd_hooks=[hook]),
            )
        case _:
            raise ValueError(f"no library {name!r}")


@torch.no_grad()
def added(name: str | None, rounds: int) -> dict[str, dict[str, float]]:
    """Of this library, raw hooks and another library, on a small GPT-2 and 16 tokens."""
    ids = torch.randint(3, 101, (1, 16), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids}
    vector = torch.randn(64, generator=torch.Generator().manual_seed(1))
    paths = [f"transformer.h.{i}" for i in range(4)]
    shared = gpt2_ground()
    made: dict[str, Ways] = {"raw hooks": raw(shared, inputs, paths, vector)}
    made["innerspace"] = own(shared, inputs, paths, vector)
    if name is not None:
        # a network of its own, for some libraries change it
        made[name] = peer(name, gpt2_ground(), inputs, paths, vector)
    calls: dict[tuple[str, str], Callable[[], Any]] = {("plain", "pass"): lambda: shared.forward(inputs)}
    for who, ways in made.items():
        calls |= {(who, what): call for what, call in zip(("read", "steer"), ways, strict=True) if call is not None}
    return compared(calls, rounds)


def bare(rounds: int) -> dict[str, dict[str, float]]:
    """The same on four blocks that do nothing, where nothing but hooks takes time."""
    network = nn.Sequential(*(nn.Identity() for _ in range(4))).eval()
    x, vector = torch.zeros(1, 16, 64), torch.ones(64)
    paths = [str(i) for i in range(4)]
    ground = Ground(network, {"input": x}, lambda y: y, ("0", "1"), 64, "")
    calls: dict[tuple[str, str], Callable[[], Any]] = {("plain", "pass"): lambda: ground.forward(ground.inputs)}
    for who, ways in {"raw hooks": raw, "innerspace": own}.items():
        made = ways(ground, ground.inputs, paths, vector)
        calls |= {(who, what): call for what, call in zip(("read", "steer"), made, strict=True) if call is not None}
    with torch.no_grad():
        return compared(calls, rounds)


def compared(calls: dict[tuple[str, str], Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Median microseconds of the thread's own time beyond a plain pass; every round is in another order."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    for i in range(rounds + 20):
        shuffle(order)
        for key in order:
            start = time.thread_time_ns()
            calls[key]()
            if i >= 20:
                times[key].append((time.thread_time_ns() - start) / 1e3)
    plain = median(times.pop(("plain", "pass")))
    found: dict[str, dict[str, float]] = {"plain": {"pass": plain}}
    for (who, what), measured in times.items():
        found.setdefault(who, {})[what] = median(measured) - plain
    return found
