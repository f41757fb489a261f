import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from innerspace.interventions import Read
from innerspace.motion.forecasters.attention import Attention, hiding
from innerspace.motion.forecasters.encoding import agent_features, line_features
from innerspace.motion.forecasters.forecaster import save
from innerspace.motion.forecasters.known import load
from innerspace.motion.forecasters.redmotion import RedMotion, RedMotionFamily, RedMotionSettings, road_present
from innerspace.motion.framing import Batch, Framing, Tracks, frame
from innerspace.motion.simulate import Simulation, simulate
from innerspace.network.model import Model
from motion.batches import with_other_targets, with_short_lines
from motion.padding import with_damaged_padding, without_road

FRAMING = Framing(history=6, future=20, stride=2, agents=5, lines=16)
SETTINGS = RedMotionSettings(framing=FRAMING, width=16, context_layers=2, window=4, red_tokens=4)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return frame(simulate(Simulation(scenes=6, seed=3, history=6, future=20, dropout=0.2)).scenes, FRAMING)


@pytest.fixture
def network() -> RedMotion:
    torch.manual_seed(0)
    return RedMotion(SETTINGS).eval()


def test_the_output_has_its_shapes_and_bounds(network: RedMotion, batch: Batch) -> None:
    output = network(batch)
    assert output["trajectory"].shape == (len(batch), 6, 10, 2)
    assert output["scale"].shape == (len(batch), 6, 10, 3)
    assert output["logits"].shape == (len(batch), 6)
    assert output["scale"][..., :2].min() >= -1.609
    assert output["scale"].abs().max() <= 5


def test_padding_never_matters_even_if_it_is_not_a_number(network: RedMotion, batch: Batch) -> None:
    batch = with_short_lines(batch)
    assert not batch.target.valid.all()
    clean, damaged = network(batch), network(with_damaged_padding(batch))
    for name in clean:
        assert torch.equal(clean[name], damaged[name])


def test_each_row_stands_for_itself(network: RedMotion, batch: Batch) -> None:
    whole, part = network(batch), network(batch[slice(2, 5)])
    for name in whole:
        torch.testing.assert_close(whole[name][2:5], part[name], rtol=1e-4, atol=1e-5)


def test_an_empty_road_still_gives_a_forecast_that_trains(network: RedMotion, batch: Batch) -> None:
    output = network(without_road(batch))
    sum(item.sum() for item in output.values()).backward()
    assert all(item.isfinite().all() for item in output.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("empty", ["context_layers", "red_layers", "fusion_layers", "decoder_layers"])
def test_every_stage_may_be_left_out(batch: Batch, empty: str) -> None:
    network = RedMotion(dataclasses.replace(SETTINGS, **{empty: 0}))
    assert network(with_damaged_padding(batch))["trajectory"].isfinite().all()


def test_the_sites_are_read_with_their_shapes_and_masks(network: RedMotion, batch: Batch) -> None:
    model = Model(network, RedMotionFamily())
    assert list(model.sites) == [
        *(f"agent.{i}" for i in range(3)),
        "context.0",
        "context.1",
        "red.0",
        "modes.0",
        "modes.1",
    ]
    trace = model.run(batch, {name: Read() for name in model.sites})
    for name, site in model.sites.items():
        hidden, mask = trace.hidden[name], model.family.mask(batch, site)
        assert hidden.shape[-1] == site.width
        if mask is not None:
            assert mask.shape == hidden.shape[:-1]
            assert (hidden[~mask] == 0).all()
            assert (hidden[mask] != 0).any(-1).all()
    assert torch.equal(trace.output["trajectory"], network(batch)["trajectory"])


def test_the_targets_motion_is_known_only_through_its_last_hidden_state(network: RedMotion, batch: Batch) -> None:
    model = Model(network, RedMotionFamily())
    clean = model.run(batch, {"agent.2": Read()})
    changed = with_other_targets(batch)
    assert not torch.allclose(model.run(changed).output["trajectory"], clean.output["trajectory"], atol=1e-3)
    held = model.run(changed, {"agent.2": lambda _, __: clean.hidden["agent.2"]}).output
    for name, item in clean.output.items():
        assert torch.equal(held[name], item)


def test_the_road_sees_only_neighbors_in_the_order_of_distance(batch: Batch) -> None:
    network = RedMotion(dataclasses.replace(SETTINGS, window=2, context_layers=1)).eval()
    model = Model(network, RedMotionFamily())
    lines = dataclasses.replace(without_road(batch), line_valid=batch.line_valid)[slice(0, 1)]
    assert road_present(lines)[0, :8].all()
    kind = lines.line_kind.clone()
    kind[0, 0] = (kind[0, 0] + 1) % 8  # the nearest line: ranks 0…3 see it
    before, after = (
        model.run(item, {"context.0": Read()}).hidden["context.0"][0]
        for item in (lines, dataclasses.replace(lines, line_kind=kind))
    )
    changed = (before - after).abs().amax(-1) > 1e-6
    assert changed[:4].all()
    assert not changed[4:].any()


@pytest.mark.parametrize("queries", [1, 3, 30])
def test_both_orders_of_attention_are_the_textbooks(queries: int) -> None:
    attention, m = Attention(16, 2).double(), 20
    x, memory = torch.randn(4, queries, 16).double(), torch.randn(4, m, 16).double()
    seen = torch.rand(4, m) < 0.6
    seen[:, 0] = True
    q = attention.query(x).view(4, queries, 2, 8)
    k, v = attention.memory(memory).view(4, m, 2, 2, 8).unbind(2)
    logits = torch.einsum("bnhe,bmhe->bhnm", q, k) / math.sqrt(8)
    weights = logits.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    expected = attention.out(torch.einsum("bhnm,bmhe->bnhe", weights, v).flatten(2))
    torch.testing.assert_close(attention(x, memory, hiding(seen).double()), expected)


def test_the_features_of_a_turning_agent_are_its_kinematics() -> None:
    dt, speed, rate, gain = 0.1, 8.0, 0.4, 2.0
    t = torch.arange(5) * dt
    v, heading = speed + gain * t, 3.0 + rate * t  # crosses ±π
    velocity = v[:, None] * torch.stack((heading.cos(), heading.sin()), -1)
    valid = torch.tensor([True, True, False, True, True])
    heading = torch.remainder(heading + torch.pi, 2 * torch.pi) - torch.pi
    tracks = Tracks(torch.zeros(5, 2), heading, velocity, valid, torch.tensor(1), torch.tensor([5.0, 2.5, 1.0]))
    found = agent_features(tracks, dt)
    paired = torch.tensor([0.0, 1, 0, 0, 1])
    torch.testing.assert_close(found[:, 6], v / 10 * valid)
    torch.testing.assert_close(found[:, 7], rate / 0.5 * paired, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, 8], gain / 3 * paired, atol=1e-4, rtol=1e-4)
    assert found[0, 9:].tolist() == [1.0, 0.5, 0.0, 1.0, 0.0]
    assert (found[2] == 0).all()
    backwards = agent_features(dataclasses.replace(tracks, velocity=-velocity), dt)
    torch.testing.assert_close(backwards[:, 6], -v / 10 * valid)


def test_the_features_of_a_line_are_those_of_its_nearest_point() -> None:
    line = torch.tensor([[[-10.0, 3.0], [10.0, 3.0], [torch.nan, 0.0]], [[0.0, 0.0]] * 3])
    valid = torch.tensor([[True, True, False], [False] * 3])
    found, reach = line_features(line, valid, torch.tensor([2, 0]))
    assert reach.tolist() == [3.0, math.inf]
    expected = [3 / 50, 0.0, 3 / 50, 0.0, 1.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    torch.testing.assert_close(found[0], torch.cat((torch.tensor(expected), functional.one_hot(torch.tensor(2), 8))))
    assert (found[1] == 0).all()


def test_a_saved_network_comes_back(network: RedMotion, batch: Batch, tmp_path) -> None:
    save(network, tmp_path)
    again = load(tmp_path)
    assert again.settings == SETTINGS
    assert torch.equal(again(batch)["trajectory"], network(batch)["trajectory"])


def test_files_that_do_not_fit_are_refused(network: RedMotion, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no file at .*settings\.json"):
        load(tmp_path)
    save(network, tmp_path)
    dataclasses.replace(SETTINGS, width=32).save(tmp_path / "settings.json")
    with pytest.raises(ValueError, match=r"does not fit.*in the file"):
        load(tmp_path)
    SETTINGS.save(tmp_path / "settings.json")
    weights = load_file(tmp_path / "weights.safetensors")
    del weights["anchors"]
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="'anchors', absent in the file"):
        load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="no complete safetensors"):
        load(tmp_path)


def test_what_does_not_fit_is_named(batch: Batch) -> None:
    with pytest.raises(ValueError, match="heads 3 should divide width 16"):
        dataclasses.replace(SETTINGS, heads=3)
    with pytest.raises(ValueError, match="red_tokens should be at least 1"):
        dataclasses.replace(SETTINGS, red_tokens=0)
    with pytest.raises(ValueError, match=r"\(6, 10, 10\).*made for \(6, 10, 20\)"):
        RedMotion(dataclasses.replace(SETTINGS, framing=dataclasses.replace(FRAMING, stride=1)))(batch)
    with pytest.raises(ValueError, match="describes RedMotion, not Linear"):
        Model(torch.nn.Linear(1, 1), RedMotionFamily())
