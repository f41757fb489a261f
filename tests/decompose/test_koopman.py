"""Koopman autoencoders: the code, the steps, and operators that depend on the code or do not."""

import pytest
import torch
from jaxtyping import config

from innerspace.decompose.koopman import Koopman


def shaken(operators: str) -> Koopman:
    what = Koopman(5, 7, operators, mean=torch.randn(5), scale=1.7).double()  # pyright: ignore
    with torch.no_grad():
        for parameter in what.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return what


def test_the_code_is_the_stated_formula() -> None:
    what, x = shaken("constant"), torch.randn(4, 3, 5, dtype=torch.float64)
    h = torch.tanh((x - what.mean) / 1.7 @ what.encoder.T + what.encoder_bias)
    code = what.encode(x)
    torch.testing.assert_close(code.z, h)
    assert code.cost.shape == (4, 3)
    assert code.cost.count_nonzero() == 0
    torch.testing.assert_close(what.decode(h), 1.7 * (h @ what.decoder + what.decoder_bias) + what.mean)


@pytest.mark.parametrize("operators", ["constant", "input"])
def test_a_step_is_the_code_times_its_operator(operators: str) -> None:
    what, h = shaken(operators), torch.randn(6, 7, dtype=torch.float64)
    for towards, matrix in (("ahead", what.ahead), ("back", what.back)):
        for i, one in enumerate(h):
            square = matrix if operators == "constant" else (one @ matrix).reshape(7, 7)
            torch.testing.assert_close(what.step(h, towards)[i], one @ square)
            torch.testing.assert_close(what.operator(h, towards).expand(6, -1, -1)[i], square)


def test_a_fresh_one_says_that_nothing_moves() -> None:
    rows = torch.randn(500, 5) @ torch.randn(5, 5) + 3
    what = Koopman.normalized_for(rows, 12)
    h = what.encode(rows).z
    torch.testing.assert_close(what.step(h, "ahead"), h)
    # where the code is short of its bounds, the decoder undoes the encoder
    near = what.mean + 0.05 * (rows - what.mean)
    torch.testing.assert_close(what.decode(what.encode(near).z), near, atol=0.01, rtol=0.01)


def test_unknown_operators_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # what the tests check at run time, a file checks by itself
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="no operators 'magic'; possible are constant, input"):
        Koopman.of({"width": 5, "latents": 3, "operators": "magic", "home": None})
