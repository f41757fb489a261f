from pathlib import Path

import pytest
import torch

from innerspace.interventions import Read
from innerspace.network.model import Model
from innerspace.planted.copying import (
    Copier,
    CopierFamily,
    Copies,
    CopyingSettings,
    copying_accuracy,
    draw_copies,
    train_copier,
)

SETTINGS = CopyingSettings(symbols=8, length=12, width=32, steps=500, batch_size=32)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    return Model(train_copier(SETTINGS), CopierFamily())


def drawn(count: int = 200, seed: int = 5) -> Copies:
    return draw_copies(SETTINGS, count, torch.Generator().manual_seed(seed))


def test_labels_of_one_input() -> None:
    batch = Copies(torch.tensor([[4, 2, 0, 1, 2, 0]]), torch.tensor([3]))
    assert {name: row[0].tolist() for name, row in batch.labels().items()} == {
        "token": [-1, 2, 0, 1, 2, 0],
        "previous": [-1, -1, 2, 0, 1, 2],
        "position": [-1, 0, 1, 2, 3, 4],
        "copied": [-1, 0, 0, 0, 1, 1],
        "next": [-1, -1, -1, 2, 0, -1],
    }


def test_inputs_repeat_themselves_with_a_period_of_their_own() -> None:
    batch = drawn()
    assert set(batch.period.tolist()) == {4, 5, 6, 7, 8}
    for ids, period in zip(batch.ids[:, 1:], batch.period.tolist(), strict=True):
        assert len(set(ids[:period].tolist())) == period
        assert torch.equal(ids[period:], ids[:-period])


def test_copies_are_learned(model: Model) -> None:
    batch = drawn()
    assert copying_accuracy(model.run(batch).output["logits"].detach(), batch) >= 0.99


def test_the_second_layer_reads_the_token_before_from_the_first(model: Model) -> None:
    """With the tokens before exchanged in the stream, what is copied is what follows in the other input."""
    batch = drawn()
    swapped = draw_copies(SETTINGS, 200, torch.Generator().manual_seed(6))
    clean = model.run(batch, {"resid.0": Read()})
    other = model.run(swapped, {"resid.0": Read()}).hidden["resid.0"]
    assert copying_accuracy(model.resume(batch, "resid.0", other).output["logits"].detach(), swapped) >= 0.99

    # each position but the last goes on as it was: only what the first layer brings to the keys is taken away
    embedded = model.run(batch, {"embed": Read()}).hidden["embed"]
    without = clean.hidden["resid.0"].clone()
    without[:, :-2] = embedded[:, :-2]
    known = batch.labels()["next"][:, -2]
    logits = model.resume(batch, "resid.0", without).output["logits"][:, -2].detach()
    assert (logits.argmax(-1) == known).float().mean() < 0.5
    assert (clean.output["logits"][:, -2].argmax(-1) == known).float().mean() >= 0.98


def test_a_pass_goes_on_from_every_site(model: Model) -> None:
    batch = drawn(10)
    clean = model.run(batch, {site: Read() for site in model.sites})
    assert list(model.sites) == ["embed", "resid.0", "resid.1"]
    for site in model.sites:
        resumed = model.resume(batch, site, clean.hidden[site]).output["logits"]
        torch.testing.assert_close(resumed, clean.output["logits"])
        assert not model.family.mask(batch, model.site(site))[:, 0].any()


def test_the_same_settings_give_the_same_network_and_it_is_kept(tmp_path: Path) -> None:
    short = CopyingSettings(symbols=8, length=12, steps=3)
    one, other = train_copier(short), train_copier(short)
    one.save(tmp_path / "copier.safetensors")
    again = Copier.load(tmp_path / "copier.safetensors")
    assert again.settings == short
    prints = {Model(network, CopierFamily()).fingerprint() for network in (one, other, again)}
    assert len(prints) == 1
    with pytest.raises(ValueError, match="no snapshot at"):
        Copier.load(tmp_path / "other.safetensors")


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide width 32"):
        CopyingSettings(heads=3)
    with pytest.raises(ValueError, match="4 … 15, not 16"):
        CopyingSettings(length=16)
