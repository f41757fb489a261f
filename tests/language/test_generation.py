"""Interventions hold while text is generated: prompt and later steps, unequal rows, several samples."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from innerspace.interventions import At, Steer
from innerspace.language.causal_lm import load, tokenize
from innerspace.language.text import Text
from innerspace.network.model import Model
from innerspace.network.site import Where
from language.tiny import direction, model, text

WHERES = {
    "embed": Where(skip=1),
    "heads.0": Where(-1),
    "resid.0": Where("valid"),
    "attn.1": Where(0),
    "resid_mid.1": Where("valid", skip=2),
    "mlp.1": Where("last"),
    "resid.1": Where("all"),
    "heads.2": Where(2),
    "attn.2": Where(6),
    "resid.2": Where("last"),
}


def meant(where: Where, missing: int, prompt: int, length: int) -> Tensor:
    """Which positions of a row without its padding are edited, by what the words of ``Where`` say."""
    place = torch.arange(length)
    if where.tokens in ("last", -1):
        return place >= prompt - missing - 1
    if isinstance(where.tokens, int):
        return place == where.tokens - missing
    return place >= where.skip


def expected(lm: Model, sites: list[str], ids: Tensor, missing: int, prompt: int) -> Tensor:
    """The logits of a row without cache and padding, each position edited if it is meant."""
    row, plan = ids[None, missing:], dict[str, Any]()
    for site in sites:
        chosen = meant(WHERES[site], missing, prompt, row.shape[1])
        plan[site] = lambda x, _, site=site, chosen=chosen: x + chosen[None, :, None] * direction(lm, site)
    return lm.run(Text(row), plan).output["logits"][0]


def generated(lm: Model, sites: list[str], batch: Text, **options: Any) -> list[Any]:
    """Two generations in a row."""
    steers = {site: At(WHERES[site], Steer(direction(lm, site), 1.0)) for site in sites}
    attention = torch.ones_like(batch.ids) if batch.valid is None else batch.valid.long()
    with lm.under(steers, batch=batch):
        return [
            lm.module.generate(
                input_ids=batch.ids,
                attention_mask=attention,
                max_new_tokens=6,
                return_dict_in_generate=True,
                output_logits=True,
                **options,
            )
            for _ in range(2)
        ]


@torch.no_grad()
@pytest.mark.parametrize("padding", [None, "left"])
@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "gpt-neox", "mistral", "qwen3", "gemma2", "gemma3", "opt"])
def test_generation_with_a_cache_is_edited_as_passes_without_one(name: str, padding: str | None) -> None:
    lm, batch = model(name), text(padding, length=7)
    sites = [site for site in WHERES if site in lm.sites]
    plain = lm.module.generate(
        input_ids=batch.ids,
        attention_mask=torch.ones_like(batch.ids) if batch.valid is None else batch.valid.long(),
        max_new_tokens=6,
        do_sample=False,
    )
    one, again = generated(lm, sites, batch, do_sample=False)
    assert torch.equal(one.sequences, again.sequences)
    assert not torch.equal(one.sequences, plain)
    for row in range(3):
        missing = 0 if padding is None else 2 * row
        logits = expected(lm, sites, one.sequences[row], missing, 7)
        found = torch.stack([step[row] for step in one.logits])
        torch.testing.assert_close(found, logits[-7:-1].float(), atol=2e-5, rtol=2e-5)
        assert torch.equal(one.sequences[row, 7:], logits[-7:-1].argmax(-1))


@torch.no_grad()
@pytest.mark.parametrize("padding", [None, "left"])
def test_several_samples_of_a_prompt_are_edited(padding: str | None) -> None:
    lm, batch = model("llama"), text(padding, length=7)
    sites = [site for site in WHERES if site in lm.sites]
    torch.manual_seed(8)
    one, again = generated(lm, sites, batch, do_sample=True, num_return_sequences=2)
    assert one.sequences.shape == (6, 13)
    assert not torch.equal(one.sequences, again.sequences)
    for result, row in itertools.product((one, again), range(6)):
        missing = 0 if padding is None else 2 * (row // 2)
        logits = expected(lm, sites, result.sequences[row], missing, 7)
        found = torch.stack([step[row] for step in result.logits])
        torch.testing.assert_close(found, logits[-7:-1].float(), atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_a_prompt_of_one_token_is_no_later_step() -> None:
    lm, batch = model("llama"), text(length=1)
    sites = ["embed", "attn.1", "mlp.1"]
    (one, _) = generated(lm, sites, batch, do_sample=False)
    for row in range(3):
        logits = expected(lm, sites, one.sequences[row], 0, 1)
        found = torch.stack([step[row] for step in one.logits])
        torch.testing.assert_close(found, logits[-7:-1].float(), atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_a_steer_of_nothing_continues_a_story_bit_for_bit(assets: Path) -> None:
    texts = [
        item.replace("\n\n", "\n") for item in json.loads((assets / "lm" / "tinystories_1000.json").read_text())[:3]
    ]
    lm = load(assets / "lm" / "stories260K")
    batch = tokenize(lm.tokenizer, [item[:n] for item, n in zip(texts, (60, 90, 120), strict=True)], side="left")
    assert batch.valid is not None
    given = {"input_ids": batch.ids, "attention_mask": batch.valid.long(), "do_sample": False, "pad_token_id": 0}
    given |= {"max_new_tokens": 30, "return_dict_in_generate": True, "output_logits": True}
    plain = lm.model.module.generate(**given)
    v = torch.randn(64, generator=torch.Generator().manual_seed(10))
    for tau in (0.0, torch.zeros(3, 1)):
        with lm.model.under({"resid.2": At(Where("valid", skip=1), Steer(v, tau))}, batch=batch):
            steered = lm.model.module.generate(**given)
        assert torch.equal(plain.sequences, steered.sequences)
        assert torch.equal(torch.stack(plain.logits), torch.stack(steered.logits))
    with lm.model.under({"resid.2": At(Where("valid", skip=1), Steer(v, 3.0))}, batch=batch):
        assert not torch.equal(plain.sequences, lm.model.module.generate(**given).sequences)
