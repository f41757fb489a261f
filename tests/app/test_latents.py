"""Latents found and compared: as counted and computed plainly, refused in words, the same from exported code."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from app.studied_runs import BOTH, E2E, LOCAL, SAID, SITE
from innerspace.app.held import Held
from innerspace.app.latents import Latents, LatentsView
from innerspace.app.latents_drawings import code, draw, picture
from innerspace.app.studied import Studied
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.saved import load
from innerspace.interventions import Read
from innerspace.jobs.explain import Explain
from innerspace.language.text import Text
from walks.test_dictionaries import text


@pytest.fixture(scope="module")
def latents(language_run: Path) -> Latents:
    return Latents(Studied(Held.open(language_run)))


@pytest.fixture(scope="module")
def driven(motion_run: Path) -> Latents:
    return Latents(Studied(Held.open(motion_run)))


def dictionary(latents: Latents, name: str) -> Dictionary:
    return Dictionary.load(latents.studied.run.folder / "dictionaries" / f"{name}.safetensors")


@torch.no_grad()
def codes(latents: Latents, name: str) -> Tensor:
    """All held-out codes, by a plain loop."""
    rows = list[Tensor]()
    for batch in latents.studied.held_out():
        hidden = latents.studied.model.run(batch, {SITE: Read()}).hidden[SITE]
        # packed text, of which the first token of each sequence is skipped
        rows.append(hidden[:, 1:].reshape(-1, hidden.shape[-1]))
    return dictionary(latents, name).encode(torch.cat(rows)).z


def test_dictionaries_are_in_the_order_of_their_kinds(latents: Latents) -> None:
    assert [one.name for one in latents.dictionaries] == [LOCAL, E2E, BOTH]
    assert [one.kind for one in latents.dictionaries] == ["local", "e2e", "e2e+ds"]


def test_densities_are_counted_shares(latents: Latents) -> None:
    expected = (codes(latents, LOCAL) > 0).float().mean(0)
    torch.testing.assert_close(latents.density(LOCAL), expected)
    found = latents.search(LatentsView(LOCAL, "density", density=5.0))
    off = (expected.clamp_min(1e-9).log() - torch.tensor(0.05).log()).abs()
    off[expected == 0] = torch.inf
    assert off[found[0].latent] == off.min()
    assert all(expected[one.latent] > 0 for one in found)


def test_a_text_finds_what_is_most_on_there(latents: Latents) -> None:
    found = latents.search(LatentsView(E2E, "text", "w3 w10 w31"))
    batch = Text(torch.tensor([[0, 6, 13, 34]]))
    with torch.no_grad():
        hidden = latents.studied.model.run(batch, {SITE: Read()}).hidden[SITE][0, 1:]
    most = dictionary(latents, E2E).encode(hidden).z.amax(0).detach()
    assert found[0].latent == int(most.argmax())
    assert found[0].value == pytest.approx(float(most.max()), rel=1e-4)
    assert {one.latent for one in found} == set((most > 0).nonzero().flatten().tolist())


def test_neighbors_are_those_of_largest_cosine(latents: Latents) -> None:
    rows, alive = dictionary(latents, LOCAL).directions.detach(), latents.density(LOCAL) > 0
    latent = int(alive.nonzero()[0])
    cosine = F.cosine_similarity(rows, rows[latent][None])
    cosine[latent], cosine[~alive] = -2, -2
    found = latents.search(LatentsView(LOCAL, "similarity", latent=latent))
    assert [one.latent for one in found[:3]] == cosine.topk(3).indices.tolist()
    shown = latents.show(LatentsView(LOCAL, latent=latent))
    assert [one.kind for one in shown.members] == ["local", "e2e", "e2e+ds"]
    for saved, entry, near in list(zip(shown.members, shown.entries, shown.cosines, strict=True))[1:]:
        others = F.cosine_similarity(dictionary(latents, saved.name).directions.detach(), rows[latent][None])
        others[latents.density(saved.name) == 0] = -2
        assert entry["latent"] == int(others.argmax())
        assert near == pytest.approx(float(others.max()), abs=1e-5)


def test_a_page_tells_what_the_codes_say(latents: Latents) -> None:
    all_ = codes(latents, LOCAL)
    latent = int((all_ > 0).sum(0).argmax())
    entry = latents.show(LatentsView(LOCAL, latent=latent)).entries[0]
    assert entry["max"] == pytest.approx(float(all_[:, latent].max()), rel=1e-4)
    assert entry["density"] == pytest.approx(float((all_[:, latent] > 0).float().mean()))
    assert sum(entry["histogram"]["counts"]) == int((all_[:, latent] > 0).sum())
    example = entry["bands"][0]["examples"][0]
    assert max(example["values"]) == pytest.approx(entry["max"], rel=1e-4)


def test_a_latent_that_is_never_on_says_so(language_run: Path, tmp_path: Path) -> None:
    own = tmp_path / "run"
    shutil.copytree(language_run, own)
    what = Dictionary.load(own / "dictionaries" / f"{LOCAL}.safetensors")
    with torch.no_grad():
        what.encoder_bias[5] = -1e6
    what.save(own / "dictionaries" / f"{LOCAL}.safetensors")
    latents = Latents(Studied(Held.open(own)))
    assert latents.density(LOCAL)[5] == 0
    assert "never on at the tokens that were held out" in draw(latents, LatentsView(LOCAL, latent=5))
    assert all(one.latent != 5 for one in latents.search(LatentsView(LOCAL, "density", density=0.01)))


def test_explanations_are_searched_where_there_are_any(latents: Latents, driven: Latents) -> None:
    (found,) = latents.search(LatentsView(LOCAL, "explanation", "Seven"))
    assert (found.latent, found.words) == (3, SAID)
    assert SAID in draw(latents, LatentsView(LOCAL, latent=3))
    assert "explanation" not in driven.ways
    with pytest.raises(ValueError, match="sought by text, density, similarity, not by 'explanation'"):
        driven.search(LatentsView("topk-0", "explanation", "seven"))


def test_a_run_of_explanations_shows_the_dictionaries_that_it_explains(
    language_run: Path, place: Path, tmp_path: Path
) -> None:
    own = tmp_path / "explained"
    own.mkdir()
    Explain(text(place), SITE, folder=language_run).save(own / "job.json")
    shutil.copytree(language_run / "tokens", own / "tokens")
    shutil.copy(language_run / "report.json", own / "report.json")
    latents = Latents(Studied(Held.open(own)))
    assert [one.name for one in latents.dictionaries] == [LOCAL, E2E, BOTH]
    view = LatentsView(LOCAL, "explanation", "seven")
    assert latents.search(view)[0].words == SAID
    # the program finds the files where they are
    assert str(language_run / "dictionaries" / f"{LOCAL}.safetensors") in code(latents, latents.opening(view))


def test_words_of_agents_find_what_is_more_on_for_them(driven: Latents) -> None:
    found = driven.search(LatentsView("topk-0", "text", "Vehicle"))
    studied, sides = driven.studied, {True: list[Tensor](), False: list[Tensor]()}
    what, caption = load(studied.run.folder / "dictionaries" / "topk-0.safetensors"), studied.caption
    assert caption is not None
    for batch in studied.held_out():
        with torch.no_grad():
            hidden = studied.model.run(batch, {"agent.2": Read()}).hidden["agent.2"]
        for row in range(len(batch)):
            states = hidden[row][batch.target.valid[row]]
            sides["vehicle" in caption(batch, row)].append(what.encode(states).z.detach())
    more = torch.cat(sides[True]).mean(0) - torch.cat(sides[False]).mean(0)
    assert found[0].latent == int(more.argmax())
    assert found[0].value == pytest.approx(float(more.max()), rel=1e-3)
    with pytest.raises(ValueError, match="no held-out agent is described with 'dragon'; one of them is 'a"):
        driven.search(LatentsView("topk-0", "text", "dragon"))


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (LatentsView(LOCAL, "text", " "), "the text is empty"),
        (LatentsView(LOCAL, "text", "w1 hello"), "knows no token for 'hello'"),
        (LatentsView("other", "density"), "there is no dictionary 'other'; there are resid.1-local-0"),
        (LatentsView(LOCAL, "density", density=0.0), "a density lies above 0 and up to 100 %, not at 0"),
        (LatentsView(LOCAL, "similarity", latent=48), "there is no latent 48; resid.1-local-0 has 0 to 47"),
        (LatentsView(LOCAL, "weight"), "can be sought by text, density, similarity, explanation, not by 'weight'"),
        (LatentsView(LOCAL, "explanation", "zebra"), "of 1 explanations of resid.1-local-0 none holds 'zebra'"),
    ],
)
def test_what_cannot_be_sought_is_refused(latents: Latents, view: LatentsView, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        latents.search(view)


@pytest.mark.parametrize("of", ["latents", "driven"])
def test_exported_code_gives_the_same(
    of: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents: Any = request.getfixturevalue(of)
    view = latents.opening(LatentsView(density=20.0))
    (tmp_path / "latents.py").write_text(code(latents, view))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "latents.py"))
    shown = latents.show(view)
    for row, saved, entry, cosine in zip(
        json.loads((tmp_path / "latents.json").read_text()), shown.members, shown.entries, shown.cosines, strict=True
    ):
        assert (row["dictionary"], row["latent"]) == (saved.name, entry["latent"])
        assert row["density"] == pytest.approx(entry["density"])
        assert row["max"] == pytest.approx(entry["max"])
        assert row["cosine"] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize("of", ["latents", "driven"])
def test_pictures_need_nothing_else(of: str, request: pytest.FixtureRequest) -> None:
    latents: Any = request.getfixturevalue(of)
    view = latents.opening(LatentsView(density=20.0))
    svg = picture(latents, view)
    assert f"latent {view.latent}" in "".join(ElementTree.fromstring(svg).itertext())
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert "var(--" not in svg


def test_a_latent_that_there_is_not_is_refused(latents: Latents) -> None:
    with pytest.raises(ValueError, match="there is no latent 99"):
        latents.show(replace(LatentsView(LOCAL), latent=99))
