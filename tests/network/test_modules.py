"""Any network as a model: paths are sites, whatever the network takes and gives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from innerspace.interventions import At, Read, Steer
from innerspace.network.model import Model
from innerspace.network.modules import Modules
from innerspace.network.site import Where


class Net(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.first, self.last, self.form = nn.Linear(3, 4), nn.Linear(4, 2), form

    def forward(self, x: Tensor, scale: float = 1.0, valid: Tensor | None = None) -> Any:
        y = self.last(self.first(scale * x))
        forms: dict[str, Any] = {"tensor": y, "tuple": (y, None, 2 * y), "mapping": {"y": y, "note": "no tensor"}}
        return forms[self.form]


@torch.no_grad()
@pytest.mark.parametrize(
    ("form", "names"), [("tensor", ["output"]), ("tuple", ["output.0", "output.2"]), ("mapping", ["y"])]
)
def test_what_the_network_gives_is_the_output(form: str, names: list[str]) -> None:
    model, x = Model(Net(form), Modules({"first": 4, "last": 2})), torch.randn(2, 5, 3)
    for batch in (x, (x,), {"x": x}):
        trace = model.run(batch, {"first": [Steer(torch.ones(4), 2.0), Read()]})
        assert list(trace.output) == names
        assert torch.equal(trace.hidden["first"], model.module.first(x) + 2)
        assert torch.equal(trace.output[names[0]], model.module.last(model.module.first(x) + 2))
    assert torch.equal(model.run((x, 3.0)).output[names[0]], model.module.last(model.module.first(3.0 * x)))


@torch.no_grad()
@pytest.mark.parametrize("passed", [True, False])
def test_padding_is_an_entry_of_the_batch(passed: bool) -> None:
    seen = list[bool]()
    network = Net("tensor")
    network.register_forward_pre_hook(lambda _, __, named: seen.append("valid" in named), with_kwargs=True)
    model = Model(network, Modules({"first": 4}, valid="valid", passed=passed))
    batch = {"x": torch.randn(2, 3, 3), "valid": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    steps = [Read("before"), At(Where("valid"), Steer(torch.ones(4), 1.0)), Read("after")]
    hidden = model.run(batch, {"first": steps}).hidden
    assert torch.equal((hidden["before"] != hidden["after"]).all(-1), batch["valid"].bool())
    assert seen == [passed]


def test_a_path_without_a_module_is_refused() -> None:
    with pytest.raises(ValueError, match="no module 'second'; it has first, last"):
        Model(Net("tensor"), Modules({"second": 4}))
