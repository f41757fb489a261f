"""Sections on features and geometry: drawn fairly, told truly, and of the form that the page reads."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from families import blocks
from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import ReLU, TopK
from innerspace.interventions import Read, Steer
from innerspace.jobs.dictionaries.features import Member, features_section, geometry_section
from innerspace.language.causal_lm import CausalLM, load, tokenize
from innerspace.language.pieces import Pieces
from innerspace.language.text import Text
from innerspace.measure import feature_map
from innerspace.measure.activations import Selection, frequencies
from innerspace.measure.direct_path import DirectPath
from innerspace.network.model import Model
from innerspace.network.site import Where
from innerspace.report.page import render
from language.tiny import decoder, text

pytest.importorskip("jinja2", reason="the page needs the extra 'report'")


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(decoder("llama"), CausalLM())


@pytest.fixture(scope="module")
def batches() -> list[Text]:
    return [text(rows=12, length=25), text("left", rows=6, length=14)]


def member(name: str, kind: str = "local", seed: int = 0, latents: int = 40, **others: Any) -> Member:
    made = Dictionary(32, latents, ReLU(), seed=others.pop("draw", sum(map(ord, name)))).eval()
    fields = {"site": "resid.1", "coefficient": None, "alive": torch.ones(latents, dtype=torch.bool)} | others
    return Member(name=name, kind=kind, seed=seed, dictionary=made, **fields)


def of_rows(rows: Tensor, **fields: Any) -> Member:
    """A dictionary of given directions."""
    found = member(latents=len(rows), draw=0, **fields)
    found.dictionary.load_state_dict(found.dictionary.state_dict() | {"decoder": F.normalize(rows, dim=1)})
    return found


def rows(n: int, seed: int, d: int = 32) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_a_latent_that_knows_a_token_is_shown_at_that_token(model: Model, batches: list[Text]) -> None:
    embeddings = model.module.get_input_embeddings().weight.detach()  # pyright: ignore
    directions = F.normalize(embeddings - embeddings.mean(0), dim=1)[[7, 50, 99]]
    bias = -(directions @ embeddings.T).topk(2).values.mean(1)
    made = Dictionary(32, 3, ReLU(), form=Form(pre_bias=False)).eval()
    made.load_state_dict(made.state_dict() | {"encoder": directions, "encoder_bias": bias, "decoder": directions})
    knowing = Member("tokens", "local", 3.0, 0, "embed", made, torch.tensor([True, True, True]))
    section = features_section(model, iter(batches), [knowing], count=5)
    valid = torch.cat([batches[0].ids.flatten(), batches[1].ids[batches[1].valid]])
    assert sorted(entry["latent"] for entry in section["entries"]) == [0, 1, 2]
    for entry in section["entries"]:
        token = [7, 50, 99][entry["latent"]]
        assert entry["density"] == pytest.approx(float((valid == token).double().mean()))
        examples = [example for band in entry["bands"] for example in band["examples"]]
        assert len(examples) >= 3
        for example in examples:
            lit = {name for name, value in zip(example["tokens"], example["values"], strict=True) if value}
            assert lit == {f"⟨{token}⟩"}
    assert 'id="features"' in render({"title": "t", "features": section})


def test_features_are_drawn_one_of_each_class_by_frequency(model: Model, batches: list[Text]) -> None:
    alive = torch.arange(40) % 5 != 0
    one = member("a", alive=alive)
    (rate,) = frequencies(model, batches, [(one.dictionary, one.site)])
    able = [k for k in rate.argsort(stable=True).tolist() if alive[k] and rate[k] > 0]
    classes = [part.tolist() for part in torch.tensor(able).tensor_split(8)]
    drawn, few = set[tuple[int, ...]](), Selection(top=1, each=1)
    for seed in range(3):
        section = features_section(model, batches, [one], count=8, seed=seed, selection=few)
        latents = [entry["latent"] for entry in section["entries"]]
        assert sorted(next(i for i, own in enumerate(classes) if k in own) for k in latents) == list(range(8))
        drawn.add(tuple(latents))
        assert {entry["latent"]: entry["density"] for entry in section["entries"]} == pytest.approx(
            {k: float(rate[k]) for k in latents}
        )
    assert len(drawn) == 3
    assert "8 equal classes" in section["counted"]
    assert section == features_section(model, batches, [one], count=8, seed=2, selection=few)
    everything = features_section(model, batches, [one], count=1000, selection=Selection(top=1, each=0))
    assert sorted(entry["latent"] for entry in everything["entries"]) == sorted(able)


def test_dictionaries_take_turns(model: Model, batches: list[Text]) -> None:
    members = [member("a"), member("b", "e2e", latents=3), member("dead", "e2e", 1, alive=torch.zeros(40).bool())]
    section = features_section(model, batches, members, count=4)
    assert [entry["dictionary"] for entry in section["entries"][:6]] == [0, 1, 0, 1, 0, 1]
    assert section["dictionaries"] == [
        {"name": "a", "kind": "local"},
        {"name": "b", "kind": "e2e"},
        {"name": "dead", "kind": "e2e"},
    ]
    empty = features_section(model, batches, members[2:], count=4)
    assert empty["entries"] == []
    assert 'id="features"' in render({"title": "t", "features": empty})


def test_relatives_are_those_of_the_whole_matrix(model: Model, batches: list[Text]) -> None:
    alive = torch.arange(40) % 3 != 0
    members = [member("a", alive=alive), member("b", "e2e", latents=30), member("c", site="resid.2")]
    section = features_section(model, batches, members, count=6, neighbors=3, similar=2)
    unit = [F.normalize(one.directions.double(), dim=1) for one in members]
    assert {entry["dictionary"] for entry in section["entries"]} == {0, 1, 2}
    for entry in section["entries"]:
        i, k = entry["dictionary"], entry["latent"]
        own = unit[i] @ unit[i][k]
        own[k], own[~members[i].alive] = -2, -2
        values, index = own.topk(3)
        assert [row["latent"] for row in entry["neighbors"]] == index.tolist()
        assert [row["cosine"] for row in entry["neighbors"]] == pytest.approx(values.tolist(), abs=1e-6)
        others = {0: [1], 1: [0], 2: []}[i]
        assert len(entry["similar"]) == 2 * len(others)
        for j in others:
            there = (unit[j] @ unit[i][k]).masked_fill(~members[j].alive, -2)
            assert [row["latent"] for row in entry["similar"]] == there.topk(2).indices.tolist()
            assert {row["dictionary"] for row in entry["similar"]} == {j}


# --- logits


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "granite"])
def test_pushed_logits_are_the_mean_change_behind_the_last_block(name: str) -> None:
    exact = Model(decoder(name, torch.float64), CausalLM())
    # norms compute in float32 whatever comes in, so the step is not very small
    batch, where, step = text(), Where("valid", skip=1), 3e-3
    directions = rows(3, 1).double()
    found = DirectPath(exact, batch, where, Pieces(None)).pushed("resid.1", directions, 101)
    kept = where.select(tuple(batch.ids.shape), batch.valid)
    unembedding = CausalLM().unembedding(exact.module)

    def logits(along: Tensor, by: float) -> Tensor:
        hidden = exact.run(batch, {"resid.2": Steer(along, by), "final": Read()}).hidden["final"][kept]
        return unembedding.scale * torch.nn.functional.linear(hidden, unembedding.weight)

    for row, ends in zip(directions, found, strict=True):
        change = ((logits(row, step) - logits(row, -step)) / (2 * step)).mean(0)
        for way, largest in (("up", True), ("down", False)):
            ids = [int(push["token"][1:-1]) for push in ends[way]]
            values = [push["value"] for push in ends[way]]
            assert sorted(ids) == list(range(101))
            assert values == sorted(values, reverse=largest)
            assert values == pytest.approx(change[ids].tolist(), rel=1e-3, abs=1e-3 * float(change.abs().max()))


def test_the_norm_has_the_closed_form(model: Model) -> None:
    batch = text()
    state = model.run(batch, {"resid.2": Read()}, stop=True).hidden["resid.2"].double().flatten(0, 1)
    network: Any = model.module
    norm, head = network.model.norm, network.lm_head.weight.detach().double()
    weight, size = norm.weight.detach().double(), state.square().mean(-1) + norm.variance_epsilon
    direction = rows(1, 2).double()
    along = direction - state * (state @ direction[0] / (32 * size))[:, None]
    change = (along / size.sqrt()[:, None] * weight).mean(0) @ head.T
    (ends,) = DirectPath(model, batch, Where(), Pieces(None)).pushed("mlp.0", direction.float(), 1)
    assert ends["up"][0]["value"] == pytest.approx(float(change.max()), rel=1e-4)
    assert ends["down"][0]["value"] == pytest.approx(float(change.min()), rel=1e-4)
    (final,) = DirectPath(model, batch, Where(), Pieces(None)).pushed("final", direction.float(), 1)
    assert final["up"][0]["value"] == pytest.approx(float((head @ direction[0]).max()))
    assert DirectPath(model, batch, Where(), Pieces(None)).pushed("heads.1", direction.float(), 5) == [
        {"up": [], "down": []}
    ]
    with pytest.raises(ValueError, match="no position of the first 3 sequences counts"):
        DirectPath(model, batch, Where("valid", skip=9), Pieces(None))


# --- geometry


def nearest_cosines(a: Tensor, b: Tensor | None = None) -> Tensor:
    one, other = F.normalize(a.double(), dim=1), F.normalize((a if b is None else b).double(), dim=1)
    product = one @ other.T
    return (product.fill_diagonal_(-2) if b is None else product).amax(1)


def test_similarity_is_within_across_seeds_and_across_kinds(model: Model) -> None:
    first, other = rows(40, 0), rows(25, 1)
    noisy = [first[torch.randperm(40)] + 0.1 * s * rows(40, 10 + s) for s in range(3)]
    members = [of_rows(own, name=f"a{s}", kind="local", seed=s) for s, own in enumerate(noisy)]
    members += [of_rows(torch.cat((other, first[:5])), name="b", kind="e2e", seed=7)]
    section, remarks = geometry_section(model, [], members, points=0)
    assert [(row["relation"], row["kind"], row["other"]) for row in section["similarity"]] == [
        ("within", "local", "local"),
        ("within", "e2e", "e2e"),
        ("seeds", "local", "local"),
        ("kinds", "local", "e2e"),
        ("kinds", "e2e", "local"),
    ]
    alone, single, seeds, there, back = section["similarity"]
    directions = [one.directions for one in members]
    values = [float(nearest_cosines(own).mean()) for own in directions[:3]]
    spread = 4.303 * float(torch.tensor(values).std()) / math.sqrt(3)
    assert alone["mean"]["mean"] == pytest.approx(sum(values) / 3)
    assert alone["mean"]["high"] == pytest.approx(sum(values) / 3 + spread, rel=1e-3)
    assert sum(alone["histogram"]["counts"]) == 120
    own = nearest_cosines(directions[3])
    assert single["mean"]["mean"] == pytest.approx(float(own.mean()))
    assert single["mean"]["low"] < single["mean"]["mean"] < single["mean"]["high"]
    pairs = {
        (a, b): float(nearest_cosines(directions[a], directions[b]).mean())
        for a in range(3)
        for b in range(3)
        if a != b
    }
    whole = sum(pairs.values()) / 6
    without = [sum(v for pair, v in pairs.items() if s not in pair) / 2 for s in range(3)]
    assert seeds["mean"]["mean"] == pytest.approx(whole)
    # the jackknife: its error is √((n − 1)/n · Σ (without − mean)²)
    error = math.sqrt(2 / 3 * sum((part - whole) ** 2 for part in without))
    assert seeds["mean"]["high"] - whole == pytest.approx(4.303 * error, rel=1e-3)
    assert sum(seeds["histogram"]["counts"]) == 240
    expected = [float(nearest_cosines(directions[s], directions[3]).mean()) for s in range(3)]
    assert there["mean"]["mean"] == pytest.approx(sum(expected) / 3)
    expected = [float(nearest_cosines(directions[3], directions[s]).mean()) for s in range(3)]
    assert back["mean"]["mean"] == pytest.approx(sum(expected) / 3)
    for row in section["similarity"]:
        edges, counts = row["histogram"]["edges"], row["histogram"]["counts"]
        assert (edges[0], edges[-1], len(edges)) == (0, 1, len(counts) + 1)
        assert 0.2 < row["random"]["low"] < row["random"]["mean"] < row["covariance"]["high"] < 0.7
    assert len(remarks) == 1
    assert "The map of the features is left out: a map by 15 neighbors needs more" in remarks[0]
    assert 'id="geometry"' in render({"title": "t", "geometry": section})


def test_dictionaries_of_one_seed_are_not_compared_where_others_are(model: Model) -> None:
    same = rows(30, 0)
    members = [of_rows(same, name="a0", seed=0), of_rows(rows(30, 1), name="a1", seed=1)]
    members += [of_rows(same, name="b0", kind="e2e", seed=0), of_rows(rows(30, 2), name="b1", kind="e2e", seed=1)]
    section, _ = geometry_section(model, [], members, points=0)
    kinds = [row for row in section["similarity"] if row["relation"] == "kinds"]
    assert all(row["mean"]["mean"] < 0.6 and row["mean"]["low"] is None for row in kinds)
    section, _ = geometry_section(model, [], [members[0], members[2]], points=0)
    kinds = [row for row in section["similarity"] if row["relation"] == "kinds"]
    assert [row["mean"]["mean"] for row in kinds] == pytest.approx([1, 1])


def test_only_living_latents_are_compared(model: Model) -> None:
    directions = torch.cat((rows(20, 0), rows(20, 0)))
    alive = torch.arange(40) < 20
    halves = [of_rows(directions, name="a", alive=alive), of_rows(directions, name="b", kind="e2e", alive=~alive)]
    few = of_rows(directions, name="few", kind="e2e+ds", alive=torch.arange(40) == 3)
    section, remarks = geometry_section(model, [], [*halves, few], points=0)
    within, _, there, _ = section["similarity"]
    assert within["mean"]["mean"] == pytest.approx(float(nearest_cosines(rows(20, 0)).mean()))
    assert there["mean"]["mean"] == pytest.approx(1)
    assert remarks[0] == "few has too few latents alive to be compared."
    nothing, _ = geometry_section(model, [], [few])
    assert nothing == {"similarity": []}


def test_sites_are_kept_apart(model: Model) -> None:
    members = [member("a"), member("b", site="resid.2"), member("c", "e2e", site="resid.2")]
    section, remarks = geometry_section(model, [], members, points=0)
    assert [(row["relation"], row["site"], row["kind"], row["other"]) for row in section["similarity"]] == [
        ("within", "resid.1", "local", "local"),
        ("within", "resid.2", "local", "local"),
        ("within", "resid.2", "e2e", "e2e"),
        ("kinds", "resid.2", "local", "e2e"),
        ("kinds", "resid.2", "e2e", "local"),
    ]
    assert remarks[0] == "The map of the features is that of resid.1."


def test_the_map_holds_the_features_that_are_shown(
    model: Model, batches: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    # compiling the true one takes most of a minute, and its own tests try it
    monkeypatch.setattr(feature_map, "_umap", lambda rows, index, distance, seed: rows[:, :2])
    members = [member("a", latents=80), member("b", "e2e", latents=80), member("other seed", "e2e", 1)]
    features = features_section(model, batches, members, count=5)
    section, remarks = geometry_section(model, batches, members, points=40, features=features)
    chart = section["map"]
    assert remarks == []
    assert chart["dictionaries"] == [{"name": "a", "kind": "local"}, {"name": "b", "kind": "e2e"}]
    points = list(zip(chart["dictionary"], chart["latent"], strict=True))
    assert len(set(points)) == 40
    assert {(e["dictionary"], e["latent"]) for e in features["entries"] if e["dictionary"] < 2} <= set(points)
    words = dict(zip(points, chart["words"], strict=True))
    for entry in features["entries"]:
        if entry["dictionary"] < 2:
            top = ", ".join(row["token"] for row in entry["up"][:3])
            assert words[entry["dictionary"], entry["latent"]] == top
    assert "40 of 160 latents alive" in chart["method"]
    page = render({"title": "t", "features": features, "geometry": section})
    assert 'id="atlas"' in page
    assert 'id="others"' not in page


def test_without_umap_there_is_a_remark(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    section, remarks = geometry_section(model, [], [member("a")])
    assert "map" not in section
    assert "umap-learn: pip install 'innerspace[language]'" in remarks[0]


# --- other networks, true ones, errors


def test_a_network_without_tokens_has_captions_and_no_logits() -> None:
    case = blocks()
    made = Dictionary(8, 6, ReLU()).eval()
    alive = torch.ones(6, dtype=torch.bool)
    members = [Member("a", "local", "k 3", 0, "first", made, alive)]
    section = features_section(
        case.model,
        [case.batch],
        members,
        count=3,
        caption=lambda batch, row: f"a vehicle at {row} m/s",
        unit="agents",
    )
    assert len(section["entries"]) == 3
    assert section["unit"] == "agents"
    assert "Logits" not in section["counted"]
    for entry in section["entries"]:
        assert entry["up"] == entry["down"] == []
        assert all("caption" in example for band in entry["bands"] for example in band["examples"])
    geometry, _ = geometry_section(case.model, [case.batch], members)
    assert "m/s" in render({"title": "t", "features": section, "geometry": geometry})


def test_a_trained_network(assets: Path) -> None:
    loaded = load(assets / "lm" / "stories260K")
    stories = json.loads((assets / "lm" / "tinystories_1000.json").read_text())
    stories = [story.replace("\n\n", "\n")[:300] for story in stories[:8]]
    batches = [tokenize(loaded.tokenizer, stories[i : i + 4]) for i in (0, 4)]
    made = Dictionary(64, 512, TopK(16), seed=1).eval()
    one = Member("local k 16", "local", "k 16", 0, "resid.2", made, torch.ones(512, dtype=torch.bool))
    selection, where = Selection(before=8, after=4), Where("valid", skip=1)
    section = features_section(
        loaded.model, batches, [one], count=20, tokenizer=loaded.tokenizer, where=where, selection=selection
    )
    assert len(section["entries"]) == 20
    for entry in section["entries"]:
        assert 0 < entry["density"] < 1
        assert len(entry["up"]) == len(entry["down"]) == 8
        assert entry["up"][0]["value"] > 0 > entry["down"][0]["value"]
        for example in (example for band in entry["bands"] for example in band["examples"]):
            assert len(example["tokens"]) <= 13
            assert any("".join(example["tokens"]) in f"<s> {story}" for story in stories)
            assert 0 < max(example["values"]) <= entry["max"]
    page = render({"title": "t", "features": section})
    assert 'id="others"' not in page


def test_errors_say_what_is_wrong(model: Model, batches: list[Text]) -> None:
    with pytest.raises(ValueError, match="no dictionary to show"):
        features_section(model, batches, [], count=3)
    with pytest.raises(ValueError, match="two are called 'a'"):
        geometry_section(model, batches, [member("a"), member("a", seed=1)])
    with pytest.raises(ValueError, match="at least one feature of each dictionary should be shown, not 0"):
        features_section(model, batches, [member("a")], count=0)
    with pytest.raises(ValueError, match="'a' has 40 latents, its mask of those alive 3 entries"):
        member("a", alive=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"one coefficient of local at resid\.1, once for each seed, not of a, b"):
        geometry_section(model, batches, [member("a", coefficient=1.0), member("b", seed=1, coefficient=3.0)])
    with pytest.raises(ValueError, match="once for each seed, not of a, b"):
        geometry_section(model, batches, [member("a"), member("b")])
    with pytest.raises(ValueError, match=r"no position at 'resid\.1' counts"):
        features_section(model, [], [member("a")], count=3)
