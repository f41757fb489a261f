import dataclasses
from itertools import product

import pytest
import torch
from torch import nn

from innerspace.interventions import Read, Steer
from innerspace.motion.forecasters.attention import CrossBlock, hiding
from innerspace.motion.forecasters.encoding import node_features
from innerspace.motion.forecasters.forecaster import save
from innerspace.motion.forecasters.known import load, load_model
from innerspace.motion.forecasters.wayformer import Wayformer, WayformerFamily, WayformerSettings
from innerspace.motion.framing import Batch, Framing, frame
from innerspace.motion.simulate import Simulation, simulate
from innerspace.network.model import Model
from innerspace.network.trace import Visit
from motion.batches import with_other_targets, with_short_lines
from motion.padding import with_damaged_padding, without_road

FRAMING = Framing(history=6, future=20, stride=2, agents=5, lines=16)
SETTINGS = WayformerSettings(framing=FRAMING, width=16, latents=5)
READINGS = [
    dataclasses.replace(SETTINGS, others=others, map_tokens=tokens)
    for others, tokens in product(("history", "current"), ("line", "node"))
]


@pytest.fixture(scope="module")
def batch() -> Batch:
    scenes = simulate(Simulation(scenes=6, seed=3, history=6, future=20, dropout=0.2)).scenes
    return with_short_lines(frame(scenes, FRAMING))


@pytest.fixture
def network() -> Wayformer:
    torch.manual_seed(0)
    return Wayformer(SETTINGS).eval()


def test_the_output_has_its_shapes(network: Wayformer, batch: Batch) -> None:
    output = network(batch)
    assert output["trajectory"].shape == (len(batch), 6, 10, 2)
    assert output["scale"].shape == (len(batch), 6, 10, 3)
    assert output["logits"].shape == (len(batch), 6)


@pytest.mark.parametrize("settings", READINGS, ids=lambda s: f"{s.others} {s.map_tokens}")
def test_padding_never_matters_even_if_it_is_not_a_number(settings: WayformerSettings, batch: Batch) -> None:
    network = Wayformer(settings).eval()
    assert not batch.target.valid.all()
    assert not batch.others.valid[:, :, -1].all()
    assert not batch.line_valid.all()
    clean, damaged = network(batch), network(with_damaged_padding(batch))
    for name in clean:
        assert torch.equal(clean[name], damaged[name])


@pytest.mark.parametrize("settings", READINGS, ids=lambda s: f"{s.others} {s.map_tokens}")
def test_everything_there_is_matters(settings: WayformerSettings, batch: Batch) -> None:
    position, line = batch.others.position.clone().requires_grad_(), batch.line.clone().requires_grad_()
    seen = dataclasses.replace(batch, others=dataclasses.replace(batch.others, position=position), line=line)
    # the anchors alone decide which mode is meant, so that a sum over modes would do
    Wayformer(settings)(seen)["trajectory"].square().sum().backward()
    assert position.grad is not None
    assert line.grad is not None
    reached = batch.others.valid.clone()
    if settings.others == "current":
        reached[..., :-1] = False
    assert torch.equal((position.grad != 0).any(-1), reached)
    assert torch.equal((line.grad != 0).any(-1), batch.line_valid)


def test_each_row_stands_for_itself(network: Wayformer, batch: Batch) -> None:
    whole, part = network(batch), network(batch[slice(2, 5)])
    for name in whole:
        torch.testing.assert_close(whole[name][2:5], part[name], rtol=1e-4, atol=1e-5)


def test_an_empty_road_still_gives_a_forecast_that_trains(network: Wayformer, batch: Batch) -> None:
    output = network(without_road(batch))
    sum(item.sum() for item in output.values()).backward()
    assert all(item.isfinite().all() for item in output.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("empty", ["trajectory_layers", "latent_layers", "decoder_layers"])
def test_every_stage_may_be_left_out(batch: Batch, empty: str) -> None:
    network = Wayformer(dataclasses.replace(SETTINGS, **{empty: 0}))
    assert network(with_damaged_padding(batch))["trajectory"].isfinite().all()
    sites = Model(network, WayformerFamily()).sites
    gone = {"trajectory_layers": "agent.0", "latent_layers": "latents.1", "decoder_layers": "modes.0"}[empty]
    assert gone not in sites
    assert "latents.0" in sites


@torch.no_grad()
def test_the_sites_are_read_with_their_shapes_and_masks(network: Wayformer, batch: Batch) -> None:
    model = Model(network, WayformerFamily())
    assert list(model.sites) == [
        *(f"agent.{i}" for i in range(3)),
        *(f"latents.{i}" for i in range(3)),
        *(f"modes.{i}" for i in range(2)),
    ]
    trace = model.run(batch, {name: Read() for name in model.sites})
    for name, count in {"agent.1": 6, "latents.0": 5, "modes.1": 6}.items():
        assert trace.hidden[name].shape == (len(batch), count, 16)
    mask = model.family.mask(batch, model.site("agent.2"))
    assert mask is not None
    assert (trace.hidden["agent.2"][~mask] == 0).all()
    assert (trace.hidden["agent.2"][mask] != 0).any(-1).all()
    assert model.family.mask(batch, model.site("latents.1")) is None
    assert torch.equal(trace.output["trajectory"], network(batch)["trajectory"])


def test_the_targets_motion_is_known_only_through_its_last_hidden_state(network: Wayformer, batch: Batch) -> None:
    model = Model(network, WayformerFamily())
    clean, changed = model.run(batch, {"agent.2": Read()}), with_other_targets(batch)
    assert not torch.allclose(model.run(changed).output["trajectory"], clean.output["trajectory"], atol=1e-3)
    held = model.run(changed, {"agent.2": lambda _, __: clean.hidden["agent.2"]}).output
    for name, item in clean.output.items():
        assert torch.equal(held[name], item)


@torch.no_grad()
@pytest.mark.parametrize(("site", "spared"), [("agent.1", 2), ("latents.0", 4), ("latents.2", 6), ("modes.0", 7)])
def test_a_fork_computes_only_what_follows(network: Wayformer, batch: Batch, site: str, spared: int) -> None:
    model = Model(network, WayformerFamily())
    fork, ran = model.fork(batch, site), list[nn.Module]()
    steer = {site: Steer(torch.arange(16.0), 0.5)}
    fork.run(steer)  # the first one looks into what form blocks give their states
    for block in (*network.trajectory, *network.latents, *network.modes):
        # a bypassed block is called, and nothing inside of it
        block.get_submodule("mlp").register_forward_hook(lambda module, *_: ran.append(module))
    branch = fork.run(steer).output
    assert len(ran) == 8 - spared
    for name, item in model.run(batch, steer).output.items():
        torch.testing.assert_close(branch[name], item, atol=2e-6, rtol=1e-5)
    assert not torch.equal(branch["trajectory"], fork.clean.output["trajectory"])


@torch.no_grad()
@pytest.mark.parametrize("site", ["agent.2", "latents.1", "modes.1"])
def test_a_pass_goes_on_from_a_state_in_which_two_agents_are_exchanged(
    network: Wayformer, batch: Batch, site: str
) -> None:
    model = Model(network, WayformerFamily())
    state = model.run(batch, {site: Read()}).hidden[site].flip(0)

    def give(_: torch.Tensor, __: Visit) -> torch.Tensor:
        return state

    resumed, whole = model.resume(batch, site, state).output, model.run(batch, {site: give}).output
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_the_divergence_of_a_forecast_from_itself_is_zero(network: Wayformer, batch: Batch) -> None:
    model = Model(network, WayformerFamily())
    clean = model.run(batch)
    other = model.run(batch, {"agent.2": Steer(torch.arange(16.0), 0.3)})
    assert model.family.divergence(network, clean, clean, None) == 0
    assert model.family.divergence(network, clean, other, None) > 1e-3


@pytest.mark.parametrize("settings", READINGS, ids=lambda s: f"{s.others} {s.map_tokens}")
def test_kinds_of_tokens_weigh_alike_until_the_network_learns_otherwise(
    settings: WayformerSettings, batch: Batch
) -> None:
    network, seen = Wayformer(settings), dict[str, torch.Tensor]()
    gather = network.latents[0].get_submodule("attention")
    gather.get_submodule("query").requires_grad_(False).weight.zero_()
    gather.get_submodule("query").bias.zero_()
    network.norms["tokens"].register_forward_hook(lambda _, __, out: seen.update(memory=out))
    gather.register_forward_hook(lambda _, __, out: seen.update(gathered=out))
    # a road and other agents that are there everywhere, so that nothing is hidden
    full = dataclasses.replace(
        batch,
        line_valid=torch.ones_like(batch.line_valid),
        **{
            name: dataclasses.replace(tracks, valid=torch.ones_like(tracks.valid))
            for name, tracks in (("target", batch.target), ("others", batch.others))
        },
    )
    network(full)["trajectory"].sum().backward()
    steps = 6 if settings.others == "history" else 1
    nodes = 10 if settings.map_tokens == "node" else 1
    kinds = seen["memory"].split([6, 5 * steps, 16 * nodes], 1)
    mean = torch.stack([kind.mean(1) for kind in kinds]).mean(0)
    values = gather.get_submodule("memory")(mean)[:, 16:]
    expected = gather.get_submodule("out")(values)[:, None].expand_as(seen["gathered"])
    torch.testing.assert_close(seen["gathered"], expected, atol=1e-5, rtol=1e-4)
    assert network.votes.grad is not None
    assert (network.votes.grad != 0).all()


def test_a_cross_block_is_three_steps_on_normalized_input() -> None:
    block = CrossBlock(16, 2, 2, 0.0, among=True).double()
    x, memory = torch.randn(3, 4, 16).double(), torch.randn(3, 7, 16).double()
    seen = torch.rand(3, 7) < 0.6
    seen[:, 0] = True
    mask = hiding(seen).double()

    def attend(q: torch.Tensor, kv: torch.Tensor, part: nn.Module, hidden: torch.Tensor | None) -> torch.Tensor:
        query, out = part.get_submodule("query"), part.get_submodule("out")
        key, value = part.get_submodule("memory")(kv).chunk(2, -1)
        heads = []
        for some in (slice(0, 8), slice(8, 16)):
            logits = query(q)[..., some] @ key[..., some].mT / 8**0.5
            heads.append((logits if hidden is None else logits + hidden[:, 0]).softmax(-1) @ value[..., some])
        return out(torch.cat(heads, -1))

    assert block.among is not None
    assert block.before_among is not None
    y = x + attend(block.before_among(x), block.before_among(x), block.among, None)
    y = y + attend(block.before_attention(y), memory, block.attention, mask)
    torch.testing.assert_close(block(x, memory, mask), y + block.mlp(block.before_mlp(y)))


def test_the_features_of_a_node_are_those_of_its_segment() -> None:
    line = torch.tensor([[[-10.0, 3.0], [10.0, 3.0], [10.0, 8.0], [torch.nan, 0.0]], [[0.0, 0.0]] * 4])
    valid = torch.tensor([[True, True, True, False], [False] * 4])
    found = node_features(line, valid, torch.tensor([2, 0]))
    kind = [0.0, 0, 1, 0, 0, 0, 0, 0]
    far, end = 109**0.5, 164**0.5
    expected = [
        [3 / 50, 0, 1, 1, 0, 2, 1, *kind],  # seen at its middle, (0, 3)
        [far / 50, 10 / far, 3 / far, 0, 1, 0.5, 0.5, *kind],  # at its begin
        [end / 50, 10 / end, 8 / end, 0, 0, 0, 0, *kind],  # nothing begins at the last node
    ]
    torch.testing.assert_close(found[0, :3], torch.tensor(expected))
    assert (found[0, 3] == 0).all()
    assert (found[1] == 0).all()


def test_the_published_sizes() -> None:
    settings = WayformerSettings.published()
    network = settings.build()
    assert (settings.width, settings.latents, settings.modes) == (256, 192, 64)
    assert list(Model(network, settings.family).sites) == [
        *(f"latents.{i}" for i in range(3)),
        *(f"modes.{i}" for i in range(8)),
    ]
    assert "agent.2" in Model(WayformerSettings.published(3).build(), settings.family).sites
    attention, perceptron, norm = 4 * 256 * 257, 2 * 256 * 1024 + 1024 + 256, 2 * 256
    block, decoding = attention + perceptron + 2 * norm, 2 * attention + perceptron + 3 * norm
    assert sum(p.numel() for p in network.latents.parameters()) == 3 * block
    assert sum(p.numel() for p in network.modes.parameters()) == 8 * decoding


def test_a_saved_network_comes_back(network: Wayformer, batch: Batch, tmp_path) -> None:
    save(network, tmp_path)
    again = load(tmp_path)
    assert again.settings == SETTINGS
    assert torch.equal(again(batch)["trajectory"], network(batch)["trajectory"])
    assert "latents.2" in load_model(tmp_path).sites


def test_what_does_not_fit_is_named(batch: Batch) -> None:
    with pytest.raises(ValueError, match="Wayformer: heads 3 should divide width 16"):
        dataclasses.replace(SETTINGS, heads=3)
    with pytest.raises(ValueError, match="latents should be at least 1"):
        dataclasses.replace(SETTINGS, latents=0)
    with pytest.raises(ValueError, match="trajectory_layers should not be negative"):
        dataclasses.replace(SETTINGS, trajectory_layers=-1)
    with pytest.raises(ValueError, match=r"dropout should be in \[0, 1\)"):
        dataclasses.replace(SETTINGS, dropout=1.0)
    with pytest.raises(ValueError, match=r"\(6, 10, 10\).*made for \(6, 10, 20\)"):
        Wayformer(dataclasses.replace(SETTINGS, framing=dataclasses.replace(FRAMING, stride=1)))(batch)
    with pytest.raises(ValueError, match="WayformerFamily describes Wayformer, not Linear"):
        Model(nn.Linear(1, 1), WayformerFamily())
