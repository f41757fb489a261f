"""The divergence of forecasts against torch's distributions, and passes that go on from a cut."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MultivariateNormal
from torch.distributions import kl_divergence as kl

from families import CASES
from innerspace.interventions import Read, Steer
from innerspace.motion.divergence import forecast_divergence
from innerspace.network.model import Model


def forecast(seed: int, batch: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, 3, *shape, generator=generator, dtype=torch.float64)

    return {"logits": normal(), "trajectory": 3 * normal(5, 2), "scale": normal(5, 3)}


def paths(output: dict[str, Tensor]) -> MultivariateNormal:
    a, b, c = output["scale"].unbind(-1)
    rows = torch.stack((a.exp(), torch.zeros_like(a)), -1), torch.stack((c, b.exp()), -1)
    return MultivariateNormal(output["trajectory"], scale_tril=torch.stack(rows, -2))


def expected(clean: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
    modes = [Categorical(logits=output["logits"]) for output in (clean, other)]
    apart = kl(paths(clean), paths(other)).sum(-1)
    return kl(*modes) + (modes[0].probs * apart).sum(-1)


def test_it_is_the_divergence_of_mode_and_path() -> None:
    clean, other = forecast(0), forecast(1)
    rows = expected(clean, other)
    assert (rows > 1).all()
    torch.testing.assert_close(forecast_divergence(clean, other), rows.mean(), atol=0, rtol=1e-12)
    chosen = torch.tensor([True, False, False, True])
    torch.testing.assert_close(forecast_divergence(clean, other, chosen), rows[chosen].mean(), atol=0, rtol=1e-12)


def test_near_forecasts_keep_their_digits() -> None:
    clean, away = forecast(0), forecast(1)
    other = {name: item + 1e-3 * away[name] for name, item in clean.items()}
    torch.testing.assert_close(forecast_divergence(clean, other), expected(clean, other).mean(), atol=1e-10, rtol=0)
    single = [{name: item.float() for name, item in output.items()} for output in (clean, other)]
    assert forecast_divergence(*single).item() == pytest.approx(expected(clean, other).mean().item(), rel=2e-3)
    assert forecast_divergence(single[0], single[0]) == 0


def test_the_order_of_the_modes_counts_for_nothing_if_both_forecasts_share_it() -> None:
    clean, other = forecast(0), forecast(1)
    order = torch.tensor([2, 0, 1])
    mixed = [{name: item[:, order] for name, item in output.items()} for output in (clean, other)]
    torch.testing.assert_close(forecast_divergence(*mixed), forecast_divergence(clean, other))


def test_it_bounds_the_divergence_of_the_mixtures() -> None:
    clean, other = forecast(0, batch=1), forecast(1, batch=1)
    torch.manual_seed(0)
    mode = Categorical(logits=clean["logits"][0]).sample((20_000,))
    path = paths(clean).sample((20_000,))[torch.arange(20_000), 0, mode]

    def log_density(output: dict[str, Tensor]) -> Tensor:
        by_mode = paths(output).log_prob(path[:, None, None]).sum(-1)[:, 0]
        return (output["logits"].log_softmax(-1) + by_mode).logsumexp(-1)

    apart = log_density(clean) - log_density(other)
    assert apart.mean() < forecast_divergence(clean, other) + 3 * apart.std() / 20_000**0.5


def test_gradients_reach_every_part_of_the_other_forecast() -> None:
    clean, other = forecast(0, batch=2), forecast(1, batch=2)
    names = list(other)
    given = [other[name].requires_grad_() for name in names]

    def of(*parts: Tensor) -> Tensor:
        return forecast_divergence(clean, dict(zip(names, parts, strict=True)))

    assert torch.autograd.gradcheck(of, given)


def test_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="no forecast counts"):
        forecast_divergence(forecast(0), forecast(1), torch.zeros(4, dtype=torch.bool))


@pytest.fixture(name="model")
def _model() -> Model:
    return CASES["redmotion"]().model


BATCH = CASES["redmotion"]().batch
SITES = ("agent.0", "agent.1", "agent.2", "context.0", "red.0", "modes.0", "modes.1")


@torch.no_grad()
@pytest.mark.parametrize("site", SITES)
def test_a_pass_goes_on_from_any_site(model: Model, site: str) -> None:
    assert set(SITES) == set(model.sites)
    place = model.site(site)
    assert model.cut(site) == place
    steer = Steer(torch.linspace(-1, 1, place.width), 2.0)
    whole = model.run(BATCH, {site: [Read("before"), steer, Read("after")]})
    for start, plan in (("before", {site: steer}), ("after", {})):
        found = model.resume(BATCH, site, whole.hidden[start], plan)
        for name, item in whole.output.items():
            torch.testing.assert_close(found.output[name], item, atol=1e-6, rtol=1e-5)
    clean = model.run(BATCH, {site: Read()})
    assert model.family.divergence(model.module, clean, whole, None) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize(("site", "ran"), [("agent.0", ["1", "2"]), ("agent.1", ["2"]), ("agent.2", [])])
def test_the_blocks_before_the_cut_do_not_run(model: Model, site: str, ran: list[str]) -> None:
    hidden = model.run(BATCH, {site: Read()}, stop=True).hidden[site]
    model.resume(BATCH, site, hidden)
    found = list[str]()
    for name, block in model.module.trajectory.named_children():
        block.before_attention.register_forward_hook(lambda *_, name=name: found.append(name))
    model.resume(BATCH, site, hidden)
    assert found == ran
    with pytest.raises(ValueError, match=r"nothing is computed at 'agent\.0'"):
        model.resume(BATCH, "agent.1", hidden, {"agent.0": Read()})
