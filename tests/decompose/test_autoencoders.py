"""What holds for every autoencoder: the laws of decompositions, exact files, any batch, gradients as they should be."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from decompose.autoencoders import CASES, LATENTS, WIDTH, states
from innerspace.checkpoint import save_state
from innerspace.decompose.autoencoder import Autoencoder, SparseAutoencoder
from innerspace.decompose.convolutional import Convolutional
from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import ReLU
from innerspace.decompose.saved import load
from innerspace.decompose.sequence import Sequencewise
from innerspace.decompose.sparse import Sparse


@pytest.fixture(params=CASES, name="what")
def _what(request: pytest.FixtureRequest) -> Autoencoder:
    return CASES[request.param]()


def codes(*shape: int) -> Tensor:
    return torch.randn(*shape, LATENTS, dtype=torch.float64)


def test_decode_is_affine_and_lift_is_its_linear_part(what: Autoencoder) -> None:
    z, dz = codes(2, 5), codes(2, 5)
    torch.testing.assert_close(what.decode(z + dz) - what.decode(z), what.lift(dz))
    lifted = what.lift(dz).flatten(2) if isinstance(what, Sequencewise) else what.lift(dz)
    torch.testing.assert_close(lifted, dz @ what.directions)
    assert what.lift(torch.zeros_like(dz)).count_nonzero() == 0
    assert what.decode(z)[0, 0].shape == states(what, 1)[0].shape[-what.decode(z)[0, 0].ndim :]


def test_parts_cover_the_coordinates_once(what: Autoencoder) -> None:
    assert [i for part in what.parts for i in range(LATENTS)[part]] == list(range(LATENTS))


def test_a_code_is_kept_by_decoding_in_either_form(what: Autoencoder) -> None:
    dense = codes(7) * (codes(7) > 0)
    wide = Dictionary(WIDTH, LATENTS, ReLU()).double()
    with torch.no_grad():
        wide.encoder.copy_(torch.randn_like(wide.encoder))
    kept = wide.encode_sparse(torch.randn(7, WIDTH, dtype=torch.float64)).z
    assert isinstance(kept, Sparse)
    torch.testing.assert_close(what.decode(kept), what.decode(kept.dense()))
    torch.testing.assert_close(what.decode_held(dense), what.decode(dense))


def test_files_hold_everything(what: Autoencoder, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    what.save(path)
    x = states(what, 5)
    for again in (load(path), type(what).load(path)):
        assert type(again) is type(what)
        assert again.settings == what.settings
        assert not again.training
        for one, other in zip(again.encode(x), what.encode(x), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(again.decode(again.encode(x).z), what.decode(what.encode(x).z))
        assert torch.equal(again.directions, what.directions)


def test_codes_do_not_depend_on_the_batch_nor_on_its_arrangement(what: Autoencoder) -> None:
    x = states(what, 6)
    whole = what.encode(x)
    for one, other in zip(what.encode(x.unflatten(0, (2, 3))), whole, strict=True):
        torch.testing.assert_close(one.flatten(0, 1), other)
    for size in (1, 2, 5):
        torch.testing.assert_close(torch.cat([what.encode(part).z for part in x.split(size)]), whole.z)
    torch.testing.assert_close(what.encode(x[2]).cost, whole.cost[2])
    assert 0 < whole.z.count_nonzero()


def test_gradients_are_those_of_finite_differences_away_from_jumps(what: Autoencoder) -> None:
    x = states(what, 2)
    # thresholds have straight-through gradients, and operators take no part in a reconstruction
    left_out = ("thresholds", "ahead", "back")
    parameters = [item for name, item in what.named_parameters() if not name.startswith(left_out)]

    def reconstruct(*_: Tensor) -> Tensor:
        return what.decode(what.encode(x).z)

    assert torch.autograd.gradcheck(reconstruct, parameters, fast_mode=True)
    inputs = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda own: what.decode(what.encode(own).z), inputs, fast_mode=True)


def test_unit_rows_stay_on_the_sphere(what: Autoencoder, tmp_path: Path) -> None:
    if not isinstance(what, SparseAutoencoder):
        return
    what.decode(codes(9)).sin().sum().backward()
    what.project_gradient()
    gradient = what.decoder.grad
    assert gradient is not None
    assert (gradient * what.decoder).sum(-1).abs().max() < 1e-10 < gradient.abs().max()
    with torch.no_grad():
        what.decoder.mul_(2)
    with pytest.raises(ValueError, match="norms 2 … 2, not 1; call retract"):
        what.save(tmp_path / "some.safetensors")
    what.retract()
    torch.testing.assert_close(what.decoder.norm(dim=-1), torch.ones_like(what.decoder[:, 0]))


def test_silence_is_counted_in_training_only(what: Autoencoder) -> None:
    if not isinstance(what, SparseAutoencoder):
        return
    x = states(what, 9)
    before = what.silent.clone()
    what.encode(x)
    assert torch.equal(what.silent, before)
    code = what.train().encode(x)
    fired = code.z.flatten(0, -2).any(0)
    rows = code.cost.numel()
    assert torch.equal(what.silent, torch.where(fired, 0, before + rows))


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(ValueError, match=r"no snapshot at .*other"):
        load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"other.* no snapshot written by innerspace"):
        load(path)
    save_state(path, {"kind": "Pickle", "weights": {}})
    with pytest.raises(ValueError, match=r"holds none of Dictionary, .*Koopman, Directions, Subspaces but Pickle"):
        load(path)
    Dictionary(WIDTH, LATENTS, ReLU()).save(path)
    with pytest.raises(ValueError, match="holds no convolutional but Dictionary"):
        Convolutional.load(path)


def test_what_cannot_be_is_refused(what: Autoencoder) -> None:
    with pytest.raises(ValueError, match=f"have width 5, the dictionary reads width {WIDTH}"):
        what.encode(states(what, 3)[..., :5])
    with pytest.raises(ValueError, match=f"have 5 entries, the dictionary has {LATENTS} latents"):
        what.decode(codes(3)[:, :5])
    with pytest.raises(ValueError, match="reads width 6, the hidden states at 'here' have 7"):
        what.check("network", "here", 7)


def test_forms_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot begin in a way of its own, 'kaiming'"):
        Form(tied=True, first="kaiming")
    with pytest.raises(ValueError, match="none to subtract before encoding"):
        Form(bias=False)
