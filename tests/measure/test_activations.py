"""What latents fire on: hand-made ones that know a token, an oracle from dense codes, fair draws, bounded memory."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from families import BlocksFamily, blocks
from innerspace.decompose.dictionary import Dictionary, Form
from innerspace.decompose.nonlinearities import Nonlinearity, ReLU, TopK
from innerspace.interventions import Read
from innerspace.language.causal_lm import CausalLM, load
from innerspace.language.pieces import Pieces
from innerspace.language.text import Text
from innerspace.measure.activations import (
    Activations,
    Captioned,
    Excerpt,
    Selection,
    Watched,
    frequencies,
    observe,
)
from innerspace.network.model import Model
from innerspace.network.site import Where
from language.tiny import decoder, text

BANDS = ["top", "80–100 %", "60–80 %", "40–60 %", "20–40 %", "0–20 %"]


@pytest.fixture(scope="module")
def model() -> Model:
    # in float64 the products of few rows and of many are the same to the last bit of float32
    return Model(decoder("llama", torch.float64), CausalLM())


def knows_tokens(model: Model, tokens: list[int]) -> Dictionary:
    """Latent i is on exactly where the token is ``tokens[i]``, always at the same activation."""
    embeddings = model.module.get_input_embeddings().weight.detach()  # pyright: ignore
    rows = torch.nn.functional.normalize(embeddings - embeddings.mean(0), dim=1)[tokens]
    others = (embeddings @ rows.T).T
    largest = others.topk(2).values
    assert others.argmax(1).tolist() == tokens
    made = Dictionary(32, len(tokens), ReLU(), form=Form(pre_bias=False)).double().eval()
    made.load_state_dict(made.state_dict() | {"encoder": rows, "encoder_bias": -largest.mean(1), "decoder": rows})
    return made


def random(latents: int, nonlinearity: Nonlinearity, seed: int = 0) -> Dictionary:
    return Dictionary(32, latents, nonlinearity, seed=seed).double().eval()


def dense(model: Model, what: Dictionary, batches: list[Text], site: str, where: Where) -> list[Tensor]:
    """The code of every position of every batch [batch, token, latent], zero at those that do not count."""
    codes = list[Tensor]()
    for batch in batches:
        x = model.run(batch, {site: Read()}, stop=True).hidden[site]
        counts = where.select(tuple(x.shape[:-1]), batch.valid)
        codes.append((what.encode(x).z.detach() * counts[..., None]).float())
    return codes


def one(model: Model, batches: list[Text], what: Dictionary, latents: list[int], **others: Any) -> list[Activations]:
    site = others.pop("site", "embed")
    (found,) = observe(model, batches, [Watched(what, site, torch.tensor(latents))], **others).latents
    return found


def test_a_latent_that_knows_a_token_is_on_there_and_nowhere_else(model: Model) -> None:
    batches = [text(rows=40, length=20), text("left", rows=4, length=20)]
    tokens = [7, 50, 99]
    what = knows_tokens(model, tokens)
    found = one(model, batches, what, [2, 0, 1], selection=Selection(before=3, after=2))
    every = torch.cat([batch.ids[batch.valid] if batch.valid is not None else batch.ids.flatten() for batch in batches])
    assert [item.latent for item in found] == [2, 0, 1]
    for item in found:
        token = tokens[item.latent]
        count = int((every == token).sum())
        assert count > 4
        assert item.density == pytest.approx(count / len(every))
        assert sum(item.counts) == item.counts[-1] == count
        for example in (example for band in item.bands for example in band.examples):
            assert isinstance(example, Excerpt)
            on = [i for i, value in enumerate(example.values) if value]
            assert on == [i for i, shown in enumerate(example.ids) if shown == token]
            assert [example.values[i] for i in on] == pytest.approx([item.max] * len(on), rel=1e-5)
            assert len(example.ids) <= 6


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("kind", [ReLU(), TopK(5)])
def test_all_numbers_are_those_of_the_dense_codes(model: Model, padding: str | None, kind: Nonlinearity) -> None:
    batches = [text(padding, rows=3, length=9), text(padding, rows=3, length=12)]
    where = Where("valid", skip=1)
    what = random(300, kind)
    assert what.prefers_sparse == isinstance(kind, TopK)
    codes = dense(model, what, batches, "resid.1", where)
    positions = sum(int(where.select(tuple(batch.ids.shape), batch.valid).sum()) for batch in batches)
    latents = list(range(5, 300, 9))
    selection = Selection(before=2, after=1, top=3, each=2, bins=7)
    (rate,) = frequencies(model, batches, [(what, "resid.1")], where=where)
    for item in one(model, batches, what, latents, site="resid.1", where=where, selection=selection):
        own = [code[..., item.latent] for code in codes]
        values = torch.cat([code[code != 0] for code in own]).sort().values
        assert item.density == pytest.approx(len(values) / positions) == float(rate[item.latent])
        assert item.max == pytest.approx(float(values.max()) if len(values) else 0.0)
        assert sum(item.counts) == len(values)
        assert len(item.edges) == 8
        places = {
            (tuple(batch.ids[row, span].tolist()), tuple(code[row, span].tolist())): float(code[row, i])
            for batch, code in zip(batches, own, strict=True)
            for row, i in code.nonzero().tolist()
            for valid in [range(20) if batch.valid is None else batch.valid[row].nonzero().flatten().tolist()]
            for span in [slice(max(valid[0], i - 2), min(valid[-1], i + 1) + 1)]
        }
        names = [band.name for band in item.bands]
        assert names == [name for name in BANDS if name in names]
        assert (names[:1] == ["top"]) == bool(len(values))
        for band in item.bands:
            drawn = [places[shown.ids, shown.values] for shown in band.examples if isinstance(shown, Excerpt)]
            assert drawn == sorted(drawn, reverse=True)
            assert all(band.low <= value <= band.high for value in drawn)
            if band.name == "top":
                assert drawn[0] == item.max
                continue
            i = 5 - BANDS.index(band.name)
            quantile = values[len(values) * i // 5 : len(values) * (i + 1) // 5]
            assert (band.low, band.high) == (float(quantile[0]), float(quantile[-1]))
            assert len(drawn) == min(2, len(quantile))


def test_top_examples_are_of_different_sequences(model: Model) -> None:
    what, batch = random(8, ReLU()), text(rows=5, length=16)
    (code,) = dense(model, what, [batch], "resid.0", Where())
    (item,) = one(model, [batch], what, [3], site="resid.0", selection=Selection(top=4))
    peaks = [max(example.values) for example in item.bands[0].examples if isinstance(example, Excerpt)]
    assert peaks == code[..., 3].amax(1).sort(descending=True).values[:4].tolist()


def test_every_entry_of_a_band_has_the_same_chance(model: Model) -> None:
    # many latents that are the same, each with draws of its own
    what, batch, repeats = random(200, ReLU()), text(rows=8, length=12), 200
    row = what.encoder.detach()[:1].expand(200, 32)
    what.load_state_dict(what.state_dict() | {"encoder": row, "decoder": row})
    selection = Selection(before=0, after=0, top=0, each=3)
    found = one(model, [batch], what, list(range(200)), site="resid.1", selection=selection)
    shown = [e for item in found for band in item.bands for e in band.examples if isinstance(e, Excerpt)]
    drawn = Counter(example.values[0] for example in shown)
    (code,) = dense(model, what, [batch], "resid.1", Where())
    values = code[..., 0][code[..., 0] != 0].sort().values.tolist()
    assert len(set(values)) == len(values) > 20
    expected = {
        value: repeats * 3 / len(quantile)
        for i in range(5)
        for quantile in [values[len(values) * i // 5 : len(values) * (i + 1) // 5]]
        for value in quantile
    }
    assert set(drawn) == set(expected)
    assert all(abs(drawn[value] - mean) < 5 * mean**0.5 for value, mean in expected.items())


def test_equal_activations_fall_into_bands_at_random(model: Model) -> None:
    """Else the faintest band would hold the beginning of the stream."""
    ids = torch.full((100, 2), 7)
    ids[:, 1] = torch.arange(100) % 90 + 8
    selection = Selection(before=0, after=1, each=5)
    (item,) = one(model, [Text(ids)], knows_tokens(model, [7]), [0], selection=selection)
    after = [int(e.ids[1]) for band in item.bands[1:] for e in band.examples if isinstance(e, Excerpt)]
    assert after[-5:] != sorted(after[-5:])
    assert max(after[-5:]) > 8 + 20


def test_batches_of_any_size_give_the_same(model: Model) -> None:
    batch, what = text(rows=12, length=10), random(300, TopK(9))
    single = [Text(row[None]) for row in batch.ids]
    watched = [Watched(what, "resid.0", torch.arange(20)), Watched(random(6, ReLU(), 1), "resid.1", torch.tensor([5]))]
    whole = observe(model, [batch], watched, seed=3)
    assert whole.positions == [120, 120]
    for other in (observe(model, single, watched, seed=3), observe(model, iter([batch]), watched, seed=3)):
        for found, again in zip(whole.latents, other.latents, strict=True):
            assert [item.latent for item in found] == [item.latent for item in again]
            for one_, two in zip(found, again, strict=True):
                assert (one_.density, one_.max) == pytest.approx((two.density, two.max))
                assert [[e.ids for e in band.examples] for band in one_.bands] == [  # pyright: ignore
                    [e.ids for e in band.examples]  # pyright: ignore
                    for band in two.bands
                ]


def test_memory_is_bounded_and_what_is_kept_stays_whole(model: Model) -> None:
    batches, what = [text(rows=8, length=12) for _ in range(8)], random(8, ReLU())
    for i, batch in enumerate(batches):
        batch.ids[:, 0] = i + 3
    whole = observe(model, batches, [Watched(what, "resid.0", torch.arange(8))])
    total = sum(sum(item.counts) for item in whole.latents[0])
    part = observe(model, batches, [Watched(what, "resid.0", torch.arange(8))], selection=Selection(most=total // 3))
    kept = sum(sum(item.counts) for item in part.latents[0])
    assert whole.share == 1
    assert part.share in (0.25, 0.125)
    assert total / 20 < kept <= total // 3
    codes = dense(model, what, batches, "resid.0", Where())
    contexts = {tuple(c[:, k].tolist()) for code in codes for c in code for k in range(8)}
    for item, other in zip(part.latents[0], whole.latents[0], strict=True):
        assert (item.density, item.max) == (other.density, other.max)
        for example in (example for band in item.bands for example in band.examples):
            assert isinstance(example, Excerpt)
            assert any(set(example.values) <= set(row) for row in contexts)
    with pytest.raises(ValueError, match="no room for the nonzero entries of one sequence; 2"):
        observe(model, batches, [Watched(what, "resid.0", torch.arange(8))], selection=Selection(most=2))


def test_a_dictionary_in_training_stays_as_it_was(model: Model) -> None:
    what = random(300, TopK(4)).train()
    before = {name: value.clone() for name, value in what.state_dict().items()}
    one(model, [text()], what, [0], site="resid.0")
    assert what.training
    assert all(torch.equal(before[name], value) for name, value in what.state_dict().items())


def test_what_is_no_text_has_captions() -> None:
    case = blocks()
    what = Dictionary(8, 4, ReLU()).eval()
    watched = [Watched(what, "first", torch.arange(4))]
    captions = ["a", "b", "c", "d"]
    found = observe(case.model, [case.batch], watched, caption=lambda batch, row: captions[row])
    x = case.model.run(case.batch, {"first": Read()}, stop=True).hidden["first"]
    z = what.encode(x).z * case.batch["valid"][..., None]
    assert found.positions == [int(case.batch["valid"].sum())]
    for item in found.latents[0]:
        for example in (example for band in item.bands for example in band.examples):
            assert isinstance(example, Captioned)
            assert example.value in z[captions.index(example.caption), :, item.latent].tolist()
    with pytest.raises(ValueError, match="a dict is no text, so its rows need a caption"):
        observe(case.model, [case.batch], watched)


def test_errors_say_what_is_wrong(model: Model) -> None:
    what = random(4, ReLU())
    with pytest.raises(ValueError, match="no decomposition to watch"):
        observe(model, [text()], [])
    with pytest.raises(ValueError, match="should be some of 0 … 3, each once: \\[1, 4\\]"):
        one(model, [text()], what, [1, 4])
    with pytest.raises(ValueError, match="each once: \\[1, 1\\]"):
        one(model, [text()], what, [1, 1])
    with pytest.raises(ValueError, match="no position at 'embed' counts"):
        one(model, [], what, [1])
    with pytest.raises(ValueError, match="no position at 'embed' counts"):
        frequencies(model, [text(length=3)], [(what, "embed")], where=Where("valid", skip=3))
    with pytest.raises(ValueError, match="no site is called"):
        frequencies(model, [text()], [(what, "resid.9")])
    with pytest.raises(ValueError, match="each should be at least 0, it is -1"):
        Selection(each=-1)
    case = blocks()
    spoiled = {**case.batch, "x": case.batch["x"] / 0}
    broken = Model(case.model.module, BlocksFamily())
    with pytest.raises(ValueError, match="'first' are not finite in batch 1"):
        frequencies(broken, [case.batch, spoiled], [(Dictionary(8, 4, ReLU()), "first")])


SENTENCE = 'Once upon a time, é 😀 there\nwas  a "cat".\t文字'


def test_pieces_of_a_sentencepiece_tokenizer_are_the_text(assets: Path) -> None:
    tokenizer = load(assets / "lm" / "stories260K").tokenizer
    pieces = Pieces(tokenizer)
    ids = tokenizer.encode(SENTENCE)
    found = pieces.of(ids)
    assert "".join(found) == f"<s> {SENTENCE}"
    assert found[:3] == ["<s>", " Once", " upon"]
    assert found[found.index("😀") - 3 : found.index("😀")] == ["", "", ""]
    assert pieces.name(tokenizer.convert_tokens_to_ids("<0xF0>")) == "<0xF0>"
    assert pieces.name(tokenizer.convert_tokens_to_ids("▁the")) == " the"
    assert pieces.count == 512
    # from within a character on, only its end is lost
    assert "".join(pieces.of(ids[11:])).endswith(' there\nwas  a "cat".\t文字')
    assert "".join(pieces.of(ids[:11])) == "<s> Once upon a time, é \ufffd\ufffd"


def test_pieces_of_a_byte_level_tokenizer_are_the_text() -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(["once upon a time there was a cat"] * 3, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw)
    ids = tokenizer.encode(SENTENCE)
    found = Pieces(tokenizer).of(ids)
    assert "".join(found) == SENTENCE
    assert "\ufffd" not in "".join(found)
    assert " a" in found
    assert "😀" in found


def test_without_a_tokenizer_tokens_are_numbers() -> None:
    pieces = Pieces(None)
    assert pieces.of([3, 14]) == ["⟨3⟩", "⟨14⟩"]
    assert pieces.name(7) == "⟨7⟩"
    assert pieces.count is None
