"""Koopman terms by plain loops, their units, and a planted linear system that is found again."""

import pytest
import torch
from torch import Tensor

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.koopman import Koopman
from innerspace.decompose.nonlinearities import ReLU
from innerspace.harvest.sequences import Sequences
from innerspace.learn.dynamics import Ahead, Back, Consistency
from innerspace.learn.fit import FitConfig, fit
from innerspace.learn.objectives import Objective, Reconstruction
from innerspace.learn.trials import Trial, local, sequences

WIDTH, LATENTS, TOKENS = 4, 5, 6
TERMS: Objective = (Ahead(0.7, "sum"), Back(0.3, "mean"), Consistency(0.2), Consistency(0.4, reference=True))


def shaken(operators: str) -> Koopman:
    what = Koopman(WIDTH, LATENTS, operators).double()  # pyright: ignore
    with torch.no_grad():
        for parameter in what.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return what


def padded(count: int) -> Sequences:
    valid = torch.rand(count, TOKENS) > 0.3
    valid[:, 0] = True
    return Sequences.of(torch.randn(count, TOKENS, WIDTH), valid)


def judged(what: Koopman, own: Sequences) -> Trial:
    return sequences(own, len(own), 0).draw().trial(what)


@pytest.mark.parametrize("operators", ["constant", "input"])
def test_terms_are_means_over_neighbors_that_are_both_valid(operators: str) -> None:
    what, own = shaken(operators), padded(9)
    ahead, back, squares, whole = list[Tensor](), list[Tensor](), list[Tensor](), torch.zeros(2)
    identity = torch.eye(LATENTS, dtype=torch.float64)
    for x, valid in zip(own.states.double(), own.valid, strict=True):
        h = what.encode(x).z
        for t in range(TOKENS - 1):
            if not (valid[t] and valid[t + 1]):
                continue
            c, d = (what.operator(h[t : t + 1], "ahead")[0], what.operator(h[t + 1 : t + 2], "back")[0])
            ahead.append((x[t + 1] - what.decode(h[t] @ c)).square().sum())
            back.append((x[t] - what.decode(h[t + 1] @ d)).square().mean())
            errors = [(one - identity).square().sum() for one in (c @ d, d @ c)]
            squares.append((errors[0] + errors[1]) / 2 / LATENTS)
            whole = whole + torch.stack(errors)
    expected = [
        0.7 * torch.stack(ahead).mean(),
        0.3 * torch.stack(back).mean(),
        0.2 * torch.stack(squares).mean(),
        0.4 * whole.sqrt().sum() / 2,
    ]
    for term, value in zip(TERMS, expected, strict=True):
        torch.testing.assert_close(term(judged(what, own)), value.double(), msg=str(term))


@pytest.mark.parametrize("operators", ["constant", "input"])
def test_the_published_consistency_grows_with_the_batch_and_this_one_does_not(operators: str) -> None:
    what, own = shaken(operators), padded(8)
    four = Sequences.of(own.states.repeat(4, 1, 1), own.valid.repeat(4, 1))
    values = [[term(judged(what, one)) for term in TERMS] for one in (own, four)]
    for i, (one, other) in enumerate(zip(*values, strict=True)):
        torch.testing.assert_close(other, one * (2 if i == 3 else 1))


def test_consistency_does_not_depend_on_the_number_of_latents() -> None:
    for latents in (3, 30):
        what = Koopman(WIDTH, latents)
        with torch.no_grad():
            what.ahead.mul_(1.5)
        assert Consistency(1.0)(judged(what, padded(4))).item() == pytest.approx(0.25, rel=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    for operators in ("constant", "input"):
        what, own = shaken(operators), padded(3)

        def total(*_: Tensor, what: Koopman = what, own: Sequences = own) -> Tensor:
            trial = judged(what, own)
            return torch.stack([term(trial) for term in (Reconstruction(), *TERMS)]).sum()

        assert torch.autograd.gradcheck(total, list(what.parameters()), fast_mode=True)


def test_without_neighbors_there_is_nothing_to_say() -> None:
    valid = torch.zeros(3, TOKENS, dtype=torch.bool)
    valid[:, ::2] = True
    trial = judged(shaken("input"), Sequences.of(torch.randn(3, TOKENS, WIDTH), valid))
    assert [float(term(trial)) for term in TERMS] == [0.0] * 4


def test_what_has_no_neighbors_or_operators_is_refused() -> None:
    rows = torch.randn(9, WIDTH)
    with pytest.raises(ValueError, match="ahead compares neighboring tokens; rows alone have none"):
        Ahead()(local(rows, 9, 0).draw().trial(shaken("constant")))
    with pytest.raises(ValueError, match="back judges a Koopman autoencoder, not a Dictionary"):
        Back()(sequences(padded(4), 4, 0).draw().trial(Dictionary(WIDTH, 9, ReLU())))


def test_a_planted_linear_system_is_found_again() -> None:
    """Two damped rotations in mixed coordinates: prediction errors and eigenvalues."""

    def rotation(angle: float, length: float) -> Tensor:
        c, s = torch.tensor(angle).cos() * length, torch.tensor(angle).sin() * length
        return torch.stack((torch.stack((c, s)), torch.stack((-s, c))))

    generator = torch.Generator().manual_seed(8)
    inner = torch.block_diag(rotation(0.4, 0.98), rotation(1.1, 0.9))
    mixing = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    system = mixing.T @ inner @ mixing
    states = [torch.randn(1200, WIDTH, generator=generator)]
    for _ in range(TOKENS - 1):
        states.append(states[-1] @ system)
    own = Sequences.of(3 * torch.stack(states, 1))
    train, test = own[:1000], own[1000:]
    what = Koopman.normalized_for(train.states.flatten(0, 1), WIDTH)
    stays = Ahead()(sequences(test, 200, 0).draw().trial(what)).item()
    objective: Objective = (Reconstruction(), Ahead(), Back(), Consistency())
    fit(what, sequences(train, 200, 0), objective, FitConfig(500, 1e-2, log_every=500))
    trial = sequences(test, 200, 0).draw().trial(what)
    assert Ahead()(trial).item() < 0.02
    assert Back(1.0)(trial).item() < 0.05
    assert stays > 0.3
    found = torch.linalg.eigvals(what.ahead.detach())
    for value in torch.linalg.eigvals(system):
        assert (found - value).abs().min() < 0.05, (found, value)
    inverse = torch.linalg.eigvals(what.back.detach())
    for value in torch.linalg.eigvals(system):
        assert (inverse - 1 / value).abs().min() < 0.15
