import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from innerspace.interventions import At, Read, Steer
from innerspace.jobs.control import WordsInMotion
from innerspace.jobs.job import Job
from innerspace.motion.forecasters.forecaster import save
from innerspace.motion.forecasters.hptr import Hptr, HptrFamily, HptrSettings
from innerspace.motion.forecasters.known import load
from innerspace.motion.forecasters.own_frames import line_points
from innerspace.motion.framing import Batch, Framing, Tracks, frame
from innerspace.motion.losses import losses
from innerspace.motion.scenes import Scene
from innerspace.motion.simulate import Simulation, simulate
from innerspace.network.model import Model
from innerspace.network.site import Where
from motion.padding import with_damaged_padding, without_road

FRAMING = Framing(history=6, future=20, stride=2, agents=7, lines=48)
SETTINGS = HptrSettings(framing=FRAMING, width=16, node_width=8, map_layers=2, scene_layers=2, neighbors=3)
SITES = ("agent.0", "agent.1", "agent.2", "token.0", "map.0", "map.1", "scene.0", "scene.1", "modes.0", "modes.1")


@pytest.fixture(scope="module", name="scenes")
def _scenes() -> list[Scene]:
    return simulate(Simulation(scenes=6, seed=3, history=6, future=20, dropout=0.2)).scenes


@pytest.fixture(scope="module")
def batch(scenes: list[Scene]) -> Batch:
    return frame(scenes, FRAMING)


@pytest.fixture
def network() -> Hptr:
    torch.manual_seed(0)
    return Hptr(SETTINGS).eval()


def mapped(tracks: Tracks, change: Callable[[Tensor], Tensor]) -> Tracks:
    return Tracks(*(change(getattr(tracks, field.name)) for field in dataclasses.fields(Tracks)))


def shaken(batch: Batch) -> Batch:
    """No two lines and no two agents at the same distance from a third: which are nearest is beyond doubt."""
    generator = torch.Generator().manual_seed(5)
    line = batch.line + torch.randn(batch.line[:, :, :1].shape, generator=generator)
    return dataclasses.replace(batch, line=line * batch.line_valid[..., None])


def same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, item in expected.items():
        torch.testing.assert_close(found[name], item, atol=tolerance, rtol=tolerance)


def test_the_output_has_its_shapes_and_bounds(network: Hptr, batch: Batch) -> None:
    output = network(batch)
    assert output["trajectory"].shape == (len(batch), 6, 10, 2)
    assert output["scale"].shape == (len(batch), 6, 10, 3)
    assert output["logits"].shape == (len(batch), 6)
    assert (output["trajectory"][:, 0] - output["trajectory"][:, 1]).abs().amax() > 1e-3


def test_padding_never_matters_even_if_it_is_not_a_number(network: Hptr, batch: Batch) -> None:
    assert not batch.target.valid.all()
    assert not batch.others.valid[..., -1].all()
    assert not batch.line_valid.all()
    clean, damaged = network(batch), network(with_damaged_padding(batch))
    for name in clean:
        assert torch.equal(clean[name], damaged[name])


def test_an_agent_without_a_current_step_is_not_there(network: Hptr, batch: Batch) -> None:
    valid = batch.others.valid.clone()
    valid[:, 0, -1] = False
    assert valid[:, 0].any()
    gone = valid.clone()
    gone[:, 0] = False
    one, other = (
        network(with_damaged_padding(dataclasses.replace(batch, others=dataclasses.replace(batch.others, valid=item))))
        for item in (valid, gone)
    )
    same(one, other, 0)


def test_each_row_stands_for_itself(network: Hptr, batch: Batch) -> None:
    whole, part = network(batch), network(batch[slice(2, 5)])
    same(part, {name: item[2:5] for name, item in whole.items()}, 1e-4)


def test_an_empty_road_still_gives_a_forecast_that_trains(network: Hptr, batch: Batch) -> None:
    output = network(without_road(batch))
    sum(item.sum() for item in output.values()).backward()
    assert all(item.isfinite().all() for item in output.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_gradients_reach_every_parameter(network: Hptr, batch: Batch) -> None:
    losses(network(batch), batch).mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_the_order_of_agents_and_lines_does_not_matter(network: Hptr, batch: Batch) -> None:
    batch = shaken(batch)
    agents, lines = torch.randperm(FRAMING.agents), torch.randperm(FRAMING.lines)
    mixed = dataclasses.replace(
        batch,
        others=mapped(batch.others, lambda item: item[:, agents]),
        line=batch.line[:, lines],
        line_valid=batch.line_valid[:, lines],
        line_kind=batch.line_kind[:, lines],
    )
    same(network(mixed), network(batch), 1e-4)


def test_a_scene_told_from_another_origin_gives_the_same_forecast(network: Hptr, scenes: list[Scene]) -> None:
    turn, shift = 1.2, np.array([800.0, -300.0])
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    moved = [
        dataclasses.replace(
            scene,
            position=scene.position @ rotation + shift,
            heading=scene.heading + turn,
            velocity=scene.velocity @ rotation,
            line=scene.line @ rotation + shift,
        )
        for scene in scenes
    ]
    same(network(shaken(frame(moved, FRAMING))), network(shaken(frame(scenes, FRAMING))), 1e-4)


def test_a_scene_is_encoded_alike_from_all_its_targets(scenes: list[Scene]) -> None:
    framing = dataclasses.replace(FRAMING, lines=max(len(scene.line) for scene in scenes))
    network = Hptr(dataclasses.replace(SETTINGS, framing=framing, neighbors=framing.lines)).eval()
    batch = frame(scenes, framing)
    one, other = batch[slice(0, None, 2)], batch[slice(1, None, 2)]
    assert torch.equal(one.scene, other.scene)
    assert not torch.equal(one.agent, other.agent)
    model = Model(network, HptrFamily())
    names = ("token.0", "map.1", "scene.1")
    first, second = (model.run(item, {name: Read() for name in names}).hidden for item in (one, other))
    for name in names:
        here, there = (model.family.mask(item, model.site(name)) for item in (one, other))
        assert here is not None
        assert there is not None
        for row in range(len(one)):
            a, b = first[name][row][here[row]], second[name][row][there[row]]
            apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
            assert len(a) == len(b)
            assert apart.max() > 0.1
            assert apart.amin(0).max() < 1e-3
            assert apart.amin(1).max() < 1e-3


def test_seeing_at_least_all_is_seeing_all(network: Hptr, batch: Batch) -> None:
    all_of_it = Hptr(dataclasses.replace(SETTINGS, neighbors=FRAMING.lines)).eval()
    more = Hptr(dataclasses.replace(SETTINGS, neighbors=1000)).eval()
    for other in (all_of_it, more):
        other.load_state_dict(network.state_dict())
    same(more(batch), all_of_it(batch), 1e-5)
    assert not torch.allclose(network(batch)["trajectory"], more(batch)["trajectory"], atol=1e-4)


def test_the_sites_are_read_with_their_shapes_and_masks(network: Hptr, batch: Batch) -> None:
    model = Model(network, HptrFamily())
    assert tuple(model.sites) == SITES
    trace = model.run(batch, {name: Read() for name in model.sites})
    for name, site in model.sites.items():
        hidden, mask = trace.hidden[name], model.family.mask(batch, site)
        assert hidden.shape[-1] == site.width
        assert (mask is None) == name.startswith("modes")
        if mask is not None:
            assert mask.shape == hidden.shape[:-1]
            assert (hidden[~mask] == 0).all()
            assert (hidden[mask] != 0).any(-1).all()
    assert torch.equal(trace.output["trajectory"], network(batch)["trajectory"])


def test_the_targets_motion_is_known_only_through_its_last_hidden_state(network: Hptr, batch: Batch) -> None:
    model = Model(network, HptrFamily())
    clean = model.run(batch, {"agent.2": Read()})
    changed = dataclasses.replace(
        batch,
        target=dataclasses.replace(
            batch.target,
            position=batch.target.position * 3 + 1,
            heading=batch.target.heading + 0.3,
            velocity=-2 * batch.target.velocity,
            size=batch.target.size + 1,
            kind=(batch.target.kind + 1) % 3,
        ),
    )
    assert not torch.allclose(model.run(changed).output["trajectory"], clean.output["trajectory"], atol=1e-3)
    held = model.run(changed, {"agent.2": lambda _, __: clean.hidden["agent.2"]}).output
    for name, item in clean.output.items():
        assert torch.equal(held[name], item)


def test_a_vector_on_all_valid_steps_shifts_the_targets_token_by_itself(network: Hptr, batch: Batch) -> None:
    model, v = Model(network, HptrFamily()), torch.linspace(-2, 3, 16)
    clean, steered = (
        model.run(batch, {"agent.2": At(Where("valid"), Steer(v, by)), "token.0": Read()}).hidden["token.0"]
        for by in (0.0, 1.5)
    )
    torch.testing.assert_close(steered[:, 0] - clean[:, 0], (1.5 * v).expand(len(batch), -1), atol=1e-6, rtol=1e-6)
    assert torch.equal(steered[:, 1:], clean[:, 1:])


@pytest.mark.parametrize("site", SITES)
def test_a_fork_goes_on_as_a_whole_pass_would(network: Hptr, batch: Batch, site: str) -> None:
    model, steer = Model(network, HptrFamily()), Steer(torch.linspace(-1, 1, 16), 1.0)
    branch, whole = model.fork(batch, site).run({site: steer}).output, model.run(batch, {site: steer}).output
    same(branch, whole, 1e-5)
    assert not torch.allclose(whole["trajectory"], network(batch)["trajectory"], atol=1e-4)


@pytest.mark.parametrize(
    ("site", "skipped"),
    [
        ("agent.1", ("agent.0", "map.0")),
        ("token.0", ("agent.2", "map.0")),
        ("map.1", ("agent.0", "map.0")),
        ("scene.0", ("agent.2", "map.0")),
        ("modes.0", ("agent.2", "map.0", "scene.0")),
    ],
)
def test_what_a_fork_does_not_need_is_not_computed(
    network: Hptr, batch: Batch, site: str, skipped: tuple[str, ...]
) -> None:
    fork = Model(network, HptrFamily()).fork(batch, site)
    for name in skipped:
        with pytest.raises(ValueError, match=f"nothing is computed at '{name}'"):
            fork.run({name: Read()})


def test_a_line_is_the_same_from_everywhere_and_lies_at_its_middle() -> None:
    scene = simulate(Simulation(scenes=1, seed=0)).scenes
    batch = frame(scene, Framing())
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    line = torch.tensor([[0.0, 0.0], [4.0, 0.0], [8.0, 6.0], [torch.nan] * 2])
    valid = torch.tensor([True, True, True, False])
    pair = torch.stack((line, line @ turn + 7))[None]
    batch = dataclasses.replace(
        batch[slice(0, 1)],
        line=pair,
        line_valid=valid.expand(1, 2, 4),
        line_kind=torch.tensor([[2, 2]]),
    )
    found = line_points(batch)
    torch.testing.assert_close(found.poses.position[0], torch.tensor([[4.0, 0.0], [7.0, 11.0]]))
    heading = torch.atan2(torch.tensor(6.0), torch.tensor(8.0))
    torch.testing.assert_close(found.poses.heading[0], torch.stack((heading, heading + torch.pi / 2)))
    torch.testing.assert_close(found.features[0, 0], found.features[0, 1])
    # (8, 6) − (4, 0), turned by −atan(6/8), in 10 m
    torch.testing.assert_close(found.features[0, 0, 2, :4], torch.tensor([0.68, 0.24, 0.0, 0.0]))
    torch.testing.assert_close(found.features[0, 0, 1, :4], torch.tensor([0.0, 0.0, 0.68, 0.24]))
    assert found.features[0, 0, :3, 6].tolist() == [1.0, 1.0, 1.0]
    assert (found.features[0, :, 3] == 0).all()


def test_a_saved_network_comes_back(network: Hptr, batch: Batch, tmp_path) -> None:
    save(network, tmp_path)
    again = load(tmp_path)
    assert again.settings == SETTINGS
    assert torch.equal(again(batch)["trajectory"], network(batch)["trajectory"])


def test_a_job_with_it_goes_to_json_and_back() -> None:
    job = WordsInMotion(forecaster=SETTINGS)
    assert Job.from_json(job.to_json()) == job
    job.check()


def test_the_published_sizes_build() -> None:
    network = HptrSettings.published().build()
    assert network.settings.family.sites(network)[-1].name == "modes.1"
    assert len(network.map) == 6


def test_what_does_not_fit_is_named(batch: Batch) -> None:
    with pytest.raises(ValueError, match="heads 3 should divide width 16"):
        dataclasses.replace(SETTINGS, heads=3)
    with pytest.raises(ValueError, match="neighbors should be at least 1"):
        dataclasses.replace(SETTINGS, neighbors=0)
    with pytest.raises(ValueError, match="map_reach should be positive, it is 0"):
        dataclasses.replace(SETTINGS, map_reach=0.0)
    with pytest.raises(ValueError, match=r"dropout should be in \[0, 1\)"):
        dataclasses.replace(SETTINGS, dropout=1.0)
    with pytest.raises(ValueError, match=r"\(6, 10, 10\).*made for \(6, 10, 20\)"):
        Hptr(dataclasses.replace(SETTINGS, framing=dataclasses.replace(FRAMING, stride=1)))(batch)
    with pytest.raises(ValueError, match="describes Hptr, not Linear"):
        Model(torch.nn.Linear(1, 1), HptrFamily())
