import dataclasses
import math
from pathlib import Path

import pytest
import torch

from innerspace.interventions import Read
from innerspace.network.model import Model
from innerspace.planted.factors import (
    FactorSettings,
    MotionEncoder,
    MotionEncoderFamily,
    Tracks,
    draw_tracks,
    factor_spans,
    train_encoder,
)

SETTINGS = FactorSettings(steps=800)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    return Model(train_encoder(SETTINGS), MotionEncoderFamily())


def drawn(count: int = 4000, seed: int = 5) -> Tracks:
    return draw_tracks(SETTINGS, count, torch.Generator().manual_seed(seed))


def off(found: torch.Tensor, heading: torch.Tensor) -> torch.Tensor:
    return (found - heading + math.pi) % (2 * math.pi) - math.pi


def test_tracks_have_one_speed_and_one_heading() -> None:
    exact = draw_tracks(dataclasses.replace(SETTINGS, noise=0.0), 50, torch.Generator().manual_seed(0))
    way = exact.positions[:, -1]
    torch.testing.assert_close(way.norm(dim=-1) / SETTINGS.duration, exact.speed)
    torch.testing.assert_close(torch.atan2(way[:, 1], way[:, 0]), exact.heading)
    torch.testing.assert_close(exact.positions.diff(dim=1).diff(dim=1), torch.zeros(50, 10, 2), atol=1e-6, rtol=0)


def test_both_factors_are_told(model: Model) -> None:
    tracks = drawn()
    output = model.run(tracks).output
    assert (output["speed"] - tracks.speed).square().mean().sqrt() < 0.03
    assert off(output["heading"], tracks.heading).square().mean().sqrt() < 0.03


def test_the_last_state_is_the_sum_of_two_nearly_orthogonal_curves(model: Model) -> None:
    tracks = drawn(20_000)
    states = model.run(tracks, {"hidden.1": Read()}).hidden["hidden.1"].detach()
    truth = factor_spans(states, tracks.labels())
    assert {name: len(span) for name, span in truth.spans.items()} == {"speed": 1, "heading": 2}
    assert truth.explained > 0.98
    assert truth.cosine < 0.25


def test_exchanging_the_span_of_a_factor_exchanges_the_factor(model: Model) -> None:
    tracks, others = drawn(), drawn(seed=6)
    clean, other = (model.run(x, {"hidden.1": Read()}).hidden["hidden.1"].detach() for x in (tracks, others))
    span = factor_spans(clean, tracks.labels()).spans["heading"]
    output = model.resume(tracks, "hidden.1", clean + (other - clean) @ span.T @ span).output
    assert off(output["heading"], others.heading).square().mean().sqrt() < 0.2
    assert (output["speed"] - tracks.speed).square().mean().sqrt() < 0.2


def test_planted_spans_are_found_and_measured() -> None:
    """A line and a circle in known directions, with noise of known variance."""
    generator = torch.Generator().manual_seed(0)
    speed, heading = torch.rand(20000, generator=generator), 2 * math.pi * torch.rand(20000, generator=generator)
    frame = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    planted = torch.stack([math.sqrt(12) * speed, heading.cos(), heading.sin()], -1) @ frame[:3]
    states = planted + 0.25 * torch.randn(20000, 8, generator=generator)
    found = factor_spans(states, {"speed": speed, "heading": heading})
    for name, own in (("speed", frame[:1]), ("heading", frame[1:3])):
        assert torch.linalg.svdvals(found.spans[name] @ own.T).min() > 0.999
    # two units of variance were planted, and 8 / 16 is noise
    assert found.explained == pytest.approx(2 / 2.5, abs=0.01)
    assert found.cosine < 0.05


def test_the_same_settings_give_the_same_network_and_it_is_kept(tmp_path: Path) -> None:
    short = FactorSettings(steps=3)
    one, other = train_encoder(short), train_encoder(short)
    one.save(tmp_path / "encoder.safetensors")
    again = MotionEncoder.load(tmp_path / "encoder.safetensors")
    assert again.settings == short
    assert len({Model(network, MotionEncoderFamily()).fingerprint() for network in (one, other, again)}) == 1


def test_a_pass_goes_on_from_every_site(model: Model) -> None:
    tracks = drawn(10)
    clean = model.run(tracks, {site: Read() for site in model.sites})
    for site in model.sites:
        resumed = model.resume(tracks, site, clean.hidden[site]).output
        torch.testing.assert_close(resumed["speed"], clean.output["speed"])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="24 bins need at least 240 rows, there are 100"):
        factor_spans(torch.zeros(100, 4), {"speed": torch.zeros(100)})
    with pytest.raises(ValueError, match=r"from 2\.0 to 1\.0"):
        FactorSettings(slowest=2.0, fastest=1.0)
    with pytest.raises(ValueError, match="layers should be at least 1"):
        FactorSettings(layers=0)
