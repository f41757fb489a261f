"""The losses of Words in Motion as published, against their table, and the faults that come with them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from innerspace.decompose.base import Code
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import ReLU
from innerspace.learn.fit import Student, fit_together
from innerspace.learn.objectives import Objective, Reconstruction, Sparsity
from innerspace.learn.presets import Preset
from innerspace.learn.published import Cunningham2023, PublishedSparsity, Tas2025
from innerspace.learn.spliced import Moments
from innerspace.learn.trials import Trial, local

FILES, AGENTS, WIDTH = 32, 48, 128
TABLE = {
    512: (1.5244, 8270.7, 4.0057),
    256: (1.3770, 7824.0, 3.7242),
    128: (1.5563, 8608.9, 4.1390),
    64: (1.8928, 8895.0, 4.5613),
    32: (3.9028, 10795.5, 7.1415),
    16: (13.3690, 13576.6, 17.4420),
}
"""By latents: mean squared error of a state, Σ|s| of a batch, loss; training on Waymo."""


def made(preset: Preset, latents: int, width: int = WIDTH, seed: int = 0) -> Dictionary:
    return preset.dictionary(Moments(9, torch.ones(width), 4.0), latents, seed=seed)


def total(objective: Objective, trial: Trial) -> Tensor:
    return torch.stack([term(trial) for term in objective]).sum()


@pytest.mark.parametrize("latents", TABLE)
def test_the_loss_is_that_of_the_published_table(latents: int) -> None:
    error, entries, loss = TABLE[latents]
    rows = FILES * AGENTS
    generator = torch.Generator().manual_seed(latents)
    off = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    off *= (error * rows / off.square().sum()).sqrt()
    z = torch.rand(rows, latents, generator=generator, dtype=torch.float64)
    z *= entries / z.sum()
    clean = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    trial = Trial(
        clean, clean + off, Code(z, z, z.sum(-1)), made(Tas2025(), latents), torch.tensor(1.0, dtype=torch.float64)
    )
    # the means are of four digits, and the sum of all of 0.05
    assert total(Tas2025().objective, trial).item() == pytest.approx(loss, abs=1e-4)
    by_agent = off.view(FILES, AGENTS, WIDTH).square().sum(-1).mean(0).mean()
    assert Reconstruction(unit="sum")(trial).item() == pytest.approx(by_agent.item())


def test_the_sound_loss_does_not_change_with_a_repeated_batch_and_the_published_sum_doubles() -> None:
    x = torch.randn(30, 9, dtype=torch.float64)
    what = made(Tas2025(), 20, 9).double()
    sound: Objective = (Reconstruction(), Sparsity(0.02))
    one, two = (local(rows, len(rows), 0).draw().trial(what) for rows in (x, x.repeat(2, 1)))
    torch.testing.assert_close(total(sound, two), total(sound, one))
    reconstruction, sparsity = Tas2025().objective
    torch.testing.assert_close(reconstruction(two), reconstruction(one))
    torch.testing.assert_close(sparsity(two), 2 * sparsity(one))
    torch.testing.assert_close(total(Cunningham2023().objective, two), total(Cunningham2023().objective, one))


def test_the_tied_loss_is_two_means_over_all_entries() -> None:
    what, x = made(Cunningham2023(), 20, 9).double(), torch.randn(30, 9, dtype=torch.float64)
    s = (x @ what.decoder.T + what.encoder_bias).relu()
    trial = local(x, 30, 0).draw().trial(what)
    expected = (s @ what.decoder - x).square().mean() + 3e-4 * s.abs().mean()
    torch.testing.assert_close(total(Cunningham2023().objective, trial), expected)
    assert {name for name, _ in what.named_parameters()} == {"decoder", "encoder_bias"}


def test_a_sparse_code_counts_the_same() -> None:
    what, x = made(Tas2025(), 20, 9), torch.randn(30, 9)
    for over in ("sum", "mean"):
        term = PublishedSparsity(0.5, over)
        trials = [Trial(x, x, code, what, torch.tensor(1.0)) for code in (what.encode(x), what.encode_sparse(x))]
        torch.testing.assert_close(term(trials[0]), term(trials[1]))


def test_beginnings_are_the_published_ones() -> None:
    what = made(Tas2025(), 200)
    assert what.form.pre_bias
    assert what.encoder.abs().max() <= (6 / 200) ** 0.5
    assert what.encoder.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    torch.testing.assert_close(what.decoder.norm(dim=-1), torch.ones(200))
    assert what.decoder_bias.count_nonzero() == what.encoder_bias.count_nonzero() == 0
    assert what.mean.count_nonzero() == 0
    assert what.scale == 1
    assert isinstance(what.nonlinearity, ReLU)


@pytest.mark.parametrize("preset", [Tas2025(), Cunningham2023()], ids=lambda item: type(item).__name__)
def test_both_learn_and_norms_are_left_alone(preset: Preset, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(400, 4, generator=generator) @ torch.randn(4, 9, generator=generator)
    what = made(preset, 12, 9)
    student = Student(what, preset.objective)
    config = preset.config(200)
    loop, _ = fit_together([student], local(x, 100, 0), config.from_json({**config.to_json(), "log_every": 1}))
    assert loop.history[-1]["loss"] < 0.5 * loop.history[0]["loss"]
    assert (what.decoder.norm(dim=-1) - 1).abs().max() > 1e-2
    what.save(tmp_path / "some.safetensors")
    again = Dictionary.load(tmp_path / "some.safetensors")
    assert torch.equal(again.decode(again.encode(x).z), what.decode(what.encode(x).z))
    assert Preset.from_json(preset.to_json()) == preset
