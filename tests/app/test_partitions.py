"""Parts and what is alike in them: as compared plainly, exchanged as by hand, refused in words, the same from code."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch.nn import functional as F

from app.studied_runs import PARTS, SITE
from innerspace.app.held import Held
from innerspace.app.studied import Studied
from innerspace.app.subspaces import Partitions, SubspacesView
from innerspace.app.subspaces_drawings import code, draw, picture
from innerspace.decompose.subspaces import Subspaces
from innerspace.harvest.store import Store
from innerspace.interventions import At, Read, patch
from innerspace.language.text import Text
from innerspace.measure.forecasts import forecast


@pytest.fixture(scope="module")
def partitions(language_run: Path) -> Partitions:
    return Partitions(Studied(Held.open(language_run)))


@pytest.fixture(scope="module")
def driven(motion_run: Path) -> Partitions:
    return Partitions(Studied(Held.open(motion_run)))


def parts_of(found: Partitions, name: str) -> Subspaces:
    return Subspaces.load(found.studied.run.folder / "subspaces" / f"{name}.safetensors").eval()


def ids(words: str) -> list[int]:
    return [0, *(int(word[1:]) + 3 for word in words.split())]


@pytest.mark.parametrize("level", [0.3, 0.9])
@pytest.mark.parametrize("text", ["", "w3 w10 w31"])
def test_preimages_are_those_of_plain_comparison(partitions: Partitions, level: float, text: str) -> None:
    view = SubspacesView(PARTS, part=1, state=-1 if text else 40, text=text, cosine=level)
    found, what = partitions.find(view), parts_of(partitions, PARTS)
    store = Store.open(partitions.studied.run.folder / "states_held_out")
    every = torch.arange(len(store))
    states, document = store.rows(SITE, every), store.places(every).document
    with torch.no_grad():
        if text:
            batch = Text(torch.tensor([ids(text)]))
            query = partitions.studied.model.run(batch, {SITE: Read()}).hidden[SITE][0, -1:]
            allowed = torch.ones(len(states), dtype=torch.bool)
        else:
            query, allowed = states[40:41], document != document[40]
        z, q = what.encode(states).z[:, what.parts[1]], what.encode(query).z[:, what.parts[1]]
    cosine, whole = F.cosine_similarity(z, q), F.cosine_similarity(states, query)
    own = found.preimages.parts[0][1]
    assert own.within["cosine"][0] == int(((cosine >= level) & allowed).sum())
    close = own.sample.cosine >= level
    torch.testing.assert_close(own.sample.cosine[close], cosine[own.sample.row[close]], atol=1e-5, rtol=0)
    nearest = whole.where(allowed, -2).topk(3)
    torch.testing.assert_close(found.preimages.whole[0].cosine[:3], nearest.values, atol=1e-5, rtol=0)


def test_a_part_is_exchanged_as_by_hand(partitions: Partitions) -> None:
    view = SubspacesView(PARTS, part=1, text="w3 w10 w31", other="w7 w40")
    found, what, model = partitions.exchange(view), parts_of(partitions, PARTS), partitions.studied.model
    assert found is not None
    clean, other = Text(torch.tensor([ids("w3 w10 w31")])), Text(torch.tensor([ids("w7 w40")]))
    last = torch.tensor([[False, False, False, True]])
    with torch.no_grad():
        source = model.run(other, {SITE: Read()}).hidden[SITE][:, -1:].expand(1, 4, -1)
        before = model.run(clean).output["logits"][0, -1].softmax(-1)
        part = model.run(clean, {SITE: At(last, patch(what, 1, source))}).output["logits"][0, -1].softmax(-1)
        both = model.run(clean, {SITE: At(last, patch(what, (0, 1), source))}).output["logits"][0, -1].softmax(-1)
    names = {partitions.studied.pieces.name(token): token for token in range(63)}
    for rows, after in ((found.part, part), (found.whole, both)):
        assert rows
        for row in rows:
            assert row.before == pytest.approx(float(before[names[row.token]]), abs=1e-5)
            assert row.after == pytest.approx(float(after[names[row.token]]), abs=1e-5)
    assert partitions.exchange(replace(view, other="")) is None


def test_agents_are_exchanged_as_by_hand(driven: Partitions) -> None:
    rows = [row for _, row in driven.queries()]
    view = SubspacesView("agent.2-0", part=0, state=rows[0], other=str(rows[-1]))
    found, what, model = driven.exchange(view), parts_of(driven, "agent.2-0"), driven.studied.model
    assert found is not None
    store = Store.open(driven.studied.run.folder / "states_held_out")
    sample = store.places(torch.tensor([rows[0], rows[-1]])).sample.tolist()
    agents = driven.studied.scenes().test
    clean, other = (agents[slice(i, i + 1)] for i in sample)
    with torch.no_grad():
        source = model.run(other, {"agent.2": Read()}).hidden["agent.2"]
        edit = At(clean.target.valid & other.target.valid, patch(what, 0, source))
        part = forecast(model.run(clean, {"agent.2": edit}).output).most_likely()[0]
        plain = forecast(model.run(clean).output).most_likely()[0]
    torch.testing.assert_close(found.paths[0], plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.paths[1], part, atol=1e-4, rtol=1e-4)
    assert (found.paths[0] - found.paths[1]).abs().max() > 1e-4
    assert 'class="mode best hue-0"' in draw(driven, view)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"partition": "other"}, "there is no partition 'other'|nothing called 'other'"),
        ({"part": 2}, "there is no part 2; resid.1-0 has 0 to 1"),
        ({"state": 10**6}, "there is no held-out state 1000000; there are 0 to"),
        ({"cosine": 1.0}, "the cosine lies between −1 and 1, not at 1"),
        ({"text": "w1 hello"}, "knows no token for 'hello'"),
        ({"text": "w1 " * 201}, "the text has 602 letters; at most 400"),
    ],
)
def test_what_cannot_be_sought_is_refused(partitions: Partitions, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        partitions.find(replace(SubspacesView(PARTS, state=3), **change))


def test_a_forecaster_reads_no_text(driven: Partitions) -> None:
    with pytest.raises(ValueError, match="a forecaster reads no text"):
        driven.find(SubspacesView("agent.2-0", text="left"))
    with pytest.raises(ValueError, match="should be the number of a held-out state, not 'left'"):
        driven.exchange(SubspacesView("agent.2-0", state=3, other="left"))


@pytest.mark.parametrize("text", ["", "w3 w10 w31"])
def test_exported_code_gives_the_same(
    partitions: Partitions, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = SubspacesView(PARTS, part=1, state=-1 if text else 40, text=text, cosine=0.3, other="w7 w40")
    record = executed(partitions, view, tmp_path, monkeypatch)
    found, changed = partitions.find(view), partitions.exchange(view)
    assert changed is not None
    own = found.preimages.parts[0][1]
    assert record["within"] == own.within["cosine"][0]
    assert record["sample"]["row"] == own.sample.row.tolist()
    assert record["whole"]["row"] == found.preimages.whole[0].row.tolist()
    most = changed.part[0]
    assert max(record["change"]) == pytest.approx(most.after - most.before, abs=1e-5)


def test_exported_code_of_a_forecaster_gives_the_same(
    driven: Partitions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for _, row in driven.queries()]
    view = SubspacesView("agent.2-0", part=1, state=rows[0], other=str(rows[-1]))
    record, changed = executed(driven, view, tmp_path, monkeypatch), driven.exchange(view)
    assert changed is not None
    torch.testing.assert_close(torch.tensor(record["after"]), changed.paths[1], atol=1e-4, rtol=1e-4)


def executed(found: Partitions, view: SubspacesView, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the exported program writes."""
    (folder / "subspaces_code.py").write_text(code(found, view))
    monkeypatch.chdir(folder)
    runpy.run_path(str(folder / "subspaces_code.py"))
    return json.loads((folder / "subspaces.json").read_text())


@pytest.mark.parametrize("of", ["partitions", "driven"])
def test_pictures_need_nothing_else(of: str, request: pytest.FixtureRequest) -> None:
    found: Any = request.getfixturevalue(of)
    view = found.opening(SubspacesView(cosine=0.3))
    view = replace(view, other=str(found.queries()[-1][1]) if of == "driven" else "w7 w40")
    svg = picture(found, view)
    assert "Nearest in the whole space" in "".join(ElementTree.fromstring(svg).itertext())
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert "var(--" not in svg


def test_a_run_that_is_gone_is_told(language_run: Path, tmp_path: Path) -> None:
    own = tmp_path / "run"
    shutil.copytree(language_run, own)
    found = Partitions(Studied(Held.open(own)))
    view = found.opening(SubspacesView())
    shutil.rmtree(own)
    with pytest.raises(ValueError, match="is gone; put it back"):
        found.find(view)
