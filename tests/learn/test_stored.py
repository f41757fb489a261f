"""A dictionary learns from hidden states on disk what it learns from a running network, and goes on where it stood."""

from pathlib import Path

import pytest
import torch

from families import CASES
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import TopK
from innerspace.harvest.store import Store, write_store
from innerspace.learn.fit import FitConfig, fit
from innerspace.learn.objectives import Reconstruction
from innerspace.learn.trials import stored
from innerspace.network.site import Where
from innerspace.parallel import Share


@pytest.fixture
def store(tmp_path: Path) -> Store:
    case = CASES["gpt2"]()
    return write_store(case.model, [case.batch] * 3, ["resid.1"], Where("valid"), tmp_path / "store")


def test_training_on_a_store_explains_its_rows(store: Store) -> None:
    mean, variance = store.moments("resid.1")
    what = Dictionary(len(mean), 64, TopK(4), mean=mean.float(), scale=float(variance.sqrt()))
    stream = stored(store, "resid.1", 16, seed=0)
    found = fit(what, stream, (Reconstruction(),), FitConfig(steps=150, rate=1e-2, log_every=50))
    assert found.history[-1]["reconstruction"] < 0.2


def test_the_stream_goes_on_and_is_shared_out(store: Store) -> None:
    what = Dictionary(32, 64, TopK(4))
    whole = stored(store, "resid.1", 8, seed=3)
    whole.draw()
    other = stored(store, "resid.1", 8, seed=3)
    other.restore(whole.state())
    halves = [stored(store, "resid.1", 8, seed=3, share=Share(rank, 2)) for rank in (0, 1)]
    for half in halves:
        half.draw()
    for _ in range(5):
        clean = whole.draw().trial(what).clean
        assert torch.equal(clean, other.draw().trial(what).clean)
        parts = [half.draw().trial(what).clean for half in halves]
        assert torch.equal(clean[0::2], parts[0])
        assert torch.equal(clean[1::2], parts[1])
    with pytest.raises(ValueError, match="rows alone do not tell output"):
        whole.draw({"output"})
    with pytest.raises(ValueError, match=r"has no site 'resid.0'; it has resid.1"):
        stored(store, "resid.0", 8, seed=3)
