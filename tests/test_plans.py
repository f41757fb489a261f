"""Saved plans: the same interventions come back, in what they do, for the model they were saved for alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from families import CASES
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.directions import Directions, Origin
from innerspace.decompose.nonlinearities import ReLU
from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import At, Fix, Read, Splice, Steer, Write, ablate, hold, patch
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.plans import load_plan, save_plan
from innerspace.steering_modes import Clamp, KeepNorm, Limit, Rotate, RotateIn


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(name="model")
def _model() -> tuple[Model, Any]:
    case = CASES["redmotion"]()
    return case.model, case.batch


def plan(model: Model) -> dict[str, list[Any]]:
    site = next(iter(model.sites.values()))
    width = site.width
    dictionary = Dictionary(width, 12, ReLU(), seed=3).eval()
    vectors = Directions(randn(2, width), torch.ones(2), [Origin("a", "x", "y"), Origin("b", "x", "y")])
    halves = Subspaces.random(width, [width - 2, 2], torch.Generator().manual_seed(2))
    last = list(model.sites)[-1]
    return {
        site.name: [
            At(Where("last"), Steer(vectors, torch.tensor([0.3, -0.2]))),
            At(Where("valid"), hold(dictionary, {2: 1.5, 7: 0.0})),
            At(Where("valid"), Splice(dictionary)),
            ablate(halves, 1),
        ],
        last: [Steer(randn(width, seed=5), 0.7), At(Where("valid", skip=1), Fix(randn(width, seed=6)))],
    }


def test_a_plan_comes_back_as_it_was(model: tuple[Model, Any], tmp_path: Path) -> None:
    network, batch = model
    before = plan(network)
    save_plan(tmp_path / "plan", before, network)
    after = load_plan(tmp_path / "plan", network)
    one, two, plain = network.run(batch, before), network.run(batch, after), network.run(batch)
    for name, tensor in one.output.items():
        # a rotation is made orthogonal anew when it is read
        assert torch.allclose(tensor, two.output[name], atol=1e-5)
        assert not torch.allclose(tensor, plain.output[name], atol=1e-2)
    assert list(after) == list(before)
    # what two interventions share is saved once
    assert sorted(path.name for path in (tmp_path / "plan").glob("decomposition.*.safetensors")) == [
        f"decomposition.{i}.safetensors" for i in range(3)
    ]


def test_patches_and_other_ways_to_steer_come_back(model: tuple[Model, Any], tmp_path: Path) -> None:
    network, batch = model
    site = next(iter(network.sites.values()))
    hidden = network.run(batch, {site.name: Read()}).hidden[site.name]
    vectors = Directions(randn(2, site.width), torch.ones(2), [Origin("a", "x", "y"), Origin("b", "x", "y")])
    halves = Subspaces.identity(site.width, [site.width - 2, 2])
    before = {
        site.name: [
            patch(halves, (1, 0), randn(*hidden.shape, seed=4)),
            Limit(KeepNorm(Steer(vectors, 0.5)), 0.4),
            At(Where("valid"), Rotate(vectors, torch.tensor([0.3, -0.2]))),
            RotateIn(randn(2, site.width, seed=8), 0.4, absolute=True),
            Clamp(randn(site.width, seed=9), high=0.1),
        ]
    }
    save_plan(tmp_path, before, network)
    one, two = network.run(batch, before), network.run(batch, load_plan(tmp_path, network))
    assert all(torch.equal(tensor, two.output[name]) for name, tensor in one.output.items())
    assert not torch.equal(one.output["trajectory"], network.run(batch).output["trajectory"])


def test_a_mask_of_positions_is_kept(model: tuple[Model, Any], tmp_path: Path) -> None:
    network, batch = model
    site = next(iter(network.sites))
    hidden = network.run(batch, {site: Read()}).hidden[site]
    mask = torch.zeros(hidden.shape[:-1], dtype=torch.bool)
    mask[:, -1] = True
    save_plan(tmp_path, {site: [At(mask, Steer(randn(hidden.shape[-1]), 1.0))]}, network)
    (found,) = load_plan(tmp_path, network)[site]
    assert isinstance(found, At)
    assert torch.equal(found.where, mask)


def test_another_model_is_refused(model: tuple[Model, Any], tmp_path: Path) -> None:
    network, _ = model
    save_plan(tmp_path, plan(network), network)
    with torch.no_grad():
        next(network.module.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match=r"was saved for model \w+, this is \w+"):
        load_plan(tmp_path, network)


def test_what_cannot_be_saved_is_refused_before_anything_is_written(model: tuple[Model, Any], tmp_path: Path) -> None:
    network, _ = model
    site = next(iter(network.sites.values()))
    halves = Subspaces.identity(site.width, [site.width - 2, 2])
    folder = tmp_path / "plan"

    cases = {
        "a Read cannot be saved": Read(),
        "a rule that is a function": Write(halves, 0, lambda z, _: 2 * z),
    }
    for words, do in cases.items():
        with pytest.raises(ValueError, match=words):
            save_plan(folder, {site.name: [At(Where("valid"), do)]}, network)
    with pytest.raises(ValueError, match="no site is called 'nowhere'"):
        save_plan(folder, {"nowhere": [Steer(randn(site.width), 1.0)]}, network)
    assert not folder.exists()


def test_damaged_plans_are_refused(model: tuple[Model, Any], tmp_path: Path) -> None:
    network, _ = model
    save_plan(tmp_path, plan(network), network)
    path = tmp_path / "plan.json"
    record = json.loads(path.read_text())
    site = next(iter(record["sites"]))

    def changed(**fields: Any) -> None:
        path.write_text(json.dumps(record | fields))

    changed(format="a plan of somebody else")
    with pytest.raises(ValueError, match="'a plan of somebody else', not 'innerspace plan 2'"):
        load_plan(tmp_path, network)
    changed(sites={site: [{"class": "Erase"}]})
    with pytest.raises(ValueError, match="unknown intervention 'Erase'"):
        load_plan(tmp_path, network)
    changed(sites={site: ["Erase"]})
    with pytest.raises(ValueError, match="holds 'Erase' where an intervention is described"):
        load_plan(tmp_path, network)
    changed(sites={site: [{"class": "Fix", "by": 1.0}]})
    with pytest.raises(ValueError, match=r"other fields of Fix than it has: \['by'\]"):
        load_plan(tmp_path, network)
    changed(sites={site: [{"class": "RotateIn", "plane": 1.0, "by": 1.0, "absolute": False}]})
    with pytest.raises(ValueError, match="describes no RotateIn"):
        load_plan(tmp_path, network)
    changed(sites={site: [{"class": "Fix", "to": {"tensor": "tensor.99"}}]})
    with pytest.raises(ValueError, match=r"lacks 'tensor.99'"):
        load_plan(tmp_path, network)
    changed(sites={site: [{"class": "Splice", "via": {"decomposition": "../elsewhere"}}]})
    with pytest.raises(ValueError, match="no file of its own"):
        load_plan(tmp_path, network)
    (tmp_path / "tensors.safetensors").unlink()
    with pytest.raises(ValueError, match="no snapshot at"):
        load_plan(tmp_path, network)
