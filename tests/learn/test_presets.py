"""Presets: what they are made of, that they train, and that they refuse what their paper does not have."""

import pytest
import torch

from innerspace.decompose.dictionary import moments
from innerspace.decompose.nonlinearities import TopK
from innerspace.learn.fit import Student, fit_together
from innerspace.learn.objectives import Balanced, Downstream, OutputKL, Reconstruction, Sparsity
from innerspace.learn.presets import (
    Braun2024,
    Bussmann2024,
    Bussmann2025,
    Conerly2024,
    Gao2024,
    Karvonen2025,
    Preset,
    Rajamanoharan2024a,
    Rajamanoharan2024b,
)
from innerspace.learn.spliced import Moments
from innerspace.learn.trials import local

PRESETS: list[Preset] = [
    Braun2024("local", 0.5),
    Gao2024(3, aux=8, dead_after=500),
    Bussmann2024(3, aux=8, dead_after=500),
    Bussmann2025(3, aux=8, dead_after=500),
    Rajamanoharan2024a(0.05),
    Rajamanoharan2024b(0.05, bandwidth=0.3, threshold=0.1),
    Conerly2024(0.05),
]


def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(60, 16, generator=generator)
    on = torch.rand(2000, 60, generator=generator) < 0.05
    return (torch.rand(2000, 60, generator=generator) * on) @ true + 3


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: type(preset).__name__)
def test_every_preset_trains(preset: Preset) -> None:
    x = rows()
    mean, variance = moments(x)
    dictionary = preset.dictionary(Moments(len(x), mean, float(variance)), 64, seed=3)
    assert preset.normalized == bool(dictionary.mean.count_nonzero())
    assert dictionary.nonlinearity == preset.nonlinearity
    config = preset.config(150, seed=4)
    student = Student(dictionary, preset.objective, later=preset.later, rate=20)
    loop, _ = fit_together([student], local(x, 100, 0), config)
    assert (config.seed, config.steps) == (4, 150)
    error = (x - dictionary.decode(dictionary.encode(x).z)).square().sum(-1).mean() / variance
    assert error < 0.5
    assert set(loop.history[-1]) - {"step", "loss"} == {term.name for term in preset.objective}


@pytest.mark.parametrize("preset", [*PRESETS, Karvonen2025(Gao2024(5), 0.1, 0.5)], ids=lambda p: type(p).__name__)
def test_presets_go_to_json_and_come_back(preset: Preset) -> None:
    assert Preset.from_json(preset.to_json()) == preset


def test_the_coefficients_for_gpt2_are_the_papers() -> None:
    assert Braun2024.gpt2_small("e2e", 6).objective == (OutputKL(), Sparsity(3.0, per_width=True))
    sites = tuple(f"blocks.{i}.hook_resid_pre" for i in range(7, 12))
    expected = (OutputKL(0.5), Downstream(sites, 2.5), Sparsity(50.0, per_width=True))
    assert Braun2024.gpt2_small("e2e+ds", 6).objective == expected
    last = Braun2024.gpt2_small("e2e+ds", 10)
    assert (last.downstream, last.coefficient, last.sparsity) == (("blocks.11.hook_resid_pre",), 0.05, 1.75)
    assert Braun2024.gpt2_small("local", 2).sparsity == 0.8
    with pytest.raises(ValueError, match="before the blocks 2, 6 and 10"):
        Braun2024.gpt2_small("local", 5)


def test_the_divergence_takes_over_at_the_end() -> None:
    preset = Karvonen2025(Gao2024(5), share=0.1, rate=0.5)
    (phase,) = preset.later
    assert phase.begins == 0.9
    assert phase.rate == 0.5
    assert phase.objective == (Balanced(), *Gao2024(5).objective[1:])
    assert preset.nonlinearity == TopK(5)
    assert Karvonen2025(Braun2024("local", 4.0)).later[0].objective[0] == Balanced("mean")
    for other in (Braun2024("e2e", 1.0), Bussmann2025(3), preset):
        with pytest.raises(ValueError, match="one of plain reconstruction"):
            Karvonen2025(other)


def test_nested_dictionaries_have_the_papers_sizes() -> None:
    assert Bussmann2025(32).form(65_536).prefixes == (2048, 6144, 14_336, 30_720, 65_536)
    with pytest.raises(ValueError, match="grow to 1"):
        Bussmann2025(3, shares=(0.1, 0.5))


def test_sites_downstream_are_for_one_kind_only() -> None:
    with pytest.raises(ValueError, match=r"'e2e' none; 'e2e' has resid\.3"):
        Braun2024("e2e", 1.0, ("resid.3",))
    with pytest.raises(ValueError, match=r"'e2e\+ds' has none"):
        Braun2024("e2e+ds", 1.0)


def test_the_penalty_rises() -> None:
    config = Conerly2024(0.3).config(1000)
    assert [config.sparsity_at(step) for step in (0, 25, 50, 999)] == pytest.approx([0, 0.5, 1, 1])
    x = rows()
    what = Conerly2024(0.3).dictionary(Moments(9, x.mean(0), 1.0), 64)
    student = Student(what, (Reconstruction(), Sparsity(0.3)))
    config = Rajamanoharan2024b(0.1).config(4)
    loop, _ = fit_together([student], local(x, 100, 0), config.from_json({**config.to_json(), "log_every": 1}))
    penalties = [float(record["sparsity"]) for record in loop.history]
    assert penalties[0] == 0
    assert penalties[1] / penalties[2] == pytest.approx(0.5, rel=0.2)
