"""Tiny decoders with random weights, one of every architecture that is tested, and texts for them."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from innerspace.interventions import Read
from innerspace.language.causal_lm import CausalLM
from innerspace.language.text import Text
from innerspace.network.model import Model

WINDOW = 4
"""How far the layers with a sliding window see: shorter than the texts."""

_SIZES = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_MORE = {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": WINDOW, "num_key_value_heads": 2}


def _opt() -> Any:
    return transformers.OPTConfig(**_SIZES, **_TOKENS, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64)


def _gpt2(n_layer: int = 3) -> Any:
    return transformers.GPT2Config(vocab_size=101, n_embd=32, n_layer=n_layer, n_head=4, n_positions=64, **_TOKENS)


def _neo() -> Any:
    kinds = [[["global", "local"], 1], [["global"], 1]]
    return transformers.GPTNeoConfig(
        vocab_size=101,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        attention_types=kinds,
        window_size=WINDOW,
        max_position_embeddings=64,
        **_TOKENS,
    )


def _made(kind: Any, **others: Any) -> Callable[[], Any]:
    return lambda: kind(**{**_SIZES, **_MORE, **_TOKENS, **others})


CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": _gpt2,
    "gpt2-12": lambda: _gpt2(12),
    "gpt-neo": _neo,
    "gpt-neox": _made(transformers.GPTNeoXConfig, rotary_pct=0.5, use_parallel_residual=True),
    "gpt-neox-sequential": _made(transformers.GPTNeoXConfig, use_parallel_residual=False),
    "llama": _made(transformers.LlamaConfig, num_key_value_heads=2),
    "mistral": _made(transformers.MistralConfig, num_key_value_heads=1, sliding_window=WINDOW, head_dim=12),
    "qwen2": _made(transformers.Qwen2Config, num_key_value_heads=2),
    "qwen3": _made(transformers.Qwen3Config, num_key_value_heads=2, head_dim=16),
    "gemma2": _made(
        transformers.Gemma2Config,
        **_GEMMA,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        final_logit_softcapping=0.5,
    ),
    "gemma3": _made(
        transformers.Gemma3TextConfig,
        **_GEMMA,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi": _made(transformers.PhiConfig, num_key_value_heads=2),
    "phi3": _made(transformers.Phi3Config, num_key_value_heads=2),
    "opt": _opt,
    "olmo2": _made(transformers.Olmo2Config, num_key_value_heads=2),
    "cohere": _made(transformers.CohereConfig, num_key_value_heads=2),
    "granite": _made(transformers.GraniteConfig, num_key_value_heads=2, logits_scaling=3.0, residual_multiplier=0.5),
}

PARALLEL = {"gpt-neox", "phi", "cohere"}
"""Attention and MLP read the same stream: there is none between them."""


def decoder(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A decoder whose weights are large enough for every part of it to matter."""
    torch.manual_seed(5)
    config = CONFIGS[name]()
    module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.15)
    # generation goes on to the length that is asked for
    module.generation_config.eos_token_id = None
    return module.to(dtype).eval()


def text(padding: str | None = None, rows: int = 3, length: int = 9) -> Text:
    """Random tokens, without or with padding at an end."""
    generator = torch.Generator().manual_seed(6)
    ids = torch.randint(3, 101, (rows, length), generator=generator)
    if padding is None:
        return Text(ids)
    place, missing = torch.arange(length), 2 * torch.arange(rows)[:, None]
    valid = place >= missing if padding == "left" else place < length - missing
    return Text(ids.where(valid, 0), valid)


def model(name: str, dtype: torch.dtype | None = None) -> Model:
    # Gemma 2's mask of float64 is infinite in the float32 of its attention, and its padding NaN
    return Model(decoder(name, dtype or (torch.float32 if name == "gemma2" else torch.float64)), CausalLM())


def direction(model: Model, site: str, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    like = next(model.module.parameters())
    return torch.randn(model.site(site).width, generator=generator).to(like)


def reads(model: Model) -> dict[str, Any]:
    return {site: Read() for site in model.sites}
