"""What must hold for every family: reading changes nothing, writing reaches everything that is meant, and only that."""

import pytest
import torch
from torch import Tensor, nn

from families import CASES, Case
from innerspace.interventions import At, Read, Steer
from innerspace.network.hooks import Unvisited
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.network.trace import Visit


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def width(case: Case, site: str) -> int:
    return case.model.site(site).width


def clean(case: Case) -> Tensor:
    """A pass with reads at all sites: kernels may differ between hooked and plain passes."""
    return case.model.run(case.batch, {site: Read() for site in case.sites}).output[case.output]


@torch.no_grad()
def test_reading_changes_nothing(case: Case) -> None:
    plain = case.model.run(case.batch).output[case.output]
    trace = case.model.run(case.batch, {site: Read() for site in case.sites})
    torch.testing.assert_close(trace.output[case.output], plain, atol=2e-6, rtol=1e-5)
    assert set(trace.hidden) == set(case.sites)
    for site in case.sites:
        assert trace.hidden[site].shape[-1] == width(case, site)


@torch.no_grad()
def test_every_row_and_position_is_edited(case: Case) -> None:
    for site in case.sites:
        v = torch.arange(1.0, width(case, site) + 1)
        trace = case.model.run(case.batch, {site: [Read("before"), Steer(v, 0.5), Read("after")]})
        change = trace.hidden["after"] - trace.hidden["before"]
        torch.testing.assert_close(change, (0.5 * v).expand_as(change), atol=1e-5, rtol=1e-5)
        rows = (trace.output[case.output] - clean(case)).flatten(1).abs().amax(1)
        assert (rows > 1e-6).all()


@torch.no_grad()
def test_a_fork_goes_on_as_a_whole_pass_would(case: Case) -> None:
    for site in case.sites:
        fork = case.model.fork(case.batch, site)
        assert torch.equal(
            fork.clean.output[case.output], case.model.run(case.batch, {site: Read()}).output[case.output]
        )
        ends = {other: Steer(torch.ones(width(case, other)), 0.5) for other in (site, case.sites[-1])}
        whole, branch = case.model.run(case.batch, ends), fork.run(ends)
        torch.testing.assert_close(branch.output[case.output], whole.output[case.output], atol=2e-6, rtol=1e-5)
        again = fork.run({site: Read()}, stop=True)
        assert torch.equal(again.hidden[site], fork.clean.hidden[site])
        assert not again.output
        assert not torch.equal(branch.output[case.output], fork.clean.output[case.output])


@torch.no_grad()
def test_padding_is_left_alone_where_the_intervention_says_so(case: Case) -> None:
    for site in case.sites:
        valid = case.model.family.mask(case.batch, case.model.site(site))
        assert valid is not None
        assert not valid.all()
        steer = At(Where("valid"), Steer(torch.ones(width(case, site)), 1.0))
        hidden = case.model.run(case.batch, {site: [Read("before"), steer, Read("after")]}).hidden
        same = (hidden["before"] == hidden["after"]).all(-1)
        assert torch.equal(same, ~valid)


@torch.no_grad()
def test_only_the_last_valid_token_is_edited(case: Case) -> None:
    site = case.sites[0]
    valid = case.model.family.mask(case.batch, case.model.site(site))
    assert valid is not None
    steer = At(Where("last"), Steer(torch.ones(width(case, site)), 1.0))
    hidden = case.model.run(case.batch, {site: [Read("before"), steer, Read("after")]}).hidden
    edited = (hidden["before"] != hidden["after"]).any(-1)
    assert torch.equal(edited.sum(-1), valid.any(-1).long())
    for row in range(len(valid)):
        assert edited[row].nonzero().flatten().tolist() == valid[row].nonzero().flatten().tolist()[-1:]


def test_hooks_are_gone_after_an_exception(case: Case) -> None:
    def fail(x: Tensor, visit: Visit) -> Tensor:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        case.model.run(case.batch, {case.sites[0]: fail, case.sites[1]: Read()})
    assert hooks(case.model.module) == 0


def test_hooks_are_gone_after_a_normal_end(case: Case) -> None:
    with case.model.under({site: Read() for site in case.sites}, batch=case.batch):
        # one each, and another where a state goes around a module
        around = [site for site in case.sites if case.model.site(site).around is not None]
        assert hooks(case.model.module) == len(case.sites) + len(around)
        case.model.family.forward(case.model.module, case.batch)
    assert hooks(case.model.module) == 0


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_as_before(case: Case, training: bool) -> None:
    module = case.model.module.train(training)
    next(module.parameters()).requires_grad_(False)
    part = next(part for part in module.modules() if part is not module)
    part.training = not training
    keys, weights = list(module.state_dict()), {k: v.clone() for k, v in module.state_dict().items()}
    flags = [part.training for part in module.modules()]
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    direction = torch.ones(width(case, case.sites[0]), requires_grad=True)
    case.model.run(case.batch, {case.sites[0]: Steer(direction, 1.0)}).output[case.output].sum().backward()
    assert list(module.state_dict()) == keys
    assert all(torch.equal(weights[key], value) for key, value in module.state_dict().items())
    assert [part.training for part in module.modules()] == flags
    assert [parameter.requires_grad for parameter in module.parameters()] == wanted
    assert all(parameter.grad is None for parameter in module.parameters())


def test_gradients_reach_the_vector_and_the_temperature(case: Case) -> None:
    for site in case.sites:
        # a norm may be blind to a direction of ones
        direction = torch.arange(1.0, width(case, site) + 1).requires_grad_(True)
        tau = torch.zeros(1, requires_grad=True)
        output = case.model.run(case.batch, {site: Steer(direction, 1.0)}).output[case.output]
        output.square().sum().backward()
        assert direction.grad is not None
        assert direction.grad.abs().sum() > 0
        output = case.model.run(case.batch, {site: Steer(direction.detach(), tau)}).output[case.output]
        output.square().sum().backward()
        assert tau.grad is not None
        assert tau.grad.abs() > 1e-6


def test_gradients_reach_the_input(case: Case) -> None:
    given = case.with_input_gradient()
    if given is None:
        pytest.skip("token ids have no gradient")
    batch, entered = given
    case.model.run(batch, {case.sites[0]: Steer(torch.ones(width(case, case.sites[0])), 1.0)}).output[
        case.output
    ].square().sum().backward()
    assert entered.grad is not None
    assert entered.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("per_row", [False, True])
def test_temperature_zero_is_bit_identical(case: Case, per_row: bool) -> None:
    reference = clean(case)
    tau = torch.zeros(len(reference), 1) if per_row else 0.0
    for site in case.sites:
        plan = {name: Read() for name in case.sites} | {
            site: [Steer(torch.randn(width(case, site)), tau), Read()],
        }
        output = case.model.run(case.batch, plan).output[case.output]
        assert torch.equal(output.view(torch.int32), reference.view(torch.int32))


@torch.no_grad()
def test_temperature_per_row(case: Case) -> None:
    site, reference = case.sites[0], clean(case)
    tau = torch.zeros(len(reference), 1)
    tau[2] = 1.5
    direction = torch.ones(width(case, site))
    plan = {name: Read() for name in case.sites}
    output = case.model.run(case.batch, plan | {site: [Steer(direction, tau), Read()]}).output[case.output]
    everywhere = case.model.run(case.batch, plan | {site: [Steer(direction, 1.5), Read()]}).output[case.output]
    assert torch.equal(output[[0, 1, 3]], reference[[0, 1, 3]])
    torch.testing.assert_close(output[2], everywhere[2])


@torch.no_grad()
def test_two_interventions_compose_in_order(case: Case) -> None:
    site = case.sites[0]

    def double(x: Tensor, visit: Visit) -> Tensor:
        return 2 * x

    steer = Steer(torch.ones(width(case, site)), 1.0)
    one = case.model.run(case.batch, {site: [Read("x"), double, steer, Read("y")]}).hidden
    other = case.model.run(case.batch, {site: [Read("x"), steer, double, Read("y")]}).hidden
    torch.testing.assert_close(one["y"], 2 * one["x"] + 1)
    torch.testing.assert_close(other["y"], 2 * (other["x"] + 1))


@torch.no_grad()
def test_stop_ends_behind_the_last_site(case: Case) -> None:
    trace = case.model.run(case.batch, {case.sites[0]: Read()}, stop=True)
    assert not trace.output
    whole = case.model.run(case.batch, {case.sites[0]: Read()})
    torch.testing.assert_close(trace.hidden[case.sites[0]], whole.hidden[case.sites[0]])
    assert hooks(case.model.module) == 0
    with pytest.raises(ValueError, match="at least one site"):
        case.model.run(case.batch, stop=True)


@torch.no_grad()
def test_a_direction_of_another_width_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"width 3, the hidden state at .* belongs to the site"):
        case.model.run(case.batch, {case.sites[0]: Steer(torch.ones(3), 1.0)})


def test_an_unknown_site_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=f"no site is called 'nowhere'; this model has {case.sites[0]}"):
        case.model.run(case.batch, {"nowhere": Read()})


@torch.no_grad()
def test_fingerprint_tells_networks_apart(case: Case) -> None:
    before = case.model.fingerprint()
    assert before == Model(case.model.module, case.model.family).fingerprint()
    next(case.model.module.parameters()).add_(1e-3)
    assert case.model.fingerprint() != before


@torch.no_grad()
def test_a_site_that_never_came_up_is_reported() -> None:
    case = CASES["blocks"]()
    with pytest.raises(Unvisited, match=r"site 'spare' \(spare\) never came up"):
        case.model.run(case.batch, {"first": Read(), "spare": Read()})
