"""The laws of reading and writing hidden states, each asked of a library on a network; a page says what came out.

A law starts from a fresh network. Passes are compared with forward hooks that are registered for one pass; where a law
says *bit for bit* that is meant, elsewhere up to 1e-4 may come of another order of operations.
"""

import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from innerspace.conformance.subject import Add, Ground, Inexpressible, RawHooks, Read, Scale, Seen, Step, Subject
from innerspace.value import Value

TRUTH = RawHooks()
_TOLERANCE = 1e-4
"""Up to here two float32 passes are the same computation in another order; an edit that is missed changes far more."""


class Broken(AssertionError):  # noqa: N818
    """A law does not hold; the text says how."""


@dataclass(frozen=True)
class Verdict(Value):
    """What came out of one law; ``how`` says how it fails, why it cannot be expressed, or at what price it holds."""

    law: str
    outcome: Literal["holds", "fails", "cannot be expressed"]
    how: str = ""


Make = Callable[[], Ground]
"""A fresh ground, always the same: what one law leaves behind must not reach the next."""


@dataclass(frozen=True)
class Law:
    """A law by its sentence; ``asks`` raises ``Broken``, or gives a remark."""

    sentence: str
    asks: Callable[[Subject, Ground], str]
    tuples: bool = False


def examine(subject: Subject, plain: Make, tuples: Make) -> list[Verdict]:
    """Ask a library all laws: on a network, and on one of which a block gives a tuple."""
    verdicts = list[Verdict]()
    for law in LAWS:
        ground = (tuples if law.tuples else plain)()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdicts.append(_verdict(law, subject, ground))
    return verdicts


def _verdict(law: Law, subject: Subject, ground: Ground) -> Verdict:
    try:
        return Verdict(law.sentence, "holds", law.asks(subject, ground))
    except Inexpressible as why:
        return Verdict(law.sentence, "cannot be expressed", str(why))
    except Broken as how:
        return Verdict(law.sentence, "fails", str(how))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = " ".join(str(error).split())[:160]
        return Verdict(law.sentence, "fails", f"{type(error).__name__} in {place.name}: {told}")


def _reads(subject: Subject, ground: Ground) -> str:
    steps = [Read(path) for path in ground.sites]
    with torch.no_grad():
        plain = ground.forward(ground.inputs)
        truth = TRUTH.run(ground, ground.inputs, steps)
        seen = subject.run(ground, ground.inputs, steps)
    _same_bits(seen.output, plain, "the output")
    _count(seen, 2)
    for path, own, true in zip(ground.sites, seen.hidden, truth.hidden, strict=True):
        _same_bits(own, true, f"the state read at {path}")
    return seen.remark


def _zero(subject: Subject, ground: Ground) -> str:
    with torch.no_grad():
        plain = ground.forward(ground.inputs)
        seen = subject.run(ground, ground.inputs, [Add(ground.sites[0], _direction(ground), 0.0)])
    _same_bits(seen.output, plain, "the output")
    return seen.remark


def _reaches_all(subject: Subject, ground: Ground) -> str:
    return _as_true(subject, ground, [Add(ground.sites[0], _direction(ground), 0.5)])


def _read_back(subject: Subject, ground: Ground) -> str:
    site = ground.sites[0]
    return _as_true(subject, ground, [Add(site, _direction(ground), 0.5), Read(site)])


def _in_order(subject: Subject, ground: Ground) -> str:
    site, add = ground.sites[0], Add(ground.sites[0], _direction(ground), 0.5)
    first = _as_true(subject, ground, [add, Scale(site, 2.0)])
    return _as_true(subject, ground, [Scale(site, 2.0), add]) or first


def _two_sites(subject: Subject, ground: Ground) -> str:
    direction = _direction(ground)
    return _as_true(subject, ground, [Add(ground.sites[0], direction, 0.5), Add(ground.sites[1], direction, -1.0)])


def _gone(subject: Subject, ground: Ground) -> str:
    with torch.no_grad():
        before = ground.forward(ground.inputs)
        seen = subject.run(ground, ground.inputs, [Add(ground.sites[0], _direction(ground), 0.5)])
        _same_bits(ground.forward(ground.inputs), before, "the network's own pass afterwards")
    return seen.remark


def _gone_after_an_exception(subject: Subject, ground: Ground) -> str:
    wide = torch.ones(ground.width + 1)
    with torch.no_grad():
        # a library that refuses everything would hold otherwise
        subject.run(ground, ground.inputs, [Add(ground.sites[0], _direction(ground))])
        before = ground.forward(ground.inputs)
        try:
            subject.run(ground, ground.inputs, [Add(ground.sites[0], wide)])
        except Inexpressible:
            raise
        except Exception:
            _same_bits(ground.forward(ground.inputs), before, "the network's own pass after the exception")
            return ""
    raise Broken("a vector that is one number too long was taken without a word")


def _left_as_it_was(subject: Subject, ground: Ground) -> str:
    ground.module.train()
    before = _condition(ground.module)
    with torch.no_grad():
        seen = subject.run(ground, ground.inputs, [Add(ground.sites[0], _direction(ground))])
    after = _condition(ground.module)
    if differs := [what for what in before if before[what] != after[what]]:
        raise Broken(f"changed for good: {', '.join(differs)}")
    return seen.remark


def _unvisited(subject: Subject, ground: Ground) -> str:
    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        subject.run(ground, ground.inputs, [Add(ground.sites[0], _direction(ground))])
        told.clear()
        warnings.simplefilter("always")
        try:
            subject.run(ground, ground.inputs, [Add(ground.unused, _direction(ground))])
        except Inexpressible:
            raise
        except Exception as error:
            return f"raises {type(error).__name__}"
    if told:
        return f"warns: {str(told[0].message)[:80]}"
    raise Broken(f"an edit at {ground.unused}, which never runs, does nothing, and nothing is said")


def _padding(subject: Subject, ground: Ground) -> str:
    site = ground.sites[0]
    steps = [Add(site, _direction(ground), 0.5, padding=False), Read(site)]
    with torch.no_grad():
        before = TRUTH.run(ground, ground.inputs, [Read(site)]).hidden[0]
        seen = subject.run(ground, ground.inputs, steps)
    _count(seen, 1)
    valid = ground.valid(ground.inputs)
    assert valid is not None
    _same_bits(seen.hidden[0][~valid], before[~valid], "the state at padding")
    _close(seen.hidden[0][valid], (before + 0.5 * _direction(ground))[valid], "the state elsewhere")
    return seen.remark


def _tuple_form(subject: Subject, ground: Ground) -> str:
    return _as_true(subject, ground, [Add(ground.sites[1], _direction(ground), 0.5)])


def _gradient(subject: Subject, ground: Ground) -> str:
    direction = _direction(ground).requires_grad_(True)
    seen = subject.run(ground, ground.inputs, [Add(ground.sites[0], direction)])
    if not seen.output.requires_grad:
        raise Broken("the output does not depend on the direction, as far as gradients know")
    seen.output.square().mean().backward()
    if direction.grad is None or not direction.grad.abs().sum() > 0:
        raise Broken("no gradient reaches the direction")
    reached = sum(parameter.grad is not None for parameter in ground.module.parameters())
    if reached:
        raise Broken(f"the direction has its gradient, and {reached} of the network's parameters have one too")
    return seen.remark


def _generation(subject: Subject, ground: Ground) -> str:
    return _generates(subject, ground, Add(ground.sites[0], _direction(ground), 2.0))


def _generation_from(subject: Subject, ground: Ground) -> str:
    assert ground.prompt is not None
    return _generates(subject, ground, Add(ground.sites[0], _direction(ground), 2.0, first=ground.prompt.shape[1] + 2))


def _unequal_rows(subject: Subject, ground: Ground) -> str:
    valid = ground.valid(ground.inputs)
    assert valid is not None
    step = Add(ground.sites[0], _direction(ground), 0.5, padding=False)
    with torch.no_grad():
        together = subject.run(ground, ground.inputs, [step])
        for row, length in enumerate(valid.sum(1).tolist()):
            alone = {name: value[row : row + 1, :length] for name, value in ground.inputs.items()}
            single = TRUTH.run(ground, alone, [step]).output[0]
            _close(together.output[row, :length], single, f"row {row}, of {length} tokens, beside longer ones")
    return together.remark


LAWS = (
    Law("Reading changes nothing, bit for bit, and gives what passes", _reads),
    Law("A steer of zero is the identity, bit for bit", _zero),
    Law("A steer reaches every row and every token", _reaches_all),
    Law("What is read after a write is what was written", _read_back),
    Law("Two interventions at one site compose in their order", _in_order),
    Law("Interventions at two sites act together", _two_sites),
    Law("After a pass the network's own pass is as before", _gone),
    Law("A vector of another width is refused, and leaves nothing behind", _gone_after_an_exception),
    Law("Keys, modes, flags and hooks of the network are as before", _left_as_it_was),
    Law("A site that never comes up is reported", _unvisited),
    Law("Padding is left alone when that is asked", _padding),
    Law("Rows of unequal length get what each would get alone", _unequal_rows),
    Law("A block that gives a tuple still gives one", _tuple_form, tuples=True),
    Law("A gradient reaches the direction, and no weight", _gradient),
    Law("Generation with a cache is edited as passes without one", _generation),
    Law("So is an edit that begins at some token", _generation_from),
)


def _direction(ground: Ground) -> Tensor:
    """Some direction: not of ones, to which a norm is blind."""
    return torch.linspace(-1.0, 1.5, ground.width).cos()


def _as_true(subject: Subject, ground: Ground, steps: Sequence[Step]) -> str:
    with torch.no_grad():
        truth = TRUTH.run(ground, ground.inputs, steps)
        seen = subject.run(ground, ground.inputs, steps)
    _count(seen, len(truth.hidden))
    for own, true in zip(seen.hidden, truth.hidden, strict=True):
        _close(own, true, "the state that is read")
    _close(seen.output, truth.output, "the output")
    return seen.remark


def _generates(subject: Subject, ground: Ground, step: Add, tokens: int = 8) -> str:
    assert ground.prompt is not None
    ids = ground.prompt
    with torch.no_grad():
        unedited = _continued(ground, ids, [], tokens)
        edited = _continued(ground, ids, [step], tokens)
        assert not torch.equal(unedited, edited)
        found = subject.generate(ground, ids, tokens, [step])
    if not torch.equal(found, edited):
        new = slice(ids.shape[1], None)
        told = ", as without any edit" if torch.equal(found, unedited) else ""
        if not torch.equal(subject.generate(ground, ids, tokens, []), unedited):
            told = "; without any edit its tokens are not the network's either"
        raise Broken(f"tokens {found[0, new].tolist()}, not {edited[0, new].tolist()}{told}")
    return ""


def _continued(ground: Ground, ids: Tensor, steps: Sequence[Step], tokens: int) -> Tensor:
    """Greedy generation by whole passes, without a cache."""
    for _ in range(tokens):
        inputs = {"input_ids": ids, **({ground.padding: torch.ones_like(ids)} if ground.padding else {})}
        output = TRUTH.run(ground, inputs, steps).output
        ids = torch.cat([ids, output[:, -1:].argmax(-1)], dim=1)
    return ids


_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _condition(module: nn.Module) -> dict[str, object]:
    """What a library may leave changed, by name."""
    parts = dict(module.named_modules())
    return {
        "the keys of the weights": list(module.state_dict()),
        "the modules' names": list(parts),
        "training mode": [part.training for part in parts.values()],
        "which parameters want gradients": [parameter.requires_grad for parameter in module.parameters()],
        "the number of hooks": sum(len(vars(part)[kind]) for part in parts.values() for kind in _HOOKS),
        "modules whose forward is replaced": sum("forward" in vars(part) for part in parts.values()),
    }


def _count(seen: Seen, wanted: int) -> None:
    if len(seen.hidden) != wanted:
        raise Broken(f"{len(seen.hidden)} hidden states came back where {wanted} were read")


def _same_bits(own: Tensor, true: Tensor, what: str) -> None:
    _same_shape(own, true, what)
    if not torch.equal(own.contiguous().view(torch.int32), true.contiguous().view(torch.int32)):
        raise Broken(f"{what} differs by up to {float((own - true).abs().max()):.1e}")


def _close(own: Tensor, true: Tensor, what: str) -> None:
    _same_shape(own, true, what)
    error = float((own - true).abs().max())
    if not error <= _TOLERANCE * max(1.0, float(true.abs().max())):
        raise Broken(f"{what} differs by up to {error:.2g}")


def _same_shape(own: Tensor, true: Tensor, what: str) -> None:
    if own.shape != true.shape:
        raise Broken(f"{what} has shape {list(own.shape)}, not {list(true.shape)}")
