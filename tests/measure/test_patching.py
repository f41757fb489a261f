"""Exchanges between inputs: closed forms on linear networks, the published formula on hand numbers, illusions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import CASES
from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import At, Read, patch
from innerspace.language.text import Text
from innerspace.measure.documents import Draws, Ledger
from innerspace.measure.patching import Contrast, Exchange, Patching, gini, part_variance, patching, separation
from innerspace.measure.pathways import dormant_pathways
from innerspace.network.model import Family, Model
from innerspace.network.site import Site, Where
from innerspace.network.trace import Trace

D, S = torch.float64, [3, 2, 1]


class Reader(nn.Module):
    """States as they are given, of which the sum over tokens is read."""

    def __init__(self, readout: nn.Module) -> None:
        super().__init__()
        self.state, self.readout = nn.Identity(), readout

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.state(x).sum(1))


class ReaderFamily(Family):
    def sites(self, module: nn.Module) -> list[Site]:
        return [Site("state", "state", 6)]

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        return {"y": module(batch)}


def linear(rows: Sequence[Tensor]) -> Model:
    readout = nn.Linear(6, len(rows), bias=False).double()
    readout.weight.data = torch.stack(list(rows))
    return Model(Reader(readout), ReaderFamily())


def first(trace: Trace) -> Tensor:
    return trace.output["y"][:, 0]


def inputs(rows: int, tokens: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(rows, tokens, 6, generator=torch.Generator().manual_seed(seed), dtype=D)


def partition(seed: int = 2) -> Subspaces:
    return Subspaces.random(6, S, torch.Generator().manual_seed(seed)).double()


def one_token(rows: int) -> Tensor:
    return torch.arange(3).expand(rows, 3) == torch.arange(rows)[:, None] % 3


def test_effects_in_a_linear_network_are_projections() -> None:
    w = torch.randn(6, dtype=D)
    model, via, x, other, chosen = linear([w]), partition(), inputs(7), inputs(7, seed=5), one_token(7)
    found = patching(model, [Contrast(x, other, chosen, first)], "state", via, replicates=50)
    change = (x - other)[chosen].mean(0)
    assert math.isclose(found.clean.mean, float((x.sum(1) @ w).mean()), rel_tol=1e-12)
    assert math.isclose(found.whole.mean, float(change @ w), rel_tol=1e-9)
    for i, part in enumerate(found.parts):
        basis = via.basis(i).detach()
        effect = float(basis @ change @ (basis @ w))
        assert part.parts == (i,)
        assert part.size == S[i]
        assert math.isclose(part.effect.mean, effect, rel_tol=1e-6)
        # where effects add up, what is sufficient is necessary to the same extent
        assert math.isclose(part.sufficiency.mean, effect / found.whole.mean, rel_tol=1e-6)
        assert math.isclose(part.necessity.mean, part.sufficiency.mean, rel_tol=1e-6)
    assert math.isclose(sum(part.sufficiency.mean for part in found.parts), 1, rel_tol=1e-6)


def test_contrasts_may_come_in_pieces_and_parts_in_groups() -> None:
    model, via, x, other = linear([torch.randn(6, dtype=D)]), partition(), inputs(8), inputs(8, seed=5)
    pieces = [Contrast(x[i : i + 3], other[i : i + 3], Where("last"), first) for i in range(0, 8, 3)]
    one = patching(model, [Contrast(x, other, Where("last"), first)], "state", via, [0, (1, 2)], replicates=50)
    several = patching(model, iter(pieces), "state", via, [0, (1, 2)], replicates=50)
    assert several.rows == one.rows == 8
    assert [part.parts for part in one.parts] == [(0,), (1, 2)]
    assert one.parts[1].size == 3
    for a, b in zip(one.parts, several.parts, strict=True):
        assert math.isclose(a.effect.mean, b.effect.mean, rel_tol=1e-9)
        assert a.effect.low is not None
        assert b.effect.low is not None
        assert math.isclose(a.effect.low, b.effect.low, rel_tol=1e-9)
    assert one.from_json(one.to_json()) == one


def test_what_is_sufficient_need_not_be_necessary() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1] * x[:, 1:2]

    model, via = Model(Reader(Both()), ReaderFamily()), Subspaces.identity(6, [1, 1, 4])
    x, none = torch.ones(4, 1, 6), torch.zeros(4, 1, 6)
    found = patching(model, [Contrast(x, none, Where("last"), first)], "state", via, replicates=5)
    # either factor alone takes the product to zero, so that neither is needed for it; the rest does nothing
    assert [part.sufficiency.mean for part in found.parts] == [1, 1, 0]
    assert [part.necessity.mean for part in found.parts] == [0, 0, 0]
    # to bring it back takes both: without both, nothing happens
    back = patching(model, [Contrast(none, x, Where("last"), first)], "state", via, replicates=5)
    assert back.whole.mean == -1
    assert [part.sufficiency.mean for part in back.parts] == [0, 0, 0]
    assert [part.necessity.mean for part in back.parts] == [1, 1, 0]


def test_gini_of_hand_numbers() -> None:
    effects, even = torch.tensor([1.0, -3.0, 0.0, 0.0], dtype=D), torch.ones(4, dtype=D)
    # pairs: |3−1| + 2·3 + 2·1 = 10, each twice; 2 · 4 · (3 + 1) = 32
    assert float(gini(effects, even)) == 20 / 32
    # per dimension 1/4, 3/1: pairs 11/4 + 2·3 + 2/4 = 37/4; 2 · 4 · 13/4 = 26
    weights = torch.tensor([4.0, 1.0, 2.0, 5.0], dtype=D)
    assert math.isclose(float(gini(effects, weights)), 2 * 37 / 4 / 26, rel_tol=1e-14)
    assert math.isclose(float(gini(effects, weights / weights.sum())), 2 * 37 / 4 / 26, rel_tol=1e-14)
    for count in (2, 5, 11):
        alone = torch.zeros(count, dtype=D)
        alone[0] = 2.0
        assert math.isclose(float(gini(alone, torch.ones(count, dtype=D))), (count - 1) / count, rel_tol=1e-14)
        assert abs(float(gini(torch.ones(count, dtype=D), torch.ones(count, dtype=D)))) < 1e-15
    many, weights = torch.randn(5, 9, dtype=D), torch.rand(9, dtype=D)
    x = many.abs() / weights / many.abs().sum(-1, keepdim=True)
    direct = (x[:, :, None] - x[:, None]).abs().sum((1, 2)) / (2 * 9 * x.sum(-1))
    torch.testing.assert_close(gini(many, weights), direct)
    assert float(gini(torch.zeros(3, dtype=D), torch.ones(3, dtype=D))) == 0


def test_concentration_is_that_of_signed_means() -> None:
    via, x, w = Subspaces.identity(6, [3, 2, 1]).double(), torch.zeros(4, 1, 6, dtype=D), torch.ones(6, dtype=D)
    # the effects of part 0 cancel over the rows; part 1 has −1, part 2 has 3
    x[:, 0, 0] = torch.tensor([5.0, -5, 5, -5])
    x[:, 0, 3], x[:, 0, 5] = -1, 3
    variance = torch.tensor([25.0, 0.5, 1.5])
    contrasts = [Contrast(x, torch.zeros_like(x), Where("last"), first)]
    found = patching(linear([w]), contrasts, "state", via, variance=variance, replicates=5)
    assert [round(part.effect.mean, 12) for part in found.parts] == [0, -1, 3]
    held = found.concentration
    assert held is not None
    assert math.isclose(held.top.mean, 3 / 4)
    # |Δ| = 0, 1, 3: pairs 1 + 3 + 2 = 6, twice; 2 · 3 · 4
    assert math.isclose(held.effect.raw.mean, 12 / 24)
    assert math.isclose(held.effect.normalized.mean, 12 / 24 / (2 / 3))
    # 0, 1/2, 3: pairs 1/2 + 3 + 5/2 = 6; 2 · 3 · 7/2
    assert math.isclose(held.per_dimension.raw.mean, 12 / 21)
    assert held.per_variance is not None
    # 0, 2, 2: pairs 2 + 2 + 0, twice; 2 · 3 · 4
    assert math.isclose(held.per_variance.raw.mean, 8 / 24)
    rows = torch.cat((x[:, 0], -x[:, 0]))
    torch.testing.assert_close(part_variance(via, rows), torch.tensor([25.0, 1, 9], dtype=D))


def bounds(found: Patching) -> Tensor:
    return torch.tensor([[part.effect.low or math.nan, part.effect.high or math.nan] for part in found.parts])


def test_intervals_are_those_of_groups() -> None:
    model, via, x, other = linear([torch.randn(6, dtype=D)]), partition(), inputs(6), inputs(6, seed=5)
    group = torch.arange(6)
    once = patching(model, [Contrast(x, other, Where("last"), first, group=group)], "state", via)
    double, group = [torch.cat((item, item)) for item in (x, other)], group.repeat(2)
    twice = patching(model, [Contrast(*double, Where("last"), first, group=group)], "state", via)
    own = patching(model, [Contrast(*double, Where("last"), first)], "state", via)
    torch.testing.assert_close(bounds(twice), bounds(once))
    # rows that are the same twice seem to tell more where they are drawn for themselves
    widths = [bounds(one).diff(dim=1) for one in (own, once)]
    assert 0.6 < (widths[0] / widths[1]).mean() < 0.85
    ledger = Ledger()
    ledger.add("row", torch.zeros(3, dtype=torch.int64), {"x": torch.ones(3)})
    assert Draws(ledger, 5, 0).mean("row.x").low is None


def test_states_come_from_other_positions() -> None:
    w, via = torch.randn(6, dtype=D), partition()
    x, other, origin = inputs(4), inputs(4, tokens=5, seed=5), torch.arange(5).expand(4, 5) == 3
    found = patching(linear([w]), [Contrast(x, other, Where(0), first, origin)], "state", via, [0], replicates=5)
    effect = (x[:, 0] - other[:, 3]) @ via.basis(0).detach().T @ (via.basis(0).detach() @ w)
    assert math.isclose(found.parts[0].effect.mean, float(effect.mean()), rel_tol=1e-6)
    assert found.concentration is None


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "redmotion", "encoder"])
def test_passes_that_go_on_are_whole_passes(name: str) -> None:
    case = CASES[name]()
    batch, other = case.batch, case.batch
    if isinstance(batch, Text):
        other = Text(batch.ids.flip(0), batch.valid)

    def metric(trace: Trace) -> Tensor:
        return trace.output[case.output].flatten(1)[:, -3:].sum(1)

    for site in case.sites:
        via = Subspaces.random(case.model.site(site).width, [2, case.model.site(site).width - 2], torch.Generator())
        exchange = Exchange(case.model, Contrast(batch, other, Where("valid"), metric), site)
        source = case.model.run(other, {site: Read()}).hidden[site]
        valid = case.model.family.mask(batch, case.model.site(site))
        assert valid is not None
        direct = case.model.run(batch, {site: At(valid, patch(via, 0, source))})
        torch.testing.assert_close(exchange.part(via, 0), metric(direct), rtol=1e-4, atol=1e-4)
        direct = case.model.run(batch, {site: At(valid, patch(via, 1, source))})
        torch.testing.assert_close(exchange.rest(via, 0), metric(direct), rtol=1e-4, atol=1e-4)
        clean = exchange.metric(exchange.state)
        assert torch.equal(exchange.metric(exchange.state, At(valid, patch(via, 0, exchange.state))), clean)


def test_what_cannot_be_is_refused() -> None:
    model, via, x = linear([torch.randn(6, dtype=D)]), partition(), inputs(4)
    other = inputs(4, seed=5)

    def run(**changed: Any) -> None:
        given = {"clean": x, "other": other, "positions": Where("last"), "metric": first} | changed
        patching(model, [Contrast(**given)], "state", via)

    with pytest.raises(ValueError, match="there is no contrast"):
        patching(model, [], "state", via)
    with pytest.raises(ValueError, match=r"exchanging the whole state at 'state' has no effect"):
        run(other=x)
    with pytest.raises(ValueError, match="row 2 has no position at which the states at 'state' are exchanged"):
        run(positions=one_token(4) & (torch.arange(4) != 2)[:, None])
    with pytest.raises(
        ValueError, match=r"positions have shape \[4, 2\], the states at 'state' \[4, 3\].*need an origin"
    ):
        run(positions=torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="the metric is not finite in row 1"):
        run(metric=lambda trace: first(trace) / (torch.arange(4) != 1))
    with pytest.raises(ValueError, match=r"should give 4 numbers, one per row; it gives \[4, 1\]"):
        run(metric=lambda trace: trace.output["y"])
    with pytest.raises(ValueError, match="3 groups were given for 4 rows"):
        run(group=torch.arange(3))
    with pytest.raises(ValueError, match="3 positive variances are needed"):
        patching(model, [], "state", via, variance=torch.tensor([1.0, 0.0, 2.0]))
    with pytest.raises(ValueError, match="there is no part 5"):
        patching(model, [], "state", via, [5])


def aligned(*rows: Tensor) -> Subspaces:
    """Each of some directions a part of its own, the rest another one."""
    q, _ = torch.linalg.qr(torch.cat((torch.stack(rows), torch.eye(6, dtype=D))).T)
    return Subspaces(torch.cat((torch.stack(rows), q.T[len(rows) :])), [1] * len(rows) + [6 - len(rows)]).double()


def planted(noise: float, seed: int = 7) -> tuple[Tensor, list[Contrast[Tensor]]]:
    """States in which a variable ±1 moves the axes h and n; axis d is still, others vary whatever the variable is."""
    axes, generator = torch.eye(6, dtype=D), torch.Generator().manual_seed(seed)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(40, 1, 6, generator=generator, dtype=D) @ torch.diag(axes[3] + axes[4])

    sign = torch.arange(40).remainder(2).mul(2).sub(1).double()[:, None, None]
    x, other = sign * (axes[0] + axes[1]) + normal(noise), -sign * (axes[0] + axes[1]) + normal(noise)
    signed = [Contrast(x, other, Where("last"), lambda trace: first(trace) * sign[:, 0, 0])]
    return axes, signed


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_an_effect_by_a_dormant_pathway_is_an_illusion(noise: float) -> None:
    axes, contrasts = planted(noise)
    h, n, d = axes[0], axes[1], axes[2]
    # both h and d move the first output, and a second output tells them apart; nothing reads n
    model = linear([h + d, h - 2 * d, axes[3]])
    illusion, honest, tilted = (n + d) / math.sqrt(2), h, (h + n) / math.sqrt(2)
    for direction, kept, flag in ((illusion, 0, True), (honest, 1, False), (tilted, 1, False)):
        found = dormant_pathways(model, contrasts, "state", aligned(direction), [0], replicates=100)
        (part,) = found.parts
        assert part.effect.mean > 0.9
        assert math.isclose(found.seen.mean, 1, abs_tol=0.02)
        assert abs(part.kept.mean - kept) < 0.02
        assert part.illusory is flag
        assert found.dormant >= 1
    # patching alone cannot tell: the illusion has half the effect of the whole, like an honest part might
    effects = patching(model, contrasts, "state", aligned(illusion), [0], replicates=5)
    assert abs(effects.parts[0].sufficiency.mean - 0.5) < 0.02


def test_outputs_that_cannot_tell_directions_apart_accuse_nobody() -> None:
    axes, contrasts = planted(0.0)
    model = linear([axes[0] + axes[2]])
    found = dormant_pathways(model, contrasts, "state", aligned((axes[1] + axes[2]) / math.sqrt(2)), replicates=20)
    assert (found.visible, found.dormant) == (1, 0)
    assert not any(part.illusory for part in found.parts)


def test_states_that_nothing_reads_are_refused() -> None:
    _, contrasts = planted(0.0)
    with pytest.raises(ValueError, match="nothing reads them"):
        dormant_pathways(linear([torch.zeros(6, dtype=D)]), contrasts, "state", partition())
    with pytest.raises(ValueError, match=r"a share in \(0, 1\] are needed; got 1 contrasts, share 0"):
        dormant_pathways(linear([torch.ones(6, dtype=D)]), contrasts, "state", partition(), share=0.0)


def test_separation() -> None:
    assert separation(torch.eye(3)) == pytest.approx(1)
    assert separation(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])) == pytest.approx(0)
    assert separation(torch.tensor([[0.1, 0.8], [0.7, 0.3], [0.0, 0.0]])) == pytest.approx((0.7 + 0.4) / 2)
    assert separation(torch.tensor([[1.0, 0.5]])) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="two variables"):
        separation(torch.ones(3, 1))
