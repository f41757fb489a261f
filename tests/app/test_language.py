"""A prompt read, steered and continued: as computed plainly, refused in words, and the same from exported code."""

import json
import runpy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from app.studied_runs import E2E, LOCAL, PARTS, SITE
from innerspace.app.held import Held
from innerspace.app.language import TEXTS, Language, LanguageView, most_changed, rounded
from innerspace.app.language_drawings import code, draw, picture
from innerspace.app.studied import Studied
from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.subspaces import Subspaces
from innerspace.interventions import At, Read, Steer, ablate, hold
from innerspace.language.text import Text
from innerspace.network.site import Where
from innerspace.steering_modes import Clamp

PROMPT = "w3 w10 w31 w34 w42"


@pytest.fixture(scope="module")
def language(language_run: Path) -> Language:
    return Language(Studied(Held.open(language_run)))


@pytest.fixture(scope="module")
def view(language: Language) -> LanguageView:
    """A latent that is on somewhere in the prompt."""
    return language.opening(LanguageView(PROMPT, LOCAL, amount=1.0, new=6))


def step_by_step(language: Language, view: LanguageView, edit: Any) -> tuple[list[int], Tensor]:
    """The likeliest tokens, each by a whole pass without a cache, and the first one's probabilities."""
    ids, first = [0, *(int(word[1:]) + 3 for word in view.prompt.split())], list[Tensor]()
    for _ in range(view.new):
        edits = {} if edit is None else {SITE: At(Where("valid", skip=1), edit)}
        with torch.no_grad():
            logits = language.studied.model.run(Text(torch.tensor([ids])), edits).output["logits"][0, -1]
        first.append(logits.softmax(-1))
        ids = [*ids, int(logits.argmax())]
    return ids, first[0]


def edits_of(language: Language, view: LanguageView) -> dict[str, tuple[LanguageView, Any]]:
    """Views, and what each writes, by hand."""
    dictionary = Dictionary.load(language.studied.run.folder / "dictionaries" / f"{LOCAL}.safetensors")
    parts = Subspaces.load(language.studied.run.folder / "subspaces" / f"{PARTS}.safetensors")
    row, part = dictionary.directions[view.part].detach(), replace(view, what=PARTS, part=1)
    other = replace(view, site="resid.1", what=E2E, part=7, way="clamp", amount=2.0)
    e2e = Dictionary.load(language.studied.run.folder / "dictionaries" / f"{E2E}.safetensors")
    return {
        "steered": (replace(view, amount=2.0), Steer(row, 2.0)),
        "clamped": (other, hold(e2e, {7: 2.0})),
        "removed": (replace(part, amount=-1.0), ablate(parts, 1)),
        "untouched": (replace(view, amount=0.0), None),
    }


@pytest.mark.parametrize("name", ["steered", "clamped", "removed", "untouched"])
def test_continuations_are_those_of_plain_passes(language: Language, view: LanguageView, name: str) -> None:
    asked, edit = edits_of(language, view)[name]
    found = language.tell(asked)
    clean, before = step_by_step(language, asked, None)
    steered, after = step_by_step(language, asked, edit)
    pieces = language.studied.pieces
    assert found.strip.pieces == tuple(pieces.of(clean))
    assert found.steered.pieces == tuple(pieces.of(steered))
    assert found.after == 6
    names = {pieces.name(token): token for token in range(63)}
    for row in found.moved:
        assert row.before == pytest.approx(float(before[names[row.token]]), abs=1e-5)
        assert row.after == pytest.approx(float(after[names[row.token]]), abs=1e-5)
    assert (name == "untouched") == (found.moved == ())
    if name != "untouched":
        change = after - before
        assert found.moved[0].after - found.moved[0].before == pytest.approx(float(change.max()), abs=1e-5)


def test_shades_are_the_codes_of_the_text(language: Language, view: LanguageView) -> None:
    found = language.tell(view)
    ids, _ = step_by_step(language, view, None)
    with torch.no_grad():
        states = language.studied.model.run(Text(torch.tensor([ids])), {SITE: Read()}).hidden[SITE][0]
    dictionary = Dictionary.load(language.studied.run.folder / "dictionaries" / f"{LOCAL}.safetensors")
    codes = dictionary.encode(states).z.detach()
    # the first token is skipped by the run
    assert found.strip.values[0] == 0
    torch.testing.assert_close(torch.tensor(found.strip.values[1:]), codes[1:, view.part])
    # the view was opened on the latent that is most on in the prompt
    assert float(codes[1:6].max()) == pytest.approx(max(found.strip.values[:6]))


def test_a_direction_between_texts_is_read_and_set_at_any_site(language: Language) -> None:
    asked = LanguageView(
        PROMPT, TEXTS, site="resid.0", way="clamp", amount=0.5, new=3, toward="w5 w6", away="w9", part=0
    )
    found = language.tell(asked)
    assert found.site == "resid.0"

    def last(words: str) -> Tensor:
        ids = [0, *(int(word[1:]) + 3 for word in words.split())]
        with torch.no_grad():
            return language.studied.model.run(Text(torch.tensor([ids])), {"resid.0": Read()}).hidden["resid.0"][0, -1]

    along = last("w5 w6") - last("w9")
    edit = At(Where("valid", skip=1), Clamp(along, low=0.5, high=0.5))
    batch = Text(torch.tensor([[0, *(int(word[1:]) + 3 for word in PROMPT.split())]]))
    with torch.no_grad():
        after = language.studied.model.run(batch, {"resid.0": edit}).output["logits"][0, -1].softmax(-1)
    names = {language.studied.pieces.name(token): token for token in range(63)}
    assert all(row.after == pytest.approx(float(after[names[row.token]]), abs=1e-5) for row in found.moved)
    assert "resid.2" in language.sites(asked)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": "  "}, "the text is empty: type some words"),
        ({"prompt": "w1 " * 150}, "the text has 449 letters; at most 400 are read here"),
        ({"prompt": "w1 hello w2 there"}, "the tokenizer knows no token for 'hello', 'there'"),
        ({"part": 48}, "there is no latent 48; resid.1-local-0 has 0 to 47"),
        ({"what": PARTS, "part": 2}, "there is no part 2; resid.1-0 has 0 to 1"),
        ({"what": "nothing"}, "there is nothing called 'nothing'; there are resid.1-local-0"),
        ({"site": "nowhere"}, "no site is called 'nowhere'; this model has embed"),
        ({"site": "heads.0"}, "can be read at embed, .*, not at 'heads.0'"),
        ({"way": "push"}, "there is no way 'push'; there are steer, clamp"),
        ({"amount": 1e9}, "the amount should lie within ±"),
        ({"new": 0}, "1 to 60 tokens can follow, not 0"),
        ({"what": TEXTS, "toward": "w1", "away": "w1"}, "the two texts should differ"),
    ],
)
def test_what_cannot_be_is_refused(language: Language, view: LanguageView, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        language.tell(replace(view, **change))


@pytest.mark.parametrize("name", ["steered", "clamped", "removed", "untouched", "texts"])
def test_exported_code_gives_the_same(
    language: Language, view: LanguageView, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = replace(view, what=TEXTS, part=0, toward="w5 w6", away="w9")
    asked = texts if name == "texts" else edits_of(language, view)[name][0]
    (tmp_path / "language.py").write_text(code(language, asked))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "language.py"))
    record = json.loads((tmp_path / "language.json").read_text())
    found = language.tell(asked)
    assert tuple(language.studied.pieces.of(record["unsteered"])) == found.strip.pieces
    assert tuple(language.studied.pieces.of(record["steered"])) == found.steered.pieces
    if found.moved:
        most = max(found.moved, key=lambda row: abs(row.after - row.before))
        assert record["changes"][0]["after"] == pytest.approx(most.after, abs=1e-5)


def test_many_at_once_get_what_each_would_alone(language: Language, view: LanguageView) -> None:
    views = [replace(view, prompt=f"w{i} w{i + 7}", amount=0.4 * (i % 4)) for i in range(12)]
    alone = [language.tell(one) for one in views]
    fresh = Language(Studied(language.studied.run))
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(fresh.tell, views))
    assert [(one.strip, one.steered, one.moved) for one in together] == [
        (one.strip, one.steered, one.moved) for one in alone
    ]


def test_drawings_hold_what_was_found(language: Language, view: LanguageView) -> None:
    shown = draw(language, view)
    assert shown.count('class="strip') == 2
    assert "steered by +1" in shown
    assert view.mark("language") in shown
    svg = picture(language, view)
    root = ElementTree.fromstring(svg)
    assert "w42" in "".join(root.itertext())
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_changes_are_in_order_and_only_changes() -> None:
    before, after = torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0]), torch.tensor([0.1, 0.4, 0.2, 0.15, 0.15])
    assert most_changed(before, after, 2) == [1, 4, 0]
    assert most_changed(before, before + 5e-5, 3) == []


def test_reaches_are_round() -> None:
    assert [rounded(value) for value in (0.11, 1.0, 3.0, 6.0)] == [0.2, 1.0, 5.0, 10.0]
