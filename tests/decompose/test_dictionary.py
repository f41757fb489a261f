"""Sparse dictionaries: the laws of decompositions, the nonlinearities' gradients, normalization, files."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from innerspace.checkpoint import save_state
from innerspace.decompose.dictionary import Dictionary, moments
from innerspace.decompose.nonlinearities import Activated, GroupMax, JumpReLU, Nonlinearity, Numbers, ReLU, TopK

WIDTH, LATENTS = 6, 16
NONLINEARITIES = [ReLU(), JumpReLU(bandwidth=0.3, threshold=0.2), TopK(k=3), GroupMax(k=4)]


@pytest.fixture(params=NONLINEARITIES, ids=lambda item: type(item).__name__)
def dictionary(request: pytest.FixtureRequest) -> Dictionary:
    """A dictionary in float64 with no parameter at a special value."""
    what = Dictionary(WIDTH, LATENTS, request.param, mean=torch.randn(WIDTH), scale=2.5, seed=1).double()
    with torch.no_grad():
        what.encoder.add_(0.3 * torch.randn_like(what.encoder))
        what.encoder_bias.add_(0.1 * torch.randn_like(what.encoder_bias))
        what.decoder_bias.add_(torch.randn_like(what.decoder_bias))
    return what


def rows(count: int = 40) -> Tensor:
    return 3 * torch.randn(count, WIDTH, dtype=torch.float64)


def test_decode_is_affine_and_lift_is_its_linear_part(dictionary: Dictionary) -> None:
    z, dz = torch.randn(2, 5, LATENTS, dtype=torch.float64), torch.randn(2, 5, LATENTS, dtype=torch.float64)
    torch.testing.assert_close(dictionary.decode(z + dz) - dictionary.decode(z), dictionary.lift(dz))
    torch.testing.assert_close(dictionary.lift(dz), dz @ dictionary.directions)
    assert dictionary.lift(torch.zeros(1, LATENTS, dtype=torch.float64)).count_nonzero() == 0


def test_parts_cover_the_coordinates_once(dictionary: Dictionary) -> None:
    covered = [i for part in dictionary.parts for i in range(LATENTS)[part]]
    assert covered == list(range(LATENTS))


def test_directions_are_unit_rows_in_units_of_the_scale(dictionary: Dictionary) -> None:
    torch.testing.assert_close(dictionary.directions.norm(dim=-1), torch.full((LATENTS,), 2.5, dtype=torch.float64))


def test_encode_is_the_stated_formula(dictionary: Dictionary) -> None:
    x = rows()
    normalized = (x - dictionary.mean) / 2.5
    pre = (normalized - dictionary.decoder_bias) @ dictionary.encoder.T + dictionary.encoder_bias
    code = dictionary.encode(x)
    torch.testing.assert_close(code.pre, pre)
    positive = pre.relu()
    match dictionary.nonlinearity:
        case TopK(k):
            expected = positive * (positive >= positive.sort(-1, descending=True).values[:, k - 1 : k])
            cost = torch.zeros(len(x), dtype=torch.float64)
        case GroupMax(k):
            groups = [group * (group >= group.amax(-1, keepdim=True)) for group in positive.chunk(k, -1)]
            expected, cost = torch.cat(groups, -1), torch.zeros(len(x), dtype=torch.float64)
        case JumpReLU():
            expected = positive * (pre > 0.2)
            cost = (expected > 0).sum(-1).double()
        case _:
            expected, cost = positive, positive.abs().sum(-1)
    torch.testing.assert_close(code.z, expected)
    torch.testing.assert_close(code.cost, cost)
    assert 0 < code.z.count_nonzero() < code.z.numel()


def test_codes_do_not_depend_on_how_rows_are_arranged(dictionary: Dictionary) -> None:
    x = rows()
    torch.testing.assert_close(dictionary.encode(x.view(4, 10, WIDTH)).z.view(40, -1), dictionary.encode(x).z)
    torch.testing.assert_close(dictionary.encode(x[0]).z, dictionary.encode(x).z[0])


def test_gradients_are_those_of_finite_differences_away_from_jumps(dictionary: Dictionary) -> None:
    parameters = [dictionary.encoder, dictionary.encoder_bias, dictionary.decoder, dictionary.decoder_bias]
    x = rows(3)

    def reconstruct(*_: Tensor) -> Tensor:
        return dictionary.decode(dictionary.encode(x).z)

    assert torch.autograd.gradcheck(reconstruct, parameters)


def test_topk_keeps_at_most_k() -> None:
    what = Dictionary(WIDTH, LATENTS, TopK(k=3))
    count = what.encode(rows(500).float()).z.count_nonzero(-1)
    assert count.max() == 3
    with torch.no_grad():
        what.encoder_bias.fill_(-100)
    assert what.encode(rows().float()).z.count_nonzero() == 0


def test_jump_relu_has_the_straight_through_gradient_of_the_paper() -> None:
    bandwidth, threshold = 0.3, torch.tensor([0.2, 0.5], dtype=torch.float64)
    pre = torch.tensor([[0.3, 0.36], [0.19, 0.9], [0.36, 0.64]], dtype=torch.float64, requires_grad=True)
    log_threshold = threshold.log().requires_grad_()
    z, cost = JumpReLU(bandwidth)(pre, {"log_threshold": log_threshold}, training=True)
    to_z, to_cost = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    torch.autograd.backward((z, cost.sum(-1)), (to_z, to_cost))

    on = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.float64)
    kernel = torch.tensor([[1, 1], [1, 0], [0, 1]], dtype=torch.float64)
    torch.testing.assert_close(z, pre * on)
    torch.testing.assert_close(cost, on)
    z_by_threshold = -(threshold / bandwidth) * kernel
    cost_by_threshold = -(1 / bandwidth) * kernel
    by_threshold = (to_z * z_by_threshold + to_cost[:, None] * cost_by_threshold).sum(0)
    torch.testing.assert_close(log_threshold.grad, by_threshold * threshold)
    torch.testing.assert_close(pre.grad, to_z * on)


def test_normalization_leaves_zero_mean_and_unit_mean_square() -> None:
    x = 7 * torch.randn(2000, WIDTH) * torch.arange(1, WIDTH + 1) + 50
    what = Dictionary.normalized_for(x, LATENTS, ReLU())
    normalized = (x - what.mean) / what.scale
    torch.testing.assert_close(normalized.mean(0), torch.zeros(WIDTH), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalized.square().sum(-1).mean(), torch.tensor(1.0))


def test_a_dictionary_of_scaled_and_shifted_rows_is_the_scaled_and_shifted_dictionary() -> None:
    x = rows(200).float()
    plain = Dictionary.normalized_for(x, LATENTS, TopK(3))
    moved = Dictionary.normalized_for(8 * x + 5, LATENTS, TopK(3))
    torch.testing.assert_close(moved.encode(8 * x + 5).z, plain.encode(x).z)
    torch.testing.assert_close(moved.decode(plain.encode(x).z), 8 * plain.decode(plain.encode(x).z) + 5)
    torch.testing.assert_close(moved.directions, 8 * plain.directions)


def test_moments_are_the_mean_and_the_mean_squared_distance_from_it() -> None:
    mean, variance = moments(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    torch.testing.assert_close(mean, torch.tensor([2.0, 4.0]))
    assert float(variance) == 5.0


def test_normalize_and_project_gradient_keep_the_sphere() -> None:
    what = Dictionary(WIDTH, LATENTS, ReLU())
    what.decode(torch.rand(9, LATENTS)).square().sum().backward()
    before = what.decoder.grad
    assert before is not None
    radial = (before * what.decoder).sum(-1)
    assert radial.abs().min() > 1e-3
    tangent = before - radial[:, None] * what.decoder.detach()
    what.project_gradient()
    torch.testing.assert_close(what.decoder.grad, tangent)
    with torch.no_grad():
        what.decoder.mul_(torch.rand(LATENTS, 1) + 0.5)
    what.retract()
    torch.testing.assert_close(what.decoder.norm(dim=-1), torch.ones(LATENTS))


def test_silent_counts_the_rows_since_a_latent_fired_in_training_only() -> None:
    what = Dictionary(2, 2, ReLU())
    with torch.no_grad():
        what.encoder.copy_(torch.eye(2))
    only_first = torch.tensor([[1.0, -1.0]]).expand(5, 2)
    what.encode(only_first)
    what.encode(only_first.view(1, 5, 2))
    assert what.silent.tolist() == [0, 10]
    what.eval().encode(only_first)
    assert what.silent.tolist() == [0, 10]
    what.train().encode(torch.tensor([[-1.0, 1.0]]))
    assert what.silent.tolist() == [1, 0]


def test_restart_touches_the_named_latents_only() -> None:
    what = Dictionary(WIDTH, LATENTS, JumpReLU(threshold=0.2))
    with torch.no_grad():
        what.thresholds["log_threshold"].add_(1)
        what.encoder_bias.add_(1)
    what.silent.add_(7)
    before = {name: item.clone() for name, item in what.state_dict().items()}
    direction = torch.randn(2, WIDTH)
    what.restart(torch.tensor([3, 5]), direction)
    torch.testing.assert_close(what.decoder[[3, 5]], direction / direction.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(what.encoder[[3, 5]], what.decoder[[3, 5]])
    torch.testing.assert_close(what.thresholds["log_threshold"][[3, 5]].exp(), torch.full((2,), 0.2))
    assert what.silent[[3, 5]].tolist() == [0, 0]
    others = [i for i in range(LATENTS) if i not in (3, 5)]
    for parameter, name in ((what.decoder, "decoder"), (what.encoder_bias, "encoder_bias"), (what.silent, "silent")):
        assert torch.equal(parameter[others], before[name][others])


def test_a_saved_dictionary_comes_back(dictionary: Dictionary, tmp_path: Path) -> None:
    path = tmp_path / "dictionary.safetensors"
    dictionary.save(path)
    again = Dictionary.load(path)
    assert again.nonlinearity == dictionary.nonlinearity
    assert not again.training
    x = rows()
    assert torch.equal(again.decode(again.encode(x).z), dictionary.decode(dictionary.encode(x).z))
    assert torch.equal(again.directions, dictionary.directions)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(ValueError, match=r"no snapshot at .*other"):
        Dictionary.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"other.* no complete safetensors"):
        Dictionary.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"other.* no snapshot written by innerspace"):
        Dictionary.load(path)
    save_state(path, {"step": 3, "weights": {}})
    with pytest.raises(ValueError, match=r"other.* holds no dictionary but step, weights"):
        Dictionary.load(path)


def test_rows_that_left_the_sphere_are_not_saved(tmp_path: Path) -> None:
    what = Dictionary(WIDTH, LATENTS, ReLU())
    with torch.no_grad():
        what.decoder[0] *= 2
    with pytest.raises(ValueError, match=r"norms 1 … 2, not 1; call retract"):
        what.save(tmp_path / "dictionary.safetensors")


def test_bad_input_is_named() -> None:
    what = Dictionary(WIDTH, LATENTS, ReLU())
    with pytest.raises(ValueError, match="have width 5, the dictionary reads width 6"):
        what.encode(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="have 5 entries, the dictionary has 16 latents"):
        what.decode(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="at most the number of latents, 16; it is 17"):
        Dictionary(WIDTH, LATENTS, TopK(k=17))
    with pytest.raises(ValueError, match="at least 1, it is 0"):
        TopK(k=0)
    with pytest.raises(ValueError, match="16 latents cannot be divided into 5 equally large groups"):
        Dictionary(WIDTH, LATENTS, GroupMax(k=5))
    with pytest.raises(ValueError, match="bandwidth should be positive, it is 0"):
        JumpReLU(bandwidth=0.0)
    with pytest.raises(ValueError, match="scale should be positive, it is 0"):
        Dictionary(WIDTH, LATENTS, ReLU(), scale=0.0)
    with pytest.raises(ValueError, match="got 6 and 0"):
        Dictionary(WIDTH, 0, ReLU())
    bad = torch.randn(10, WIDTH)
    bad[4, 2], bad[7, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="row 4 is the first of 2 that are not"):
        Dictionary.normalized_for(bad, LATENTS, ReLU())
    with pytest.raises(ValueError, match="these 10 are all alike"):
        Dictionary.normalized_for(torch.ones(10, WIDTH), LATENTS, ReLU())


@dataclass(frozen=True)
class Halved(Nonlinearity):
    """One class is a whole nonlinearity."""

    def activate(self, pre: Tensor, numbers: Numbers) -> Activated:
        return Activated(pre.relu() / 2, torch.zeros_like(pre))


def test_a_nonlinearity_is_one_class(tmp_path: Path) -> None:
    what = Dictionary(WIDTH, LATENTS, Halved())
    x = rows(4).float()
    torch.testing.assert_close(what.encode(x).z, what.encode(x).pre.relu() / 2)
    what.save(tmp_path / "d.safetensors")
    assert Dictionary.load(tmp_path / "d.safetensors").nonlinearity == Halved()
    for settings in (*NONLINEARITIES, Halved()):
        assert Nonlinearity.from_json(settings.to_json()) == settings
