"""What a notebook and a terminal show of objects: true numbers, nothing from outside, ink of the surroundings."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import innerspace as ins
from families import CASES
from innerspace.decompose.base import Home
from innerspace.decompose.nonlinearities import TopK
from innerspace.learn.fit import Fit
from innerspace.measure.estimate import Estimate
from innerspace.measure.steering import Response, calibrate
from innerspace.report.views import View, view


def directions() -> ins.Directions:
    origins = [ins.Origin("speed", "fast", "slow", "lda", "agent.2"), ins.Origin("<turn>", "left", "right")]
    return ins.Directions(torch.tensor([[1.0, 0, 0], [1.0, 1.0, 0]]), torch.tensor([2.0, 3.0]), origins)


def response() -> Response:
    tau = torch.linspace(-2, 2, 9)
    noise = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    return Response(tau, 10 + tau[:, None] * 3 + 0.1 * noise, torch.arange(30) // 2)


def items() -> dict[str, object]:
    case = CASES["blocks"]()
    return {
        "model": case.model,
        "trace": case.model.run(case.batch, {"first": ins.Read()}),
        "directions": directions(),
        "dictionary": ins.Dictionary(4, 16, TopK(3), home=Home("abc", "agent.1")),
        "subspaces": ins.Subspaces.identity(5, [3, 2]),
        "curve": calibrate(response(), kind="difference", replicates=20),
    }


def shown(item: object) -> ElementTree.Element:
    html = view(item)._repr_html_()
    assert "http" not in html
    assert "<script" not in html
    return ElementTree.fromstring(html)


@pytest.mark.parametrize("name", items())
def test_every_view_is_well_formed_and_takes_the_ink_of_its_page(name: str) -> None:
    html = view(items()[name])._repr_html_()
    root = ElementTree.fromstring(html)
    assert root.get("class") == "ins-view"
    assert root.findall(".//td")
    # neither ink nor paper of its own: what is tinted lets the page through
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert set(re.findall(r"[{ ;](?:color|background): ?([^;} ]+)", style[1])) == {"inherit", "none"}


def cells(root: ElementTree.Element) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in root.findall(".//tbody/tr")]


def test_a_model_shows_its_sites() -> None:
    model = CASES["blocks"]().model
    assert cells(shown(model)) == [
        [site.name, str(site.width), site.axes, f"{site.io} of {site.module}"] for site in model.sites.values()
    ]
    assert str(model.site("second.in")) == "second.in: input of second, [batch token d] of width 8"


def test_directions_show_gaps_and_angles() -> None:
    assert [row[4:] for row in cells(shown(directions()))] == [["2.00", "0", "45"], ["3.00", "45", "0"]]
    tints = re.findall(r"rgba\(59,142,208,([\d.]+)\)", view(directions()).html)
    assert tints == ["0.55", "0.39", "0.39", "0.55"]
    assert "<turn>" in cells(shown(directions()))[1][0]


def test_a_dictionary_says_what_it_is() -> None:
    dictionary = items()["dictionary"]
    assert isinstance(dictionary, ins.Dictionary)
    assert "16 latents of width 4, of 'agent.1', TopK" in repr(dictionary)
    assert "silent" not in repr(dictionary)
    dictionary.train().encode(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    on = int((dictionary.silent == 0).sum())
    assert 3 <= on <= 6
    assert "longest silent for 2 rows" in repr(dictionary)
    assert ["latents on in the last batch seen in training", str(on)] in cells(shown(dictionary))


def test_subspaces_and_curves() -> None:
    assert cells(shown(ins.Subspaces.identity(5, [3, 2]))) == [["0", "3", "60.0 %"], ["1", "2", "40.0 %"]]
    curve = calibrate(response(), kind="difference", replicates=20)
    root = shown(curve)
    assert len(root.findall(".//circle")) == 9
    assert cells(root)[0] == ["slope", str(curve.slope)]
    assert str(curve).startswith("Curve(9 τ from -2 to 2, slope 2.99")


def test_terminals_see_shapes_and_not_numbers() -> None:
    case = CASES["blocks"]()
    trace = case.model.run(case.batch, {"first": ins.Read()})
    assert repr(trace) == "Trace(output: y [4, 5, 2]; hidden: first [4, 5, 8])"
    assert repr(ins.Trace()) == "Trace(empty)"
    assert repr(response()) == "Response(9 τ from -2 to 2, 30 samples in 15 groups)"
    assert str(Estimate(0.12341, 0.1, 0.2)) == "0.1234 (0.1 to 0.2)"
    assert str(Estimate(2.0)) == "2"
    fitted = Fit(ins.Dictionary(4, 16, TopK(3)), [{"step": 10, "loss": 0.5, "student": "a"}], 1.25)
    assert repr(fitted) == "Fit(Dictionary, 1.2 s, 1 records; last: step 10, loss 0.5)"
    assert repr(view(trace)) == repr(trace)


def test_what_has_no_view_is_refused() -> None:
    with pytest.raises(ValueError, match="no view of a int; there are views of a Model, Trace, Directions"):
        view(3)


def test_one_pair_saves_and_loads_every_decomposition(tmp_path: Path) -> None:
    for name in ("directions", "dictionary", "subspaces"):
        item = items()[name]
        assert isinstance(item, ins.Decomposition)
        path = str(tmp_path / f"{name}.safetensors")
        item.save(path)  # pyright: ignore[reportAttributeAccessIssue]
        found = ins.load(path)
        assert type(found) is type(item)
        assert not found.training
        x = torch.randn(7, item.directions.shape[1])
        torch.testing.assert_close(found.encode(x).z, item.eval().encode(x).z, rtol=0, atol=1e-6)
        assert isinstance(view(found), View)


def test_what_is_no_decomposition_is_refused(tmp_path: Path) -> None:
    from innerspace.checkpoint import save_state
    from innerspace.decompose.saved import load_autoencoder

    path = tmp_path / "other.safetensors"
    save_state(path, {"format": "something else 1"})
    with pytest.raises(ValueError, match=r"holds none of Dictionary, .*, Directions, Subspaces but something else 1"):
        ins.load(path)
    directions().save(path)
    with pytest.raises(ValueError, match="holds Directions, not one of Dictionary"):
        load_autoencoder(path)
    with pytest.raises(ValueError, match="no snapshot at"):
        ins.load(tmp_path / "missing")
