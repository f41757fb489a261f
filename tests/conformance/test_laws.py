"""The laws hold for this library, and find faults that are planted into another one."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from innerspace.conformance.grounds import gpt2_ground, tuple_ground
from innerspace.conformance.laws import LAWS, Verdict, examine
from innerspace.conformance.own import Innerspace
from innerspace.conformance.subject import Add, Ground, Inputs, RawHooks, Read, Seen, Step, Subject, greedy


def found(subject: Subject) -> dict[str, Verdict]:
    return {verdict.law: verdict for verdict in examine(subject, gpt2_ground, tuple_ground)}


def test_all_laws_hold_for_this_library() -> None:
    verdicts = found(Innerspace())
    assert [law.sentence for law in LAWS] == list(verdicts)
    assert {law: verdict for law, verdict in verdicts.items() if verdict.outcome != "holds"} == {}
    assert [law for law, verdict in verdicts.items() if verdict.how] == ["A site that never comes up is reported"]


def test_raw_hooks_are_honest_and_say_little() -> None:
    verdicts = found(RawHooks())
    assert {law: verdict.outcome for law, verdict in verdicts.items() if verdict.outcome != "holds"} == {
        "A site that never comes up is reported": "fails",
        "A gradient reaches the direction, and no weight": "fails",
        "So is an edit that begins at some token": "cannot be expressed",
    }
    assert verdicts["Padding is left alone when that is asked"].how == "the mask of the padding is written by hand"


class Faulty:
    """This library with one fault."""

    name = "faulty"

    def __init__(self, spoil: Callable[[Ground, Inputs, Sequence[Step]], Seen | Sequence[Step]]) -> None:
        self.spoil = spoil

    def run(self, ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
        spoiled = self.spoil(ground, inputs, steps)
        return spoiled if isinstance(spoiled, Seen) else Innerspace().run(ground, inputs, spoiled)

    def generate(self, ground: Ground, prompt: Tensor, tokens: int, steps: Sequence[Step]) -> Tensor:
        return greedy(ground, prompt, tokens)


def first_row_only(ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
    edited, plain = Innerspace().run(ground, inputs, steps), ground.forward(inputs)
    return Seen(torch.cat([edited.output[:1], plain[1:]]), edited.hidden)


def stays_on(ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
    seen = Innerspace().run(ground, inputs, steps)
    for step in steps:
        if isinstance(step, Add):
            ground.module.get_submodule(step.site).register_forward_hook(
                lambda _, __, y, v=step.vector[: ground.width]: (y[0] + v, *y[1:]) if isinstance(y, tuple) else y + v
            )
    return seen


def reads_first(ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Sequence[Step]:
    return sorted(steps, key=lambda step: not isinstance(step, Read))


def turned_round(ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Sequence[Step]:
    return list(reversed(steps))


def everywhere(ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Sequence[Step]:
    return [replace(step, padding=True) if isinstance(step, Add) else step for step in steps]


def detached(ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
    seen = Innerspace().run(ground, inputs, steps)
    return Seen(seen.output.detach(), seen.hidden)


def silent(ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Sequence[Step]:
    return [step for step in steps if step.site != ground.unused]


def one_site(ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Sequence[Step]:
    return [step for step in steps if step.site == steps[0].site]


def frozen_for_good(ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Sequence[Step]:
    ground.module.eval().requires_grad_(False)
    return steps


FAULTS = {
    first_row_only: {
        "A steer reaches every row and every token",
        "Rows of unequal length get what each would get alone",
    },
    stays_on: {"After a pass the network's own pass is as before"},
    reads_first: {"What is read after a write is what was written"},
    turned_round: {"Two interventions at one site compose in their order"},
    everywhere: {"Padding is left alone when that is asked"},
    detached: {"A gradient reaches the direction, and no weight"},
    silent: {"A site that never comes up is reported"},
    one_site: {"Interventions at two sites act together"},
    frozen_for_good: {"Keys, modes, flags and hooks of the network are as before"},
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found(fault: Callable[[Ground, Inputs, Sequence[Step]], Seen | Sequence[Step]]) -> None:
    verdicts = found(Faulty(fault))
    failing = {law for law, verdict in verdicts.items() if verdict.outcome == "fails"}
    assert failing >= FAULTS[fault]
    # its generation ignores every edit, and the verdict says so
    assert verdicts["Generation with a cache is edited as passes without one"].how.endswith("as without any edit")


def test_what_a_library_raises_is_its_answer() -> None:
    def fails(ground: Ground, inputs: Inputs, steps: Sequence[Step]) -> Seen:
        raise KeyError("no such layer")

    verdicts = found(Faulty(fails))
    # nothing holds for a library that refuses everything, neither what asks for a refusal
    assert {verdict.outcome for verdict in verdicts.values()} == {"fails"}
    verdict = verdicts["Interventions at two sites act together"]
    assert verdict.how == "KeyError in fails: 'no such layer'"
