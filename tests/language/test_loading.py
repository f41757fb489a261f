"""Networks, tokenizers and texts from files, and what is refused."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from innerspace.language.causal_lm import CausalLM, load, tokenize
from innerspace.network.model import Model
from language.tiny import decoder


def tiny_tokenizer(words: int = 90) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, words)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    decoder("gpt-neo").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_a_folder_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    lm = load(folder, ignore_special=True)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    assert lm.model.family == CausalLM(ignore=(0, 1, 2))
    batch = tokenize(lm.tokenizer, ["w5 w6 w7", "w8"], bos="always")
    plain = Model(decoder("gpt-neo"), CausalLM()).run(batch).output["logits"]
    assert torch.equal(load(str(folder)).model.run(batch).output["logits"], plain)
    half = load(folder, dtype=torch.bfloat16)
    assert half.model.run(batch).output["logits"].dtype == torch.bfloat16
    assert list(half.model.sites) == list(lm.model.sites)


def test_a_module_in_hand_is_taken_as_it_is() -> None:
    module, tokenizer = decoder("llama", torch.float64), tiny_tokenizer()
    lm = load(module, tokenizer=tokenizer, dtype=torch.float64)
    assert lm.model.module is module
    assert lm.tokenizer is tokenizer
    assert load(module).tokenizer is None
    with pytest.raises(ValueError, match="a module in hand stays as it is"):
        load(module, dtype=torch.float32)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        load(module, ignore_special=True)
    with pytest.raises(ValueError, match=r"'w149' is token 149, and there are 101 embeddings"):
        load(module, tokenizer=tiny_tokenizer(150))


def test_damaged_folders_are_refused(folder: Path) -> None:
    def copied(name: str) -> Path:
        shutil.copytree(folder, folder / name, ignore=shutil.ignore_patterns("*-copy"))
        return folder / name

    with pytest.raises(ValueError, match=r"no language model at .*nowhere: there is no config.json"):
        load(folder / "nowhere")
    with pytest.raises(ValueError, match=r"there is no config\.json"):
        load("./nowhere")
    cut = copied("cut-copy") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"no model can be loaded from .*cut-copy.*deserializing header"):
        load(cut.parent)
    cut.unlink()
    with pytest.raises(ValueError, match=r"no model can be loaded .* no file named model.safetensors"):
        load(cut.parent)
    config = copied("other-copy") / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 36'))
    with pytest.raises(ValueError, match="no model can be loaded from"):
        load(config.parent)
    without = copied("without-copy")
    (without / "tokenizer.json").unlink()
    (without / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="the tokenizer knows special tokens only"):
        load(without)
    assert load(without, tokenizer=tiny_tokenizer()).tokenizer is not None
    (without / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="no model can be loaded from"):
        load(without)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors, such as 'transformer.h.1.mlp.c_fc.weight'"):
        load(folder)


def test_a_name_is_refused_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no model can be loaded from 'nobody/nothing-at-all'"):
        load("nobody/nothing-at-all")


def test_texts_become_a_padded_batch() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["w5 w6 w7", "w8"]
    right, left = tokenize(tokenizer, texts), tokenize(tokenizer, texts, side="left", bos="always")
    assert right.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert left.ids.tolist() == [[1, 5, 6, 7], [0, 0, 1, 8]]
    assert right.valid is not None
    assert left.valid is not None
    assert right.valid.tolist() == [[True] * 3, [True, False, False]]
    assert left.valid.tolist() == [[True] * 4, [False, False, True, True]]
    assert tokenize(tokenizer, ["w5", "w6"]).valid is None
    with pytest.raises(ValueError, match="there is no text"):
        tokenize(tokenizer, [])
    with pytest.raises(ValueError, match=r"text 1 \(''\) has no token"):
        tokenize(tokenizer, ["w5", ""])
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = None
    with pytest.raises(ValueError, match="has no BOS"):
        tokenize(bare, ["w5"], bos="always")


@torch.no_grad()
def test_a_trained_network_knows_its_stories(assets: Path) -> None:
    texts = [
        item.replace("\n\n", "\n") for item in json.loads((assets / "lm" / "tinystories_1000.json").read_text())[:10]
    ]
    lm = load(assets / "lm" / "stories260K")
    batch = tokenize(lm.tokenizer, texts)
    assert batch.valid is not None
    assert (batch.ids[:, 0] == lm.tokenizer.bos_token_id).all()
    logits = lm.model.run(batch).output["logits"]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch.ids[:, 1:], reduction="none")
    loss = losses[batch.valid[:, 1:]].mean()
    # what transformers' own pass gives, story by story and without padding
    assert abs(float(loss) - 1.29659) < 1e-4
